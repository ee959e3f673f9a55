"""A training stage in several processes of `fewstep train`: the weights of one, and what is said of failures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from fewstep.card import WEIGHTS_FILE, read_card
from tests.trainer.tiny import TINY_RECIPE, run_options
from trainer import commands
from trainer.data.format import DataError, ImageSet, write_image_set
from trainer.journal import Journal
from trainer.options import Order
from trainer.recipes.recipe import Stage
from trainer.run import spawned
from trainer.run.distributed import rank
from trainer.run.spawned import Outcome, in_processes
from trainer.settings import MachineError
from trainer.stages import training
from trainer.stages.pictures import prepare

TEACHER = Stage("teacher", "teacher", 1.0)


def trained_then_failing(*stage: Any) -> training.Trained:
    """In one of the new processes."""
    commands.recipe = lambda name: TINY_RECIPE
    torch.set_num_threads(1)
    trained = training.train_shared(*stage)
    if rank() == 1:
        raise DataError(f"after {trained.completed}: p.tar: 000300.png is damaged")
    dist.barrier()  # waits for a process that has gone
    return trained


@pytest.mark.timeout(300)  # two processes load torch, on machines that may be busy
@pytest.mark.usefixtures("tiny_recipe")
def test_two_new_processes_train_the_weights_of_one_and_the_refusal_of_one_ends_both(
    thumbnails: ImageSet, tmp_path: Path
):
    write_image_set(tmp_path / "data.zip", thumbnails)
    order, alone = Order(str(tmp_path / "data.zip"), tmp_path / "run", device="cpu"), tmp_path / "alone"
    prepare(order, Journal(order.out))
    options = run_options(order.out / "teacher", images=16)
    with pytest.raises(DataError, match=r"after True: p\.tar: 000300\.png is damaged"):
        in_processes(2, "cpu", (DataError,), trained_then_failing, order, True, options, TEACHER, order.out)
    commands.train_teacher(run_options(alone, images=16), thumbnails)
    ours, theirs = (load_file(folder / WEIGHTS_FILE) for folder in (order.out / "teacher", alone))
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-6
    assert read_card(order.out / "teacher").training["processes"] == 2


def test_the_first_process_counts():
    assert spawned._value([Outcome(3), Outcome()], None, None) == 3


FOLLOWS = Outcome(trace="Traceback\nRuntimeError: connection closed by peer")
FAILURES: dict[str, tuple[Sequence[Outcome | None], int, type[BaseException], str]] = {
    "a refusal before what follows from it": ([FOLLOWS, Outcome(refusal=DataError("p.tar"))], 0, DataError, "p.tar"),
    "interrupted": ([Outcome(refusal=KeyboardInterrupt()), None], 0, KeyboardInterrupt, "^$"),
    "killed": ([FOLLOWS, None], 1, MachineError, r"process 1 of 2 was ended \(exit code -9"),
    "an error": ([None, FOLLOWS], 1, MachineError, "process 1 of 2 failed: RuntimeError: connection closed"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_is_said_of_a_process_that_failed(name: str):
    outcomes, failed, kind, said = FAILURES[name]
    with pytest.raises(kind, match=said):
        spawned._value(outcomes, failed, -9)
