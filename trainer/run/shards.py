"""Divided tensors on disk: folders of safetensors files, one file of each process (torch.distributed.checkpoint).

It is torch's layout of safetensors files and not its default, whose index is pickled. What several processes wrote can
be read by any number of them, into divided tensors or whole ones.
"""

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.card import CheckpointError
from trainer.run.distributed import from_first, rank, ranks

FOLDER = "shards"


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> str:
    """Write divided tensors to a new folder in `folder`/shards and return its name. Every process takes part.

    Raises CheckpointError in all of them when one cannot write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    name = from_first(_next_name(folder) if rank() == 0 else "")
    path = folder / FOLDER / name
    try:
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True))
    except CheckpointException as error:
        raise CheckpointError(
            f"{path} cannot be written ({_reasons(error.failures)}); every machine needs the same --out, with room for "
            "the state"
        ) from error
    return name


def read_shards(folder: Path, name: str, like: Callable[[str], Tensor | None], prefix: str) -> dict[str, Tensor]:
    """The tensors of `folder`/shards/`name` whose names begin with `prefix`.

    Each is divided as `like(its name)` is, where that has its shape, and otherwise whole. Every process takes part.
    Raises CheckpointError for shards that are missing or cannot be read.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    path = folder / FOLDER / name
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is missing: the state of the run in {folder} is incomplete; choose another --out"
        )
    reader, tensors = HuggingFaceStorageReader(str(path)), {}
    try:
        for key, stored in reader.read_metadata().state_dict_metadata.items():
            if key.startswith(prefix) and isinstance(stored, TensorStorageMetadata):
                own, dtype = like(key), stored.properties.dtype
                if own is not None and own.shape == stored.size:
                    tensors[key] = torch.empty_like(own, dtype=dtype, requires_grad=False)
                else:
                    tensors[key] = torch.empty(stored.size, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is meant
            load(tensors, storage_reader=reader, no_dist=ranks() == 1)
    except CheckpointException as error:
        raise CheckpointError(f"{path} cannot be read ({_reasons(error.failures)}); choose another --out") from error
    except (KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); choose another --out") from error
    return tensors


def remove_shards(folder: Path, kept: str | None) -> None:
    """Remove all of `folder`/shards but the folder `kept`."""
    shards = folder / FOLDER
    if not shards.is_dir():
        return
    for path in shards.iterdir():
        if path.name != kept:
            shutil.rmtree(path)
    if not any(shards.iterdir()):
        shards.rmdir()


def _reasons(failures: Mapping[int, tuple[BaseException, Any]]) -> str:
    """What went wrong in the processes, each reason once."""
    return "; ".join(sorted({str(error) for error, _ in failures.values()}))


def _next_name(folder: Path) -> str:
    taken = [int(path.name) for path in (folder / FOLDER).glob("*") if path.name.isdecimal()]
    return f"{max(taken, default=0) + 1:06d}"
