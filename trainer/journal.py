"""OUT/stages.json: the order, the plan, and every complete stage. The file is replaced atomically."""

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
    parents: dict[str, str]  # earlier stage -> the hash of the result that this stage used
    result: str  # hash of its result
    seconds: float  # of all processes that worked on it, interrupted ones included
    images: int = 0  # training images seen
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Journal:
    folder: Path
    order: dict[str, Any] = field(default_factory=dict)  # the options of the command that decide the result
    plan: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Done] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> "Journal":
        """The journal of a folder, or an empty one. Raises CheckpointError for one that this version cannot read."""
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
    """SHA-256 of any value that JSON can express."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
