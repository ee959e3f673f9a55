"""The parent: forks the HTTP process and the workers, replaces workers that die or hang, and ends all in order.

It has a single thread, so forking is safe at any time; it must never load an engine's library or touch a GPU.
"""

import logging
import multiprocessing
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.context import ForkProcess

from server.heap import freeze_heap
from server.lit_loop import EXIT_BAD_ENGINE
from server.transport import Control, Link

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
KILL_AFTER_S = 5.0  # beyond the grace period, for a child that does not end by itself
CLOSED_S = 1.0  # between the end of the HTTP process's pipes and its own
WINDOW_S = 60.0  # over which restarts are counted


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
    """run_http: serves on the listener until told to stop. run_worker: serves one link. Both run in children."""

    def __init__(
        self,
        listener: socket.socket,
        workers: int,
        restart_limit: int,
        grace_s: float,
        run_http: Callable[[Control], None],
        run_worker: Callable[[int, Link], None],
    ) -> None:
        self.listener = listener
        self.count = workers
        self.budget = RestartBudget(restart_limit)
        self.grace_s = grace_s
        self.run_http = run_http
        self.run_worker = run_worker
        self.fork = multiprocessing.get_context("fork")
        self.control = Control()
        self.workers: dict[int, ForkProcess] = {}
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
                self._end(http, 0)
            elif received is None and self.code is not None:
                http.kill()
            self._kill_the_stalled()
            if http.exitcode is None:  # or the workers have ended because of it
                self._replace_the_dead(http)
        if self.code is None:
            _report(http, "the server stops")
            self.code = 1
        for worker in self.workers.values():  # they follow the end of their request pipe
            worker.join(KILL_AFTER_S)
            if worker.exitcode is None:
                worker.kill()
                worker.join()
        return self.code

    def _patience_s(self) -> float:
        return WINDOW_S if self.code is None else max(0.0, self.kill_at_s - time.monotonic())

    def _end(self, http: ForkProcess, code: int) -> None:
        """The HTTP process finishes its requests and exits; that closes the pipes that the workers wait on."""
        if self.code is None:
            self.code, self.kill_at_s = code, time.monotonic() + self.grace_s + KILL_AFTER_S
            http.terminate()

    def _start(self, number: int) -> None:
        link = Link.create()
        worker = self.fork.Process(target=self._worker, args=(number, link), name=f"engine-worker-{number}")
        worker.start()
        assert worker.pid is not None
        self.control.worker_started(number, link, worker.pid)
        link.close()  # the parent keeps no end, so that each side sees when the other is gone
        self.workers[number] = worker

    def _kill_the_stalled(self) -> None:
        """End the workers that the HTTP process has found to hang; SIGCHLD will say that they are dead."""
        for pid in self.control.stalled():
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
            if worker.exitcode == EXIT_BAD_ENGINE:  # the worker has said why, and another one would say it again
                self._give_up(http, EXIT_BAD_ENGINE)
            elif self.code is not None and self.code != 0:
                continue
            elif self.budget.allows(time.monotonic()):
                _report(worker, "another one takes its place")
                self._start(number)
            else:
                _report(worker, f"that is more than {self.budget.limit} in {WINDOW_S:.0f} s: the server stops")
                self._give_up(http, 1)

    def _give_up(self, http: ForkProcess, code: int) -> None:
        self.control.gave_up()
        self._end(http, code)

    def _http(self) -> None:
        self.control.parent.close()
        self.run_http(self.control)

    def _worker(self, number: int, link: Link) -> None:
        self.control.parent.close()  # or its end of file would not say that the parent is gone
        link.keep_worker_ends()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGCHLD})
        self.run_worker(number, link)


def _report(child: ForkProcess, consequence: str) -> None:
    code = child.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    logger.error("the %s process %s; %s", child.name, how, consequence)
