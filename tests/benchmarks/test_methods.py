"""The table of methods and the generators they run on: exact calls, seeds that decide everything."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.generators import load_generator, load_sampled
from benchmarks.methods import NFE, SOLVERS, Method, dpdm_method
from export.backends import openvino
from fewstep.card import CheckpointError
from fewstep.samplers import sample_dpdm
from fewstep.schedule import student_levels
from tests.benchmarks.worlds import PAIR, SHAPE, generator

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "fashion"
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")


@pytest.mark.parametrize("method", [*SOLVERS, dpdm_method({4: student_levels(4)})], ids=lambda method: method.name)
def test_a_method_makes_the_calls_it_is_asked_for_or_none(method: Method):
    for nfe in NFE:
        sigmas = method.sigmas(nfe)
        if sigmas is not None:
            (batch,) = generator().sample(method.sampler, sigmas, range(3), size=8)
            assert batch.nfe == nfe and batch.pixels.shape == (3, 4, 4, 1)


def test_only_heun_and_students_leave_counts_out():
    possible = {method.name: [nfe for nfe in NFE if method.sigmas(nfe)] for method in SOLVERS}
    assert possible.pop("heun") == [1, 3, 5, 35]
    assert all(counts == list(NFE) for counts in possible.values())
    student = dpdm_method({k: student_levels(k) for k in range(1, 9)})
    assert [nfe for nfe in NFE if student.sigmas(nfe)] == [1, 2, 3, 4, 5, 6, 8]


def test_names_are_unique():
    assert len({method.name for method in SOLVERS}) == len({method.label for method in SOLVERS}) == len(SOLVERS) == 7


@pytest.mark.parametrize("method", SOLVERS, ids=lambda method: method.name)
def test_every_solver_gets_close_to_the_data_with_many_calls(method: Method):
    sigmas = method.sigmas(35)
    assert sigmas is not None
    pixels = np.concatenate([batch.pixels for batch in generator().sample(method.sampler, sigmas, range(400), 100)])
    values = (pixels.astype(float) + 0.5) / 127.5 - 1
    assert values.mean() == pytest.approx(PAIR.mean, abs=0.02) and values.std() == pytest.approx(PAIR.std, abs=0.03)


def test_an_image_depends_on_its_seed_and_not_on_its_batch():
    one = generator(PAIR.student)
    whole, parts = (
        np.concatenate([batch.pixels for batch in one.sample(sample_dpdm, (80.0, 5.0), range(20, 33), size)])
        for size in (13, 4)
    )
    np.testing.assert_array_equal(whole, parts)
    (alone,) = one.sample(sample_dpdm, (80.0, 5.0), [25], 1)
    np.testing.assert_array_equal(alone.pixels[0], whole[5])


def test_classes_come_in_turn():
    labels = generator().labels(range(5, 9))
    assert labels is not None and labels.tolist() == [1, 0, 1, 0]


def test_denoising_once_is_the_networks_closed_form():
    noisy = np.random.default_rng(0).normal(size=(6, *SHAPE)).astype(np.float32)
    expected = PAIR.teacher(noisy, np.full(6, 2.0, np.float32))
    np.testing.assert_allclose(generator().denoise(noisy, 2.0, None, range(6)), expected, atol=1e-5)


def test_engine_and_checkpoint_make_the_same_images():
    pixels = {}
    for backend in ("engine", "torch"):
        one = load_generator(MODEL, backend, threads=1)
        assert one.class_names[0] == "T-shirt/top" and sorted(one.levels) == list(range(1, 9))
        (batch,) = one.sample(sample_dpdm, one.levels[2], range(3), 8)
        pixels[backend] = batch.pixels.astype(int)
    assert np.abs(pixels["engine"] - pixels["torch"]).max() <= 1 and pixels["engine"].std() > 20


@pytest.mark.parametrize("half", [pytest.param("openvino", marks=needs_openvino), "torch-bf16"])
def test_bfloat16_makes_nearly_the_same_images(half, monkeypatch):
    if half == "openvino" and "BF16" not in openvino._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16 arithmetic")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # half a minute that changes no rounding here
    pixels = {}
    for backend in ("torch", half):
        (batch,) = (one := load_generator(MODEL, backend, threads=1)).sample(sample_dpdm, one.levels[2], range(3), 3)
        pixels[backend] = batch.pixels.astype(int)
    gap = np.abs(pixels["torch"] - pixels[half])
    assert 0 < gap.mean() < 1


def test_a_folder_without_an_engine_says_how_to_get_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no engine; make one with: fewstep export.*--backend torch"):
        load_generator(tmp_path, "engine")


@pytest.mark.parametrize("field", [{}, {"dtype": "float16"}, {"backend": "openvino"}], ids=str)
def test_an_engine_that_is_not_float32_is_left_aside_where_float32_is_promised(field: dict, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("rivals", "teacher", "classifier*"))
    path = folder / "engine" / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | field))
    assert load_sampled(folder, threads=1).backend == ("torch" if field else "engine")
    assert load_sampled(folder / "engine", threads=1).backend == ("torch" if field else "engine")
