"""A function in several processes of this machine, joined as torchrun joins its own (trainer.run.distributed).

Signals that stop the process that started them are passed on, and they end with it. What the function returns in the
first of them counts. When one fails, the others are ended.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from trainer.run.distributed import join_processes, rank
from trainer.settings import MachineError

T = TypeVar("T")
Refusals = tuple[type[Exception], ...]  # errors whose text is a sentence for the user
STOPS = (signal.SIGINT, signal.SIGTERM)
HOST = "127.0.0.1"
ENDS_S = 10.0  # for the others when one has failed: they may be about to say the same


class Outcome(NamedTuple):
    """What one process sends at its end."""

    value: Any = None
    refusal: BaseException | None = None
    trace: str = ""  # of any other error


def in_processes(count: int, device: str, refusals: Refusals, work: Callable[..., T], *arguments: Any) -> T:
    """What `work(*arguments)` returns in the first of `count` new processes, in all of which it is called.

    work, arguments: picklable. Raises the refusal of a process, KeyboardInterrupt where one was interrupted,
    MachineError where one ended in another way. To be called in the main thread.
    """
    context = multiprocessing.get_context("spawn")
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)  # where they meet
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    with _passing_on(processes) as start:
        for number in range(count):
            ours, theirs = context.Pipe(duplex=False)
            own = (theirs, _Place(number, count, store.port), device, refusals, work, arguments)
            start(context.Process(target=_run, args=own, name=f"training-{number}"))
            theirs.close()
            pipes.append(ours)
        outcomes, failed = _outcomes(pipes)
    return _value(outcomes, failed, None if failed is None else processes[failed].exitcode)


@contextmanager
def _passing_on(processes: list[BaseProcess]) -> Iterator[Callable[[BaseProcess], None]]:
    """While open, signals are passed on to `processes`, which what it yields starts. At the end none is left."""
    caught: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        caught.append(number)
        for process in processes:
            _send(process, number)

    def start(process: BaseProcess) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # of the new process, too, until it is ready for them (`_run`)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        processes.append(process)
        if caught:
            _send(process, caught[-1])

    before = {number: signal.signal(number, pass_on) for number in STOPS}
    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            process.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(process: BaseProcess, number: int) -> None:
    if process.pid is not None and process.exitcode is None:
        os.kill(process.pid, number)


def _outcomes(pipes: Sequence[Connection]) -> tuple[list[Outcome | None], int | None]:
    """What each process has sent, None where it ended without; and the number of that which failed first."""
    outcomes: list[Outcome | None] = [None] * len(pipes)
    waiting = {pipe: number for number, pipe in enumerate(pipes)}
    failed, until = None, 0.0
    while waiting:
        ready = wait(list(waiting), None if failed is None else max(until - time.monotonic(), 0))
        if not ready:
            break
        for pipe in (each for each in pipes if each in ready):
            number = waiting.pop(pipe)
            try:
                outcomes[number] = outcome = pipe.recv()
            except EOFError:
                outcome = None
            if failed is None and (outcome is None or outcome.refusal or outcome.trace):
                failed, until = number, time.monotonic() + ENDS_S
    return outcomes, failed


def _value(outcomes: Sequence[Outcome | None], failed: int | None, exit_code: int | None) -> Any:
    """Of the first process; or raises what is wrong. A refusal comes before errors that follow from it in others."""
    for outcome in outcomes:
        if outcome and outcome.refusal:
            raise outcome.refusal
    if failed is not None:
        outcome = outcomes[failed]
        if outcome is None:
            raise MachineError(
                f"training process {failed} of {len(outcomes)} was ended (exit code {exit_code}; -9 is a system "
                "without free memory, or kill -9); the same command goes on from the last checkpoint"
            )
        print(outcome.trace, file=sys.stderr, flush=True)
        raise MachineError(f"training process {failed} of {len(outcomes)} failed: {outcome.trace.splitlines()[-1]}")
    assert outcomes[0] is not None, "none has failed"
    return outcomes[0].value


class _Place(NamedTuple):
    """Of a process among the others."""

    rank: int
    ranks: int
    port: int

    def variables(self) -> dict[str, str]:
        """The environment that torchrun gives its processes. The store is this process's parent's, in the role of
        torchrun's agent, so that no port is chosen before it is free."""
        return {
            "RANK": str(self.rank), "LOCAL_RANK": str(self.rank), "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(self.ranks), "MASTER_ADDR": HOST, "MASTER_PORT": str(self.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        }  # fmt: skip


def _run(
    pipe: Connection, place: _Place, device: str, refusals: Refusals, work: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    """One of the processes."""
    os.setsid()  # a terminal's Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    os.environ.update(place.variables())
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(len(os.sched_getaffinity(0)) // place.ranks, 1))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        with join_processes(device):
            value = work(*arguments)
            outcome = Outcome(value if rank() == 0 else None)
    except (*refusals, KeyboardInterrupt) as error:
        outcome = Outcome(refusal=error)
    except Exception:
        outcome = Outcome(trace=traceback.format_exc())
    pipe.send(outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as trainer.__main__.leave: torch's teardown may abort


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "in_processes started this one"
    wait([parent.sentinel])
    os._exit(1)
