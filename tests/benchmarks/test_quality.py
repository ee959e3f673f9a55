"""The quality table: its plan, its composition from known cells, and the command from a user's shell."""

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import inputs, quality
from benchmarks.cells import Task, read_cell
from benchmarks.generators import Batch
from benchmarks.quality import Series, chosen, make_plan, make_series, sample_missing
from benchmarks.quality_table import compose, held_out_rows, summary, tables
from benchmarks.scores import Neighbours, Scores
from fewstep.metrics.cache import Cache
from fewstep.metrics.reference import Reference
from fewstep.schedule import student_levels
from tests.benchmarks.worlds import PAIR, generator, image_set, pixel_net, reference
from trainer.data.format import DataError

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {k: student_levels(k) for k in (1, 2, 4)}
LABELS = {
    "student": "DPDM student",
    "euler": "Euler = DDIM",
    "heun": "EDM Heun",
    "teacher-dpdm": "teacher, DPDM sampler",
}


def gaussian_series() -> list[Series]:
    return make_series({"student": generator(PAIR.student, LEVELS)}, generator(PAIR.teacher))


def gaussian_plan(images: int = 200, repeats: int = 2, nfe: tuple[int, ...] = (1, 2)) -> dict:
    series = [line for line in gaussian_series() if line.name in LABELS]
    return make_plan(series, nfe, images, repeats, batch=100)


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cells")


def forbidden(task: Task) -> Task:
    """The same images, which nobody may sample again."""

    def sample(seeds):
        raise AssertionError(f"sampled again: {task.key}")

    return replace(task, batches=sample)


def test_a_plan_has_every_possible_cell_with_seeds_of_its_own():
    plan = make_plan(gaussian_series(), (1, 2, 3), images=10, repeats=3, batch=5)
    counts = {name: sorted(nfe for other, nfe, repeat in plan if (other, repeat) == (name, 0)) for name, _, _ in plan}
    assert counts["student"] == counts["teacher-dpdm"] == [1, 2]
    assert counts["heun"] == [1, 3] and counts["euler"] == counts["sa"] == [1, 2, 3]
    assert [plan["euler", 2, r].key["seeds"] for r in range(3)] == [[0, 10], [10, 20], [20, 30]]
    assert [place[2] for place in plan] == sorted(place[2] for place in plan)  # a whole repeat before the next
    assert plan["teacher-dpdm", 2, 0].key["sigmas"] == plan["student", 2, 0].key["sigmas"] == list(LEVELS[2])
    assert plan["teacher-dpdm", 2, 0].key["checkpoint"] != plan["student", 2, 0].key["checkpoint"]


def test_filters_take_methods_and_single_counts():
    plan = gaussian_plan(repeats=1)
    assert chosen(plan, None) == plan
    assert set(chosen(plan, ["student", "euler:2"])) == {("student", 1, 0), ("student", 2, 0), ("euler", 2, 0)}
    with pytest.raises(ValueError, match="--only heun:2 fits nothing; there are student, euler, heun"):
        chosen(plan, ["heun:2"])


def test_a_second_run_samples_nothing_and_an_interrupted_one_goes_on(cache):
    plan, net = gaussian_plan(images=20), reference(cache)
    places = list(plan)

    def interrupt(seeds):
        raise KeyboardInterrupt

    stopped = {**plan, places[3]: replace(plan[places[3]], batches=interrupt)}
    with pytest.raises(KeyboardInterrupt):
        sample_missing(cache, stopped, [net], stored=10)
    assert [read_cell(cache, plan[place], net, 10) is not None for place in places[:5]] == [True] * 3 + [False] * 2

    finished = {place: forbidden(task) if place in places[:3] else task for place, task in plan.items()}
    sample_missing(cache, finished, [net], stored=10)
    sample_missing(cache, {place: forbidden(task) for place, task in plan.items()}, [net], stored=10)


def test_a_further_extractor_samples_again_and_keeps_the_first(cache):
    plan, first, second = gaussian_plan(images=20, repeats=1), reference(cache), reference(cache, pixel_net("other"))
    sample_missing(cache, plan, [first], stored=10)
    with pytest.raises(AssertionError, match="sampled again"):
        sample_missing(cache, {place: forbidden(task) for place, task in plan.items()}, [first, second], stored=10)
    sample_missing(cache, plan, [first, second], stored=10)
    sample_missing(cache, {place: forbidden(task) for place, task in plan.items()}, [first, second], stored=10)


def composed(cache: Cache, plan: dict, net: Reference, stored: int = 100) -> tuple[list, list]:
    neighbours = Neighbours(cache, image_set(400, 0), image_set(200, 1), net)
    return compose(cache, plan, LABELS, [net], neighbours, stored)


def test_rows_tell_a_perfect_student_from_a_teacher_that_averages(cache):
    plan, net = gaussian_plan(), reference(cache)
    sample_missing(cache, plan, [net], stored=100)
    rows, pairs = composed(cache, plan, net)
    found = {(row["method"], row["nfe"]): row for row in rows}
    assert [f"{name}:{nfe}" for name, nfe in found] == [
        "student:1", "student:2", "euler:1", "euler:2", "heun:1", "teacher-dpdm:1", "teacher-dpdm:2",
    ]  # fmt: skip
    (floor,) = net.floor(200)
    student, teacher = found["student", 1], found["teacher-dpdm", 1]
    assert student["distance"] == pytest.approx(floor, rel=0.5) and teacher["distance"] > 5 * floor
    assert student["recall"] > 0.5 and teacher["recall"] < 0.1 < 0.9 < teacher["precision"]
    assert student["repeats"] == 2 and student["seeds"] == [[0, 200], [200, 400]]
    assert student["distance"] == pytest.approx(np.mean(student["distances"]))
    assert student["distance_std"] == pytest.approx(np.std(student["distances"], ddof=1))
    assert student["accuracy"] is None  # raw pixels are no classifier
    spaces = student["memorisation"]
    # Pixels are the features here, but for the unit: grey levels per pixel against the length in [-1, 1].
    scale = 127.5 / np.sqrt(16)
    assert spaces["pixels"]["quantiles"][0.5] == pytest.approx(spaces["features"]["quantiles"][0.5] * scale, rel=1e-4)
    assert spaces["features"]["share_close"] < 0.1
    assert {(one.label, one.nfe) for one in pairs} >= {
        ("DPDM student", 2),
        ("EDM Heun", 1),
    }  # the largest count of each


def test_neighbour_rows_are_those_of_the_image_set(cache):
    plan, net, train = gaussian_plan(images=20, repeats=1, nfe=(1,)), reference(cache), image_set(400, 0)
    sample_missing(cache, plan, [net], stored=20)
    cell = read_cell(cache, plan["student", 1, 0], net, 20)
    assert cell is not None
    neighbours = Neighbours(cache, train, image_set(200, 1), net)
    expected = np.square(cell.pixels[:, None].astype(int) - train.images[None]).sum(axis=(2, 3, 4)).argmin(axis=1)
    for space in ("features", "pixels", "pixels"):  # the second time from the cache
        np.testing.assert_array_equal(neighbours.of_cell(plan["student", 1, 0], cell, space).row, expected)


def test_copies_of_training_images_show_as_close(cache):
    plan, net, train = gaussian_plan(images=100, repeats=1, nfe=(1,)), reference(cache), image_set(400, 0)
    place = ("student", 1, 0)
    real = plan[place].batches

    def copier(seeds):
        for pixels, nfe in real(seeds):
            pixels[::2] = train.images[: len(pixels[::2])]
            yield Batch(pixels, nfe)

    sample_missing(cache, {place: replace(plan[place], batches=copier)}, [net], stored=100)
    (row,), _ = composed(cache, plan, net)
    assert row["memorisation"]["pixels"]["share_close"] >= 0.5 <= row["memorisation"]["features"]["share_close"]


def test_rows_cover_the_repeats_that_are_there(cache):
    plan, net = gaussian_plan(images=50), reference(cache)
    some = {place: task for place, task in plan.items() if place[0] == "euler" and (place[1], place[2]) != (2, 1)}
    sample_missing(cache, some, [net], stored=50)
    rows, _ = composed(cache, plan, net, stored=50)
    assert [(row["method"], row["nfe"], row["repeats"]) for row in rows] == [("euler", 1, 2), ("euler", 2, 1)]
    assert rows[0]["distance_std"] > 0 and rows[1]["distance_std"] is None


def test_summary_is_mean_and_sample_deviation():
    figures = summary([Scores(1.0, 0.5, 0.2, 0.9), Scores(3.0, 0.5, 0.4, None)])
    assert figures["distances"] == [1, 3] and figures["distance"] == 2
    assert figures["distance_std"] == pytest.approx(np.sqrt(2)) and figures["precision_std"] == 0
    assert figures["recall"] == pytest.approx(0.3) and figures["accuracy"] is figures["accuracy_std"] is None


def test_tables_leave_impossible_cells_empty_and_state_n_and_the_floor(cache):
    plan, net = gaussian_plan(images=50, repeats=1), reference(cache)
    sample_missing(cache, plan, [net], stored=50)
    rows, _ = composed(cache, plan, net, stored=50)
    text = tables(rows, held_out_rows([net], 50, 50), (1, 2))
    grid = text.split("\n\n")[1].splitlines()
    heun = next(line for line in grid if "EDM Heun" in line)
    assert heun.split()[-1] == "-" and float(heun.split()[-2]) > 0
    assert f"floor {np.mean(net.floor(50)):.3g}" in text and "N = 50 for every distance" in text
    assert "real held-out images" in text
    assert "no floor: too few held-out images" in tables(rows, held_out_rows([net], 201, 50), (1, 2))


# --- The command ------------------------------------------------------------------------------------------------------


def test_smoke_run_prints_tables_and_writes_everything(tmp_path, zips, monkeypatch, capsys):
    out, grids = tmp_path / "quality.json", tmp_path / "grids"
    command = ["quality.py", "--smoke", *zips, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--grids", str(grids)])
    quality.main()
    said, result = capsys.readouterr().out, json.loads(out.read_text())
    found = {(row["method"], row["nfe"]): row for row in result["rows"]}
    assert len(found) == 18 and ("heun", 3) in found
    # What training does: the student against its own teacher, same sampler, same levels, same seeds.
    assert found["student", 1]["distance"] < 0.6 * found["teacher-dpdm", 1]["distance"]
    assert found["student", 1]["accuracy"] > 0.5 and result["held_out"][0]["accuracy"] > 0.85
    assert result["settings"]["images"] == 12 and "equal N" in result["note"]
    assert {"machine", "commit", "checkpoints", "extractors", "data", "schedules"} <= set(result)
    assert "network calls:" in said and "floor" in said
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert (tmp_path / "quality-closest.png").stat().st_size > 10_000
    assert len(list(grids.iterdir())) == 18
    with Image.open(grids / "student-03.png") as sheet:
        assert sheet.size == (8 * 32, 2 * 32)  # 12 images


def test_a_rival_is_a_row_and_cells_are_shared_between_runs(tmp_path, zips, monkeypatch, capsys):
    def run(*options: str) -> list[tuple[str, int]]:
        out = tmp_path / "quality.json"
        common = [*zips, "--cache", str(tmp_path / "cells"), "--images", "10", "--repeats", "1", "--nfe", "1"]
        monkeypatch.setattr(sys, "argv", ["quality.py", *common, "--out", str(out), *options])
        quality.main()
        return [(row["method"], row["nfe"]) for row in json.loads(out.read_text())["rows"]]

    assert run("--only", "student") == [("student", 1)]
    rival = ["--student", f"rival={ROOT / 'models/fashion'}"]  # the same checkpoint under another name
    assert run(*rival, "--compose", "--verify") == [("student", 1), ("rival", 1)]
    assert "rival" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--student", "heun=x"], "with a name that is not one of euler, heun"),
        (["--student", "x"], "wants NAME=DIR"),
        (["--student", "x=/nowhere"], "holds no engine"),
        (["--only", "nonsense"], "--only nonsense fits nothing; there are student, euler"),
        (["--images", "3"], "more than 3"),
        (["--data", "/nowhere.zip"], "/nowhere.zip does not exist; for Fashion-MNIST: fewstep trainer data fashion"),
        (["--inception", "/nowhere.pth"], "does not exist; --inception wants the file known as pt_inception"),
        (["--student", f"x={ROOT / 'models/fashion/teacher'}"], "x has no levels in its card: it is not a student"),
    ],
)
def test_mistakes_are_sentences(options, said, tmp_path, zips, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quality.py", *zips, "--cache", str(tmp_path), "--images", "10", *options])
    with pytest.raises(SystemExit) as stopped:
        quality.main()
    assert said in str(stopped.value) + capsys.readouterr().err


def test_a_fresh_clone_has_what_a_smoke_run_needs_and_a_full_run_says_what_makes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inputs, "DATA", tmp_path / "fashion.zip")
    args = Namespace(smoke=True, data=tmp_path / "fashion.zip", held_out=tmp_path / "fashion-test.zip")
    train, held_out = inputs.load_data(args)
    assert (len(train.images), len(held_out.images)) == (1000, 500)
    assert train.images.shape[1:] == (32, 32, 1) and "stand in for it" in capsys.readouterr().err
    args.smoke = False
    with pytest.raises(DataError, match=r"fewstep trainer data fashion --split train --out .*fashion\.zip"):
        inputs.load_data(args)
