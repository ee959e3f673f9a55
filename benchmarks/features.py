"""The feature extractor behind every distance: our own Fashion-MNIST classifier, shipped with its statistics.

`fashion128` is a name, not "FID": other feature nets give other scales. A distance is biased upwards by about c / N,
so two distances compare only at equal N, and the floor (real held-out images against the same reference) at that N
belongs beside them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.frechet import Moments
from fewstep.card import CheckpointError

FOLDER = Path(__file__).resolve().parent.parent / "models" / "fashion" / "classifier"
FORMAT = 1


@dataclass(frozen=True)
class Extractor:
    session: ort.InferenceSession
    reference: Moments  # of the 60,000 training images
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
    """Raises CheckpointError when the network is not the one its statistics were made with."""
    facts = json.loads((folder / "extractor.json").read_text())
    if facts["format"] != FORMAT:
        raise CheckpointError(f"{folder} has extractor format {facts['format']}; this version reads {FORMAT}")
    content = (folder / "extractor.onnx").read_bytes()
    if hashlib.sha256(content).hexdigest() != facts["network_sha256"]:
        raise CheckpointError(f"{folder / 'extractor.onnx'} is not the network the reference statistics were made with")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    with np.load(folder / "reference.npz", allow_pickle=False) as stored:
        reference = Moments(stored["mean"], stored["covariance"], int(stored["count"]))
    return Extractor(session, reference, {int(n): floor for n, floor in facts["floors"].items()}, facts)
