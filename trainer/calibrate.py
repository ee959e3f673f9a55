"""`fewstep trainer calibrate`: after training, the levels at which a student's images are closest to the data.

    fewstep trainer calibrate --model runs/student --teacher runs/teacher --data photos.zip

The best levels for k calls are found by a search after training. The distance is the Fréchet distance in the teacher's
own features: every model has a teacher, and no table of results is measured in its features. Every list is measured on
the same seeds, so that the objective is smooth and has no sampling noise. The result is kept only if it is better on
other seeds.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fewstep.card import CARD_FILE, read_card
from fewstep.command_line import Switch, arg, parse, whole_numbers
from fewstep.ranges import Range, check_ranges
from fewstep.schedule import MAX_STEPS

if TYPE_CHECKING:
    from trainer.levels.search import Trial

CACHE = Path("runs/data")
INTERRUPTED = 130


@dataclass(frozen=True)
class CalibrateCommand:
    model: Annotated[Path, arg(metavar="DIR")]
    """The student; its card is rewritten."""
    teacher: Annotated[Path, arg(metavar="DIR")]
    """The student's teacher."""
    data: Annotated[Path | None, arg(metavar="PATH")] = None
    """Real images (default: the recipe's)."""
    recipe: Annotated[str | None, arg(metavar="NAME")] = None
    """The recipe of the real images (default: the one in the card)."""
    images: Annotated[int, Range(2, 10**9, whole=True)] = 1000
    """Generated for every list."""
    steps: Annotated[tuple[int, ...], whole_numbers(Range(1, MAX_STEPS, whole=True), "2,3,4")] = ()
    """Only these step counts (default: all)."""
    seed: Annotated[int, Range(0, 2**32, whole=True)] = 0
    """Another number: other seeds for the images."""
    compile: Switch[bool] = False
    """Takes a minute; for long searches."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster where the hardware has it."""
    device: Annotated[str | None, arg(metavar="{cpu,cuda}")] = None
    """cuda where there is one, unless given."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(arguments: Sequence[str]) -> int:
    """Returns the exit status. Raises CheckpointError, DataError, MachineError or OSError."""
    asked = parse(CalibrateCommand, arguments, "fewstep trainer calibrate", __doc__ or "")
    from trainer.data.named import load_recipe_dataset, read_data
    from trainer.levels.calibration import CalibrationConfig, calibrate, steps_to_search, teacher_space
    from trainer.run.compute import Compute, usable_device

    steps = steps_to_search(card := read_card(asked.model), asked.steps, asked.model)
    name = asked.recipe or card.training.get("recipe", "")
    data = read_data(asked.data, card.image_shape[1]) if asked.data else load_recipe_dataset(name, CACHE)
    compute = Compute(usable_device(asked.device), asked.precision, asked.compile)
    space, facts = teacher_space(asked.model, asked.teacher, data, compute)
    config = CalibrationConfig(asked.images, asked.seed)
    trials = calibrate(asked.model, space, facts, data, steps, config, compute)
    return report(trials, steps, asked.model)


def report(trials: "dict[int, Trial[tuple[float, ...]]]", steps: Sequence[int], model: Path) -> int:
    """Print the result and the next command. Returns the exit status."""
    from trainer.levels.calibration import describe

    print(describe(trials))
    if any(trial.accepted for trial in trials.values()):
        print(f"wrote the levels into {model / CARD_FILE}. An engine carries a copy of them, so export it again:\n")
        print(f"    fewstep export --model {shlex.quote(str(model))} --out {shlex.quote(str(model / 'engine'))}")
    if set(trials) != set(steps):
        print("interrupted; what is listed is kept", file=sys.stderr)
        return INTERRUPTED
    return 0
