"""Did anything else work on the machine while a benchmark ran? What its table and its JSON say of that."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

OTHERS = 0.1  # share of the cores: below it the figures are those of a free machine
SPREAD = 1.3  # 95th percentile over median of repeated calls, on a free machine at most about this


@dataclass(frozen=True)
class Busy:
    """What was seen during a run."""

    cores: int
    load_before: float  # the system's load average over the minute before the run
    others: float | None  # cores that other processes kept busy, mean over the run; None where the system does not tell
    spread: float | None  # 95th percentile over median of repeated calls; None where too few were repeated

    def warning(self) -> str | None:
        """What a reader of the table must know; None where the machine was free."""
        found = []
        if self.others is not None and self.others > OTHERS * self.cores:
            found.append(f"other processes used {self.others:.1f} of {self.cores} cores during the run")
        elif self.others is None and self.load_before > OTHERS * self.cores:
            found.append(f"the load was {self.load_before:.1f} on {self.cores} cores before the run")
        if self.spread is not None and self.spread > SPREAD:
            found.append(f"the 95th percentile of repeated calls is {self.spread:.2f} times their median")
        if not found:
            return None
        return f"BUSY MACHINE: {'; '.join(found)}. Compare ratios and CPU times, not milliseconds."


class Watch:
    """Looks at the machine from the moment it is made."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self.stat = stat
        self.load_before = os.getloadavg()[0]
        self.began = time.monotonic(), busy_s(stat), own_s()
        self.counted_s = 0.0

    def count(self, processes: Iterable["psutil.Process"]) -> None:
        """Processes that belong to the benchmark, such as those of a server. Call it once, shortly before they end.

        Children of this process are left out: the system adds their time to this process's when they have ended.
        """
        for each in processes:
            if each.ppid() != os.getpid():
                self.counted_s += sum(each.cpu_times()[:4])  # user, system, and of its children that have ended

    def seen(self, spread: float | None = None) -> Busy:
        """What happened since. spread: of the benchmark's repeated calls."""
        began_s, all_before, own_before = self.began
        now = busy_s(self.stat)
        others = None
        if now is not None and all_before is not None:
            elapsed = max(time.monotonic() - began_s, 1e-9)
            others = max((now - all_before) - (own_s() - own_before) - self.counted_s, 0.0) / elapsed
        return Busy(os.cpu_count() or 1, self.load_before, others, spread)


def busy_s(stat: Path) -> float | None:
    """Seconds that all cores together were not idle since the system started (proc(5)); None where it does not say."""
    try:
        fields = stat.read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
