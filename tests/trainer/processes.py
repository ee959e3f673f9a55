"""Run by test_distributed.py under torchrun: several training commands in one launch, for starting torch costs seconds.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/trainer/processes.py FOLDER

FOLDER/plan.json lists commands: {"argv": [...], "interrupt": [rank, update] or null}. Every process writes
FOLDER/report.RANK.json: for each command its exit code, what it said, and the files this process wrote.
"""

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.__main__ as command_line
from tests.trainer.tiny import TINY_RECIPE, draw_little
from trainer import classify, commands
from trainer.methods.dpdm import Student
from trainer.run import distributed as world
from trainer.run.distributed import join_processes, rank
from trainer.run.loop import LoopConfig

WRITES = os.O_WRONLY | os.O_RDWR


def every_update_logged(loop_config: Callable[..., LoopConfig]) -> Callable[..., LoopConfig]:
    return lambda *arguments: replace(loop_config(*arguments), log_every=1)


def interrupted(update: Callable[..., Any], number: int) -> Any:
    """The update, in which the process gets a SIGTERM when it is called for the `number`th time."""
    calls = []

    def run(*arguments):
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return update(*arguments)

    return run


def main(folder: Path) -> None:
    written: list[str] = []

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & WRITES:
            written.append(arguments[0])

    sys.addaudithook(watch)
    torch.set_num_threads(1)
    draw_little(pytest.MonkeyPatch())
    world.join_processes = lambda device: nullcontext()  # once, below, for all commands
    commands.recipe = lambda name: TINY_RECIPE
    commands.loop_config = every_update_logged(commands.loop_config)
    classify.loop_config = every_update_logged(classify.loop_config)
    update, report = Student.update, []
    with join_processes("cpu"):
        for command in json.loads((folder / "plan.json").read_text()):
            at = command["interrupt"]
            Student.update = interrupted(update, at[1]) if at and at[0] == rank() else update
            written.clear()
            sys.argv = ["trainer", *command["argv"]]
            with contextlib.redirect_stderr(io.StringIO()) as said:
                code = command_line.main()
            own = [name for name in written if Path(name).is_relative_to(folder)]
            report.append({"code": code, "said": said.getvalue(), "written": own})
        (folder / f"report.{rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    command_line.leave(0)
