"""The cores of this machine: which ones this process may use, how many its container pays for, who gets which."""

import os
from collections.abc import Sequence
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")


def usable() -> tuple[int, ...]:
    """Numbers of the logical cores that this process may run on, ascending."""
    return tuple(sorted(os.sched_getaffinity(0)))


def quota(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> float | None:
    """Seconds of processor time a second that the container allows, by version 1 or 2 of cgroups; None: no limit.

    A limit of any group above this process's counts, too.
    """
    limits = []
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tops, read = (cgroups, cgroups / "unified"), _limit_v2
        elif "cpu" in controllers.split(","):
            tops, read = (cgroups / "cpu", cgroups / controllers), _limit_v1
        else:
            continue
        # In a container the path may be the host's, of which only the end, or nothing, is to be seen.
        groups = [path.strip("/"), *(str(above) for above in Path(path.strip("/")).parents), ""]
        limits += [limit for top in tops for group in groups if (limit := read(top / group)) is not None]
    return min(limits, default=None)


def count() -> int:
    """How many cores can be kept busy at once: those that may be used, or as many whole ones as the quota allows."""
    limit = quota()
    return len(usable()) if limit is None else max(1, min(len(usable()), int(limit)))


def groups(cores: Sequence[int], topology: Path = TOPOLOGY) -> list[tuple[int, ...]]:
    """Logical cores by physical core, ascending; each is one of its own where the system does not say."""
    by_core: dict[str, list[int]] = {}
    for core in cores:
        siblings = _text(topology / f"cpu{core}" / "topology" / "thread_siblings_list").strip()
        by_core.setdefault(siblings or f"only {core}", []).append(core)
    return sorted(map(tuple, by_core.values()))


def physical() -> int:
    """Cores with arithmetic of their own that can be kept busy at once: what threads of a network call are worth."""
    return min(count(), len(groups(usable())))


def share(groups: Sequence[tuple[int, ...]], index: int, shares: int) -> tuple[int, ...]:
    """The logical cores of one of so many equal shares, siblings together; neighbours lie side by side.

    Shares have no core in common while there is a group for each. Where there are more shares than groups, they go
    round: two shares of one core slow each other down, and nobody else.
    """
    if shares >= len(groups):
        return groups[index % len(groups)]
    size, rest = divmod(len(groups), shares)
    first = index * size + min(index, rest)
    chosen = groups[first : first + size + (index < rest)]
    return tuple(sorted(core for group in chosen for core in group))


def _limit_v2(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split()
    return float(words[0]) / float(words[1]) if len(words) == 2 and words[0] != "max" else None


def _limit_v1(folder: Path) -> float | None:
    allowed, period = _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()
    return float(allowed) / float(period) if allowed and period and float(allowed) > 0 else None


def _text(path: Path) -> str:
    """What a file of the kernel says; nothing where there is none, as outside Linux."""
    try:
        return path.read_text("ascii")
    except OSError:
        return ""
