"""The search of schedules for solvers, and its file: better than published, never worse, refused for other teachers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.methods import FAMILIES, Family, tuned_methods
from benchmarks.solver_search import (
    Schedule,
    Search,
    Trial,
    evaluations,
    images_by_calls,
    places,
    published,
    row,
    search,
    tried,
)
from fewstep.card import CheckpointError
from fewstep.metrics.cache import Cache
from fewstep.ranges import RangeError
from fewstep.schedule import logsnr_sigmas, solver_sigmas
from tests.benchmarks.worlds import generator
from trainer.levels.search import SearchConfig

BY_NAME = {family.name: family for family in FAMILIES}


def bowl(schedule: Schedule) -> float:
    """Best at 20 -> 0.1 with 1 / rho = 0.3, tau 0.4 or order 2."""
    goal = 0.4 if schedule.setting is not None and schedule.setting < 1 else 2
    parts = [np.log(schedule.sigma_max / 20), np.log(schedule.sigma_min / 0.1), schedule.inverse_rho - 0.3]
    return float(np.square([*parts, (schedule.setting or goal) - goal]).sum())


def test_a_schedule_is_karras_spacing_and_its_limit_is_uniform_in_log_snr():
    assert Schedule(inverse_rho=1 / 7).sigmas(5) == pytest.approx(solver_sigmas(5))
    assert Schedule(inverse_rho=0).sigmas(5) == logsnr_sigmas(5)
    assert Schedule(inverse_rho=1e-3).sigmas(5) == pytest.approx(logsnr_sigmas(5), rel=0.05)
    with pytest.raises(RangeError, match="--inverse-rho must be a number from 0 to 1"):
        Schedule(inverse_rho=1.5)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_search_comes_close_to_the_best_and_never_asks_more_than_it_says(family: Family):
    asked: set[Schedule] = set()

    def objective(schedule: Schedule) -> float:
        asked.add(schedule)
        return bowl(schedule)

    found = search(objective, family, levels=4)
    assert found.sigma_max == pytest.approx(20, rel=0.3) and found.sigma_min == pytest.approx(0.1, rel=0.3)
    assert found.inverse_rho == pytest.approx(0.3, abs=0.1)
    assert len(asked) <= evaluations(family, 4)
    if family.option == "order":
        assert found.setting == 2
    assert bowl(found) < 0.2 < bowl(published(family))


def test_a_single_level_is_sigma_max_alone():
    found = search(lambda schedule: abs(np.log(schedule.sigma_max / 30)), BY_NAME["euler"], levels=1)
    assert found.sigma_max == pytest.approx(30, rel=0.2)
    assert found.inverse_rho in (published(BY_NAME["euler"]).inverse_rho, 1 / 7)


def test_what_is_better_on_the_seeds_of_the_search_alone_is_not_kept():
    config = SearchConfig(windows=(2.0,), tries=2)
    unseen = [lambda schedule, i=i: -bowl(schedule) + 0.01 * i for i in range(4)]
    trial = tried([bowl, *unseen], BY_NAME["euler"], 4, config)
    assert trial.after < trial.before and not trial.accepted and trial.kept == trial.start
    assert trial.evaluations <= evaluations(BY_NAME["euler"], 4, config)
    assert tried([bowl] * 5, BY_NAME["euler"], 4, config).accepted


def test_heun_makes_odd_numbers_of_calls():
    assert [(family.name, calls, levels) for family, calls, levels in places(["heun", "euler"], [3, 4])] == [
        ("heun", 3, 2), ("euler", 3, 3), ("euler", 4, 4),
    ]  # fmt: skip


class Brightness:
    """A space of one number: the deviation of an image set's mean from a gray level."""

    description = "brightness"

    def distance(self, pixels, labels, seeds) -> float:
        assert len(pixels) == len(labels) == len(seeds)
        return float(abs(pixels.mean() - 128))


class Blind(Brightness):
    def distance(self, pixels, labels, seeds) -> float:
        raise AssertionError("looked at again")


def test_the_objective_is_the_distance_of_the_solvers_own_images_and_is_measured_once(tmp_path):
    seen: list[float] = []
    family, seeds = BY_NAME["sa"], range(2**34, 2**34 + 8)

    def objective(space: object):
        searching = Search(generator(), space, "sha", Cache(tmp_path))  # type: ignore[arg-type]
        return searching.objective(family, 3, seeds, seen.append)

    distance = objective(Brightness())
    schedule = Schedule(20.0, 0.1, 0.2, setting=0.5)
    (batch,) = generator().sample(
        lambda denoiser, noise, sigmas: family.sampler(denoiser, noise, sigmas, tau=0.5), schedule.sigmas(3), seeds, 8
    )
    expected = float(abs(batch.pixels.mean() - 128))
    assert distance(schedule) == expected and seen == [expected]
    assert objective(Blind())(schedule) == expected  # an interrupted search that goes on
    with pytest.raises(AssertionError, match="looked at again"):
        objective(Blind())(replace(schedule, setting=0.4))


def test_each_count_has_its_number_of_images():
    assert images_by_calls([4, 35], [200]) == {4: 200, 35: 200}
    assert images_by_calls([4, 35], [200, 50]) == {4: 200, 35: 50}
    with pytest.raises(ValueError, match="--images has 2 numbers and --calls 3; give one for all counts"):
        images_by_calls([1, 4, 35], [200, 50])


@pytest.fixture
def schedules(tmp_path: Path) -> Path:
    """A file as the command writes it: 2 and 4 calls of DPM-Solver++ with different orders."""
    rows = [
        row(BY_NAME["dpmpp"], calls, trial, 100)
        for calls, order in ((2, 2), (4, 3))
        for trial in [Trial(Schedule(), Schedule(20.0, 0.1, 0.0, order), True, 1.0, 0.5, (1.0,), (0.5,), 9)]
    ]
    path = tmp_path / "schedules.json"
    facts = {"benchmark": "solver_search", "checkpoints": {"teacher": "abc"}, "rows": rows}
    path.write_text(json.dumps(facts, allow_nan=False))
    return path


def test_the_file_gives_back_the_methods_and_their_settings(schedules: Path):
    (method,) = tuned_methods(schedules, "abc")
    assert method.name == "dpmpp-tuned" and method.sigmas(3) is None
    assert method.sigmas(4) == pytest.approx(logsnr_sigmas(4, 0.1, 20.0))
    assert method.settings(2) == {"order": 2} and method.settings(4) == {"order": 3}
    sigmas = method.sigmas(4)
    assert sigmas is not None
    ours, theirs = (
        next(generator().sample(sampler, sigmas, range(5), 8))
        for sampler in (
            method.sampler,
            lambda denoiser, noise, sigmas: BY_NAME["dpmpp"].sampler(denoiser, noise, sigmas, order=3),
        )
    )
    assert ours.nfe == 4
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)


def test_another_teachers_file_and_other_files_are_refused_in_a_sentence(schedules: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"was searched for the teacher abc\.\.\., and xyz\.\.\. is sampled"):
        tuned_methods(schedules, "xyz")
    other = tmp_path / "other.json"
    other.write_text('{"benchmark": "quality", "rows": []}')
    for path in (other, tmp_path / "none.json"):
        with pytest.raises(CheckpointError, match=r"holds no searched schedules .*solver_search.py --out FILE"):
            tuned_methods(path, "abc")
