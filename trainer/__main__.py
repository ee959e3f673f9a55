"""`fewstep trainer COMMAND`, or python -m trainer: from images to a checkpoint folder, stage by stage."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from fewstep import extras
from fewstep.card import CheckpointError, read_card
from fewstep.ranges import RangeError
from fewstep.subcommands import REFUSED, as_sentence, subcommand
from trainer.recipes.by_name import UnknownRecipeError, recipe
from trainer.settings import MachineError

if TYPE_CHECKING:
    from trainer.data.format import ImageSet
    from trainer.options import Images, RunOptions

# torch and other packages of [train] are imported when a command runs: --help works without them.
T = TypeVar("T")
INTERRUPTED = 130
CACHE = Path("runs/data")
PROG = "fewstep trainer"
STAGES = "From images to a served student: data, teacher, student, calibrate; then `fewstep export`."
COMMANDS = {
    "data": "make a dataset zip, or look into one",
    "teacher": "train an EDM teacher",
    "student": "distil a teacher into a few-step student",
    "calibrate": "find better levels for a trained student",
    "classifier": "train a classifier of noised images, for --critic",
    "import": "turn a pretrained EDM or diffusers model into a teacher",
    "average": "another average of a run, from the averages that it stored",
    "publish": "copy a checkpoint in half precision, ready to ship",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 complete, 1 diverged, 2 refused with a sentence on stderr, 130 interrupted."""
    name, rest = subcommand(sys.argv[1:] if arguments is None else arguments, PROG, COMMANDS, STAGES)
    from trainer.data.format import DataError  # with numpy, which the list of commands does not wait for

    try:
        with extras.named():
            return _run(name, rest) or 0
    except (CheckpointError, DataError, MachineError, RangeError, UnknownRecipeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:  # before training began; after that the loop finishes its update and saves
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _run(name: str, arguments: Sequence[str]) -> int | None:
    if name == "data":
        from trainer.data import command as data

        return data.run(arguments)
    if name == "calibrate":
        from trainer import calibrate

        return calibrate.run(arguments)
    if name == "import":
        from trainer.importing import command as importing

        return importing.run(arguments)
    commands = {
        "teacher": _teacher, "student": _student, "classifier": _classifier, "average": _average, "publish": _publish,
    }  # fmt: skip
    return commands[name](arguments)


def _parse(command: type[T], name: str, arguments: Sequence[str], earlier: Mapping[str, str] | None = None) -> T:
    from fewstep.command_line import parse

    return parse(command, arguments, f"{PROG} {name}", as_sentence(COMMANDS[name]), earlier)


def _teacher(arguments: Sequence[str]) -> int:
    from trainer.options import TeacherCommand

    asked = _parse(TeacherCommand, "teacher", arguments)
    from trainer.commands import train_teacher

    return _run_training(
        asked.run,
        lambda: train_teacher(
            asked.run, _images(asked.run, asked.images, asked.init), asked.init, asked.lr, asked.label_dropout
        ),
    )


def _student(arguments: Sequence[str]) -> int:
    from trainer.options import StudentCommand
    from trainer.switches import EARLIER

    asked = _parse(StudentCommand, "student", arguments, EARLIER)
    from trainer.commands import train_student

    request = replace(asked.distillation, switches=asked.switches)
    return _run_training(
        asked.run, lambda: train_student(asked.run, _images(asked.run, asked.images, request.teacher), request)
    )


def _classifier(arguments: Sequence[str]) -> int:
    from trainer.options import ClassifierCommand

    asked = _parse(ClassifierCommand, "classifier", arguments)
    from trainer.classify import train_classifier

    return _run_training(asked.run, lambda: train_classifier(asked.run, _images(asked.run, asked.images)))


def _average(arguments: Sequence[str]) -> None:
    from trainer.options import AverageCommand

    asked = _parse(AverageCommand, "average", arguments)
    from trainer.average import average

    average(asked.model, asked.width, asked.out)


def _publish(arguments: Sequence[str]) -> None:
    from trainer.options import PublishCommand

    asked = _parse(PublishCommand, "publish", arguments)
    from trainer.publish import publish

    publish(asked.model, asked.out)


def _images(options: "RunOptions", images: "Images", model: Path | None = None) -> "ImageSet":
    """The images of a run. Pictures are resized to the size of `model`, where it continues or distils one."""
    from trainer.data.command import describe_unread
    from trainer.data.named import load_recipe_dataset, read_data
    from trainer.run.distributed import from_first, rank

    side = recipe(options.recipe).network.resolution  # an unknown recipe is refused before data is read
    if images.data:
        found = read_data(images.data, read_card(model).image_shape[1] if model else side)
        if rank() == 0:
            for line in describe_unread(found):
                print(line, file=sys.stderr)
        return found
    if rank() > 0:
        from_first(None)  # wait: the first process may have to write the cache
    found = load_recipe_dataset(options.recipe, CACHE)
    if rank() == 0:
        from_first(None)
    return found


def _run_training(options: "RunOptions", train: Callable[[], bool]) -> int:
    """Run a training command, in a single process or in one of torchrun's. Returns the exit status."""
    from trainer.run import distributed as world
    from trainer.run.compute import usable_device
    from trainer.run.loop import DivergedError

    with world.join_processes(usable_device(options.device)):
        try:
            completed = train()
        except DivergedError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return _finish(completed, options.out, world.rank())


def _finish(completed: bool, out: Path, rank: int) -> int:
    if rank > 0:
        return 0 if completed else INTERRUPTED
    if completed:
        print(f"{out}: the run is complete")
        return 0
    print(f"interrupted; {out} is usable as it is, and --resume continues it", file=sys.stderr)
    return INTERRUPTED


def leave(code: int) -> NoReturn:
    """End the process with this exit status.

    One of torchrun's processes ends without the interpreter's teardown. There a thread of the process group that still
    frees a Python object aborts a process whose work is done ("terminate called without an active exception"), and
    torchrun reports a failed run.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    leave(main())
