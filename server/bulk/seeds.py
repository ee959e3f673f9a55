"""The seeds of a bulk run: `0-63` or `0-9,40,100-199`."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from server.scheduler.validate import SEED_LIMIT

MOST = 10**9  # images of a run


class SeedsError(ValueError):
    """A text that lists no seeds; the message says what is allowed."""


@dataclass(frozen=True)
class Seeds:
    """Distinct seeds in [0, 2^63), in the order in which they were given."""

    ranges: tuple[range, ...]

    @property
    def count(self) -> int:
        return sum(map(len, self.ranges))

    def part(self, first: int, count: int) -> list[int]:
        """Seeds number first to first + count - 1; fewer at the end."""
        seeds: list[int] = []
        at = bisect_right(self._ends, first)
        while len(seeds) < count and at < len(self.ranges):
            skipped = first + len(seeds) - (self._ends[at] - len(self.ranges[at]))
            seeds += self.ranges[at][skipped : skipped + count - len(seeds)]
            at += 1
        return seeds

    @cached_property
    def _ends(self) -> list[int]:
        """How many seeds there are up to the end of each range."""
        return list(accumulate(map(len, self.ranges)))

    @property
    def largest(self) -> int:
        return max(run[-1] for run in self.ranges)

    def __str__(self) -> str:
        return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in self.ranges)


def parse_seeds(text: str) -> Seeds:
    """Raises SeedsError."""
    ranges = tuple(_ranges(text))
    count = sum(run.stop - run.start for run in ranges)  # len() of a range has a limit
    if count > MOST:
        raise SeedsError(f"{text} are {count:,} seeds, and a run makes at most {MOST:,} images; split it into several")
    for one, other in pairwise(sorted(ranges, key=lambda run: run[0])):
        if other[0] <= one[-1]:
            raise SeedsError(f"{text} names the seed {other[0]} twice; a run makes one image for each seed")
    return Seeds(ranges)


def _ranges(text: str) -> Iterator[range]:
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,19})\s*(?:-\s*([0-9]{1,19}))?\s*", part)
        if not match:
            raise SeedsError(f"{text!r} are no seeds; write 7, 0-63 or 0-9,40,100-199")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise SeedsError(f"{part.strip()} ends before it begins; write {last}-{first}")
        if last >= SEED_LIMIT:
            raise SeedsError(f"the seed {last} is too large; seeds are from 0 to {SEED_LIMIT - 1}")
        yield range(first, last + 1)
