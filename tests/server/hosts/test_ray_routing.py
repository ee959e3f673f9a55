"""How many replicas there should be, and which one gets a request; pickled as Ray does it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="ray is not installed; it comes with [cluster]")

from ray.serve.config import AutoscalingPolicy, RequestRouterConfig  # pyright: ignore[reportMissingImports]

from server.hosts.ray_routing import (
    IMAGES,
    MODELS,
    REQUESTS,
    SLOTS,
    Candidate,
    FreeSlotsRouter,
    ImagesPerSlot,
    preference,
    wanted_replicas,
)


@pytest.mark.parametrize(
    ("images", "slots", "per_slot", "wanted"),
    [(0, 8, 1, 1), (8, 8, 1, 1), (8.1, 8, 1, 2), (24, 8, 1, 3), (24, 8, 3, 1), (25, 8, 3, 2), (3, 8, 0.1, 4)],
)
def test_the_accepted_images_over_the_slots_say_how_many_replicas(images, slots, per_slot, wanted: int):
    assert wanted_replicas(images, slots, per_slot) == wanted


def context(**metrics: dict[str, float]) -> Any:
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=3)


def test_the_policy_adds_the_images_of_all_replicas_and_keeps_their_number_until_one_has_reported():
    policy = ImagesPerSlot(2.0)
    assert policy(context(images={"a": 40.0, "b": 9.0}, slots={"a": 8.0, "b": 8.0})) == (4, {})
    assert policy(context()) == (3, {})
    assert policy(SimpleNamespace(aggregated_metrics=None, target_num_replicas=2)) == (2, {})


def says(images: int = 0, requests: int = 0, slots: int = 8, models: tuple[str, ...] = ("tiny",)) -> dict[str, Any]:
    return {IMAGES: images, REQUESTS: requests, SLOTS: slots, MODELS: list(models)}


@pytest.mark.parametrize(
    ("candidates", "model", "order"),
    [
        ([Candidate(says(), 6), Candidate(says(), 2)], "", [1, 0]),
        # One request of 8 images takes more slots than three of one.
        ([Candidate(says(images=8, requests=1), 1), Candidate(says(images=3, requests=3), 3)], "", [1, 0]),
        # The requests that a proxy counts are newer than the report.
        ([Candidate(says(images=9, requests=9), 0), Candidate(says(), 5)], "", [0, 1]),
        ([Candidate(says(images=9, requests=9), None), Candidate(says(), 5)], "", [1, 0]),
        ([Candidate(says(slots=32), 6), Candidate(says(slots=8), 3)], "", [0, 1]),
        # A full replica that has the model comes before an empty one whose network fails.
        ([Candidate(says(models=()), 0), Candidate(says(), 60)], "tiny", [1, 0]),
        ([Candidate(says(models=("other",)), 3), Candidate({}, 2)], "tiny", [1, 0]),
    ],
)
def test_the_replica_with_the_model_and_the_most_room_comes_first(candidates, model: str, order: list[int]):
    assert preference(candidates, model) == order


def test_equal_replicas_are_taken_in_turns():
    first = {preference([Candidate(says(), 1), Candidate(says(), 1)], "tiny")[0] for _ in range(64)}
    assert first == {0, 1}


def test_ray_loads_both_where_our_packages_are_not(tmp_path: Path):
    policy = AutoscalingPolicy(policy_function=ImagesPerSlot, policy_kwargs={"images_per_slot": 2.0})
    router = RequestRouterConfig(request_router_class=FreeSlotsRouter)
    pickles = policy.get_serialized_policy_def(), router.get_serialized_request_router_cls()
    (tmp_path / "pickles.py").write_text(f"PICKLES = {pickles!r}\n")
    code = (
        "from pickles import PICKLES; from ray import cloudpickle; from types import SimpleNamespace as C\n"
        "policy, router = map(cloudpickle.loads, PICKLES)\n"
        "print(policy(2.0)(C(aggregated_metrics={'images': {'a': 33.0}, 'slots': {'a': 8.0}}))[0], router.__name__)\n"
        "import sys; assert 'server' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert done.stdout.split() == ["3", "FreeSlotsRouter"], done.stderr
