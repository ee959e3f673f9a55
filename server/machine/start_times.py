"""Call times that workers measured at an earlier start with the same settings: with them, a start measures nothing."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from export.manifest import Manifest
from fewstep import cores
from fewstep.cache_folder import cache_folder
from server.machine import kept
from server.machine.choice import Layout
from server.machine.kept import BUSY, Kept
from server.machine.settle import ON_CORES
from server.scheduler.calibration import EMPTY, CallTimes, SharedTimes
from server.settings.settings import Settings

logger = logging.getLogger(__name__)

Keep = Callable[[str, CallTimes], None]  # called with a model's name and its times


def shared_times(
    settings: Settings, models: Mapping[str, Manifest], calls: Mapping[str, CallTimes] = EMPTY
) -> SharedTimes:
    """For the workers of a server: `calls`, by model, and what an earlier start has measured; they keep the rest.

    settings: without anything left open.
    """
    return SharedTimes({**read_start_times(settings, models), **calls}, keeper(settings, models))


def read_start_times(
    settings: Settings, models: Mapping[str, Manifest], home: Path | None = None
) -> dict[str, CallTimes]:
    """The times of models that were measured before. settings: without anything left open. home: in place of the
    user's cache folder. A file that cannot be used is logged."""
    found: dict[str, CallTimes] = {}
    for name, manifest in models.items():
        if (question := _question(settings, manifest)) is not None:
            known, layout = question
            times, trouble = kept.read(_file(known, home), known)
            if trouble:
                logger.warning(trouble)
            if layout in times.calls:
                found[name] = times.calls[layout]
    return found


def keeper(settings: Settings, models: Mapping[str, Manifest], home: Path | None = None) -> Keep:
    """A function for workers that keeps what they measure, unless the machine was busy before: those times would stay
    too long. Where nothing can be written, the next start measures again, as this one did."""
    load = os.getloadavg()[0] / cores.count()

    def keep(name: str, times: CallTimes) -> None:
        question = _question(settings, models[name])
        if question is None or load > BUSY:
            return
        known, layout = question
        others = kept.read(_file(known, home), known)[0].calls  # of other backends, workers and threads
        if trouble := kept.write(_file(known, home), known, Kept({**others, layout: times}, load=load)):
            logger.info(trouble)

    return keep


def _question(settings: Settings, manifest: Manifest) -> tuple[dict[str, object], Layout] | None:
    """What the times of a model's worker depend on; None for a backend that does not run on cores."""
    backend = settings.backend or manifest.backend
    if settings.devices or backend not in ON_CORES:
        return None
    asked = {"mode": settings.mode, "capacity": settings.capacity}
    return {**kept.identity(manifest), **asked}, Layout(backend, settings.workers, settings.threads)


def _file(known: Mapping[str, object], home: Path | None) -> Path | None:
    return kept.file_of(known, home or cache_folder("times"))
