"""The student's variants on the command line: one flag per field of its configuration that the literature varies."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from fewstep.card import Card, read_card
from fewstep.ranges import SHARE, Range, RangeError, number, whole
from fewstep.schedule import MAX_STEPS, SIGMA_MAX, check_levels
from trainer.settings import (
    METHODS,
    RULES,
    AdversarialConfig,
    ConsistencyConfig,
    Metric,
    Objective,
    ProgressiveConfig,
    Solver,
    StudentConfig,
    TrainedSteps,
    Weight,
    further_levels,
    seen_lists,
)

DMD2 = ("sigma_max", "auxiliary_updates", "lr", "auxiliary_lr")  # the switches of DPDM that --method dmd2 takes
TRAJECTORY = ("intervals", "solver", "metric", "target_halflife")  # of --method consistency only
CONSISTENCY = (*TRAJECTORY, "sigma_max", "lr")  # with those of DPDM that it takes
FURTHER = ("further", "further_for", "saturate")  # of --method progressive only
PROGRESSIVE = (*FURTHER, "top", "simulate", "lr")  # with those of DPDM that it takes
CRITICS = ("trained_steps", "clip", "imitation_share")  # of --method adversarial only
OWNERS = dict.fromkeys(FURTHER, "progressive") | dict.fromkeys(CRITICS, "adversarial")
OWNERS |= dict.fromkeys(TRAJECTORY, "consistency")
RATE = number(Range(0, 1, above=True))
ADVERSARIAL = (*CRITICS, "simulate", "lr")  # with those of DPDM that it takes


class SwitchError(RangeError):
    """Flags that contradict each other."""


def add_switches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method", choices=METHODS, default="dpdm",
        help="dpdm; a rival trained by the same loop; progressive: --init imitates itself with further calls; or "
        "adversarial: --init is trained on against --critic",
    )  # fmt: skip
    group = parser.add_argument_group("DPDM variants (default: the recipe's)")
    group.add_argument("--renoise", choices=RULES, help="levels to which outputs are noised")
    group.add_argument("--loss", choices=("kl", "sid"), help="divergence: KL (DPDM) or Fisher (SiD)")
    group.add_argument("--alpha", type=number(Range(0, 10)), metavar="A", help="of the SiD loss: 0.5, 1.0 or 1.2")
    group.add_argument(
        "--weight", choices=get_args(Weight), help="normalise the gradient by the teacher's error, or not"
    )
    group.add_argument("--objective", choices=get_args(Objective), help="match p(x0), or p(x0 | x_t)")
    group.add_argument(
        "--auxiliary-sees-level", action=argparse.BooleanOptionalAction, help="give it the student's level, or not"
    )
    group.add_argument("--auxiliary-updates", type=whole(1, 1000), metavar="N", help="per student update")
    group.add_argument(
        "--auxiliary-first", type=number(SHARE), metavar="SHARE", help="of the run: only the auxiliary learns"
    )
    group.add_argument("--simulate", type=number(SHARE), metavar="P", help="share of updates on own trajectories")
    group.add_argument(
        "--simulate-from", type=number(SHARE), metavar="SHARE", help="of the run before the first of them"
    )
    group.add_argument(
        "--warm", type=number(SHARE), metavar="SHARE", help="of the run: regress on stored teacher endpoints"
    )
    group.add_argument("--warm-pairs", type=whole(1), metavar="N", help="endpoints to store for --warm (4096)")
    group.add_argument(
        "--sigma-max",
        type=number(Range(0, 10_000, above=True)),
        metavar="S",
        help="the student's top level; 80 in the paper",
    )
    group.add_argument(
        "--top", type=number(SHARE), metavar="SHARE", help="of each longer list's draws: at its top level"
    )
    group.add_argument("--lr", type=RATE, help="of the student, by --method progressive, too")
    group.add_argument("--auxiliary-lr", type=RATE, help="of the auxiliary and the adversarial head")
    group = parser.add_argument_group("progressive distillation of --init by itself")
    group.add_argument(
        "--further", type=_levels, metavar="SIGMA,...",
        help="levels of the calls that every list's last call learns to replace (0.1,0.05)",
    )  # fmt: skip
    group.add_argument(
        "--further-for",
        type=whole(1, MAX_STEPS),
        metavar="K",
        help="only lists of up to K calls learn it; others are anchored",
    )
    group.add_argument(
        "--saturate", type=number(SHARE), metavar="MARGIN",
        help="targets this close to black or white (-1, 1) are set to it",
    )  # fmt: skip
    group = parser.add_argument_group("consistency distillation")
    group.add_argument("--intervals", type=whole(1, 10_000), metavar="N", help="of the teacher's ODE (18)")
    group.add_argument("--solver", choices=get_args(Solver), help="of that ODE (heun)")
    group.add_argument("--metric", choices=get_args(Metric), help="distance of outputs and targets (pseudo-huber)")
    group.add_argument(
        "--target-halflife", type=number(Range(0)), metavar="IMAGES",
        help="of the average that makes the targets; 0: the student itself",
    )  # fmt: skip
    group = parser.add_argument_group("critics of --method adversarial")
    group.add_argument(
        "--trained-steps", choices=get_args(TrainedSteps),
        help="all calls; the first where it is the only one (others are anchored); or the rest (the first is anchored)",
    )  # fmt: skip
    group.add_argument(
        "--imitation-share", type=number(SHARE), metavar="P",
        help="share of updates without critics, which self-distil or anchor calls of --init",
    )  # fmt: skip
    group.add_argument(
        "--clip", action=argparse.BooleanOptionalAction, help="critics see last outputs clipped, as viewers do, or not"
    )


def read_switches(args: argparse.Namespace) -> dict[str, Any]:
    """The switches on the command line, by flag name."""
    names = (
        "renoise", "loss", "alpha", "weight", "objective", "auxiliary_sees_level", "auxiliary_updates",
        "auxiliary_first", "simulate", "simulate_from", "warm", "warm_pairs", "sigma_max", "top", "lr", "auxiliary_lr",
        *FURTHER, *CRITICS, *TRAJECTORY,
    )  # fmt: skip
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def with_lists(config: StudentConfig, folder: Path | None) -> StudentConfig:
    """The configuration with the lists that the student in `folder` serves, the configuration's own step counts.

    Raises CheckpointError when it is no checkpoint, SwitchError when it does not serve them all.
    """
    if folder is None:
        return config
    levels = read_card(folder).levels
    missing = [str(k) for k in config.steps if k not in levels]
    if missing:
        raise SwitchError(f"--lists-of {folder}: it serves no list of {', '.join(missing)} steps")
    lists = tuple(tuple(levels[k]) for k in config.steps)
    return replace(config, lists=lists, sigma_max=max(levels[0] for levels in lists))


def apply_switches(config: StudentConfig, switches: dict[str, Any]) -> StudentConfig:
    """The configuration with these switches set. Raises SwitchError when one has no effect without another."""
    for flag, method in OWNERS.items():
        if flag in switches:
            raise SwitchError(f"--{flag.replace('_', '-')} belongs to --method {method}")
    named, switches = frozenset(switches), dict(switches)
    adversary, optimiser, auxiliary = config.adversary, config.adam, config.auxiliary_adam
    if "lr" in switches:
        optimiser = replace(optimiser, lr=switches.pop("lr"))
    if "auxiliary_lr" in switches:
        rate = switches.pop("auxiliary_lr")
        auxiliary, adversary = replace(auxiliary, lr=rate), replace(adversary, adam=replace(adversary.adam, lr=rate))
    if switches.get("objective") == "ncvsd":
        switches.setdefault("sigma_max", SIGMA_MAX)  # pure noise is an observation of the image only from far away
    changed = replace(config, **switches, adversary=adversary, adam=optimiser, auxiliary_adam=auxiliary)
    if "alpha" in named and changed.loss != "sid":
        raise SwitchError("--alpha belongs to the SiD loss; add --loss sid")
    if "simulate_from" in named and not changed.simulate:
        raise SwitchError("--simulate-from has no effect without --simulate")
    if "warm_pairs" in named and not changed.warm:
        raise SwitchError("--warm-pairs has no effect without --warm")
    if changed.warm and len(tops := {levels[0] for levels in changed.lists}) > 1:
        raise SwitchError(
            f"--warm trains one top level, and the lists of --lists-of start at several, {min(tops):g} to {max(tops):g}"
        )
    if changed.lists and "sigma_max" in named:
        raise SwitchError("--lists-of says which levels are trained; leave --sigma-max out")
    return changed


def consistency(config: ConsistencyConfig, switches: dict[str, Any]) -> ConsistencyConfig:
    """The configuration with its switches set. Raises RangeError."""
    if "lr" in switches:
        config = replace(config, adam=replace(config.adam, lr=switches["lr"]))
    return replace(config, **{name: value for name, value in switches.items() if name != "lr"})


def progressive(config: ProgressiveConfig, switches: dict[str, Any], start: Card) -> ProgressiveConfig:
    """The configuration with its switches set, at the lists that `start` serves. Raises SwitchError."""
    if not start.levels:
        raise SwitchError(f"--init names a {start.role}; --method progressive continues a student")
    config = replace(config, lists=tuple(tuple(start.levels[k]) for k in sorted(start.levels)))
    if "lr" in switches:
        config = replace(config, adam=replace(config.adam, lr=switches["lr"]))
    config = replace(config, **{name: switches[name] for name in PROGRESSIVE if name in switches and name != "lr"})
    calls, shortest = config.further_for, len(config.lists[0])
    learning = [levels for levels in config.lists if calls is None or len(levels) <= calls]
    if not learning:
        raise SwitchError(f"--further-for {calls}: --init's shortest list has {shortest}; choose that or more")
    if not any(further_levels(config.lists, config.further, calls).values()):
        lowest, last = min(config.further), max(levels[-1] for levels in learning)
        given = f"--further {lowest:g}" if "further" in switches else f"the default of --further, {lowest:g} at least,"
        raise SwitchError(f"{given} is not below any list's last level, at most {last:g}; give --further lower ones")
    return config


def adversarial(config: AdversarialConfig, switches: dict[str, Any], start: Card, lowest: float) -> AdversarialConfig:
    """The configuration with its switches set, at those lists of `start` that end at `lowest` or above: what the
    critics see. Raises SwitchError.
    """
    lists = seen_lists(list(start.levels.values()), lowest)
    if not start.levels:
        raise SwitchError(f"--init names a {start.role}; --method adversarial continues a student")
    if not lists:
        raise SwitchError(f"every list of --init ends below {lowest:g}, the least noise that --critic knows")
    steps, tops = switches.get("trained_steps", config.trained_steps), {levels[0] for levels in lists}
    if steps == "first" and len(lists[0]) > 1:
        raise SwitchError(
            f"--trained-steps first needs a list of one call; the shortest that critics see has {len(lists[0])}"
        )
    if steps == "rest" and (len(lists[-1]) == 1 or len(tops) > 1):
        raise SwitchError(
            "--trained-steps rest anchors one top level and needs lists of several calls that all start there"
        )
    if switches.get("imitation_share") == 1:
        raise SwitchError("--imitation-share 1 leaves no update with critics; choose less")
    if "lr" in switches:
        config = replace(config, adam=replace(config.adam, lr=switches["lr"]))
    return replace(config, lists=lists, **{name: switches[name] for name in ADVERSARIAL[:-1] if name in switches})


def _levels(text: str) -> tuple[float, ...]:
    try:
        levels = tuple(float(part) for part in text.split(","))
        check_levels(levels)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} are no levels: write 0.1,0.05 ({error})") from None
    return levels
