"""What a server's answers say of it beside their images: its peak memory, and how long the stages of a request took."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.load.http_client import Answer

# Server-Timing (W3C): name;dur=MILLISECONDS, several behind one another
TIMING = re.compile(r"""([!#$%&'*+.^_`|~\w-]+)\s*;(?:(?:"[^"]*"|[^,"])*?;)?\s*dur=(\d+(?:\.\d*)?)""")


@dataclass
class Told:
    """Collected over the answers of a run."""

    memory_mb: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)  # by name; as the server counts, ours in seconds

    def note(self, answer: Answer) -> None:
        """Answers of servers that say nothing are read in no time: their bodies are not parsed."""
        said = _fields(answer.body)
        memory = _number(said.get("peak_memory_mb"))
        if memory:
            self.memory_mb.append(memory)
        stages = said.get("stage_durations")
        for name, value in (stages if isinstance(stages, dict) else server_timing(answer.headers)).items():
            if (seconds := _number(value)) is not None:
                self.stages.setdefault(str(name), []).append(seconds)

    def figures(self) -> dict[str, Any]:
        """Under the names of vLLM-Omni's and SGLang's benchmarks; empty where no answer said anything."""
        found: dict[str, Any] = {}
        if self.memory_mb:
            values = {"max": max(self.memory_mb), "mean": fmean(self.memory_mb), "median": median(self.memory_mb)}
            found |= {f"peak_memory_mb_{name}": value for name, value in values.items()}
        if self.stages:
            found["stage_durations_mean"] = {name: fmean(values) for name, values in self.stages.items()}
            for percent in (50, 99):
                found[f"stage_durations_p{percent}"] = {
                    name: float(np.percentile(values, percent)) for name, values in self.stages.items()
                }
        return found


def server_timing(headers: Mapping[str, str]) -> dict[str, float]:
    """Seconds by stage, of the header Server-Timing."""
    return {name: float(ms) / 1000 for name, ms in TIMING.findall(headers.get("server-timing", "")[:1000])}


def _fields(body: bytes) -> Mapping[str, Any]:
    if b'"peak_memory_mb"' not in body and b'"stage_durations"' not in body:
        return {}
    try:
        said = json.loads(body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
