"""The settings of a method that are given on the command line or by a recipe, applied to its configuration."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fewstep.card import Card, read_card
from fewstep.ranges import RangeError
from fewstep.schedule import SIGMA_MAX
from trainer.settings import (
    AdversarialConfig,
    ConsistencyConfig,
    ProgressiveConfig,
    StudentConfig,
    further_levels,
    seen_lists,
)

DMD2 = ("sigma_max", "auxiliary_updates", "lr", "auxiliary_lr")  # the switches of DPDM that --method dmd2 takes
TRAJECTORY = ("intervals", "solver", "metric", "target_halflife")  # of --method consistency only
CONSISTENCY = (*TRAJECTORY, "sigma_max", "lr")  # with those of DPDM that it takes
FURTHER = ("further", "further_for", "saturate")  # of --method progressive only
PROGRESSIVE = (*FURTHER, "top", "simulate", "coarse", "lr")  # with those of DPDM that it takes
CRITICS = ("trained_steps", "clip", "imitation_share")  # of --method adversarial only
OWNERS = dict.fromkeys(FURTHER, "progressive") | dict.fromkeys(CRITICS, "adversarial")
OWNERS |= dict.fromkeys(TRAJECTORY, "consistency")
ADVERSARIAL = (*CRITICS, "simulate", "lr")  # with those of DPDM that it takes
Config = TypeVar("Config", ConsistencyConfig, ProgressiveConfig, AdversarialConfig)
# What is said of flags and values of earlier versions.
GONE = "was removed: docs/log.md says what was measured"
EARLIER = dict.fromkeys(("--guide", "--guidance", "--gan", "--gan-from", "--gan-scales", "--gan-sees-level"), GONE)
EARLIER |= {"--play": "is called --trained-steps today", "--keep": "is called --imitation-share today"}
EARLIER |= {"posterior": "is called ncvsd today"}


class SwitchError(RangeError):
    """Flags that contradict each other."""


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
    return _with(config, switches, CONSISTENCY)


def progressive(config: ProgressiveConfig, switches: dict[str, Any], start: Card) -> ProgressiveConfig:
    """The configuration with its switches set, at the lists that `start` serves. Raises SwitchError."""
    if not start.levels:
        raise SwitchError(f"--init names a {start.role}; --method progressive continues a student")
    config = replace(config, lists=tuple(tuple(start.levels[k]) for k in sorted(start.levels)))
    config = _with(config, switches, PROGRESSIVE)
    if config.further_for == 0 and config.coarse:
        return config
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
    return replace(_with(config, switches, ADVERSARIAL), lists=lists)


def _with(config: Config, switches: dict[str, Any], names: tuple[str, ...]) -> Config:
    """The configuration with those of its switches that are given; lr is its optimiser's. Raises RangeError."""
    given = {name: switches[name] for name in names if name in switches and name != "lr"}
    if "lr" in switches:
        given["adam"] = replace(config.adam, lr=switches["lr"])
    return replace(config, **given)
