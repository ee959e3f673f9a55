"""Where a command may write. It is checked before the work; a finished model is never overwritten."""

import os
from pathlib import Path

from fewstep.card import CARD_FILE, WEIGHTS_FILE, CheckpointError

STATE_FILE = "state.safetensors"  # a training run that can be resumed
CLASSIFIER_FILE = "classifier.safetensors"
EXTRACTOR_FILE = "extractor.onnx"
ADAPTER_FILE, ADAPTER_CARD = "adapter.safetensors", "adapter.json"
ENGINE_FILES = ("engine.json", "network.onnx")
MODEL_FILES = (STATE_FILE, WEIGHTS_FILE, CARD_FILE, CLASSIFIER_FILE, EXTRACTOR_FILE, ADAPTER_FILE, *ENGINE_FILES)


def check_folder(out: Path) -> None:
    """Raise CheckpointError when `out` is a file, holds a model or a training run, or cannot be made."""
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"--out {out} is a file; name a folder")
    for name in MODEL_FILES:
        if (out / name).exists():
            raise CheckpointError(f"--out {out} already holds a {name}, which is left as it is; name another folder")
    check_writable(out)


def check_file(out: Path, suffix: str) -> None:
    """Raise CheckpointError unless `out` can become a file of this suffix, such as ".json", and is none of a model."""
    if out.is_dir():
        raise CheckpointError(f"{out} is a folder; name the {suffix} file to write")
    if out.suffix.lower() != suffix:
        raise CheckpointError(f"{out} does not end in {suffix}; name a {suffix} file to write")
    if out.name in MODEL_FILES and out.exists():
        raise CheckpointError(f"{out} belongs to a finished model, which is left as it is; name another file")
    check_writable(out.parent)


def check_writable(folder: Path) -> None:
    """Raise CheckpointError when nothing can be written into `folder`, which need not exist yet."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise CheckpointError(f"{folder} cannot be written: {existing} is not a folder; name another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CheckpointError(f"{folder} cannot be written: no permission to write into {existing}; name another place")
