"""A budget is a number of images, measured once: schedules count images, and a resumed run is the uninterrupted one."""

import time

import pytest
import torch

from fewstep.card import read_card
from fewstep.network import UNet
from tests.trainer.run.test_loop import interrupt_after, weights
from tests.trainer.tiny import TINY, draws, run_options
from trainer.commands import train_teacher
from trainer.methods.edm import Teacher
from trainer.run import loop
from trainer.run.budget import images_within
from trainer.run.loop import LoopConfig
from trainer.run.state import read_facts
from trainer.runs import _decide_compile

pytestmark = pytest.mark.usefixtures("tiny_recipe")


def budgeted(out, **changes):
    return run_options(out, **{"images": None, "budget_s": 60.0, **changes})


def test_measuring_leaves_no_trace(thumbnails, tmp_path, monkeypatch):
    """A run with a budget ends at the weights of a run of as many images, and its card says how many."""
    monkeypatch.setattr(loop, "images_within", lambda *arguments: (images_within(*arguments), 64)[1])
    train_teacher(budgeted(tmp_path / "budget"), thumbnails)
    train_teacher(run_options(tmp_path / "images"), thumbnails)
    assert weights(tmp_path / "budget") == weights(tmp_path / "images")
    training = read_card(tmp_path / "budget").training
    assert (training["images_planned"], training["budget_s"], training["images"]) == (64, 60.0, 64)


@pytest.mark.parametrize("limit", [{"budget_s": 60.0}, {"budget_s": None}], ids=["budget", "none"])
def test_a_resumed_run_with_a_budget_is_the_uninterrupted_one(limit, thumbnails, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "images_within", lambda *_: 64)
    train_teacher(budgeted(tmp_path / "straight"), thumbnails)
    with monkeypatch.context() as patch:
        interrupt_after(3, Teacher, patch)
        train_teacher(budgeted(tmp_path / "parts"), thumbnails)
    assert read_facts(tmp_path / "parts")["images"] == 24
    monkeypatch.setattr(loop, "images_within", lambda *_: pytest.fail("measured again, at another speed"))
    clock = time.monotonic  # a machine that has become a thousand times slower
    monkeypatch.setattr(time, "monotonic", lambda: 1000 * clock())
    train_teacher(budgeted(tmp_path / "parts", resume=True, **limit), thumbnails)
    assert weights(tmp_path / "parts") == weights(tmp_path / "straight")


def test_another_budget_is_another_number_of_images_at_the_same_speed(thumbnails, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "images_within", lambda *_: 64)
    train_teacher(budgeted(tmp_path), thumbnails)
    train_teacher(budgeted(tmp_path, budget_s=90.0, resume=True), thumbnails)
    assert read_card(tmp_path).training["images"] == 96


def test_a_budget_buys_what_the_measured_updates_say(monkeypatch):
    """Updates of half a second each, but for a first one of ten: compilation is not what a run consists of."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    network = UNet(TINY)
    weight = next(network.parameters())
    parts = loop.Parts({"teacher": network}, {}, torch.Generator())

    class Slow:
        updates = 0

        def update(self, *_):
            now[0] += 0.5 if self.updates else 10.0
            self.updates += 1
            with torch.no_grad():
                weight.add_(1.0)

    before = weight.clone()
    stream = iter([(torch.zeros(8, 1, 8, 8), torch.zeros(8))] * 100)
    images = images_within(1000.0, Slow(), stream, 8, parts, draws())  # pyright: ignore[reportArgumentType]
    assert images == pytest.approx(16 * (1000 - 10 - 15 * 0.5), rel=0.1)
    assert torch.equal(weight, before)


def test_a_long_run_limited_by_images_is_compiled(tmp_path):
    options = run_options(tmp_path, compile="auto")
    step = lambda: 0.1  # noqa: E731
    assert _decide_compile(options, LoopConfig(batch=64, images=64 * 10_000), "cuda", step)
    assert not _decide_compile(options, LoopConfig(batch=64, images=64 * 1_000), "cuda", step)
    assert _decide_compile(
        options, LoopConfig(batch=64, budget_s=3600), "cuda", lambda: pytest.fail("timed for nothing")
    )
