"""Peers are given the same work, and the tables say what the rounds measured."""

import base64
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi.testclient import TestClient

from benchmarks.load import galleries, peers
from benchmarks.load.http_client import Answer
from benchmarks.load.peer_servers.fastapi_lock import application
from benchmarks.load.peers import OURS, PEERS, Peer, available_peers, medians, ratios
from benchmarks.load.trajectories import Trajectories, gathered, parser, wanted
from fewstep.noise import random_labels
from fewstep.pixels import encode
from tests.server.fakes import GaussianNetwork, expected_pixels, manifest


class FakeEngine:
    """The Gaussian student where an engine is expected."""

    def __init__(self) -> None:
        self.network, self.manifest = GaussianNetwork(), manifest()
        self.device, self.on_device = "cpu", None


def peer(package: str) -> Peer:
    return next(each for each in PEERS if each.needs == package)


def test_fastapi_with_a_lock_makes_our_images_one_at_a_time():
    engine = FakeEngine()
    client = TestClient(application(Trajectories(engine, "padded", 1)))  # pyright: ignore[reportArgumentType]
    for seed, steps in enumerate((1, 4)):
        answer = client.post("/v1/generate", json={"steps": steps, "seed": seed, "label": 1})
        pixels = peer("fastapi").pixels(Answer(answer.status_code, {}, answer.content, 0.0))
        np.testing.assert_array_equal(pixels, expected_pixels(seed, 1, steps).squeeze(-1))
    assert engine.network.batches == [1] * 5
    refused = client.post("/v1/generate", json={"steps": 99})
    assert refused.status_code == 400 and "steps is one of" in refused.text
    assert client.get("/health").status_code == 200


def test_a_batch_uses_its_table_again():
    made = Trajectories(FakeEngine(), "shrinking", 4)  # pyright: ignore[reportArgumentType]
    made.warm_up()
    images = [wanted(manifest(), {"steps": 2, "seed": seed, "label": 0}) for seed in range(4)]
    for _ in range(2):
        for seed, pixels in enumerate(made.make(images)):
            np.testing.assert_array_equal(pixels, expected_pixels(seed, 0, 2))
    assert set(made.tables) == {1, 4}


def test_batches_of_equal_steps_gather_more():
    assert (gathered("equal", 8), gathered("shrinking", 8)) == (32, 8)


def test_the_flags_of_a_peer_name_cores():
    args = parser(None).parse_args(["--engine", "e", "--port", "1", "--engine-cores", "0,3"])
    assert args.engine_cores == (0, 3)


def test_bentomls_bodies_and_answers_are_lists():
    bento, fields = peer("bentoml"), {"steps": 4, "seed": 7}
    assert json.loads(bento.body(fields).split(b"\r\n\r\n")[1]) == {"requests": [fields]}
    assert json.loads(OURS.body(fields).split(b"\r\n\r\n")[1]) == fields
    pixels = expected_pixels(3, 1, 2)
    listed = json.dumps([base64.b64encode(encode(pixels, "png")).decode()]).encode()
    np.testing.assert_array_equal(bento.pixels(Answer(200, {}, listed, 0.0)), pixels.squeeze(-1))
    with pytest.raises(RuntimeError, match="BentoML shrinking answered 503"):
        bento.pixels(Answer(503, {}, b"full", 0.0))


class FakeTensor:
    def __init__(self, value: object) -> None:
        self.value = value

    def as_numpy(self) -> np.ndarray:
        return np.array([[self.value]])

    @staticmethod
    def from_dlpack(name: str, array: np.ndarray) -> np.ndarray:
        assert name == "PNG" and array.dtype == np.uint8 and array.flags.writeable
        return array


class FakeRequest:
    """As Triton's Python backend has it; again: whether it is to be given to the model once more."""

    def __init__(self, number: int, seed: int, steps: int) -> None:
        self.number, self.values, self.again = number, {"SEED": seed, "STEPS": steps}, False

    def correlation_id(self) -> int:
        return self.number

    def set_release_flags(self, flags: int) -> None:
        assert flags == 2
        self.again = True


def test_triton_makes_our_images_call_by_call_and_takes_newcomers(monkeypatch: pytest.MonkeyPatch):
    backend = SimpleNamespace(
        get_input_tensor_by_name=lambda request, name: FakeTensor(request.values[name]),
        TRITONSERVER_REQUEST_RELEASE_RESCHEDULE=2, Tensor=FakeTensor,
        InferenceResponse=lambda output_tensors: output_tensors[0],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    triton_model = importlib.import_module("benchmarks.load.peer_servers.triton_model")
    engine, labels = FakeEngine(), random_labels(range(9), manifest().classes).tolist()
    model = triton_model.TritonPythonModel()
    made = Trajectories(engine, "shrinking", 4)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(triton_model.Trajectories, "load", lambda args: made)
    told = json.dumps({"engine": "e", "capacity": 4, "backend": None, "threads": 1, "cost": None, "cores": []})
    model.initialize({"model_config": json.dumps({"parameters": {"peer": {"string_value": told}}})})
    waiting = [FakeRequest(11, 5, 4), FakeRequest(12, 6, 1)]
    answered: dict[int, bytes] = {}
    for turn in range(4):
        if turn == 2:
            waiting.append(FakeRequest(13, 7, 2))
        chosen = waiting[:1] if turn == 1 else waiting  # Triton may leave one out
        for request, answer in zip(chosen, model.execute(chosen), strict=True):
            assert request.again == (answer is None)
            request.again = False
            if answer is not None:
                answered[request.number] = answer.tobytes()
        waiting = [request for request in waiting if request.number not in answered]
    assert not waiting and not model.started and not model.done
    assert engine.network.batches == [2, 1, 2, 2]
    triton, header = peer("pytriton"), b'{"outputs":[]}'
    for number, seed, steps in ((11, 5, 4), (12, 6, 1), (13, 7, 2)):
        body = Answer(200, {"inference-header-content-length": "14"}, header + answered[number], 0.0)
        np.testing.assert_array_equal(triton.pixels(body), expected_pixels(seed, labels[seed], steps).squeeze(-1))
    asked = json.loads(triton.body({"steps": 4, "seed": 7}).split(b"\r\n\r\n")[1])
    assert [(each["name"], each["data"]) for each in asked["inputs"]] == [("SEED", [7]), ("STEPS", [4])]


def test_a_peer_that_is_not_installed_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "installed", lambda python, packages: {"fastapi", "litserve", "ray"})
    found, missing = available_peers("py")
    assert [each.needs for each in found] == ["", "fastapi", *["litserve"] * 3, "ray"]
    assert missing[0] == "bentoml is not installed for py, so its rows are missing"
    assert missing[1].startswith("nvidia-pytriton is not installed for py")
    command = "pip install -e . psutil bentoml nvidia-pytriton; then --peer-python build/peers/bin/python"
    assert missing[2].endswith(command)
    monkeypatch.undo()
    assert peers.installed(sys.executable, ["json", "no_such_package"]) == {"json"}


def row(server: str, load: float | str, round: int, **figures: float) -> dict:
    return {"network": "fixed", "server": server, "load": load, "round": round, "sustained": True, **figures}


def test_ratios_are_of_the_same_round_and_medians_of_all():
    rows = [
        row(OURS.name, 0.4, 0, images_per_s=100, share=0.5, p50_ms=10, p99_ms=20, cpu_ms=1),
        row(OURS.name, 0.4, 1, images_per_s=50, share=0.25, p50_ms=20, p99_ms=40, cpu_ms=2),
        row("b", 0.4, 0, images_per_s=50, share=0.25, p50_ms=40, p99_ms=200, cpu_ms=4),
        {**row("b", 0.4, 1, images_per_s=50, share=0.25, cpu_ms=4), "p50_ms": 40, "p99_ms": None, "sustained": False},
    ]
    (found,) = ratios(rows)
    assert found["throughput"] == "1.50 [1.00, 2.00]" and found["p50"] == "0.38 [0.25, 0.50]"
    assert found["p99"] == "0.10 [0.10, 0.10]" and found["cpu"] == "0.38 [0.25, 0.50]"
    ours, theirs = medians(rows)
    assert (ours["images_per_s"], ours["p99_ms"], ours["sustained"]) == (75, 30, True)
    assert (theirs["p99_ms"], theirs["sustained"]) == (200, False)


def test_every_peers_file_is_there_and_explains_itself():
    for each in PEERS[1:]:
        text = (Path(peers.__file__).parent / each.script).read_text("utf-8")
        assert "A peer: " in text.splitlines()[0]


def test_galleries_compare_every_shape_of_ours_with_one_image_and_one_process():
    every = list(galleries.turns(PEERS[:3], (1, 2), (1, 8)))
    assert every[0] == (OURS, 1, 1) and len(every) == 4 + 2
    assert all((processes, n) == (1, 1) for each, processes, n in every if each is not OURS)
    shape = {"api_processes": 1, "images": 1, "share": 0.1, "cpu_ms": 1.0}
    rows = [
        {"server": server, "round": number, "images_per_s": rate, **shape}
        for number, rates in enumerate(((100.0, 50.0), (300.0, 100.0)))
        for server, rate in zip(("ours", "peer"), rates, strict=True)
    ]
    ours, other = galleries.medians(rows)
    assert ours["ratio"].startswith("1.00") and other["ratio"] == "2.50 [2.00, 3.00]"
    assert other["images_per_s"] == 75.0
