"""`python -m server --check`: the settings as a settings file, where each came from, and whether the engines run."""

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from export.manifest import Manifest
from fewstep.card import CheckpointError
from server.scheduler.loading import slot_table, threads_of, tick_of
from server.settings.options import OPTIONS
from server.settings.settings import Settings
from server.settings.sources import Resolved


def settings_lines(resolved: Resolved) -> Iterator[str]:
    """Valid TOML that --config would read again, with the source of each value beside it. No API key is in it."""
    settings, sources = resolved.settings, resolved.sources
    for option in OPTIONS:
        value = getattr(settings, option.name)
        text = f"{option.name} = {_toml(value)}" if value is not None else f"# {option.name}: the engine's own"
        yield f"{text:<36} # {sources[option.name]}"
    keys = f"{len(settings.api_keys)}, not shown" if settings.api_keys else "none, everybody may ask"
    yield f"{'# api_keys: ' + keys:<36} # {sources['api_keys']}"
    assert {field.name for field in fields(Settings)} == {option.name for option in OPTIONS} | {"engines", "api_keys"}
    yield ""
    yield f"[engine]  # {sources['engines']}; the first is the default"
    for name, folder in settings.engines.items():
        yield f"{_toml(name)} = {_toml(str(folder.resolve()))}"


def check_engine(name: str, settings: Settings) -> Manifest:
    """Load an engine as a worker would and make one image in one step. Raises CheckpointError."""
    # Only here: a server that starts loads engines in its workers.
    from export.engine import load_engine

    folder = settings.engines[name]
    engine = load_engine(folder, backend=settings.backend, threads=threads_of(settings), buckets=(1,))
    if tick_of(slot_table(engine, (1,)), 1).broken:
        raise CheckpointError(f"the network of {folder} returns values that are not finite; export it again")
    return engine.manifest


def engine_line(name: str, model: Manifest, settings: Settings) -> str:
    """One line about an engine that works."""
    steps = ", ".join(map(str, sorted(model.levels)))
    classes = f"{model.classes} classes" if model.classes else "no classes"
    shape = "x".join(map(str, (model.resolution, model.resolution, model.channels)))
    return f"# {name}: {shape}, {classes}, steps {steps}, {settings.backend or model.backend}: it runs"


def _toml(value: Any) -> str:
    """TOML of what settings hold; its strings, numbers and lists are written like JSON's."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)
