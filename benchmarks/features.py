"""The feature extractors behind every distance, and how to get one by name.

`fashion128`     our own Fashion-MNIST classifier, shipped with its statistics: the default for 32x32 gray images
`effl0-pca64`    EfficientNet-Lite0 on any images, projected on 64 principal axes of the reference
`inception-2015` the network of the standard FID, from a weight file of the user's

Only the last one's distance may be called FID: other feature nets give other scales. A distance is biased upwards by
about c / N, so two distances compare only at equal N, and the floor (real held-out images against the same reference)
at that N belongs beside them.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.backends.onnxruntime_cpu import open_session
from fewstep.card import CheckpointError
from fewstep.frechet import Moments

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FOLDER = Path(__file__).resolve().parent.parent / "models" / "fashion" / "classifier"
FORMAT = 1
FASHION128, EFFL0, INCEPTION = "fashion128", "effl0-pca64", "inception-2015"

Pixels = NDArray[np.uint8]  # [N, H, W, C]
Outputs = tuple[NDArray[np.float32], NDArray[np.int64] | None]  # features [N, d]; classes [N] if it is a classifier


@dataclass(frozen=True)
class Extractor:
    session: "InferenceSession"
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
    path = folder / "extractor.onnx"
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != facts["network_sha256"]:
        raise CheckpointError(f"{path} is not the network the reference statistics were made with")
    session = open_session(content, path, threads)
    with np.load(folder / "reference.npz", allow_pickle=False) as stored:
        reference = Moments(stored["mean"], stored["covariance"], int(stored["count"]))
    return Extractor(session, reference, {int(n): floor for n, floor in facts["floors"].items()}, facts)


@dataclass(frozen=True)
class FeatureNet:
    """A frozen network in whose features images are compared."""

    name: str
    sha256: str  # of its weights
    settings: str  # what an image goes through before it
    run: Callable[[Pixels], Outputs]  # one batch
    image_shape: tuple[int, int, int] | None = None  # (H, W, C) it wants; None: any
    axes: int | None = None  # its features are projected on so many principal axes of the reference

    def __call__(self, pixels: Pixels) -> Outputs:
        """uint8 [N, H, W, 1 or 3] -> features [N, d], and the classes it sees. Raises ValueError for a wrong shape."""
        if self.image_shape and pixels.shape[1:] != self.image_shape:
            raise ValueError(f"{self.name} wants images of {self.image_shape}, not {pixels.shape[1:]}")
        return self.run(np.ascontiguousarray(pixels))


def load_feature_net(name: str, inception: Path | None = None, threads: int = 0) -> FeatureNet:
    """Raises CheckpointError with a sentence when its weights are not to be had."""
    if name == FASHION128:
        extractor = load_extractor(threads=threads)
        digest = extractor.facts["network_sha256"]
        return FeatureNet(name, digest, "32x32 gray, fp32", extractor, image_shape=(32, 32, 1))
    if name == EFFL0:
        from benchmarks import efficientnet_lite0 as effl0  # torch is needed for these two only

        network = effl0.load_efficientnet_lite0()
        return FeatureNet(name, effl0.SHA256, "64x64, bicubic antialiased, fp32", _on_torch(network, threads), axes=64)
    if name == INCEPTION:
        from benchmarks import inception as inception_2015

        if inception is None:
            raise CheckpointError(f"{name} needs its weight file: --inception {inception_2015.FILE}")
        network = inception_2015.load_inception(inception)
        return FeatureNet(
            name, inception_2015.SHA256, "299x299, TensorFlow 1 bilinear, fp32", _on_torch(network, threads)
        )
    raise CheckpointError(f"there is no feature extractor {name!r}; there are {FASHION128}, {EFFL0} and {INCEPTION}")


def _on_torch(network: Any, threads: int) -> Callable[[Pixels], Outputs]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    network = network.to(memory_format=torch.channels_last)

    def run(pixels: Pixels) -> Outputs:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy(), None

    return run
