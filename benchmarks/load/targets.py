"""What the server promises about load, and whether a run kept it. Pure functions of a campaign's rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

Row = dict[str, Any]

OURS = "step-level"
BASELINE = "stock padded"


@dataclass(frozen=True)
class Target:
    """A bound and what was measured against it; None where the run has nothing to say."""

    network: str  # "real" or "fixed"
    name: str
    bound: Literal[">=", "<="]
    limit: float
    measured: float | None
    note: str = ""

    @property
    def hit(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.bound == ">=" else self.measured <= self.limit

    def row(self) -> Row:
        verdict = {True: "hit", False: "MISS", None: "not measured"}[self.hit]
        return {
            "network": self.network,
            "target": self.name,
            "bound": f"{self.bound} {self.limit:g}",
            "measured": self.measured,
            "verdict": verdict,
            "note": self.note,
        }


def latency_limit_s(longest: int, call_s: float) -> float:
    """(S_max + 2) t(cap) + 10 ms: a call in progress, one to spare, and the way in and out."""
    return (longest + 2) * call_s + 0.010


def check_targets(network: str, rows: Sequence[Row], efficiency: float, ready_s: Sequence[float]) -> list[Target]:
    """All targets of one network's campaign. rows: as benchmarks/load/capacity.py writes them."""
    rows = [row for row in rows if row["network"] == network]
    steady = [row for row in rows if row["kind"] == "open" and row["images"] == 1]
    mine = [row for row in steady if row["server"] == OURS]
    kept = [row for row in mine if row["sustained"] and row["valid"]]
    best = max(kept, key=lambda row: row["images_per_s"] / row["limit_per_s"], default=None)
    return [
        Target(network, "engine alone / back to back", ">=", 0.97, efficiency),
        Target(
            network,
            "sustained without rejects / R*",
            ">=",
            0.90,
            best["images_per_s"] / best["limit_per_s"] if best else None,
            f"at load {best['load']:g}" if best else "no valid run was sustained",
        ),
        *_latency(network, mine),
        *_against_baseline(network, rows, steady),
        *_overload(network, rows),
        Target(network, "start to ready, s, slowest", "<=", 3.0, max(ready_s, default=None)),
    ]


def _latency(network: str, mine: Sequence[Row]) -> list[Target]:
    """The mean over the draws of the arrivals."""
    rows = [row for row in mine if row["load"] == 0.8 and row["p99_ms"]]
    measured = fmean(row["p99_ms"] / row["latency_limit_ms"] for row in rows) if rows else None
    note = "; ".join(f"{row['p99_ms']:.0f} of {row['latency_limit_ms']:.0f} ms{_doubt(row)}" for row in rows)
    return [Target(network, "p99 at load 0.8 / ((S_max + 2) t(cap) + 10 ms)", "<=", 1.0, measured, note)]


def _against_baseline(network: str, rows: Sequence[Row], steady: Sequence[Row]) -> list[Target]:
    """Latency at the highest load that the baseline sustains too: beyond it, its latency only grows with the run."""
    common = [
        (mine, theirs)
        for mine in steady
        for theirs in steady
        if (mine["server"], theirs["server"]) == (OURS, BASELINE)
        and (mine["load"], mine["draw"]) == (theirs["load"], theirs["draw"])
        and theirs["sustained"]
        and mine["p50_ms"]
    ]
    mine, theirs = max(common, key=lambda pair: pair[0]["load"], default=(None, None))
    note = f"at load {mine['load']:g}{_doubt(mine) or _doubt(theirs)}" if mine and theirs else "no common load"
    ours, stock = _saturated(rows, OURS), _saturated(rows, BASELINE)
    capacity = ours / stock if ours and stock else None
    p50 = mine["p50_ms"] / theirs["p50_ms"] if mine and theirs else None
    p99 = mine["p99_ms"] / theirs["p99_ms"] if mine and theirs else None
    return [
        Target(network, "p50 / stock batching's", "<=", 0.4, p50, note),
        Target(network, "p99 / stock batching's", "<=", 0.5, p99, note),
        Target(network, "capacity / stock batching's", ">=", 1.9, capacity, "both saturated"),
    ]


def _overload(network: str, rows: Sequence[Row]) -> list[Target]:
    row = next((row for row in rows if row["kind"] == "overload"), None)
    peak = _saturated(rows, OURS)
    share = row["goodput_per_s"] / peak if row and peak else None
    note = f"at load {row['load']:g}{_doubt(row)}" if row else ""
    return [
        Target(network, "goodput in overload / peak", ">=", 0.95, share, note),
        Target(network, "rejects answered, p99 ms", "<=", 50.0, row["reject_p99_ms"] if row else None, note),
    ]


def _saturated(rows: Sequence[Row], server: str) -> float | None:
    """Images per second of a server that always has enough to do, on average over its turns: machines drift."""
    turn = ("closed", server, 1)
    rates = [row["images_per_s"] for row in rows if (row["kind"], row["server"], row["images"]) == turn]
    return fmean(rates) if rates else None


def _doubt(row: Row) -> str:
    return "" if row["valid"] else "; INVALID, the generator fell behind"
