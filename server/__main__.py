"""`python -m server`: parse, bind the port, read the manifest, serve."""

import logging
import os
import socket
import sys
import time
from collections.abc import Sequence

from server.settings import Settings, SettingsError, parse_settings

EXIT_REFUSED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 after an orderly stop, 2 (and a sentence on stderr) when it cannot start."""
    started_s = time.monotonic()
    # NumPy's BLAS would start a thread per core; nothing here multiplies matrices, and the parent must fork.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from export.manifest import read_manifest
    from fewstep.card import CheckpointError

    try:
        settings = parse_settings(arguments)
        model = read_manifest(settings.engine)
        if not model.levels:
            raise CheckpointError(
                f"{settings.engine} holds a {model.role}, which has no levels to serve; export a student"
            )
        listener = bind(settings)
    except (SettingsError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(processName)s %(message)s")
    # After the checks: a wrong flag should not have to wait for the web framework.
    from server.lit_server import StudentServer

    server = StudentServer(settings, model, listener)
    logging.getLogger(__name__).debug("ready to fork after %.3f s", time.monotonic() - started_s)
    return server.serve()


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
