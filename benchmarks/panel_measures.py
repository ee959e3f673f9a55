"""The bars of a release, and how a panel stands to them: which metrics of a panel.py result are hits and which misses.

The bars were set before the runs. Figures are means over the ranges of seeds; metrics of a network that is
missing count neither way. Each metric has its own best solver at a student's count of calls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.metrics.extractors.by_name import EFFL0, FASHION128_B, PIXELS

Rows = Sequence[Mapping[str, Any]]  # of a panel.py result
STUDENT = "student"
CALLS = 4  # of the student, beside the teacher's most calls and beside its solvers at as many
OF_SOLVERS = 0.25  # times the distance of the best solver at as many calls
ONE_CALL_PIXELS, ONE_CALL_AUC = 1.3, 0.05  # times the distance of the teacher's most calls; above its AUC


@dataclass(frozen=True)
class Measure:
    """One bar, and the metrics on either side of it."""

    what: str
    bar: str
    hits: tuple[str, ...]
    misses: tuple[str, ...]

    def __str__(self) -> str:
        sides = (f"{name}: {', '.join(found) or '-'}" for name, found in (("hit", self.hits), ("miss", self.misses)))
        return f"{self.what}, {self.bar}; {'; '.join(sides)}"


def measures(rows: Rows, comparisons: Sequence[Mapping[str, Any]]) -> list[Measure]:
    """All bars that the columns of a result allow to be measured."""
    own = {row["calls"]: row for row in rows if row["sampler"].startswith(f"{STUDENT}:")}
    others = [row for row in rows if row["calls"] is not None and row not in own.values()]
    found: list[Measure] = []
    if others:
        most = max(row["calls"] for row in others)
        for teacher in (row for row in others if row["calls"] == most):
            beside = f"beside {teacher['label']}, {most}"
            if CALLS in own:
                what = f"{CALLS} calls {beside}"
                found.append(_sorted(what, "no metric worse", own[CALLS], teacher, _compared(own[CALLS]), _no_worse))
            if 1 in own:
                found += _of_one_call(f"1 call {beside}", own[1], teacher)
    if solvers := [row for row in others if row["calls"] == CALLS and CALLS in own]:
        names = [name for name in _compared(own[CALLS]) if name.startswith("frechet")]
        best = {"metrics": {name: min((row["metrics"][name] for row in solvers), key=_lowest) for name in names}}
        what, bar = f"{CALLS} calls beside the best solver at {CALLS}", f"distances at most {OF_SOLVERS} times"
        found.append(_sorted(what, bar, own[CALLS], best, names, lambda a, b, _: a <= OF_SOLVERS * b))
    return found + _of_more_calls(comparisons)


def _of_one_call(what: str, one: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[Measure]:
    features = [f"frechet {name}" for name in (FASHION128_B, EFFL0)]
    aucs = [name for name in _compared(one) if name.startswith("auc")]
    return [
        _sorted(what, "no farther in features", one, teacher, features, _no_worse),
        _sorted(what, f"at most {ONE_CALL_PIXELS} times in pixels", one, teacher, [f"frechet {PIXELS}"],
                lambda a, b, _: a <= ONE_CALL_PIXELS * b),
        _sorted(what, f"AUC at most {ONE_CALL_AUC} above", one, teacher, aucs, lambda a, b, _: a <= b + ONE_CALL_AUC),
    ]  # fmt: skip


def _of_more_calls(comparisons: Sequence[Mapping[str, Any]]) -> list[Measure]:
    """Each count of the student beside the one before."""
    hits, misses = [], []
    for pair in comparisons:
        if pair["first"].startswith(f"{STUDENT}:") and pair["second"].startswith(f"{STUDENT}:"):
            step = f"{pair['second'].split(':')[1]} to {pair['first'].split(':')[1]}"
            worse = [one["metric"] for one in pair["metrics"] if one["outcome"] == "worse"]
            misses += [f"{step}: {', '.join(worse)}"] if worse else []
            hits += [] if worse else [step]
    bar = "no metric worse beyond noise"
    return [Measure("one call more", bar, tuple(hits), tuple(misses))] if hits or misses else []


def _sorted(
    what: str, bar: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], names: Sequence[str],
    holds: Callable[[float, float, str], bool],
) -> Measure:  # fmt: skip
    """The metrics `names` by whether `holds` of (ours, theirs, which way is better)."""
    sides: dict[bool, list[str]] = {True: [], False: []}
    for name in names:
        one, other = ours["metrics"][name], theirs["metrics"][name]
        if one["mean"] is not None and other["mean"] is not None:
            shown = f"{name} ({one['mean']:.3g}, {other['mean']:.3g})"
            sides[holds(one["mean"], other["mean"], one["better"])].append(shown)
    return Measure(what, bar, tuple(sides[True]), tuple(sides[False]))


def _no_worse(ours: float, theirs: float, better: str) -> bool:
    return ours >= theirs if better == "higher" else ours <= theirs


def _compared(row: Mapping[str, Any]) -> list[str]:
    return [name for name, found in row["metrics"].items() if found["better"]]


def _lowest(found: Mapping[str, Any]) -> float:
    return float("inf") if found["mean"] is None else found["mean"]
