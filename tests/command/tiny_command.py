"""The command with a network that trains in a second, in processes of its own that can be killed.

    python tests/command/tiny_command.py

reads lines ["FOLDER/FILE:COUNT", "train", PHOTOS, "--out", DIR, ...] of JSON. For each it forks a process that runs the
command and kills itself (SIGKILL) when it is about to put a file of that name and folder in its place for the COUNTth
time; "-" kills nothing. It answers with a line [exit code, stderr]. No engine is exported: that takes most of the time,
and test_command.py does it.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo  # before processes are forked: every optimiser imports it, which takes two seconds

from fewstep.__main__ import main
from fewstep.commands import train
from fewstep.unet_config import UNetConfig
from tests.trainer.tiny import draw_little
from trainer import commands, report  # noqa: F401 - likewise
from trainer.plan import Plan
from trainer.recipes.by_name import RECIPES
from trainer.stages import planning
from trainer.stages import train as stages  # noqa: F401 - likewise

TINY = UNetConfig(resolution=32, width=16, mult=(1,), blocks=1, patch=4)


def tiny_recipe() -> None:
    """The pictures' recipe with a tiny network and small batches."""
    RECIPES["photos"] = replace(RECIPES["photos"], network=TINY, batch=8)


def few_images(plan: Callable[..., Plan]) -> Callable[..., Plan]:
    """Plans of a few updates, whatever the budget and the machine."""
    return lambda *arguments, **facts: replace(plan(*arguments, **facts), images={"teacher": 48, "dpdm": 16})


def die_at(place: str, count: int) -> None:
    rename, seen = Path.replace, []

    def dying(self: Path, target: Path) -> Path:
        path = Path(target)
        if f"{path.parent.name}/{path.name}" == place and "fewstep-plan-" not in str(path):
            seen.append(path)
            if len(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.replace = dying  # pyright: ignore[reportAttributeAccessIssue]


def attempt(place: str, argv: list[str], said: int) -> None:
    """In a process of its own: the command, whose stderr is the file descriptor `said`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(said, 2)
    if place != "-":
        at, number = place.split(":")
        die_at(at, int(number))
    sys.exit(main(argv))


def attempts() -> None:
    """Fork a process for every line of stdin, so that torch is imported once."""
    for line in sys.stdin:
        place, *argv = json.loads(line)
        with tempfile.TemporaryFile() as said:
            if (pid := os.fork()) == 0:
                attempt(place, argv, said.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said.seek(0)
            print(json.dumps([code, said.read().decode()]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny_recipe()
    draw_little(pytest.MonkeyPatch())
    train._export = lambda model, out: {}
    planning.plan = few_images(planning.plan)
    attempts()
