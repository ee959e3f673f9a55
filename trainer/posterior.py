"""The command `python -m fewstep posterior`: from a prior and a reward to an adapter that samples their posterior."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fewstep.card import CheckpointError
from fewstep.ranges import COUNT, POSITIVE, SEED, SHARE, Range, RangeError, number, whole
from trainer.settings import BehaviourMix, DistilConfig, MachineError, PosteriorConfig

# torch is imported when the command runs: --help is quick.

DIVERGED, REFUSED, INTERRUPTED = 1, 2, 130
STATUS = {"complete": 0, "diverged": DIVERGED, "interrupted": INTERRUPTED}
DEFAULT = PosteriorConfig()
LEVEL = Range(0.001, 10_000)  # in float32 the square of a lower one is lost beside an image
MOST_UPDATES, MOST_IMAGES = 10**7, 10**6  # images: those that are kept in memory

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
  class:DIR:3             class 3 of the classifier in DIR (python -m trainer classifier --out DIR)
  classes:DIR:0,2,4       any of several classes
  each-class:DIR          every class, each with its own posterior: one adapter that is told the class
  inpaint:IMAGE:5x5+2+1   IMAGE, of which the rectangle of width x height + left + top is not known
  upscale:IMAGE:4         an image whose means of 4x4 pixels are those of IMAGE, which is the large or the small one
  deblur:IMAGE:1.5        an image that is IMAGE once it is blurred by 1.5 pixels
  FILE.py:function        any function(images [B, C, H, W] in [-1, 1]) -> log r [B]; or module:function
"""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 complete, 1 trained but diverged, 2 refused in a sentence, 130 interrupted."""
    args = parser().parse_args(arguments)
    try:
        config, distil = config_of(args), distil_of(args)
    except RangeError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    from trainer.data.format import DataError
    from trainer.posterior_run import Order, run
    from trainer.rewards.checked import RewardError
    from trainer.run.loop import DivergedError

    order = Order(
        prior=args.prior, reward=args.reward, out=args.out, data=args.data, updates=args.updates, batch=args.batch,
        steps=args.steps, sigma_min=args.sigma_min, sigma_max=args.sigma_max, variance=args.variance, rank=args.rank,
        noise=args.noise, warm_start=args.warm_start, pool=args.pool, evaluated=args.evaluate, merged=args.merged,
        seed=args.seed, device=args.device, checkpoint_s=args.checkpoint_every, config=config, lr=args.lr,
        distil=distil,
    )  # fmt: skip
    command = shlex.join(["python", "-m", "fewstep", "posterior", *arguments])
    try:
        return STATUS[run(order, command)]
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    except (CheckpointError, DataError, RewardError, RangeError, MachineError, DivergedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m fewstep posterior", description=DESCRIPTION, epilog=REWARDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = made.add_argument
    add(
        "--prior",
        type=Path,
        required=True,
        metavar="DIR",
        help="a teacher; or a student, on the chain of its own steps",
    )
    add("--reward", required=True, metavar="REWARD", help="see below")
    add("--out", type=Path, required=True, metavar="DIR", help="where everything goes")
    add("--updates", type=whole(1, MOST_UPDATES), default=300, help="batches of trajectories (default 300)")
    add("--batch", type=whole(2, 2**16), default=64, help="trajectories of an update (default 64)")
    add("--steps", type=whole(2, 1000), default=30, help="network calls of an image (default 30)")
    add("--sigma-max", type=number(LEVEL), default=80.0, help="highest level (default 80)")
    add("--sigma-min", type=number(LEVEL), default=0.05, help="lowest level (default 0.05)")
    add("--variance", choices=("opt", "small", "large"), default="opt", help="of the prior's steps (default opt)")
    add("--rank", type=whole(1, 1024), default=4, help="of the adapter (default 4)")
    add("--noise", type=number(LEVEL), default=0.1, help="standard deviation of a measurement (default 0.1)")
    add("--beta", type=number(POSITIVE), default=1.0, help="the target is prior x r^beta (default 1)")
    add("--beta-start", type=number(POSITIVE), help="beta at the start (default: --beta)")
    add("--beta-until", type=number(SHARE), default=0.0, help="share of the run over which beta rises (default 0)")
    add("--log-z", choices=("vargrad", "learned"), default="vargrad", help="of the batch, or a parameter")
    add("--mix", type=mix, default=BehaviourMix(), metavar="NAME=SHARE,...", help=f"of {', '.join(SHARES)}; sums to 1")
    add("--data", type=Path, metavar="ZIP", help="images of the behaviour noised_back")
    add(
        "--levels",
        type=whole(1, COUNT.high),
        metavar="K",
        help="take the gradient of K random steps of an update (default: all)",
    )
    add(
        "--dead-zone",
        type=number(Range(0, 1000)),
        default=DEFAULT.dead_zone,
        help="squared residuals left alone (default 0)",
    )
    add("--clip", type=number(POSITIVE), default=DEFAULT.clip, help="of residuals, in root mean squares (default 3)")
    add("--fixed-variance", action="store_true", help="the posterior's steps keep the variance of the prior's")
    add("--lr", type=number(Range(0, 1, above=True)), help="learning rate (default: 0.016 / root of the pixel values)")
    add(
        "--warm-start",
        type=whole(0, MOST_UPDATES),
        default=0,
        metavar="N",
        help="first N updates of tilted denoising (default 0)",
    )
    add("--pool", type=whole(2, MOST_IMAGES), default=4096, help="samples of the prior for it (default 4096)")
    add(
        "--evaluate",
        type=whole(2, MOST_IMAGES),
        default=1000,
        metavar="N",
        help="trajectories behind the monitors (default 1000)",
    )
    add("--merged", action="store_true", help="write OUT/merged, a model with the adapter in its weights, as well")
    add("--distil", action="store_true", help="make a student of few steps in OUT/student, as well")
    for name, (kind, said) in DISTIL.items():
        shape: dict[str, Any] = {"action": "store_true"} if kind is None else {"type": kind}
        if kind is not None:
            shape["metavar"] = "DIR" if kind is Path else "N"
        add(f"--distil-{name}", default=None, help=f"with --distil: {said}", **shape)
    add("--seed", type=whole(0, SEED.high), default=0)
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--checkpoint-every", type=number(Range(0)), default=300.0, metavar="SECONDS")
    return made


# Switches of --distil: the fields of DistilConfig but "from", which is `student`.
DISTIL: dict[str, tuple[Callable[[str], Any] | None, str]] = {
    "from": (Path, "a student of the prior, from which the posterior's starts (default: its teacher)"),
    "pool": (whole(2, MOST_IMAGES), f"images of the chain that it learns from (default {DistilConfig.pool})"),
    "weighted": (None, "draw these images by their importance weights"),
    "consolidate": (
        whole(1, MOST_UPDATES),
        f"updates of the teacher of all levels; of a student's one network (default {DistilConfig.consolidate})",
    ),
    "updates": (whole(1, MOST_UPDATES), f"updates of the student (default {DistilConfig.updates})"),
    "lr": (number(Range(0, 1, above=True)), f"of the teacher's and auxiliary's adapters (default {DistilConfig.lr})"),
}


def distil_of(args: argparse.Namespace) -> DistilConfig | None:
    """Raises RangeError."""
    given = {name: value for name in DISTIL if (value := getattr(args, f"distil_{name}")) is not None}
    if not args.distil:
        if given:
            raise RangeError(f"{', '.join(f'--distil-{name}' for name in given)}: only with --distil; add it")
        return None
    return DistilConfig(**{"student" if name == "from" else name: value for name, value in given.items()})


SHARES = tuple(field.name for field in fields(BehaviourMix))


def mix(text: str) -> BehaviourMix:
    """argparse's type of a mix such as on_policy=0.7,prior=0.3; what is not named has no share."""
    shares = dict.fromkeys(SHARES, 0.0)
    for part in text.split(","):
        name, _, share = part.partition("=")
        if name not in shares:
            raise argparse.ArgumentTypeError(f"{name!r} is no behaviour; the behaviours are {', '.join(SHARES)}")
        try:
            shares[name] = float(share)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} has no share; write {name}=0.5") from None
    try:
        return BehaviourMix(**shares)
    except RangeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def config_of(args: argparse.Namespace) -> PosteriorConfig:
    """Raises RangeError."""
    if args.mix.noised_back and not args.data:
        raise RangeError("--mix with noised_back needs images: give --data ZIP")
    if args.sigma_min >= args.sigma_max:
        raise RangeError(
            f"--sigma-min must be below --sigma-max, and {args.sigma_min:g} is not below {args.sigma_max:g}"
        )
    return PosteriorConfig(
        mix=args.mix, log_z=args.log_z, beta=args.beta, beta_start=args.beta_start or args.beta,
        beta_until=args.beta_until, levels=args.levels, dead_zone=args.dead_zone, clip=args.clip,
        learn_variance=not args.fixed_variance,
    )  # fmt: skip
