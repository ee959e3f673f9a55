"""`python -m server`: settle the settings, bind the port, read the manifests, serve."""

import os
import signal
import sys

# Before the other imports: until there are other processes, there is nothing to finish. An interrupted --check has not
# found anything out, so it must not end with 0.
if __name__ == "__main__" and "--check" not in sys.argv:
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: os._exit(0))

import logging
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from export.manifest import Manifest, read_manifest
from fewstep.card import CheckpointError
from server.logs import configure
from server.settings.settings import Settings, SettingsError
from server.settings.sources import Resolved, resolve

EXIT_REFUSED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 after an orderly stop, 2 (and a sentence on stderr) when it cannot start."""
    started_s = time.monotonic()
    # NumPy's BLAS would start a thread per core; nothing here multiplies matrices, and the parent must fork.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        resolved = resolve(arguments)
        settings = resolved.settings
        models = read_models(settings.engines)
        if resolved.check:
            return check(resolved)
        listener = bind(settings)
    except (SettingsError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    configure(settings)
    # After the checks: a wrong flag should not have to wait for the web framework.
    from server.hosts.litserve import StudentServer

    server = StudentServer(settings, models, listener)
    logging.getLogger(__name__).debug("ready to fork after %.3f s", time.monotonic() - started_s)
    return server.serve()


def check(resolved: Resolved) -> int:
    """Print the settings and try the engines. Raises CheckpointError for one that would not run."""
    # Only here: this loads the engines' libraries.
    from server.check import check_engine, engine_line, settings_lines

    settings = resolved.settings
    for line in settings_lines(resolved):
        print(line)
    for name in settings.engines:
        print(engine_line(name, check_engine(name, settings), settings), flush=True)
    return 0


def read_models(engines: Mapping[str, Path]) -> dict[str, Manifest]:
    """The manifests, under the names they are served by. Raises CheckpointError."""
    models = {name: replace(read_manifest(folder), name=name) for name, folder in engines.items()}
    for name, model in models.items():
        if not model.levels:
            raise CheckpointError(
                f"{engines[name]} holds a {model.role}, which has no levels to serve; export a student"
            )
    return models


def bind(settings: Settings) -> socket.socket:
    """A listening socket. Raises SettingsError when the address cannot be had."""
    where = f"{settings.host} port {settings.port}"
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(f"cannot listen on {where}: {error.strerror}; choose another --port or --host") from error


if __name__ == "__main__":
    sys.exit(main())
