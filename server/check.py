"""`python -m server --check`: the settings as a settings file, where each came from, and whether the engines run."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from export.manifest import Manifest, served_models
from fewstep.card import CheckpointError
from server.machine.settle import Settled
from server.processes.worker import WorkerConfig
from server.scheduler.loading import slot_table, tick_of
from server.settings.settings import AUTO, OPTIONS, Settings
from server.settings.sources import Resolved


def settings_lines(resolved: Resolved) -> Iterator[str]:
    """TOML in ASCII that --config reads back to the same settings, with the source of each value beside it. A file of
    API keys is named; the keys themselves are not shown."""
    settings, sources = resolved.settings, resolved.sources
    for option in OPTIONS:
        value = getattr(settings, option.name)
        value = AUTO if option.auto and value == 0 else value
        text = f"# {option.name}: {option.default_text}" if value is None else f"{option.name} = {in_toml(value)}"
        yield _with_source(text, sources[option.name])
    if resolved.keys_file:
        yield f"api_keys_file = {in_toml(str(resolved.keys_file.absolute()))}"
    keys = f"{len(settings.api_keys)}, not shown" if settings.api_keys else "none is needed"
    yield _with_source(f"# api_keys: {keys}", sources["api_keys"])
    yield ""
    yield _with_source("[engine]", f"{sources['engines']}; the first is the default model of requests")
    for name, folder in settings.engines.items():
        yield f"{in_toml(name)} = {in_toml(str(folder.absolute()))}"


def choice_lines(found: Settled) -> Iterator[str]:
    """Comments: what was chosen for this machine, every layout that was measured, and where the times lie."""
    if found.fit:
        yield ""
        yield f"# chosen for this machine: {found.fit}"
        yield from (f"# measured: {each}" for each in sorted(found.fits, key=lambda each: -each.images_per_s))
        yield from (f"# {ascii(each)[1:-1]}" for each in found.refused if each not in found.notes)
        if found.path:
            yield f"# kept in {ascii(str(found.path))[1:-1]}; without that file, the next start measures again"
    yield from (f"# note: {ascii(note)[1:-1]}" for note in found.notes)


def check_engine(name: str, settings: Settings) -> Manifest:
    """Load an engine as a worker would and make one image in one step, of itself and of each adapter.

    Raises CheckpointError.
    """
    # Only here: a server that starts loads engines in its workers.
    from export.engine import load_engine

    folder = settings.engines[name]
    options = WorkerConfig.of(settings, {}).options
    engine = load_engine(folder, backend=options.backend, threads=options.cores, buckets=(1,))
    table = slot_table(engine, (1,))
    for adapter in range(1 + len(engine.manifest.adapters)):
        if tick_of(table, 1, adapter).broken:
            what = f"with the adapter {engine.manifest.adapters[adapter - 1].name}, " if adapter else ""
            raise CheckpointError(f"{what}the network of {folder} returns values that are not finite; export it again")
    return replace(engine.manifest, name=name)


def engine_lines(engine: Manifest, settings: Settings) -> Iterator[str]:
    """A line about each model of an engine that works."""
    for name, model in served_models(engine).items():
        steps = ", ".join(map(str, sorted(model.levels)))
        classes = f"{model.classes} classes" if model.classes else "no classes"
        shape = "x".join(map(str, (model.resolution, model.resolution, model.channels)))
        yield f"# {name}: {shape}, {classes}, steps {steps}, {settings.backend or model.backend}: it runs"


def _with_source(text: str, source: str) -> str:
    return f"{text:<36} # {ascii(source)[1:-1]}"


def in_toml(value: Any) -> str:
    """TOML of what settings hold: like JSON, but for characters beyond 16 bits and DEL."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(in_toml, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    escaped = (f"\\U{ord(each):08x}" if each > "\uffff" or each == "\x7f" else json.dumps(each)[1:-1] for each in value)
    return f'"{"".join(escaped)}"'
