"""An NCVSD student over HTTP: asked for like any other, the same bytes whatever the batch."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from export.engine import Engine, load_engine
from fewstep.latent import with_latent
from fewstep.noise import latent_for, noise_for
from fewstep.pixels import to_pixels
from fewstep.samplers import sample_dpdm
from tests.server.conftest import Server, serving, write_engine
from tests.server.fakes import LEVELS, SHAPE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "ncvsd" / "engine"
    write_engine(folder, "ncvsd", extra=2)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load_engine(folder, threads=1)


@pytest.fixture(scope="module")
def exact(folder: Path) -> Iterator[Server]:
    with serving(folder, "--mode", "exact", "--capacity", "8") as running:
        yield running


def generate(client: httpx.Client, **fields) -> bytes:
    response = client.post("/v1/generate", json={"format": "npy", **fields})
    assert response.status_code == 200, response.text
    return response.content


def test_the_pixels_are_those_of_the_sampler_with_the_latents_of_the_seed(exact: Server, engine: Engine):
    with exact.client() as client:
        pixels = np.load(io.BytesIO(generate(client, steps=4, seed=9, label=2)))
    bound = with_latent(engine.denoiser, latent_for([9], engine.manifest.latent_shape), np.array([2]))
    sample = sample_dpdm(bound, noise_for([9], SHAPE), LEVELS[4])
    assert np.abs(pixels.astype(int) - to_pixels(sample.images)[0]).max() <= 1  # batch 1 there, 8 here


def test_exact_mode_gives_the_same_bytes_alone_and_among_others(exact: Server):
    target = {"seed": 7, "steps": 5, "label": 1}
    others = [{"seed": 100 + i, "steps": 1 + i % 5, "label": i % 3} for i in range(15)]
    with exact.client() as client:
        alone = generate(client, **target)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda fields: generate(client, **fields), [*others, target]))
    assert answers[-1] == alone
    assert len(set(answers)) == 16


def test_it_is_listed_with_the_shape_of_its_images(exact: Server):
    with exact.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["channels"], model["resolution"]) == ("ncvsd", 1, 8)
