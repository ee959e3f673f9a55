"""trainer student --method progressive: its folders, its switches, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.card import CheckpointError, read_card
from fewstep.checkpoint import load_denoiser
from fewstep.command_line import parse
from fewstep.ranges import RangeError
from tests.trainer.tiny import run_options
from trainer.commands import train_student
from trainer.data.format import ImageSet
from trainer.options import Distillation, StudentCommand
from trainer.publish import publish


def test_the_flag_lists_levels(capsys):
    given = ["--recipe", "digits", "--teacher", "t", "--out", "o"]
    switches = lambda *more: parse(StudentCommand, [*given, *more], "student").switches  # noqa: E731
    assert switches("--further", "0.1,0.05") == {"further": (0.1, 0.05)}
    assert switches("--further-for", "1", "--saturate", "0.02") == {"further_for": 1, "saturate": 0.02}
    with pytest.raises(SystemExit, match="2"):
        switches("--further=")
    assert "--further is empty; give a value" in capsys.readouterr().err
    for text in ("0.05,0.1", "few", "0.1,-1"):
        with pytest.raises(SystemExit, match="2"):
            switches(f"--further={text}")
        assert f"--further: {text!r} are no levels: write 0.1,0.05" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_recipe")
def test_a_run_continues_a_student_at_the_lists_it_serves(thumbnails: ImageSet, tiny_teacher: Path, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train_student(run_options(first, images=16), thumbnails, Distillation(tiny_teacher))
    switches = {"further": (0.01, 0.005), "further_for": 1, "saturate": 0.02, "top": 0.4, "lr": 1e-3}
    request = Distillation(tiny_teacher, "progressive", switches, start=first)
    assert train_student(run_options(second, images=32), thumbnails, request)
    assert train_student(run_options(second, resume=True), thumbnails, request)
    begun, card = read_card(first), read_card(second)
    assert (card.levels, card.parent, card.role) == (begun.levels, begun.parent, "student")
    training = card.training
    assert (training["method"], training["start"], training["images"]) == ("progressive", begun.weights, 64)
    assert (training["further"], training["top"], training["adam"]["lr"]) == ([0.01, 0.005], 0.4, 1e-3)
    assert training["further_for"] == 1 and training["saturate"] == 0.02
    assert training["simulate"] == 0.0 and "kept" not in training
    assert load_denoiser(second)[1].weights != begun.weights


@pytest.mark.usefixtures("tiny_recipe")
def test_a_student_continued_beside_the_published_teacher_keeps_the_parent_of_what_it_continues(
    thumbnails: ImageSet, tiny_teacher: Path, tmp_path
):
    """The teacher in half precision has another hash; it is the same parent."""
    first, second, published = tmp_path / "first", tmp_path / "second", tmp_path / "published"
    assert train_student(run_options(first, images=16), thumbnails, Distillation(tiny_teacher))
    publish(tiny_teacher, published)
    request = Distillation(published, "progressive", {"further": (0.01,)}, start=first)
    assert train_student(run_options(second, images=16), thumbnails, request)
    assert read_card(second).parent == read_card(first).parent == read_card(tiny_teacher).weights


@pytest.mark.usefixtures("tiny_recipe")
def test_what_it_does_not_have_is_refused_before_anything_is_written(
    thumbnails: ImageSet, tiny_teacher: Path, tmp_path
):
    first = tmp_path / "first"
    assert train_student(run_options(first, images=16), thumbnails, Distillation(tiny_teacher))
    request = Distillation(tiny_teacher, "progressive", start=first)
    for wrong, sentence in (
        (replace(request, start=None), "add --init"),
        (replace(request, start=tiny_teacher), "--init names a teacher; --method progressive continues a student"),
        (
            replace(request, switches={"renoise": "tied", "top": 0.5}),
            "--renoise: a variant of DPDM, which --method pro",
        ),
        (replace(request, switches={"lr": 0.0}), "--lr must be a number above 0"),
        (replace(request, switches={"further": (3.0, 2.0)}), "--further 2 is not below any list's last level"),
        (replace(request, switches={"further_for": 9}), "--further-for must be a whole number from 0 to 8, not 9"),
        (replace(request, switches={"further_for": 0}), "--further-for 0: --init's shortest list has 1; choose that"),
        (replace(request, lists=first), "--lists-of: progressive distillation is trained at the lists that --init"),
        (replace(request, method="dpdm", switches={"further": (0.1,)}), "--further belongs to --method progressive"),
        (replace(request, method="dpdm", switches={"further_for": 1}), "--further-for belongs to --method progressive"),
        (replace(request, method="dpdm", kept=first), "--kept belongs to --method progressive"),
        (Distillation(tiny_teacher, "consistency", {"top": 0.5}), "--top: a variant of DPDM, which --method cons"),
    ):
        with pytest.raises(RangeError, match=sentence):
            train_student(run_options(tmp_path / "run"), thumbnails, wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("tiny_recipe")
def test_a_student_to_be_kept_serves_the_same_lists(thumbnails: ImageSet, tiny_teacher: Path, tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert train_student(run_options(first, images=16), thumbnails, Distillation(tiny_teacher))
    switches = {"further": (0.01,), "simulate": 0.5}
    request = Distillation(tiny_teacher, "progressive", switches, start=first)
    assert train_student(run_options(second, images=32), thumbnails, request)
    kept = replace(request, start=second, kept=first)
    assert train_student(run_options(third, images=32), thumbnails, kept)
    training = read_card(third).training
    assert (training["start"], training["kept"]) == (read_card(second).weights, read_card(first).weights)
    assert training["simulate"] == 0.5
    short = tmp_path / "short"
    assert train_student(run_options(short, images=16), thumbnails, Distillation(tiny_teacher, "diff-instruct"))
    for wrong, sentence in (
        (short, "serves other levels than --init; --kept names one of the same levels"),
        (tiny_teacher, "is not a student of such a teacher; --kept names one whose calls are to stay"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            train_student(run_options(tmp_path / "run"), thumbnails, replace(kept, kept=wrong))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("tiny_recipe")
def test_all_calls_may_be_anchored_where_the_teacher_says_the_coarse_part(
    thumbnails: ImageSet, tiny_teacher: Path, tmp_path
):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train_student(run_options(first, images=16), thumbnails, Distillation(tiny_teacher))
    request = Distillation(tiny_teacher, "progressive", {"further_for": 0, "coarse": 0.05}, start=first)
    assert train_student(run_options(second, images=16), thumbnails, request)
    assert read_card(second).training["coarse"] == 0.05 and "coarse" not in read_card(first).training
