"""Stand-ins for an engine: a manifest, and the analytic Gaussian student as a network F."""

import base64
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from export.manifest import Manifest
from fewstep.analytic import Gaussian, as_network
from fewstep.noise import NOISE_VERSION, noise_for
from fewstep.pixels import Pixels, encode, to_pixels
from fewstep.precond import Denoiser
from fewstep.samplers import sample_dpdm
from fewstep.schedule import MAX_STEPS, student_levels
from server.scheduler.model import Model, ModelInfo
from server.scheduler.slots import Slots

Floats = NDArray[np.float32]

SHAPE = (1, 8, 8)
CLASSES = 3
SIGMA_DATA = 0.5
LEVELS = {steps: student_levels(steps) for steps in range(1, MAX_STEPS + 1)}


def manifest(name: str = "tiny", classes: int = CLASSES) -> Manifest:
    """A student of 8x8 gray images in three classes."""
    return Manifest(
        name=name,
        role="student",
        checkpoint="c" * 64,
        network_sha256="",
        opset=20,
        dtype="float32",
        weights_dtype="float32",
        backend="fake",
        channels=SHAPE[0],
        resolution=SHAPE[1],
        classes=classes,
        class_names=("Bag", "Ankle boot", "Coat")[:classes],
        sigma_data=SIGMA_DATA,
        levels=LEVELS,
        buckets=None,
        noise_version=NOISE_VERSION,
        parity={},
        bounds={},
        versions={},
    )


class GaussianNetwork:
    """F of the Gaussian student, shifted per class. Notes each call."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.before: Callable[[Floats, Floats], None] = lambda x, c_noise: None  # may raise

    def __call__(self, x: Floats, c_noise: Floats, onehot: Floats) -> Floats:
        self.batches.append(len(x))
        self.before(x, c_noise)
        shift = (onehot @ np.linspace(-0.5, 0.5, CLASSES, dtype=np.float32))[:, None, None, None]
        student = Gaussian(mean=0.0, std=SIGMA_DATA).student
        return as_network(lambda noisy, sigma: student(noisy, sigma) + shift, SIGMA_DATA)(x, c_noise, onehot)


def fake_model(table: Slots) -> Model:
    """A model of a loop; what was measured of it is of no matter there."""
    return Model(table, ModelInfo(0.001, table.capacity, table.buckets, {"backend": "fake"}))


def png(pixels: Pixels) -> str:
    """An image uint8 [H, W, C] as a request carries it."""
    return base64.b64encode(encode(pixels, "png")).decode()


def expected_pixels(seed: int, label: int, steps: int) -> Pixels:
    """What the sampler makes of one image, without any server: uint8 [H, W, C]."""
    return pixels_of(seed, label, LEVELS[steps])


def pixels_of(seed: int, label: int, sigmas: Sequence[float]) -> Pixels:
    """The same with any levels."""
    denoiser = Denoiser(GaussianNetwork(), SIGMA_DATA, CLASSES)
    labels = np.array([label])
    sample = sample_dpdm(lambda x, sigma: denoiser(x, sigma, labels), noise_for([seed], SHAPE), sigmas)
    return to_pixels(sample.images)[0]
