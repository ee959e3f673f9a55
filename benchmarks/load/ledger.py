"""A soak's counts: what the visitors saw, compared with what the server says it did. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load.visits import Visit

NO_ANSWER = 0
OUTCOMES = ("ok", "invalid", "rejected", "cancelled", "timeout", "unavailable", "error")


class Ending(NamedTuple):
    """How a visit ended: a status, NO_ANSWER, or `left` when the visitor did not wait for one."""

    visit: Visit
    status: int
    code: str
    left: bool
    waited_s: float = 0.0


@dataclass(frozen=True)
class Scrape:
    """One reading of /metrics."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def parse(cls, text: str) -> "Scrape":
        families = text_string_to_metric_families(text)
        return cls({(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples})

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series of a name that carry these labels. Raises KeyError when there is no such name."""
        found = [
            value for (other, carried), value in self.samples.items() if other == name and labels.items() <= carried
        ]
        if not found and not any(other == name for other, _ in self.samples):
            raise KeyError(f"/metrics has no {name}")
        return sum(found)


@dataclass(frozen=True)
class Books:
    """The two sides, and every way in which they disagree, in sentences."""

    seen: Mapping[str, int]  # outcomes as the visitors saw them; "left" for those who did not wait
    counted: Mapping[str, int]  # outcomes as the server counted them
    kinds: Mapping[str, int]
    active_slots: int
    waiting_images: int
    problems: tuple[str, ...] = field(default=())


def balance(endings: Sequence[Ending], before: Scrape, after: Scrape) -> Books:
    """Hold the visitors' endings against the server's counts between two readings, the second one at rest.

    A visitor who left may have been counted under any outcome, since the answer may already have been on its way.
    Everybody else must have been counted as what they saw.
    """
    visits = [ending for ending in endings if ending.visit.generates]
    seen = Counter("left" if ending.left else outcome(ending.status) for ending in visits)
    counted = {name: round(_since(before, after, "fewstep_requests_total", outcome=name)) for name in OUTCOMES}
    active = round(after.total("fewstep_active_slots"))
    waiting = round(after.total("fewstep_waiting_images"))
    problems = [*_unanswered(endings), *_unexpected(endings), *_differences(seen, counted)]
    if active or waiting:
        problems.append(f"{active} slots and {waiting} places in the queue are still held, though no request waits")
    failed = _since(before, after, "fewstep_denoiser_failed_calls_total")
    if failed:
        problems.append(f"{failed:.0f} network calls failed")
    kinds = Counter(ending.visit.kind for ending in endings)
    return Books(dict(seen), counted, dict(kinds), active, waiting, tuple(problems))


def outcome(status: int) -> str:
    """The word for a status, as the server's metrics use it."""
    special = {NO_ANSWER: "no answer", 429: "rejected", 499: "cancelled", 503: "unavailable", 504: "timeout"}
    return special.get(status) or ("ok" if status < 400 else "invalid" if status < 500 else "error")


def _since(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return after.total(name, **labels) - before.total(name, **labels)


def _unanswered(endings: Sequence[Ending]) -> list[str]:
    lost = Counter(ending.code for ending in endings if ending.status == NO_ANSWER and not ending.left)
    return [f"{count} visitors who stayed got no answer ({code})" for code, count in lost.items()]


def _unexpected(endings: Sequence[Ending]) -> list[str]:
    wrong = Counter(
        (ending.visit.what, ending.status, ending.code)
        for ending in endings
        if not ending.left and ending.status != NO_ANSWER and ending.status not in ending.visit.expected
    )
    return [f"{count} times {what!r} was answered {status} {code}" for (what, status, code), count in wrong.items()]


def _differences(seen: Mapping[str, int], counted: Mapping[str, int]) -> list[str]:
    left = seen.get("left", 0)
    found = [
        f"the server counted {counted[name]} {name}, the visitors saw {seen.get(name, 0)} and {left} left"
        for name in OUTCOMES
        if not seen.get(name, 0) <= counted[name] <= seen.get(name, 0) + left
    ]
    if sum(counted.values()) != sum(seen.values()):
        found.append(f"the server counted {sum(counted.values())} requests, the visitors sent {sum(seen.values())}")
    return found
