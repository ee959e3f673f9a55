"""The panel's command: which networks it takes, what it compares, and a run from start to end on few images."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import panel
from benchmarks.methods import SOLVERS
from benchmarks.panel import Halves, compared, named, sample_missing, shown, solver, teacher_folder, trained_on
from benchmarks.panel_made import Wanted, take_made
from benchmarks.quality import make_series
from fewstep.card import CheckpointError, read_card
from fewstep.metrics.cache import Cache
from fewstep.metrics.panel import METRICS
from fewstep.schedule import student_levels
from tests.benchmarks.worlds import PAIR, generator, image_set

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "fashion"
TRAIN = image_set(40, 0)
HALVES = Halves(*(replace(TRAIN, images=TRAIN.images[h], labels=TRAIN.labels[h]) for h in (slice(20), slice(20, 40))))


def card_of(images) -> SimpleNamespace:
    return SimpleNamespace(dataset=images.provenance())


def test_a_network_of_half_b_is_refused_and_one_of_all_images_is_warned_of(capsys):
    assert trained_on(card_of(HALVES.a), Path("runs/s"), TRAIN, HALVES) == "half a" and not capsys.readouterr().err  # type: ignore[arg-type]
    assert trained_on(card_of(TRAIN), Path("runs/s"), TRAIN, HALVES) == "all training images"  # type: ignore[arg-type]
    assert "warning: runs/s was trained on all training images, not on half a alone" in capsys.readouterr().err
    assert trained_on(card_of(image_set(9, 5)), Path("runs/s"), TRAIN, HALVES) == "other images"  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"runs/s was trained on half b .*--half a --out DIR"):
        trained_on(card_of(HALVES.b), Path("runs/s"), TRAIN, HALVES)  # type: ignore[arg-type]


def test_a_data_set_whose_reader_makes_the_halves_has_no_half_that_is_refused(capsys):
    crops = replace(TRAIN, name="earth")
    halves = Halves.of(crops)
    assert halves.a is crops and halves.b is None
    assert trained_on(card_of(crops), Path("runs/s"), crops, halves) == "all training images"  # type: ignore[arg-type]
    assert trained_on(card_of(HALVES.a), Path("runs/s"), crops, halves) == "other images"  # type: ignore[arg-type]
    assert not capsys.readouterr().err
    assert Halves.of(TRAIN).b is not None
    assert Halves.of(replace(crops, name="1000 of earth-a")).b is None  # the part that a smoke run reads
    assert Halves.of(replace(TRAIN, name="1000 of photos")).b is not None


def test_the_teacher_is_found_beside_its_student(tmp_path):
    assert teacher_folder(MODEL, None) == MODEL / "teacher"
    rival = MODEL / "rivals" / "tied"
    assert teacher_folder(rival, MODEL / "teacher") == MODEL / "teacher"
    with pytest.raises(CheckpointError, match=r"no teacher in .*tied/teacher or .*rivals/teacher; name its folder"):
        teacher_folder(rival, None)
    with pytest.raises(CheckpointError, match="was not distilled from"):
        teacher_folder(rival, MODEL)


def columns() -> list[panel.Sampler]:
    levels = {k: student_levels(k) for k in (1, 2)}
    student, *_ = make_series({"student": generator(PAIR.student, levels)}, generator(PAIR.teacher))
    methods = {method.name: method for method in SOLVERS}
    own = [panel.Sampler(f"student:{k}", student, k, "half a") for k in (1, 2)]
    return own + [solver(text, methods, generator(PAIR.teacher), "half a") for text in ("sa:5", "euler:2", "euler:3")]


def test_a_student_is_compared_with_its_next_count_with_equal_counts_and_with_the_most_calls():
    assert compared(columns()) == [
        ("student:2", "student:1"), ("student:1", "sa:5"), ("student:2", "sa:5"), ("student:2", "euler:2"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["sa", "nobody:4", "heun:4", "sa:x"])
def test_a_sampler_that_there_is_not_is_refused_with_the_names(text: str):
    with pytest.raises(ValueError, match=rf"--solver {text} is none; write NAME:CALLS.*euler, heun"):
        solver(text, {method.name: method for method in SOLVERS}, generator(), "half a")


def test_searched_schedules_are_named_by_their_calls_and_the_best_by_unseen_seeds(tmp_path):
    path = tmp_path / "schedules.json"
    unseen = {"held_out_before": [1.0, 1.0], "held_out_after": [3.0, 3.0]}
    rows = [
        {"solver": "euler", "calls": 35, "accepted": False, **unseen},  # what was found is worse, and was not kept
        {"solver": "sa", "calls": 35, "accepted": True, **unseen, "held_out_after": [0.4, 0.8]},
        {"solver": "heun", "calls": 35, "accepted": True, **unseen},
        {"solver": "euler", "calls": 4, "accepted": True, **unseen, "held_out_after": [0.1, 0.1]},
    ]
    path.write_text(json.dumps({"rows": rows}, allow_nan=False))
    known = ["euler-tuned:4", "euler-tuned:35", "sa-tuned:35", "heun-tuned:35"]
    assert named("all", known, path) == known
    assert named("4", known, path) == ["euler-tuned:4"]
    assert named("best:35", known, path) == ["sa-tuned:35"]
    for word in ("5", "best:5", "worst:4", "best:", "sa-tuned:35"):
        with pytest.raises(ValueError, match=rf"--tuned {word} names none of .*write all, a number of calls, or best"):
            named(word, known, path)


def test_images_are_sampled_once_and_kept(tmp_path):
    cache = Cache(tmp_path)
    tasks = [(one.name, one.task(range(7, 12))) for one in columns()]
    sample_missing(cache, tasks)
    stored = cache.read(panel.pixels_key(tasks[0][1]))
    assert stored is not None and stored["pixels"].shape == (5, 4, 4, 1)

    def again(seeds):
        raise AssertionError("sampled again")

    sample_missing(cache, [(name, replace(task, batches=again)) for name, task in tasks])


def test_images_of_a_bulk_run_are_judged_without_being_sampled(tmp_path):
    cache, (one, two, *_) = Cache(tmp_path / "kept"), columns()
    wanted = [Wanted("student", each.calls, piece) for each in (one, two) for piece in each.pieces(range(7, 27))]
    seeds = range(26, 4, -1)  # in any order, and more than are asked for
    pixels = np.concatenate([batch.pixels for batch in two.task(seeds).batches(seeds)])

    def given(**changes) -> Path:
        recipe = {"checkpoint": "student", "steps": 2, "label": "balanced", "class_names": ["even", "odd"]}
        arrays = {"images": pixels, "seeds": np.array(seeds), "recipe": json.dumps(recipe | changes)}
        np.savez(tmp_path / "made.npz", **arrays)
        return tmp_path / "made.npz"

    assert take_made(cache, given(), wanted, panel.pixels_key) == 20
    kept = [cache.read(panel.pixels_key(piece.task)) for piece in wanted]
    assert kept[0] is None and kept[1] is not None and np.array_equal(kept[1]["pixels"], pixels[-3:-23:-1])
    for changes in ({"checkpoint": "other"}, {"steps": 4}, {"label": "random"}, {"guidance": 2.0}):
        with pytest.raises(ValueError, match=r"has none of the images .*\n.*--steps 1 --seeds 7-26 --out FILE.npz\n"):
            take_made(cache, given(**changes), wanted, panel.pixels_key)
    with pytest.raises(ValueError, match="has other images for the seeds from 7 on than its model makes now"):
        take_made(cache, given(steps=1), wanted, panel.pixels_key)
    (tmp_path / "made.npz").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"is no \.npz of fewstep generate"):
        take_made(cache, tmp_path / "made.npz", wanted, panel.pixels_key)


def test_a_run_judges_every_sampler_beside_real_images_and_a_second_one_from_the_cache(
    zips, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "panel.json"
    command = ["panel.py", "--images", "20", "--ranges", "2", "--calls", "1", "--solver", "euler:1", *zips]
    monkeypatch.setattr(sys, "argv", [*command, "--cache", str(tmp_path / "kept"), "--out", str(out)])
    panel.main()
    printed, result = capsys.readouterr(), json.loads(out.read_text())
    assert printed.err.startswith("panel 1: 20 images of 2 ranges")
    assert result["benchmark"] == "panel" and result["settings"]["images"] == 20
    assert [(row["sampler"], row["images"]) for row in result["rows"]] == [
        ("real", 20), ("student:1", 20), ("euler:1", 20),
    ]  # fmt: skip
    assert {row.get("trained_on") for row in result["rows"][1:]} == {"other images"}  # of the fixture, that is
    assert result["rows"][1]["checkpoint"] == read_card(MODEL).weights and result["rows"][1]["backend"] == "engine"
    for row in result["rows"]:
        assert list(row["metrics"]) == [metric.name for metric in METRICS]
        assert len(row["metrics"]["spectrum"]["values"]) == 2
    missing = row_names_without_values(result["rows"][1])
    assert missing == ({"frechet effl0-pca64", "kid effl0-pca64"} if "effl0-pca64" in result["missing"] else set())
    assert [(pair["first"], pair["second"]) for pair in result["comparisons"]] == [("student:1", "euler:1")]
    assert "student:1 beside euler:1" in printed.out and "1 call beside Euler = DDIM, 1, AUC at most" in printed.out
    assert shown(result["rows"]) in printed.out

    def never(*_):
        raise AssertionError("judged again")

    monkeypatch.setattr(panel, "judge", never)
    panel.main()
    assert json.loads(out.read_text())["rows"] == result["rows"]


def row_names_without_values(row: dict) -> set[str]:
    return {name for name, found in row["metrics"].items() if found["values"] is None}


def test_a_choice_of_schedules_without_their_file_is_refused(zips, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["panel.py", "--tuned", "4", *zips, "--cache", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: --tuned chooses among searched schedules; name their file"):
        panel.main()


def test_too_many_images_for_the_real_ones_are_refused_in_a_sentence(zips, tmp_path, monkeypatch):
    command = ["panel.py", "--images", "2000", "--ranges", "1", "--calls", "1", "--solver", *()]
    monkeypatch.setattr(sys, "argv", [*command, *zips, "--cache", str(tmp_path / "kept")])
    monkeypatch.setattr(panel, "sample_missing", lambda cache, tasks: fake(cache, tasks))
    with pytest.raises(SystemExit, match=r"class 0 has .* judge fewer images: --images"):
        panel.main()


def fake(cache: Cache, tasks) -> None:
    for _, task in tasks:
        cache.write(panel.pixels_key(task), pixels=np.zeros((len(task.seeds), 32, 32, 1), np.uint8))
