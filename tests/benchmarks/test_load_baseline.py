"""The fixed-cost network, the stock baseline, and the engine alone: each does the work it is said to do."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export.engine
import server.__main__
from benchmarks.load import engine_alone, fixed_cost
from benchmarks.load.cores import Layout, layout
from benchmarks.load.fixed_cost import Cost, FixedCostEngine
from benchmarks.load.stock_server import TrajectoryAPI
from benchmarks.load.trajectories import Batching, Trajectories, groups, parser, wanted
from benchmarks.loop_turns import through_the_loop
from export.manifest import Manifest
from tests.server.fakes import GaussianNetwork, expected_pixels, manifest
from tests.server.local_bench import SLOTS, Fake

MIXED = (8, 1, 2, 4, 1)


@dataclass
class FakeEngine:
    """The Gaussian student where an engine is expected."""

    network: GaussianNetwork = field(default_factory=GaussianNetwork)
    manifest: Manifest = field(default_factory=manifest)
    device: str = "cpu"
    on_device: None = None


@pytest.mark.parametrize(
    ("cost", "batch", "seconds"),
    [(Cost(12, 1), 8, 0.020), (Cost(12, 1), 1, 0.013), (Cost(1, 1, 5), 2, 0.005), (Cost(1, 1, 5), 8, 0.009)],
)
def test_a_call_costs_the_larger_of_floor_and_line(cost: Cost, batch: int, seconds: float):
    assert cost.seconds(batch) == pytest.approx(seconds)


def test_a_cost_survives_its_text():
    assert Cost.parse("12,1") == Cost(12, 1, 0) == Cost.parse(str(Cost(12, 1)))
    for wrong in ("12", "1,2,3,4", "a,b", "-1,2"):
        with pytest.raises(ValueError, match="not '"):
            Cost.parse(wrong)


def test_the_fixed_cost_network_sleeps_for_what_is_left_of_its_cost(monkeypatch: pytest.MonkeyPatch):
    now, slept = [5.0], []

    def clock() -> float:
        now[0] += 0.001  # whatever is done between two looks takes a millisecond
        return now[0]

    monkeypatch.setattr(fixed_cost.time, "perf_counter", clock)
    monkeypatch.setattr(fixed_cost.time, "sleep", slept.append)
    described = manifest()
    x = np.ones((8, *described.image_shape), np.float32)
    output = FixedCostEngine(described, Cost(12, 1)).network(x, x[:, 0, 0, 0], np.zeros((8, 3), np.float32))
    assert slept == [pytest.approx(0.019)] and output.shape == x.shape and not output.any()


def test_the_launcher_serves_with_its_own_loader_and_the_servers_flags(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export.engine, "load_engine", export.engine.load_engine)  # put back afterwards
    called: list[Any] = []
    monkeypatch.setattr(server.__main__, "main", lambda flags: called.append(flags) or 7)
    assert fixed_cost.main(["--cost", "3,1", "--", "--port", "0"]) == 7
    assert called == [["--port", "0", "--backend", "onnxruntime-cpu"]], "a server left to itself would keep its times"
    engine = export.engine.load_engine(Path("models/fashion/engine"), threads=1, backend=None, buckets=(1, 8))
    assert isinstance(engine, FixedCostEngine) and engine.cost == Cost(3, 1)


@pytest.mark.parametrize(
    ("batching", "batches"),
    [
        ("padded", [5] * 8),
        ("shrinking", [5, 3, 2, 2, 1, 1, 1, 1]),
        ("equal", [2, 1, 1, *[1] * 4, *[1] * 8]),
    ],
)
def test_the_baseline_makes_the_same_images_in_whole_trajectories(batching: Batching, batches: list[int]):
    api = TrajectoryAPI(parser(None).parse_args(["--engine", "engine", "--port", "1", "--batching", batching]))
    assert api.max_batch_size == (32 if batching == "equal" else 8)
    engine = FakeEngine()
    api.trajectories = Trajectories(engine, batching, 8)  # pyright: ignore[reportArgumentType]
    asked = [api.decode_request({"steps": steps, "seed": seed}) for seed, steps in enumerate(MIXED)]
    made = api.predict(api.batch(asked))
    assert engine.network.batches == batches
    for seed, (steps, image, pixels) in enumerate(zip(MIXED, asked, made, strict=True)):
        np.testing.assert_array_equal(pixels, expected_pixels(seed, image.label, steps))
    assert bytes(api.encode_response(made[0]).body).startswith(b"\x89PNG")


def test_groups_keep_every_image_once():
    images = [wanted(manifest(), {"steps": steps}) for steps in MIXED]
    assert [len(group) for group in groups(images, "equal", 8)] == [2, 1, 1, 1]
    assert [len(group) for group in groups(images * 4, "equal", 3)] == [3, 3, 2, 3, 1, 3, 1, 3, 1]
    assert groups(images, "padded", 8) == [images]


def test_every_turn_of_the_loop_is_one_full_network_call():
    engine = FakeEngine()
    turn = through_the_loop(engine, 4)  # pyright: ignore[reportArgumentType]
    for _ in range(40):
        turn()
    assert engine.network.batches == [4] * 40


def test_the_engine_alone_relates_finished_images_to_back_to_back_calls(monkeypatch: pytest.MonkeyPatch):
    calls: list[None] = []
    rates = iter([84.0, 100, 100, 90])  # images, calls; calls, images

    def per_second(finished: Iterator[object], first: int, duration_s: float) -> float:
        assert [*islice(finished, first)]
        return next(rates)

    monkeypatch.setattr(engine_alone, "per_second", per_second)
    with Fake() as service:
        alone = engine_alone.measure(service, lambda: calls.append(None), SLOTS, 0.1, 2)
    limit = 100 * SLOTS / 3.75
    assert len(calls) == 4 and alone.call_ms == 10 and alone.limit_per_s == pytest.approx(limit)
    assert alone.efficiency == pytest.approx(87 / limit) and alone.service_per_s == pytest.approx(87)
    assert alone.efficiencies == pytest.approx((84 / limit, 90 / limit), abs=1e-4)


def test_a_rate_counts_from_the_first_ones_on(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]

    def finished() -> Iterator[None]:
        while True:
            now[0] += 1.0 if now[0] < 3 else 0.125  # the first three are slow
            yield

    monkeypatch.setattr(engine_alone.time, "perf_counter", lambda: now[0])
    assert engine_alone.per_second(finished(), 3, 2.0) == 8


def test_cores_are_split_between_the_network_and_the_rest():
    assert layout([1, 0]) == Layout((0,), (1,))
    assert layout(range(5)) == Layout((0, 1), (2, 3, 4))
    assert layout([1]).shared and not layout([0, 1]).shared
