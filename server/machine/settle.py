"""From the settings a user gave to those the server runs with: settings left to the machine are measured and chosen."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from export.manifest import BACKEND_OPENVINO, BACKEND_OPENVINO_F32, BACKEND_ORT_CPU, Manifest
from fewstep import cores
from fewstep.cache_folder import cache_folder
from server.machine import kept
from server.machine.choice import FASTER, Fit, Layout, choose, fit, gain, layouts
from server.machine.kept import BUSY, Kept
from server.scheduler.calibration import EXACT_SLOTS, CallTimes
from server.settings.settings import Settings, SettingsError

OPENVINO = (BACKEND_OPENVINO, BACKEND_OPENVINO_F32)
ON_CORES = (BACKEND_ORT_CPU, *OPENVINO)  # the backends for which threads and workers are a question of cores
MAX_WORKERS = 16  # measured side by side: each holds the engine once more
Measure = Callable[[Path, Layout], Mapping[int, float]]  # seconds of a call by batch size


@dataclass(frozen=True)
class Settled:
    """Settings without anything left open, and notes on how they were chosen."""

    settings: Settings
    fit: Fit | None = None  # None: nothing was left to the machine
    chosen: str = ""  # one line about what was chosen for the user
    fits: tuple[Fit, ...] = ()  # of every layout that was measured
    notes: tuple[str, ...] = ()  # troubles, in sentences
    refused: tuple[str, ...] = ()  # sentences about the layouts that do not run here
    path: Path | None = None  # where the times are kept
    calls: Mapping[str, CallTimes] = field(default_factory=dict)  # of the chosen layout, by model; not measured again
    deferred: bool = False  # the backend is a choice, so ONNX Runtime may run in its place until it is prepared


@dataclass(frozen=True)
class Question:
    """What is measured to settle some settings, on the first engine: it is the default model's.

    Either workers, threads and slots are open, and perhaps the backend (`--workers auto`), or the backend alone.
    """

    folder: Path
    manifest: Manifest
    own: str  # the backend that stays unless another is faster
    layouts: tuple[Layout, ...]
    backend_only: bool  # whether workers, threads and slots are settled


def settle(
    settings: Settings,
    models: Mapping[str, Manifest],
    measure: Measure | None = None,
    home: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Settled:
    """Settings with numbers for what is left open, from kept times where there are some, else from new ones.

    measure: of server.machine.trial, which raises LayoutError. say: called with a sentence before and after something
    is measured. Raises SettingsError where nothing runs.
    """
    asked = question(settings, models)
    if asked is None:
        return _nothing_to_measure(settings)
    path = kept.file_of(kept.identity(asked.manifest), home or cache_folder("times"))
    if settings.workers and (trouble := kept.unwritable(path)):
        note = f"{trouble}; so the engine's backend runs. --backend names another, --backend {asked.own} keeps this one"
        return Settled(settings, notes=(note,))
    times, notes = _times(asked, path, measure, say)
    settled = _chosen(settings, asked, times)
    return replace(settled, notes=(*notes, *settled.notes), path=path)


def _chosen(settings: Settings, asked: Question, times: Kept) -> Settled:
    """What follows from the times of a question. Raises SettingsError where nothing runs."""
    calls = {layout: times.calls[layout] for layout in asked.layouts if layout in times.calls}
    reasons = [(layout, times.refused[layout]) for layout in asked.layouts if layout in times.refused]
    refused = tuple(f"{layout} does not run here: {why}" for layout, why in reasons)
    if settings.workers and not any(layout.backend == asked.own for layout in calls):
        return Settled(settings, notes=refused)  # where the engine's own backend cannot run, the worker says why
    if not calls:
        raise SettingsError(f"no way to run {asked.manifest.name} works here. {refused[0]}")
    busy = times.load > BUSY
    notes = refused if settings.workers == 0 else ()
    if busy:
        notes = (
            f"the load was {times.load:.1f} for each core while the call times were measured: the choice may not be "
            "the best, and the engine's backend stays. A start on an idle machine measures again",
            *notes,
        )
        calls = {layout: each for layout, each in calls.items() if layout.backend == asked.own} or calls
    capacity = settings.capacity or (EXACT_SLOTS if settings.mode == "exact" else 0)
    best = choose(calls, asked.own, capacity)
    fits = tuple(fit(layout, each, capacity) for layout, each in calls.items())
    # None where the engine's own backend runs and none was named.
    backend = best.layout.backend if settings.backend or best.layout.backend != asked.own else None
    chosen = replace(settings, backend=backend)
    if settings.workers == 0:
        chosen = replace(chosen, workers=best.layout.workers, threads=best.layout.threads, capacity=best.capacity)
    known = {} if busy else {next(iter(settings.engines)): calls[best.layout]}
    said = sentence(settings, best, fits, asked.own)
    deferred = settings.backend is None and backend in OPENVINO
    return Settled(chosen, best, said, fits, notes, refused=refused, calls=known, deferred=deferred)


def question(settings: Settings, models: Mapping[str, Manifest]) -> Question | None:
    """What has to be measured; None where the backend does not run on cores, or nothing is open."""
    manifests = list(models.values())
    own = settings.backend or manifests[0].backend
    if settings.devices or own not in ON_CORES:
        return None
    others = () if settings.backend else tuple(rivals(settings, manifests))
    if settings.workers == 0:
        asked = layouts(cores.physical(), (own, *others), settings.threads, MAX_WORKERS)
    elif others:
        asked = [Layout(each, min(settings.workers, MAX_WORKERS), settings.threads) for each in (own, *others)]
    else:
        return None
    folder = next(iter(settings.engines.values()))
    return Question(folder, manifests[0], own, tuple(asked), backend_only=settings.workers > 0)


def _nothing_to_measure(settings: Settings) -> Settled:
    if settings.workers:
        return Settled(settings)
    note = "workers auto: one for each device; only layouts of cores are measured, of backends that run on them"
    return Settled(replace(settings, workers=1), notes=(note,))


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


def sentence(settings: Settings, best: Fit, fits: Sequence[Fit], own: str) -> str:
    """A sentence about a choice, for users."""
    backend = best.layout.backend
    gained = ""
    kept_fits = [each for each in fits if each.layout.backend == own]
    if backend != own and kept_fits:
        nearest = max(kept_fits, key=lambda each: each.images_per_s)
        gained = f", {gain(nearest, best):.1f} times as fast as {own} when measured here"
    keeps = f"; --backend {own} keeps the engine's"
    if settings.workers == 0:
        said = f"workers auto: {best}"
        return said if backend == own else f"{said}; the networks run with {backend}{gained}{keeps}"
    if backend != own:
        return f"the networks run with {backend}{gained}{keeps}"
    others = " or ".join(each.layout.backend for each in fits if each.layout.backend != own)
    slower = f": {others} is not {FASTER} times as fast" if others else ", the fastest that runs here"
    return f"the networks run with {own}, the engine's backend{slower}"


def _times(
    asked: Question, path: Path | None, measure: Measure | None, say: Callable[[str], None]
) -> tuple[Kept, list[str]]:
    """The times of the layouts, from the file and newly measured, and sentences about trouble with either."""
    known = kept.identity(asked.manifest)
    times, trouble = kept.read(path, known)
    notes = [trouble] if trouble else []
    load = os.getloadavg()[0] / cores.count()
    if times.load > BUSY >= load:
        times = Kept()
        notes.append("the call times were measured while the machine was busy, and are measured again")
    if not any(each in times.calls for each in asked.layouts):
        times = replace(times, refused={})  # what stopped every layout may be mended by now
    missing = [each for each in asked.layouts if each not in times.calls and each not in times.refused]
    if not missing:
        return times, notes
    if asked.backend_only and load > BUSY:
        notes.append(
            f"the load is {load:.1f} for each core, so no backend was measured, and the engine's runs. A start on an "
            "idle machine measures"
        )
        return times, notes
    began_s = time.monotonic()
    names = ", ".join(map(str, missing))
    say(f"measuring call times of {asked.manifest.name}, seconds each: {names}; the next start knows them")
    times, passing = _measured(asked.folder, missing, replace(times, load=max(load, times.load)), measure)
    say(f"measuring took {time.monotonic() - began_s:.1f} s")
    if times.calls:
        notes += [note for note in [kept.write(path, known, times)] if note]
    return replace(times, refused={**times.refused, **passing}), notes


def _measured(
    folder: Path, missing: Sequence[Layout], times: Kept, measure: Measure | None
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
