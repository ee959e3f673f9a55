"""Inside an engine worker: load the models, then one engine loop between the sockets of the HTTP processes.

Threads: the engine (the main thread, which also reads requests), and a few that encode images and send answers.
"""

import gc
import logging
import os
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from export.manifest import AdapterFiles, Manifest, adapter_files
from fewstep.cache_folder import cache_folder
from fewstep.card import CheckpointError
from server.processes.messages import Answer, Loading, Ready
from server.processes.pipes import HttpLinks
from server.scheduler.calibration import SharedTimes
from server.scheduler.encoding import Encoders
from server.scheduler.loading import LoadOptions, load_model
from server.scheduler.loop import EngineLoop, Inbox
from server.scheduler.model import Model
from server.scheduler.policy import Policy, policy_of
from server.settings.settings import Settings, SettingsError
from server.settings.sources import visible_gpu

logger = logging.getLogger(__name__)

EXIT_BAD_ENGINE = 2  # the engine cannot be served; a sentence has said why
EXIT_NOT_LOADED = 3  # loading raised something else; the log has it
# The engine thread needs the interpreter for a moment after each network call; another thread lets go of it
# within this time, not within Python's 5 ms.
SWITCH_INTERVAL_S = 0.0005


class Links(Inbox, Protocol):
    """Where requests come from and answers go: server.processes.pipes.HttpLinks, or another with these methods."""

    def send(self, answers: Sequence[Answer]) -> None: ...


@dataclass(frozen=True)
class WorkerConfig:
    """What every worker of a server serves."""

    engines: Mapping[str, Path]
    announced: Mapping[str, Manifest]  # what clients see; an engine that differs is refused
    options: LoadOptions
    policy: Policy
    times: SharedTimes  # create it before the fork
    adapters: Mapping[str, AdapterFiles]  # of the announced engines

    @classmethod
    def of(
        cls,
        settings: Settings,
        announced: Mapping[str, Manifest],
        times: SharedTimes | None = None,
        deferred: bool = False,
    ) -> "WorkerConfig":
        """times: with those that are known; None: none is. deferred: as of LoadOptions. Raises CheckpointError when the
        files of announced adapters cannot be read."""
        options = LoadOptions(
            backend=settings.backend, mode=settings.mode, capacity=settings.capacity, threads=settings.threads,
            processes=settings.workers, stall_s=settings.stall_s, compiled=cache_folder("compiled"),
            deferred=deferred,
        )  # fmt: skip
        policy = policy_of(settings.policy, settings.ageing, settings.batch_delay_s)
        adapters = {
            name: adapter_files(settings.engines[name], manifest.adapters) for name, manifest in announced.items()
        }
        return cls(settings.engines, announced, options, policy, times or SharedTimes(), adapters)


def load(links: HttpLinks, config: WorkerConfig, number: int) -> dict[str, Model]:
    """Load and warm up every model, as worker `number` of the server.

    Ends the process, with a sentence, when an engine cannot be served.
    """
    models: dict[str, Model] = {}
    options = replace(config.options, process=number)
    try:
        with links.exit_when_closed():
            for name, folder in config.engines.items():
                links.send([Loading(name)])
                models[name] = load_model(
                    name, folder, options, config.times, config.announced[name], config.adapters[name]
                )
    except CheckpointError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_ENGINE)
    except Exception:
        logger.exception("the engine worker cannot start")
        sys.exit(EXIT_NOT_LOADED)
    return models


def serve(links: Links, models: Mapping[str, Model], policy: Policy, warm_up_s: float) -> None:
    """Until every HTTP process has closed its socket."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    encoders = Encoders(links.send, _end_process)
    loop = EngineLoop(models, links, encoders.deliver, policy, flush=encoders.flush)
    freeze_heap()  # the engines and their libraries
    links.send([Ready({name: model.info for name, model in models.items()}, warm_up_s)])
    encoders.start()
    threading.Thread(target=prepare, args=(models.values(),), name="prepare", daemon=True).start()
    loop.run()
    encoders.close()


def prepare(models: Iterable[Model]) -> None:
    """What the models have deferred, one after the other; they serve meanwhile, and go on where it fails."""
    try:
        for model in models:
            model.prepare()
    except Exception:
        logger.exception("the models stay with the backend that they started with")


def freeze_heap() -> None:
    """Exempt every object there is from the garbage collector, and switch it on. Call once all that stays is loaded.

    It is off before, because loading makes hardly any garbage and collections take a tenth of its time.
    A full collection walks all objects of all modules: 60 ms on the server's machine, as long as a network call over
    twenty images, and every request would wait for it. It comes when the objects have grown by a quarter, which
    a process that has just started soon does. Before a fork it also keeps the collector from touching, and so copying,
    pages that processes share.
    """
    gc.freeze()
    gc.enable()


def use_gpu(gpu: int) -> None:
    """Make one GPU the only one that this process sees. Call before an engine is loaded."""
    try:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpu(gpu, os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_ENGINE)


def _end_process(error: BaseException) -> None:
    """A worker without one of its threads would lose answers while its statistics still arrive."""
    try:
        logger.error("the %s thread failed; the engine worker ends", threading.current_thread().name, exc_info=error)
    finally:
        os._exit(1)
