"""`fashion128`: our own Fashion-MNIST classifier, shipped with the statistics of its training images.

`fashion128-b` is the same network trained on half b of the images (benchmarks/classifier.py). The panel uses its
features.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fewstep import application
from fewstep.card import CheckpointError
from fewstep.metrics.frechet import Moments

if TYPE_CHECKING:
    import onnxruntime as ort

FOLDER = application.ROOT / "models" / "fashion" / "classifier"
FOLDER_B = FOLDER.with_name("classifier-b")
FORMAT = 1


@dataclass(frozen=True)
class Extractor:
    session: "ort.InferenceSession"
    reference: Moments  # of its training images
    floors: dict[int, float]  # N -> distance of N real held-out images to the reference, mean over disjoint chunks
    facts: dict  # extractor.json: accuracy, hashes, seeds

    def __call__(self, pixels: NDArray[np.uint8], batch: int = 250) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """uint8 [N, 32, 32, 1] -> features [N, 128] and predicted classes [N]."""
        outputs: list[Any] = [
            self.session.run(None, {"pixels": part}) for part in np.array_split(pixels, -(-len(pixels) // batch))
        ]
        features, logits = (np.concatenate([output[i] for output in outputs]) for i in (0, 1))
        return features, logits.argmax(axis=1)

    def floor(self, count: int) -> float:
        """The noise floor at N = count. The bias falls as 1 / N, so it is interpolated in 1 / N."""
        known = sorted(self.floors)
        inverse = [1 / n for n in reversed(known)]
        return float(np.interp(1 / count, inverse, [self.floors[n] for n in reversed(known)]))


def load_extractor(folder: Path = FOLDER, threads: int = 0) -> Extractor:
    """Raises CheckpointError when there is none, or the network is not the one its statistics were made with."""
    if not (folder / "extractor.json").is_file():
        raise CheckpointError(
            f"{folder} holds no extractor; train one with: python benchmarks/classifier.py --train ZIP --test ZIP "
            f"--out {folder}"
        )
    facts = json.loads((folder / "extractor.json").read_text())
    if facts["format"] != FORMAT:
        raise CheckpointError(f"{folder} has extractor format {facts['format']}; this version reads {FORMAT}")
    path = folder / "extractor.onnx"
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != facts["network_sha256"]:
        raise CheckpointError(f"{path} is not the network the reference statistics were made with")
    import onnxruntime as ort  # slow to load

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3  # 0: one thread per physical core
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    with np.load(folder / "reference.npz", allow_pickle=False) as stored:
        reference = Moments(stored["mean"], stored["covariance"], int(stored["count"]))
    return Extractor(session, reference, {int(n): floor for n, floor in facts["floors"].items()}, facts)
