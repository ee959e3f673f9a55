"""What `python -m server` can be told, and what it refuses. Standard library only."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

MODELS = Path(__file__).resolve().parent.parent / "models"  # the students that ship with the checkout

Mode = Literal["fast", "exact"]
LogLevel = Literal["debug", "info", "warning", "error"]


class SettingsError(ValueError):
    """Settings the server cannot start with; the message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    engine: Path  # an engine directory
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free port
    mode: Mode = "fast"
    capacity: int = 8  # slots: images that share a network call; on a CPU more of them only make it longer
    threads: int = 0  # cores one network call may use; 0: all
    max_queue: int = 256  # images that may wait for a slot
    max_images: int = 64  # images one request may ask for
    max_body_bytes: int = 65_536
    timeout_s: float = 60.0  # the longest an accepted request may take
    grace_s: float = 30.0  # how long a stopping server lets its requests finish
    log_level: LogLevel = "warning"

    def __post_init__(self) -> None:
        _within("--port", self.port, 0, 65_535)
        _within("--capacity", self.capacity, 1, 4_096)
        _within("--threads", self.threads, 0, 1_024)
        _within("--max-queue", self.max_queue, 0, 1_000_000)
        _within("--max-images", self.max_images, 1, 256)
        _within("--max-body-bytes", self.max_body_bytes, 1_024, 2**30)
        _within("--timeout-s", self.timeout_s, 0.1, 86_400)
        _within("--grace-s", self.grace_s, 0, 3_600)
        if self.max_images > self.limit:
            raise SettingsError(
                f"--max-images {self.max_images} could never be admitted: "
                f"--capacity and --max-queue add up to {self.limit}"
            )

    @property
    def limit(self) -> int:
        """Images accepted and not yet answered, at most."""
        return self.capacity + self.max_queue


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line. Raises SettingsError, or exits with 2 as argparse does."""
    parser = argparse.ArgumentParser(prog="python -m server", description="Serve a student over HTTP.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default="fashion", help="a model of this checkout: models/NAME/engine (fashion)")
    which.add_argument("--engine", type=Path, metavar="DIR", help="an engine directory")
    helps = {
        "host": "address to listen on (%(default)s: this machine only)",
        "port": "TCP port (%(default)s); 0 takes a free one",
        "mode": "fast: small batches for few images (%(default)s); exact: the same bytes in any company",
        "capacity": "images in flight in one network call (%(default)s)",
        "threads": "cores one network call may use (%(default)s: all)",
        "max_queue": "images that may wait for a slot before the answer is 429 (%(default)s)",
        "max_images": "images one request may ask for (%(default)s)",
        "max_body_bytes": "largest request body (%(default)s)",
        "timeout_s": "seconds a request may take before the answer is 504 (%(default)s)",
        "grace_s": "seconds a stopping server lets its requests finish (%(default)s)",
        "log_level": "what goes to the log on stderr (%(default)s)",
    }
    choices = {"mode": get_args(Mode), "log_level": get_args(LogLevel)}
    for field in fields(Settings):
        if field.name == "engine":
            continue
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=type(field.default),
            default=field.default,
            choices=choices.get(field.name),
            help=helps[field.name],
        )
    values = vars(parser.parse_args(arguments))
    model, engine = values.pop("model"), values.pop("engine")
    return Settings(engine=engine or model_engine(model), **values)


def model_engine(name: str, models: Path = MODELS) -> Path:
    """The engine directory of a shipped model. Raises SettingsError naming the models there are."""
    names = sorted(folder.parent.name for folder in models.glob("*/engine") if folder.is_dir())
    if name in names:
        return models / name / "engine"
    known = f"the models with an engine are: {', '.join(names)}" if names else f"no folder in {models} has an engine"
    raise SettingsError(f"there is no model {name!r}; {known}. --engine DIR serves an engine from anywhere")


def _within(flag: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SettingsError(f"{flag} must be from {low} to {high}, not {value}")
