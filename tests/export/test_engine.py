"""The reader: refuses what does not belong together, samples without torch, treats every row alone."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.engine import load_engine
from export.manifest import read_manifest, write_manifest
from fewstep.card import CheckpointError
from fewstep.latent import with_latent
from fewstep.noise import latent_for
from tests.export.conftest import NCVSD

ROOT = Path(__file__).parents[2]
SAMPLE_WITHOUT_TORCH = """
import sys
import numpy as np
from export.engine import load_engine
from fewstep.latent import with_latent
from fewstep.noise import latent_for, noise_for
from fewstep.samplers import sample_dpdm
engine = load_engine(sys.argv[1], threads=1)
denoiser = with_latent(engine.denoiser, latent_for([1, 2, 3], engine.manifest.latent_shape), np.array([0, 3, 9]))
sample = sample_dpdm(denoiser, noise_for([1, 2, 3], engine.manifest.image_shape), engine.manifest.levels[4])
assert sample.images.shape == (3, *engine.manifest.image_shape) and sample.images.dtype == np.float32
assert sample.nfe == 4 and np.isfinite(sample.images).all()
assert "torch" not in sys.modules, "the reader imported torch"
"""


@pytest.mark.parametrize("kind", ["patch", NCVSD])
def test_samples_without_torch(checkpoint, kind):
    command = [sys.executable, "-c", SAMPLE_WITHOUT_TORCH, str(checkpoint(kind) / "engine")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_damaged_network_is_refused(model):
    path = model / "engine" / "network.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"truncated or was changed.*fewstep export"):
        load_engine(model / "engine")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no network\.onnx"):
        load_engine(model / "engine")


def test_a_file_that_is_no_network_is_refused(model):
    engine = model / "engine"
    (engine / "network.onnx").write_bytes(b"not a network")
    digest = hashlib.sha256(b"not a network").hexdigest()
    write_manifest(engine, dataclasses.replace(read_manifest(engine), network_sha256=digest))
    with pytest.raises(CheckpointError, match="cannot load"):
        load_engine(engine)


def test_engine_of_another_checkpoint_is_refused(model):
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match=r"exported from another checkpoint.*fewstep export"):
        load_engine(model / "engine")
    (model / "model.safetensors").unlink()
    load_engine(model / "engine", threads=1)  # an engine alone is whole


def test_unknown_backend_is_refused(model):
    engine = model / "engine"
    write_manifest(engine, dataclasses.replace(read_manifest(engine), backend="abacus"))
    with pytest.raises(CheckpointError, match="wants backend abacus"):
        load_engine(engine)


def test_another_number_of_channels_is_refused_in_words(checkpoint):
    ncvsd, marginal = (load_engine(checkpoint(kind) / "engine", threads=1) for kind in (NCVSD, "patch"))
    assert (ncvsd.manifest.extra, marginal.manifest.extra) == (1, 0)
    one = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=r"1 channels of image and 1 of latent noise .* not 1 in all.*with_latent"):
        ncvsd.denoiser(np.zeros((1, 1, 8, 8), np.float32), one)
    with pytest.raises(ValueError, match=r"1 channels of image and 0 of latent noise"):
        marginal.denoiser(np.zeros((1, 2, 16, 16), np.float32), one)


def test_the_latent_decides_and_changes_nothing_else(checkpoint):
    engine = load_engine(checkpoint(NCVSD) / "engine", threads=1)
    x, sigma = np.ones((2, 1, 8, 8), np.float32), np.ones(2, np.float32)
    first, second = (with_latent(engine.denoiser, latent_for(seeds, (1, 8, 8))) for seeds in ([1, 2], [1, 3]))
    a, b = first(x, sigma), second(x, sigma)
    assert np.array_equal(a[0], b[0])
    assert np.abs(a[1] - b[1]).max() > 0.01


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["patch", "adm", NCVSD])
def test_a_row_depends_on_no_other_row(checkpoint, kind, threads):
    """What the server's exact mode rests on: at one batch size, position and neighbours change no bit."""
    engine = load_engine(checkpoint(kind) / "engine", threads=threads)
    random = np.random.default_rng(0)
    x = random.standard_normal((8, *engine.manifest.input_shape), dtype=np.float32)
    c_noise = random.uniform(-1.5, 1.1, 8).astype(np.float32)
    onehot = np.eye(engine.manifest.classes, dtype=np.float32)[:8]
    expected = engine.network(x, c_noise, onehot)
    for _ in range(5):
        order = random.permutation(8)
        assert np.array_equal(engine.network(x[order], c_noise[order], onehot[order]), expected[order])
    for row in range(8):
        alone = [np.zeros_like(array) for array in (x, c_noise, onehot)]
        for padded, array in zip(alone, (x, c_noise, onehot), strict=True):
            padded[row] = array[3]
        assert np.array_equal(engine.network(*alone)[row], expected[3])
