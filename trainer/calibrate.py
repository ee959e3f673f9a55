"""`python -m trainer calibrate`: after training, the levels at which a student's images are closest to the data.

    python -m trainer calibrate --model runs/student --teacher runs/teacher --data photos.zip

The best levels for k calls are found by a search after training. The distance is the Fréchet distance in the teacher's
own features: every model has a teacher, and no table of results is measured in its features. Every list is measured on
the same seeds, so that the objective is smooth and has no sampling noise. The result is kept only if it is better on
other seeds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.card import CARD_FILE, read_card
from fewstep.ranges import whole
from fewstep.schedule import MAX_STEPS

if TYPE_CHECKING:
    from trainer.levels.calibration import CalibrationConfig
    from trainer.levels.search import Trial
    from trainer.run.compute import Compute

CACHE = Path("runs/data")
INTERRUPTED = 130


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `calibrate`. It sets `run`: a function of the parsed arguments that returns the exit status."""
    parser = subparsers.add_parser(
        "calibrate", help="find better levels for a trained student", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_options(parser)
    parser.add_argument("--teacher", type=Path, required=True, metavar="DIR", help="the student's teacher")
    parser.add_argument("--data", type=Path, metavar="PATH", help="real images (default: the recipe's)")
    parser.add_argument("--recipe", metavar="NAME", help="the recipe of the real images (default: the one in the card)")
    parser.set_defaults(run=_run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Register the options of the search."""
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the student; its card is rewritten")
    parser.add_argument(
        "--images", type=whole(2), default=1000, metavar="N", help="generated for every list (default 1000)"
    )
    parser.add_argument("--steps", type=_counts, default=(), metavar="1,2,...", help="only these (default: all)")
    parser.add_argument("--seed", type=whole(0, 2**32), default=0, help="another number: other seeds for the images")
    parser.add_argument("--compile", action="store_true", help="takes a minute; for long searches")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is faster where the hardware has it"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(whole(1, MAX_STEPS)(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of step counts from 1 to {MAX_STEPS}; write 2,3,4"
        ) from None


def _run(args: argparse.Namespace) -> int:
    from trainer.data.named import load_recipe_dataset, read_data
    from trainer.levels.calibration import calibrate, steps_to_search, teacher_space

    steps, config = steps_to_search(card := read_card(args.model), args.steps, args.model), searching(args)
    name = args.recipe or card.training.get("recipe", "")
    data = read_data(args.data, card.image_shape[1]) if args.data else load_recipe_dataset(name, CACHE)
    space, facts = teacher_space(args.model, args.teacher, data, compute := computing(args))
    trials = calibrate(args.model, space, facts, data, steps, config, compute)
    return report(trials, steps, args.model)


def computing(args: argparse.Namespace) -> "Compute":
    from trainer.run.compute import Compute, usable_device

    return Compute(usable_device(args.device), args.precision, args.compile)


def searching(args: argparse.Namespace) -> "CalibrationConfig":
    from trainer.levels.calibration import CalibrationConfig

    return CalibrationConfig(args.images, args.seed)


def report(trials: "dict[int, Trial]", steps: Sequence[int], model: Path) -> int:
    """Print the result and the next command. Returns the exit status."""
    from trainer.levels.calibration import describe

    print(describe(trials))
    if any(trial.accepted for trial in trials.values()):
        print(f"wrote the levels into {model / CARD_FILE}. An engine carries a copy of them, so export it again:\n")
        print(f"    python -m export --model {model} --out {model / 'engine'}")
    if set(trials) != set(steps):
        print("interrupted; what is listed is kept", file=sys.stderr)
        return INTERRUPTED
    return 0
