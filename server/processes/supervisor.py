"""The parent: forks HTTP processes and workers, replaces workers that die or hang, and ends all in order.

It has a single thread, so forking is safe at any time; it must never load an engine's library or touch a GPU.
"""

import logging
import multiprocessing
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.context import ForkProcess

from server.processes.control import Control
from server.processes.worker import EXIT_BAD_ENGINE, EXIT_NOT_LOADED, freeze_heap

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last: the terminal is gone
KILL_AFTER_S = 10.0  # beyond drain and grace period, for a child that does not end by itself
REPEAT_S = 1.0  # between two SIGTERMs to an HTTP process that has not ended
CLOSED_S = 1.0  # between the end of an HTTP process's sockets and its own
WINDOW_S = 60.0  # over which restarts are counted
MAX_BACKOFF_S = 60.0  # between two attempts to replace a worker that could not load


class RestartBudget:
    """Allows `limit` restarts within WINDOW_S."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.times: deque[float] = deque()  # of the restarts within the window

    def allows(self, now_s: float) -> bool:
        """Count a restart; False when there have been too many."""
        while self.times and self.times[0] <= now_s - WINDOW_S:
            self.times.popleft()
        if len(self.times) >= self.limit:
            return False
        self.times.append(now_s)
        return True


class Supervisor:
    """Forks and watches the other processes.

    listeners: one for each HTTP process; closed here once that has it. stop_s: seconds that these may take for their
    drain and their last requests. on_ready: called once, when every HTTP process has found every worker warm.
    run_http: serves on its listener until a stop signal, as process 0, 1, ... run_worker: serves one socket per HTTP
    process.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        workers: int,
        restart_limit: int,
        stop_s: float,
        on_ready: Callable[[], None],
        run_http: Callable[[int, Control], None],
        run_worker: Callable[[int, Sequence[socket.socket]], None],
    ) -> None:
        self.listeners = listeners
        self.count = workers
        self.budget = RestartBudget(restart_limit)
        self.stop_s = stop_s
        self.on_ready = on_ready
        self.run_http = run_http
        self.run_worker = run_worker
        self.fork = multiprocessing.get_context("fork")
        self.controls = [Control() for _ in listeners]
        self.https: list[ForkProcess] = []
        self.workers: dict[int, ForkProcess] = {}
        self.ready: set[int] = set()  # HTTP processes that have found every worker warm
        self.refusals: dict[int, int] = {}  # worker number -> how often in a row it could not be started, or not load
        self.retry_at_s: dict[int, float] = {}  # worker number -> when to try again
        self.code: int | None = None  # the exit code, once the end has begun
        self.kill_at_s = 0.0

    @property
    def announced(self) -> bool:
        """Whether the server has said that it serves."""
        return len(self.ready) == len(self.controls)

    def run(self) -> int:
        """Until a stop signal, the end of an HTTP process, or too many deaths. Returns the exit code."""
        try:
            return self._run()
        except BaseException:  # before Python ends, it waits for all children
            for http in self.https:
                http.kill()
            raise

    def _run(self) -> int:
        watched = {*STOP_SIGNALS, signal.SIGCHLD, signal.SIGIO}
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # by nohup; a signal that is waited for comes even so
            watched.remove(signal.SIGHUP)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a signal whose default is to be ignored is never waited for
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        for control in self.controls:
            control.signal_parent()
        freeze_heap()  # the modules, once for all processes
        self._start_http()
        for number in range(self.count):
            self._try_start(number)

        while self._http_runs():
            received = signal.sigtimedwait(watched, self._patience_s())
            if received and received.si_signo in STOP_SIGNALS:
                if self.code is not None and received.si_signo == signal.SIGINT:
                    self._signal_http(signal.SIGINT)  # the second one ends the drain and the grace period
                self._end(0)
            self._read_reports()
            self._notice_http_ends()
            if self._http_runs():  # or the workers have ended because of it
                self._replace_the_dead()
                self._retry()
            if self.code is not None:
                self._stop_http()
        self._notice_http_ends()
        for http in self.https:
            if http.exitcode and self.code == 0:
                _report(http, "its requests were lost")
                self.code = 1
        self._join_workers()
        assert self.code is not None
        return self.code

    def _start_http(self) -> None:
        for number in range(len(self.controls)):
            http = self.fork.Process(target=self._http, args=(number,), name=f"http-{number}")
            http.start()
            self.https.append(http)
        for listener, control in zip(self.listeners, self.controls, strict=True):
            listener.close()
            control.http.close()

    def _http_runs(self) -> bool:
        """Whether a process is left whose requests need workers."""
        return any(http.exitcode is None for http in self.https)

    def _notice_http_ends(self) -> None:
        """When an HTTP process ends by itself, the server stops."""
        if self.code is None and (ended := [http for http in self.https if http.exitcode is not None]):
            _report(ended[0], "the server stops")
            self._end(1)

    def _patience_s(self) -> float:
        """How long to wait for a signal."""
        if self.code is not None:
            return REPEAT_S
        return max(0.0, min([time.monotonic() + WINDOW_S, *self.retry_at_s.values()]) - time.monotonic())

    def _end(self, code: int) -> None:
        """The HTTP processes finish their requests and exit; that closes the sockets that the workers wait on."""
        if self.code is None:
            self.code, self.kill_at_s = code, time.monotonic() + self.stop_s + KILL_AFTER_S
            self.retry_at_s.clear()

    def _stop_http(self) -> None:
        """Ask the HTTP processes to end, again and again, and kill them when their time is over."""
        if time.monotonic() < self.kill_at_s:
            self._signal_http(signal.SIGTERM)
            return
        for http in self.https:
            self._kill(http)

    def _signal_http(self, number: signal.Signals) -> None:
        for http in self.https:
            if http.exitcode is None and http.pid is not None:  # not yet waited for, so the id is still its own
                os.kill(http.pid, number)

    def _join_workers(self) -> None:
        """They follow the end of their sockets; those that do not are killed."""
        until_s = time.monotonic() + KILL_AFTER_S
        for worker in self.workers.values():
            worker.join(max(0.0, until_s - time.monotonic()))
            self._kill(worker)

    def _kill(self, child: ForkProcess) -> None:
        """Kill a child that has not ended: the exit code says so."""
        if child.exitcode is None:
            logger.error("the %s process did not end in time and is killed", child.name)
            self.code = self.code or 1
            child.kill()
            child.join()

    def _try_start(self, number: int) -> None:
        """Start a worker; where the system refuses, try again after a growing delay."""
        try:
            self._start(number)
        except OSError as error:  # no process, no memory or no descriptor left
            self._postpone(number, f"could not be started ({error.strerror})")

    def _start(self, number: int) -> None:
        """Raises OSError where the system gives no process or no socket; then nothing is left of the attempt."""
        with ExitStack() as ends:  # the parent keeps no end, so that each side sees when the other is gone
            pairs = [_pair(ends) for _ in self.controls]
            worker = self.fork.Process(target=self._worker, args=(number, pairs), name=f"engine-worker-{number}")
            worker.start()
            self.workers[number] = worker
            assert worker.pid is not None
            for control, (http_end, _) in zip(self.controls, pairs, strict=True):
                control.worker_started(number, worker.pid, http_end)

    def _read_reports(self) -> None:
        """What the HTTP processes report: that they are ready, or which workers hang. SIGCHLD follows a kill."""
        for process, control in enumerate(self.controls):
            for report in control.reports():
                if report == Control.READY and process not in self.ready:
                    self.ready.add(process)
                    if self.announced:
                        self.on_ready()
                for worker in self.workers.values():
                    if worker.pid == report:  # or it has died and been replaced meanwhile
                        worker.kill()

    def _replace_the_dead(self) -> None:
        for number, worker in list(self.workers.items()):
            if worker.exitcode is None:
                continue
            if worker.exitcode == 0:  # its sockets were closed: the HTTP processes are about to end, or should be
                self.https[0].join(CLOSED_S)
                if any(http.exitcode is not None for http in self.https) or self.code is not None:
                    continue
            del self.workers[number]
            refused = worker.exitcode == EXIT_BAD_ENGINE or (worker.exitcode == EXIT_NOT_LOADED and self.workers)
            if self.announced and refused:
                self._refused(number)
            elif worker.exitcode == EXIT_BAD_ENGINE:  # the worker has said why, and another one would say it again
                self._give_up(EXIT_BAD_ENGINE)
            elif self.code is not None and self.code != 0:
                continue
            elif self.budget.allows(time.monotonic()):
                _report(worker, "another one takes its place")
                self.refusals.pop(number, None)
                self._try_start(number)
            else:
                _report(worker, f"that is more than {self.budget.limit} in {WINDOW_S:.0f} s: the server stops")
                self._give_up(1)

    def _refused(self, number: int) -> None:
        """A replacement could not load, and has said why. The others go on; without any, the server ends."""
        if self.workers or self.code is not None:
            self._postpone(number, "could not load")
        else:
            logger.error(
                "no engine worker is left, and engine-worker-%d could not load what this server announced: the server "
                "stops; start it again to serve what its engine folders hold now",
                number,
            )
            self._give_up(1)

    def _postpone(self, number: int, why: str) -> None:
        """Try a worker again after a delay that grows with each failure in a row; the others go on."""
        if self.code is not None:
            return
        delay_s = min(MAX_BACKOFF_S, 2.0 ** self.refusals.get(number, 0))
        self.refusals[number] = self.refusals.get(number, 0) + 1
        self.retry_at_s[number] = time.monotonic() + delay_s
        logger.error(
            "engine-worker-%d %s; it is tried again in %g s, and the other workers go on", number, why, delay_s
        )

    def _retry(self) -> None:
        """Start the workers whose delay is over."""
        for number in [number for number, at_s in self.retry_at_s.items() if at_s <= time.monotonic()]:
            del self.retry_at_s[number]
            self._try_start(number)

    def _give_up(self, code: int) -> None:
        for control in self.controls:
            control.gave_up()
        self._end(code)

    def _http(self, number: int) -> None:
        for other, (listener, control) in enumerate(zip(self.listeners, self.controls, strict=True)):
            control.parent.close()
            if other != number:  # or connections would wait here for a process that has ended
                listener.close()
                control.http.close()
        self.run_http(number, self.controls[number])

    def _worker(self, number: int, pairs: Sequence[tuple[socket.socket, socket.socket]]) -> None:
        for control in self.controls:
            control.parent.close()  # or its end of file would not say that the parent is gone
        for http_end, _ in pairs:
            http_end.close()
        for stop in STOP_SIGNALS:  # a terminal signals every process; the worker ends with its sockets
            signal.signal(stop, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGCHLD})
        self.run_worker(number, [worker_end for _, worker_end in pairs])


def _pair(ends: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two joined sockets that are closed with `ends`."""
    first, second = socket.socketpair()
    return ends.enter_context(first), ends.enter_context(second)


def _report(child: ForkProcess, consequence: str) -> None:
    code = child.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    logger.error("the %s process %s; %s", child.name, how, consequence)
