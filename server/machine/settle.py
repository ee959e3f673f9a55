"""From the settings a user gave to those the server runs with: settings left to the machine are measured and chosen."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from export.manifest import BACKEND_OPENVINO, BACKEND_OPENVINO_F32, BACKEND_ORT_CPU, Manifest
from fewstep import cores
from fewstep.cache_folder import cache_folder
from server.machine import kept
from server.machine.choice import Fit, Layout, choose, fit, gain, layouts
from server.machine.kept import Kept
from server.settings.settings import Settings, SettingsError

OPENVINO = (BACKEND_OPENVINO, BACKEND_OPENVINO_F32)
ON_CORES = (BACKEND_ORT_CPU, *OPENVINO)  # the backends for which threads and workers are a question of cores
MAX_WORKERS = 16  # measured side by side: each holds the engine once more
BUSY = 0.5  # load average for each core beyond which measured times are doubtful


@dataclass(frozen=True)
class Settled:
    """Settings without anything left open, and notes on how they were chosen."""

    settings: Settings
    fit: Fit | None = None  # None: nothing was left to the machine
    chosen: str = ""  # one line about what was chosen for the user
    fits: tuple[Fit, ...] = ()  # of every layout that was measured
    notes: tuple[str, ...] = ()  # refusals and troubles, in sentences
    path: Path | None = None  # where the times are kept


@dataclass(frozen=True)
class Question:
    """What is measured to settle some settings, on the first engine: it is the default model's."""

    folder: Path
    manifest: Manifest
    own: str  # the backend that stays unless another is faster
    layouts: tuple[Layout, ...]


def settle(
    settings: Settings,
    models: Mapping[str, Manifest],
    capacity_given: bool,
    measure: Callable[[Path, Layout], Mapping[int, float]] | None = None,
    home: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Settled:
    """Settings with numbers for what is left open, from kept times where there are some, else from new ones.

    capacity_given: False lets `--workers auto` choose the slots. measure: of server.machine.trial, which raises
    LayoutError. say: called with a sentence before something is measured. Raises SettingsError where nothing runs.
    """
    if settings.workers != 0:  # not auto: nothing is left to the machine
        return Settled(settings)
    asked = question(settings, models)
    if asked is None:
        slots = settings.capacity if capacity_given else 0
        note = "workers auto: one for each device; only layouts of cores are measured, of backends that run on them"
        return Settled(replace(settings, workers=1, capacity=slots), notes=(note,))
    home = home or cache_folder("times")
    known = kept.identity(asked.manifest)
    path = kept.file_of(known, home)
    times, trouble = kept.read(path, known)
    notes = [trouble] if trouble else []
    load = os.getloadavg()[0] / cores.count()
    if times.load > BUSY >= load:
        times = Kept()
        notes.append("the call times were measured while the machine was busy, and are measured again")
    if not any(each in times.calls for each in asked.layouts):
        times = replace(times, refused={})  # what stopped every layout may be mended by now
    missing = [each for each in asked.layouts if each not in times.calls and each not in times.refused]
    if missing:
        say(f"measuring call times of {asked.manifest.name} for {len(missing)} layouts; the next start knows them")
        times, passing = _measured(asked.folder, missing, replace(times, load=max(load, times.load)), measure)
        if times.calls:
            notes += [note for note in [kept.write(path, known, times)] if note]
        times = replace(times, refused={**times.refused, **passing})
    calls = {layout: times.calls[layout] for layout in asked.layouts if layout in times.calls}
    refused = [
        f"{layout} does not run here: {times.refused[layout]}" for layout in asked.layouts if layout in times.refused
    ]
    if not calls:
        raise SettingsError(f"no way to run {asked.manifest.name} works here. {refused[0]}")
    if times.load > BUSY:
        notes.append(
            f"the load was {times.load:.1f} for each core while the call times were measured: the choice may not be "
            "the best, and the engine's backend stays. A start on an idle machine measures again"
        )
        calls = {layout: each for layout, each in calls.items() if layout.backend == asked.own} or calls
    capacity = settings.capacity if capacity_given else 0
    best = choose(calls, asked.own, capacity)
    fits = tuple(fit(layout, each, capacity) for layout, each in calls.items())
    backend = best.layout.backend if settings.backend or best.layout.backend != asked.own else None
    layout = best.layout
    chosen = replace(settings, backend=backend, workers=layout.workers, threads=layout.threads, capacity=best.capacity)
    return Settled(chosen, best, sentence(best, fits, asked.own), fits, (*notes, *refused), path)


def question(settings: Settings, models: Mapping[str, Manifest]) -> Question | None:
    """What --workers auto has to measure; None where the backend does not run on cores."""
    manifests = list(models.values())
    own = settings.backend or manifests[0].backend
    if settings.devices or own not in ON_CORES:
        return None
    backends = (own, *(() if settings.backend else rivals(settings, manifests)))
    asked = layouts(cores.physical(), backends, settings.threads, MAX_WORKERS)
    folder = next(iter(settings.engines.values()))
    return Question(folder, manifests[0], own, tuple(asked))


def rivals(settings: Settings, manifests: Sequence[Manifest]) -> Iterator[str]:
    """Backends that may take the place of the engines' own: those installed that each of them has a proof for.

    None in exact mode, whose bytes are not to depend on a clock, none where the engines name different backends, and
    none for engines with adapters (export.manifest.WITH_ADAPTERS).
    """
    if settings.mode == "exact" or {each.backend for each in manifests} != {BACKEND_ORT_CPU}:
        return
    if find_spec("openvino") is not None:
        proven = (backend for backend in OPENVINO if all(backend in each.proofs for each in manifests))
        yield from (backend for backend in proven if not any(each.adapted for each in manifests))


def sentence(best: Fit, fits: Sequence[Fit], own: str) -> str:
    """A sentence about a choice, for users."""
    text = f"workers auto: {best}"
    if best.layout.backend == own:
        return text
    kept_fits = [each for each in fits if each.layout.backend == own]
    faster = ""
    if kept_fits:
        nearest = max(kept_fits, key=lambda each: each.images_per_s)
        faster = f", {gain(nearest, best):.1f} times as fast as {own} when measured here"
    return f"{text}; the networks run with {best.layout.backend}{faster}; --backend {own} keeps the engine's"


def _measured(
    folder: Path,
    missing: Sequence[Layout],
    times: Kept,
    measure: Callable[[Path, Layout], Mapping[int, float]] | None,
) -> tuple[Kept, dict[Layout, str]]:
    """The times with those of the missing layouts; and what did not run for a reason that may be gone at the next
    start, such as a busy machine."""
    from server.machine.trial import LayoutError, measure_layout  # only where there is something to measure

    calls, refused, passing = dict(times.calls), dict(times.refused), {}
    for layout in missing:
        try:
            calls[layout] = (measure or measure_layout)(folder, layout)
        except LayoutError as error:
            (refused if error.lasting else passing)[layout] = error.why
    return replace(times, calls=calls, refused=refused), passing
