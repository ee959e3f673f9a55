"""A real server on a GPU: runs where there is one, skipped elsewhere."""

import base64
import io

import httpx
import numpy as np
import pytest
import torch

from export.engine import load_engine
from fewstep.noise import noise_for
from fewstep.pixels import to_pixels
from fewstep.samplers import sample_dpdm
from tests.server.conftest import ROOT, serving

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
ENGINE = ROOT / "models" / "fashion" / "engine"
SEEDS = range(40, 72)
LABEL = 3


def images(client: httpx.Client, steps: int) -> np.ndarray:
    """uint8 [32, 32, 32, 1] of SEEDS, in one request: four times as many as there are slots."""
    body = {"n": len(SEEDS), "seed": SEEDS[0], "label": LABEL, "steps": steps, "format": "npy"}
    response = client.post("/v1/generate", json=body)
    response.raise_for_status()
    return np.stack([np.load(io.BytesIO(base64.b64decode(entry["b64_json"]))) for entry in response.json()["data"]])


def test_a_server_on_a_gpu_makes_the_images_of_the_cpu():
    reference = load_engine(ENGINE, backend="onnxruntime-cpu", threads=1)
    labels = np.full(len(SEEDS), LABEL)
    with serving(ENGINE, "--backend", "torch", "--capacity", "8") as server, server.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["backend"], model["runs"]["device"]) == ("torch", "cuda")
        for steps in (1, 4):
            sample = sample_dpdm(
                lambda x, sigma: reference.denoiser(x, sigma, labels), noise_for(SEEDS, (1, 32, 32)),
                reference.manifest.levels[steps],
            )  # fmt: skip
            difference = np.abs(images(client, steps).astype(int) - to_pixels(sample.images))
            assert difference.max() <= 2 and (difference > 0).mean() < 0.01
