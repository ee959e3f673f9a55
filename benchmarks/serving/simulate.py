"""The server on a virtual clock: the real policy and the rules of the real slots, pool and admission, no arithmetic.

A device is one engine worker. It makes one network call at a time for all images that hold a slot; who has come when a
call begins and gets a slot takes part in it; an image leaves after its last call (server.scheduler.loop and .slots).
A request goes to the device with the least work (server.processes.pool) unless too many images wait
(server.processes.admission). tests/benchmarks/test_serving_simulate.py plays the same requests through the real
EngineLoop and gets the same times.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

import numpy as np
from numpy.typing import NDArray

from server.scheduler.policy import Policy, Waiting

FEW = 32  # devices up to which a plain minimum is quicker than numpy's


@dataclass(frozen=True)
class Requests:
    """What comes, in order of arrival; arrays of one length."""

    due_s: NDArray[np.float64]
    steps: NDArray[np.int64]  # network calls per image
    images: NDArray[np.int64]
    batch: NDArray[np.bool_]  # of priority "batch"


@dataclass(frozen=True)
class Site:
    """Equal devices behind one address."""

    devices: int
    call_s: Sequence[float]  # [capacity + 1] seconds of a network call by the images in it; the first is not used
    policy: Policy
    max_queue: float = inf  # images that may wait for a slot

    @property
    def capacity(self) -> int:
        """Slots of a device."""
        return len(self.call_s) - 1


@dataclass(frozen=True)
class Outcome:
    """What became of the requests."""

    latency_s: NDArray[np.float64]  # [requests], infinite where refused
    ended_s: float  # when the last device stopped
    busy_s: float  # of all devices together
    network_calls: int  # each of a batch
    rows: int  # images in them, counted each time


@dataclass(eq=False)
class _Device:
    waiting: dict[int, Waiting] = field(default_factory=dict)  # in order of arrival
    leaving: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # by call number: (request, its images)
    calls: int = 0  # made so far
    active: int = 0  # images with a slot
    running: bool = False  # whether the end of a call, or its first, is in the heap


def simulate(requests: Requests, site: Site) -> Outcome:
    """Every request to its end."""
    due, steps = requests.due_s.tolist(), requests.steps.tolist()
    images, batch = requests.images.tolist(), requests.batch.tolist()
    call_s, policy, capacity = site.call_s, site.policy, site.capacity
    devices = [_Device() for _ in range(site.devices)]
    backlog: list[int] | NDArray[np.int64] = [0] * site.devices  # network calls owed, image by image
    many = site.devices > FEW
    if many:
        backlog = np.zeros(site.devices, np.int64)
    room = site.devices * capacity + site.max_queue
    held = 0  # images accepted and not answered: a request gives them back when it ends
    left, done = images.copy(), [inf] * len(due)
    clock: list[tuple[float, int]] = []  # a heap: when which device's call ends
    busy_s, network_calls, rows, nxt, now, total = 0.0, 0, 0, 0, 0.0, len(due)
    while True:
        if nxt < total and (not clock or due[nxt] <= clock[0][0]):
            if held + images[nxt] <= room:
                held += images[nxt]
                if many:
                    chosen = int(backlog.argmin())  # pyright: ignore[reportAttributeAccessIssue]
                elif len(devices) > 1:
                    chosen = backlog.index(min(backlog))  # pyright: ignore[reportAttributeAccessIssue]
                else:
                    chosen = 0
                device = devices[chosen]
                backlog[chosen] += images[nxt] * steps[nxt]
                device.waiting[nxt] = Waiting(nxt, images[nxt], due[nxt], inf, steps[nxt], batch[nxt])
                if not device.running:  # who comes at the same time takes part in the same call
                    device.running = True
                    heappush(clock, (due[nxt], chosen))
            nxt += 1
            continue
        if not clock:
            break
        now, chosen = heappop(clock)
        device = devices[chosen]
        for request, count in device.leaving.pop(device.calls, ()):
            device.active -= count
            left[request] -= count
            if not left[request]:
                done[request] = now
                held -= images[request]
                backlog[chosen] -= images[request] * steps[request]
        waiting = device.waiting
        if waiting and device.active < capacity:
            for grant in policy(waiting.values(), capacity - device.active, now):
                request, count = grant.request, grant.images
                device.active += count
                device.leaving.setdefault(device.calls + steps[request], []).append((request, count))
                entry = waiting[request]
                if entry.images == count:
                    del waiting[request]
                else:
                    waiting[request] = _with_images(entry, entry.images - count)
        if device.active:
            taken = call_s[device.active]
            device.calls += 1
            busy_s += taken
            network_calls += 1
            rows += device.active
            heappush(clock, (now + taken, chosen))
        else:
            device.running = False
    return Outcome(np.array(done) - requests.due_s, now, busy_s, network_calls, rows)


def _with_images(entry: Waiting, images: int) -> Waiting:
    return Waiting(entry.request, images, entry.arrived_s, entry.deadline_s, entry.calls, entry.batch)
