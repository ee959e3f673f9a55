"""Fixtures for every test: 2,000 real images, and one thread."""

import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.format import ImageSet, write_image_set
from trainer.data.sources.fashion import CLASS_NAMES, LICENCE
from trainer.data.sources.idx import pad_to_power_of_two

_SHEET = Path(__file__).parent / "fixtures" / "fashion-2000.png"
_SIDE, _COLUMNS, _PER_CLASS = 28, 50, 200

# The workers of pytest-xdist share the cores: the commands that tests run take one each. With more threads than cores
# small networks take eight times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton has no CPU backend. Without a GPU its kernels run in its interpreter, chosen before they are imported, or with
# KERNELS=sm_90 compiled and in ours (tests/ptx/driver.py).
if not torch.cuda.is_available() and not os.environ.get("KERNELS"):
    os.environ["TRITON_INTERPRET"] = "1"

# No test asserts a time: hypothesis' own limit of 200 ms an example fails on busy machines.
hypothesis.settings.register_profile("fewstep", deadline=None)
hypothesis.settings.load_profile("fewstep")

# The files that take longest, 20 to 80 s of CPU time each, come first, so that the processes end at nearly the same
# time. export/test_backends.py exports the networks that the other files of export/ read.
LONG = (
    "trainer/test_distributed.py",
    "export/test_backends.py",
    "export/test_adapters.py",
    "server/processes/test_replaced_engine.py",
    "trainer/methods/test_dpdm.py",
    "server/processes/test_stop_signals.py",
    "command/test_command.py",
    "export/test_conditions.py",
    "ptx/test_report.py",
    "server/test_public_complaints.py",
    "kernels/test_step.py",
    "server/test_faults.py",
    "trainer/methods/test_consistency.py",
    "trainer/methods/test_gan.py",
    "trainer/methods/test_rtb.py",
    "trainer/run/test_loop.py",
    "trainer/test_posterior_command.py",
    "benchmarks/test_latency.py",
    "benchmarks/test_posterior_control.py",
    "benchmarks/test_posterior_language.py",
    "benchmarks/test_serving_serve.py",
    "kernels/test_initial_noise.py",
    "kernels/test_compiled.py",
    "server/bulk/test_killed.py",
    "server/test_api_page.py",
    "server/test_api_processes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


# Networks in these tests are so small that several threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fashion_2000() -> ImageSet:
    """2,000 images of Fashion-MNIST, uint8 [2000, 32, 32, 1], 200 of each class, sorted by class. Read-only."""
    with Image.open(_SHEET) as sheet:
        pixels = np.asarray(sheet)
    tiles = pixels.reshape(-1, _SIDE, _COLUMNS, _SIDE).transpose(0, 2, 1, 3).reshape(-1, _SIDE, _SIDE)
    images = pad_to_power_of_two(tiles)[..., None]
    images.setflags(write=False)
    labels = np.repeat(np.arange(10, dtype=np.int32), _PER_CLASS)
    return ImageSet("fashion-2000", images, labels, CLASS_NAMES, LICENCE, "Fashion-MNIST, train split, 200 a class")


@pytest.fixture(scope="session")
def fashion_2000_zip(fashion_2000: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a dataset zip, for commands that take --data."""
    path = tmp_path_factory.mktemp("data") / "fashion-2000.zip"
    write_image_set(path, fashion_2000)
    return path
