"""OUT/stages.json: what was asked for, the plan, and every stage that is complete. Written whole or not at all."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fewstep.card import CheckpointError, write_atomically

FILE = "stages.json"
FORMAT = 1


@dataclass(frozen=True)
class Done:
    """A complete stage."""

    settings: str  # sha256 of its settings
    parents: dict[str, str]  # stage -> the hash of its result, as it was taken
    result: str  # hash of what it made
    seconds: float  # all that was counted, also by processes that were interrupted
    images: int = 0  # that it was trained with
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Journal:
    folder: Path
    order: dict[str, Any] = field(default_factory=dict)  # the command, as far as it decides the result
    plan: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Done] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> "Journal":
        """An empty one when there is none. Raises CheckpointError for one that this version cannot read."""
        path = folder / FILE
        if not path.is_file():
            return Journal(folder)
        try:
            stored = json.loads(path.read_text("utf-8"))
            if stored["format"] != FORMAT:
                raise CheckpointError(f"{path} has format {stored['format']}; this version reads {FORMAT}")
            stages = {name: Done(**done) for name, done in stored["stages"].items()}
            return Journal(folder, stored["order"], stored["plan"], stages)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); choose another --out") from error

    def write(self) -> None:
        stages = {name: asdict(done) for name, done in self.stages.items()}
        content = {"format": FORMAT, "order": self.order, "plan": self.plan, "stages": stages}
        write_atomically(self.folder / FILE, (json.dumps(content, indent=2) + "\n").encode())


def settings_hash(settings: Any) -> str:
    """Of anything JSON can say."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
