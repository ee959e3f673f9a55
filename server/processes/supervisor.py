"""The parent: forks the HTTP process and the workers, replaces workers that die or hang, and ends all in order.

It has a single thread, so forking is safe at any time; it must never load an engine's library or touch a GPU.
"""

import logging
import multiprocessing
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.context import ForkProcess

from server.processes.gc_freeze import freeze_heap
from server.processes.pipes import ANNOUNCED, Control, Link
from server.processes.worker import EXIT_BAD_ENGINE, EXIT_NOT_LOADED

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
KILL_AFTER_S = 5.0  # beyond drain and grace period, for a child that does not end by itself
REPEAT_S = 1.0  # between two SIGTERMs to an HTTP process that has not ended
CLOSED_S = 1.0  # between the end of the HTTP process's pipes and its own
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
    """run_http: serves on the listener until told to stop. run_worker: serves one link. Both run in children.

    stop_s: seconds that the HTTP process may take for its drain and its last requests.
    """

    def __init__(
        self,
        listener: socket.socket,
        workers: int,
        restart_limit: int,
        stop_s: float,
        run_http: Callable[[Control], None],
        run_worker: Callable[[int, Link], None],
    ) -> None:
        self.listener = listener
        self.count = workers
        self.budget = RestartBudget(restart_limit)
        self.stop_s = stop_s
        self.run_http = run_http
        self.run_worker = run_worker
        self.fork = multiprocessing.get_context("fork")
        self.control = Control()
        self.workers: dict[int, ForkProcess] = {}
        self.announced = False  # all workers have been ready, and the server has said that it serves
        self.refusals: dict[int, int] = {}  # worker number -> how often in a row its replacement could not load
        self.retry_at_s: dict[int, float] = {}  # worker number -> when to try again
        self.code: int | None = None  # the exit code, once the end has begun
        self.kill_at_s = 0.0

    def run(self) -> int:
        """Until a stop signal, the end of the HTTP process, or too many deaths. Returns the exit code."""
        watched = {*STOP_SIGNALS, signal.SIGCHLD, signal.SIGIO}
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a signal whose default is to be ignored is never waited for
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        self.control.signal_parent()
        freeze_heap()  # the modules, once for all processes
        http = self.fork.Process(target=self._http, name="http")
        http.start()
        self.listener.close()
        self.control.http.close()
        for number in range(self.count):
            self._start(number)

        while http.exitcode is None:
            received = signal.sigtimedwait(watched, self._patience_s())
            if received and received.si_signo in STOP_SIGNALS:
                if self.code is not None and received.si_signo == signal.SIGINT:
                    _send(http, signal.SIGINT)  # the second one ends the drain and the grace period
                self._end(http, 0)
            self._hear()
            if http.exitcode is None:  # or the workers have ended because of it
                self._replace_the_dead(http)
                self._retry()
            if self.code is not None:
                self._press(http)
        if self.code is None:
            _report(http, "the server stops")
            self.code = 1
        self._join_workers()
        return self.code

    def _patience_s(self) -> float:
        """How long to wait for a signal."""
        if self.code is not None:
            return REPEAT_S
        return max(0.0, min([time.monotonic() + WINDOW_S, *self.retry_at_s.values()]) - time.monotonic())

    def _end(self, http: ForkProcess, code: int) -> None:
        """The HTTP process finishes its requests and exits; that closes the pipes that the workers wait on."""
        if self.code is None:
            self.code, self.kill_at_s = code, time.monotonic() + self.stop_s + KILL_AFTER_S
            self.retry_at_s.clear()

    def _press(self, http: ForkProcess) -> None:
        """Ask the HTTP process to end, again and again, and kill it when its time is over."""
        if time.monotonic() < self.kill_at_s:
            http.terminate()
        elif http.exitcode is None:
            logger.error("the http process did not end in time and is killed")
            self.code = self.code or 1
            http.kill()

    def _join_workers(self) -> None:
        """They follow the end of their request pipe; those that do not are killed."""
        until_s = time.monotonic() + KILL_AFTER_S
        for worker in self.workers.values():
            worker.join(max(0.0, until_s - time.monotonic()))
            if worker.exitcode is None:
                logger.error("the %s process did not end in time and is killed", worker.name)
                self.code = self.code or 1
                worker.kill()
                worker.join()

    def _start(self, number: int) -> None:
        link = Link.create()
        worker = self.fork.Process(target=self._worker, args=(number, link), name=f"engine-worker-{number}")
        worker.start()
        assert worker.pid is not None
        self.control.worker_started(number, link, worker.pid)
        link.close()  # the parent keeps no end, so that each side sees when the other is gone
        self.workers[number] = worker

    def _hear(self) -> None:
        """What the HTTP process reports: that the server is ready, or which workers hang. SIGCHLD follows a kill."""
        for pid in self.control.reports():
            self.announced |= pid == ANNOUNCED
            for worker in self.workers.values():
                if worker.pid == pid:  # or it has died and been replaced meanwhile
                    worker.kill()

    def _replace_the_dead(self, http: ForkProcess) -> None:
        for number, worker in list(self.workers.items()):
            if worker.exitcode is None:
                continue
            if worker.exitcode == 0:  # its pipe was closed: the HTTP process is about to end, or should be
                http.join(CLOSED_S)
                if http.exitcode is not None or self.code is not None:
                    continue
            del self.workers[number]
            refused = worker.exitcode == EXIT_BAD_ENGINE or (worker.exitcode == EXIT_NOT_LOADED and self.workers)
            if self.announced and refused:
                self._postpone(http, number)
            elif worker.exitcode == EXIT_BAD_ENGINE:  # the worker has said why, and another one would say it again
                self._give_up(http, EXIT_BAD_ENGINE)
            elif self.code is not None and self.code != 0:
                continue
            elif self.budget.allows(time.monotonic()):
                _report(worker, "another one takes its place")
                self.refusals.pop(number, None)
                self._start(number)
            else:
                _report(worker, f"that is more than {self.budget.limit} in {WINDOW_S:.0f} s: the server stops")
                self._give_up(http, 1)

    def _postpone(self, http: ForkProcess, number: int) -> None:
        """A replacement could not load, and has said why. Others go on; it is tried again after a growing delay."""
        if self.code is not None:
            return
        if not self.workers:
            logger.error(
                "no engine worker is left, and engine-worker-%d could not load what this server announced: the server "
                "stops; start it again to serve what its engine folders hold now",
                number,
            )
            self._give_up(http, 1)
            return
        delay_s = min(MAX_BACKOFF_S, 2.0 ** self.refusals.get(number, 0))
        self.refusals[number] = self.refusals.get(number, 0) + 1
        self.retry_at_s[number] = time.monotonic() + delay_s
        logger.error(
            "engine-worker-%d could not load; it is tried again in %g s, and the other workers go on", number, delay_s
        )

    def _retry(self) -> None:
        """Start the workers whose delay is over."""
        for number in [number for number, at_s in self.retry_at_s.items() if at_s <= time.monotonic()]:
            del self.retry_at_s[number]
            self._start(number)

    def _give_up(self, http: ForkProcess, code: int) -> None:
        self.control.gave_up()
        self._end(http, code)

    def _http(self) -> None:
        self.control.parent.close()
        self.run_http(self.control)

    def _worker(self, number: int, link: Link) -> None:
        self.control.parent.close()  # or its end of file would not say that the parent is gone
        link.keep_worker_ends()
        for stop in STOP_SIGNALS:  # a terminal signals every process; the worker ends with its request pipe
            signal.signal(stop, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGCHLD})
        self.run_worker(number, link)


def _send(child: ForkProcess, number: signal.Signals) -> None:
    if child.exitcode is None and child.pid is not None:  # not yet waited for, so the id is still its own
        os.kill(child.pid, number)


def _report(child: ForkProcess, consequence: str) -> None:
    code = child.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    logger.error("the %s process %s; %s", child.name, how, consequence)
