"""The command with a network that trains in a second, in a process of its own that can be killed.

    python tests/command/tiny_command.py FOLDER/FILE:COUNT train PHOTOS --out DIR ...

The process kills itself (SIGKILL) when it is about to put a file of that name and folder in its place for the
COUNTth time. "-" kills nothing. No engine is exported: that takes most of the time, and test_command.py does it.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from fewstep.__main__ import main
from fewstep.commands import train
from fewstep.unet_config import UNetConfig
from trainer.recipes.by_name import RECIPES

TINY = UNetConfig(resolution=32, width=16, mult=(1,), blocks=1, patch=4)


def tiny_recipe() -> None:
    """The pictures' recipe with a tiny network and small batches."""
    RECIPES["photos"] = replace(RECIPES["photos"], network=TINY, batch=8)


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny_recipe()
    if sys.argv[1] != "-":
        place, number = sys.argv[1].split(":")
        die_at(place, int(number))
    train._export = lambda model, out: {}
    sys.exit(main(sys.argv[2:]))
