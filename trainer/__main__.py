"""python -m trainer COMMAND: from images to a checkpoint folder, stage by stage."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fewstep import extras
from fewstep.card import CheckpointError, read_card
from fewstep.ranges import Range, RangeError, duration, number, whole
from trainer import calibrate
from trainer.data import command as data
from trainer.data.command import describe_unread
from trainer.data.format import DataError, ImageSet
from trainer.data.named import load_recipe_dataset, read_data
from trainer.importing import command as importing
from trainer.recipes.by_name import RECIPES, UnknownRecipeError, recipe
from trainer.settings import WIDEST, MachineError
from trainer.switches import add_switches, read_switches

if TYPE_CHECKING:
    from trainer.runs import RunOptions

# torch and other packages of [train] are imported when a command runs: --help is fast and works without them.
INTERRUPTED = 130
CACHE = Path("runs/data")


def main() -> int:
    args = _parser().parse_args()
    try:
        with extras.named():
            return args.run(args) or 0
    except (CheckpointError, DataError, MachineError, RangeError, UnknownRecipeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before training began; after that the loop finishes its update and saves
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data.add_parser(commands)

    teacher = commands.add_parser("teacher", help="train an EDM teacher")
    _add_run_arguments(teacher)
    teacher.add_argument(
        "--init", type=Path, metavar="DIR", help="continue this teacher (it may be published or imported)"
    )
    teacher.add_argument("--lr", type=number(Range(0, 1, above=True)), help="default: the recipe's")
    teacher.set_defaults(run=_teacher)

    student = commands.add_parser("student", help="distil a teacher into a few-step student")
    _add_run_arguments(student)
    student.add_argument("--teacher", type=Path, required=True, metavar="DIR", help="checkpoint folder of the teacher")
    student.add_argument(
        "--init", type=Path, metavar="DIR",
        help="continue this student with other settings, and its auxiliary if its folder has the state of its run",
    )  # fmt: skip
    student.add_argument(
        "--lists-of", type=Path, metavar="DIR",
        help="train the level lists that this student serves, calibrated ones included, instead of Karras' levels",
    )  # fmt: skip
    student.add_argument(
        "--kept", type=Path, metavar="DIR",
        help="--method progressive: the student that the anchored calls imitate (default: --init)",
    )  # fmt: skip
    student.add_argument(
        "--critic", type=Path, nargs="+", default=[], metavar="DIR",
        help="classifiers (trainer classifier) whose features --method adversarial uses",
    )  # fmt: skip
    add_switches(student)
    student.set_defaults(run=_student)

    classifier = commands.add_parser("classifier", help="train a classifier of noised images, for --critic")
    _add_run_arguments(classifier)
    classifier.set_defaults(run=_classifier)

    calibrate.add_parser(commands)
    importing.add_parser(commands)

    mean = commands.add_parser("average", help="another average of a run, from the averages that it stored")
    mean.add_argument("--model", type=Path, required=True, metavar="DIR", help="the folder of the run")
    mean.add_argument(
        "--width", type=number(Range(0, WIDEST, above=True)), required=True, metavar="W",
        help="standard deviation of its profile, as a share of the run: 0.05, 0.15 (the student's), 0.2",
    )  # fmt: skip
    mean.add_argument("--out", type=Path, required=True, metavar="DIR")
    mean.set_defaults(run=_average)

    shipped = commands.add_parser("publish", help="copy a checkpoint in half precision, ready to ship")
    shipped.add_argument("--model", type=Path, required=True, metavar="DIR")
    shipped.add_argument("--out", type=Path, required=True, metavar="DIR")
    shipped.set_defaults(run=_publish)
    return parser


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", required=True, metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="your own data set, or a folder or zip of pictures (default: the recipe's)",
    )
    parser.add_argument("--budget", type=duration, metavar="TIME", help="stop after this long: 90s, 30m, 2h")
    parser.add_argument("--images", type=whole(1), metavar="N", help="stop after N training images")
    parser.add_argument("--batch", type=whole(1, 2**20), metavar="N")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0)
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--checkpoint-every", type=duration, default=300.0, metavar="TIME")
    parser.add_argument("--snapshot-every", type=whole(1), metavar="N",
                        help="also keep a checkpoint every N training images, in OUT/snapshots")  # fmt: skip


def _options(args: argparse.Namespace) -> "RunOptions":
    from trainer.runs import RunOptions

    return RunOptions(
        recipe=args.recipe, out=args.out, images=args.images, budget_s=args.budget, batch=args.batch, seed=args.seed,
        resume=args.resume, precision=args.precision, compile=args.compile, device=args.device,
        checkpoint_s=args.checkpoint_every, snapshot_images=args.snapshot_every,
    )  # fmt: skip


def _images(args: argparse.Namespace) -> ImageSet:
    from trainer.run.distributed import from_first, rank

    recipe(args.recipe)  # an unknown recipe is refused before data is read
    if args.data:
        images = read_data(args.data, _side(args))
        if rank() == 0:
            for line in describe_unread(images):
                print(line, file=sys.stderr)
        return images
    if rank() > 0:
        from_first(None)  # wait: the first process may have to write the cache
    images = load_recipe_dataset(args.recipe, CACHE)
    if rank() == 0:
        from_first(None)
    return images


def _side(args: argparse.Namespace) -> int:
    """The side in pixels that pictures are resized to: the teacher's, or the recipe's."""
    for folder in (getattr(args, "teacher", None), getattr(args, "init", None)):
        if folder:
            return read_card(folder).image_shape[1]
    return recipe(args.recipe).network.resolution


def _teacher(args: argparse.Namespace) -> int:
    from trainer.commands import train_teacher

    return _run_training(args, lambda: train_teacher(_options(args), _images(args), args.init, args.lr))


def _student(args: argparse.Namespace) -> int:
    from trainer.commands import Distillation, train_student

    request = Distillation(
        args.teacher, args.method, read_switches(args), args.init, args.lists_of, args.kept, tuple(args.critic)
    )
    return _run_training(args, lambda: train_student(_options(args), _images(args), request))


def _classifier(args: argparse.Namespace) -> int:
    from trainer.classify import train_classifier

    return _run_training(args, lambda: train_classifier(_options(args), _images(args)))


def _average(args: argparse.Namespace) -> None:
    from trainer.average import average

    average(args.model, args.width, args.out)


def _publish(args: argparse.Namespace) -> None:
    from trainer.publish import publish

    publish(args.model, args.out)


def _run_training(args: argparse.Namespace, train: Callable[[], bool]) -> int:
    """Run a training command, in a single process or in one of torchrun's. Returns the exit status."""
    from trainer.run import distributed as world
    from trainer.run.compute import usable_device
    from trainer.run.loop import DivergedError

    with world.join_processes(usable_device(args.device)):
        try:
            completed = train()
        except DivergedError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return _finish(completed, args.out, world.rank())


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
