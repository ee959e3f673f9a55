"""The command `fewstep posterior`: from a prior and a reward to an adapter that samples their posterior."""

import shlex
import sys
from collections.abc import Sequence

from fewstep.card import CheckpointError
from fewstep.command_line import parse
from fewstep.ranges import RangeError
from fewstep.subcommands import REFUSED, refuse
from trainer.posterior_options import PosteriorCommand
from trainer.settings import MachineError

# torch is imported when the command runs: --help is quick.

PROG = "fewstep posterior"
DIVERGED, INTERRUPTED = 1, 130
STATUS = {"complete": 0, "diverged": DIVERGED, "interrupted": INTERRUPTED}

DESCRIPTION = """\
Trains a sampler of p(x) r(x)^beta / Z, where p is what a model of yours makes and r says how good an image is, by
relative trajectory balance. r may be any function; it needs no gradient. OUT gets an adapter of the model's weights
(a few percent of them), sample sheets, the monitors, and report.html. With --distil, OUT/student is a student of few
steps as well, which exports and serves like any other.

The same command goes on where it stopped. docs/posterior.md explains the switches and the monitors. Exit status: 0
complete, 1 trained, but diverged, 2 refused, 130 interrupted.
"""
REWARDS = """\
rewards:
  class:DIR:3             class 3 of the classifier in DIR (fewstep trainer classifier --out DIR)
  classes:DIR:0,2,4       any of several classes
  each-class:DIR          every class, each with its own posterior: one adapter that is told the class
  inpaint:IMAGE:5x5+2+1   IMAGE, of which the rectangle of width x height + left + top is not known
  upscale:IMAGE:4         an image whose means of 4x4 pixels are those of IMAGE, which is the large or the small one
  deblur:IMAGE:1.5        an image that is IMAGE once it is blurred by 1.5 pixels
  FILE.py:function        any function(images [B, C, H, W] in [-1, 1]) -> log r [B]; or module:function
"""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 complete, 1 trained but diverged, 2 refused in a sentence, 130 interrupted."""
    asked = parse(PosteriorCommand, arguments, PROG, f"{DESCRIPTION}\n{REWARDS}")
    try:
        order = asked.order
    except RangeError as error:
        refuse(str(error))
    from trainer.data.format import DataError
    from trainer.posterior_run import run
    from trainer.rewards.checked import RewardError
    from trainer.run.loop import DivergedError

    command = shlex.join([*PROG.split(), *arguments])
    try:
        return STATUS[run(order, command)]
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    except (CheckpointError, DataError, RewardError, RangeError, MachineError, DivergedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
