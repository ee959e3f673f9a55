"""`python -m server`: settle the settings, bind the port, read the manifests, serve."""

import os
import signal
import sys

# Before the other imports: until there are other processes, there is nothing to finish. An interrupted --check has not
# found anything out, so it must not end with 0; the system's handler ends it without a traceback.
if __name__ == "__main__":
    for stop in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if stop != signal.SIGHUP or signal.getsignal(stop) != signal.SIG_IGN:  # nohup has it ignored
            signal.signal(stop, signal.SIG_DFL if "--check" in sys.argv else lambda *_: os._exit(0))

import gc
import logging
import resource
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from export.manifest import Manifest, read_student
from fewstep.card import CheckpointError
from server.logs import configure, printable
from server.settings.settings import Settings, SettingsError, check_runtime
from server.settings.sources import Resolved, resolve

if TYPE_CHECKING:
    from server.machine.settle import Settled

EXIT_REFUSED = 2
MIN_DESCRIPTORS = 32  # an HTTP process uses 22 before the first connection


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 after an orderly stop, 2 (and a sentence on stderr) when it cannot start."""
    started_s = time.monotonic()
    fill_standard_files()
    # NumPy's BLAS would start a thread per core; nothing here multiplies matrices, and the parent must fork.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        resolved = resolve(arguments)
        settings = resolved.settings
        check_runtime(settings)
        models = {name: read_student(folder, name) for name, folder in settings.engines.items()}
        if resolved.check:
            return check(resolved, models)
        listener = bind(settings)
        configure(settings)
        found = settled(resolved, models)
        gc.disable()  # until the parent has loaded its modules (server.processes.worker.freeze_heap)
        # After the checks: a wrong flag should not have to wait for these modules.
        from server.hosts.forked import ForkedServer
        from server.machine.start_times import shared_times

        times = shared_times(found.settings, models, found.calls)
        server = ForkedServer(found.settings, models, listener, times, found.deferred)
    except (SettingsError, CheckpointError) as error:
        sentence = printable(" ".join(str(error).split("\n")))
        print(f"error: {sentence}", file=sys.stderr)
        return EXIT_REFUSED
    logging.getLogger(__name__).debug("ready to fork after %.3f s", time.monotonic() - started_s)
    return server.serve()


def settled(resolved: Resolved, models: Mapping[str, Manifest]) -> "Settled":
    """The settings, with what was left to the machine chosen and logged. Raises SettingsError."""
    from server.machine.settle import settle

    found = settle(resolved.settings, models, say=tell)
    for note in found.notes:
        logging.getLogger(__name__).warning(note)
    if found.chosen:
        tell(found.chosen)
    return found


def tell(text: str) -> None:
    """A line of the log at any --log-level: what takes seconds at a first start, or is not what the engine names."""
    logger = logging.getLogger(__name__)
    logger.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, text, (), None))


def check(resolved: Resolved, models: Mapping[str, Manifest]) -> int:
    """Print the settings, what follows from them on this machine, and try the engines. Raises CheckpointError for one
    that would not run, SettingsError for a host that does not exist and where nothing can be printed."""
    # Only here: this loads the engines' libraries.
    from server.check import check_engine, choice_lines, engine_lines, settings_lines
    from server.machine.settle import settle

    bind(resolved.settings, port=0).close()  # its own port may be in use by the server that is checked
    say("\n".join(settings_lines(resolved)))
    found = settle(resolved.settings, models)
    settings = found.settings
    if lines := "\n".join(choice_lines(found)):
        say(lines)
    for name in settings.engines:
        say("\n".join(engine_lines(check_engine(name, settings), settings)))
    return 0


def say(text: str) -> None:
    """Print. Raises SettingsError where stdout takes nothing: a full disk, a closed pipe."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left of the text would fail again at the end
        raise SettingsError(f"stdout cannot be written: {error.strerror}; nothing more was checked") from error


def fill_standard_files() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed: a socket of ours would get its number, and what is meant
    for a terminal would go there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def bind(settings: Settings, port: int | None = None) -> socket.socket:
    """A listening socket. port: in place of the settings' own. Raises SettingsError when the address cannot be had."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < MIN_DESCRIPTORS:
        raise SettingsError(f"this shell allows {limit} open files, which are too few to serve; raise ulimit -n")
    family = address_family(settings)
    dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # `::` is every IPv4 address, too
    port = settings.port if port is None else port
    try:
        return socket.create_server((settings.host, port), family=family, backlog=2048, dualstack_ipv6=dual)
    except OSError as error:
        where = f"{settings.host} port {port}"
        raise SettingsError(f"cannot listen on {where}: {error.strerror}; choose another --port or --host") from error


def address_family(settings: Settings) -> socket.AddressFamily:
    """Of the host. Raises SettingsError for one that is no address and no name of one."""
    try:
        return socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, ValueError) as error:  # ValueError: a name that no network has, such as a..b
        reason = error.strerror if isinstance(error, OSError) else "it is not a host name"
        where = f"{settings.host} port {settings.port}"
        raise SettingsError(f"cannot listen on {where}: {reason}; choose another --host") from error


if __name__ == "__main__":
    sys.exit(main())
