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
from msgspec.structs import replace
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


def simulate(requests: Requests, site: Site) -> Outcome:
    """Every request to its end."""
    run, due_s = _Run(requests, site), requests.due_s.tolist()
    clock, nxt, now_s = run.clock, 0, 0.0
    while nxt < len(due_s) or clock:
        # Who comes at the moment a call ends takes part in the next one.
        if nxt < len(due_s) and (not clock or due_s[nxt] <= clock[0][0]):
            run.arrive(nxt, due_s[nxt])
            nxt += 1
        else:
            now_s, place = heappop(clock)
            run.next_call(place, now_s)
    return Outcome(np.array(run.done_s) - requests.due_s, now_s, run.busy_s, run.network_calls, run.rows)


@dataclass(eq=False)
class _Device:
    waiting: dict[int, Waiting] = field(default_factory=dict)  # in order of arrival
    leaving: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # by call number: (request, its images)
    calls: int = 0  # made so far
    active: int = 0  # images with a slot
    running: bool = False  # whether the end of a call, or its first, is in the heap


class _Run:
    """The devices, and what has become of the requests so far."""

    def __init__(self, requests: Requests, site: Site) -> None:
        self.steps, self.images = requests.steps.tolist(), requests.images.tolist()
        self.batch, self.left = requests.batch.tolist(), requests.images.tolist()
        self.done_s = [inf] * len(self.steps)
        self.site, self.capacity = site, site.capacity
        self.devices = [_Device() for _ in range(site.devices)]
        self.backlog = Backlog(site.devices)
        self.room = site.devices * site.capacity + site.max_queue
        self.held = 0  # images accepted and not answered: a request gives them back when it ends
        self.clock: list[tuple[float, int]] = []  # a heap: when which device's call ends
        self.busy_s, self.network_calls, self.rows = 0.0, 0, 0

    def arrive(self, request: int, due_s: float) -> None:
        """To the device with the least to do; refused where too many images would wait."""
        images, steps = self.images[request], self.steps[request]
        if self.held + images > self.room:
            return
        self.held += images
        place = self.backlog.least()
        self.backlog.add(place, images * steps)
        device = self.devices[place]
        device.waiting[request] = Waiting(request, images, due_s, inf, steps, self.batch[request])
        if not device.running:  # who comes at the same time takes part in the same call
            device.running = True
            heappush(self.clock, (due_s, place))

    def next_call(self, place: int, now_s: float) -> None:
        """A device's call has ended, or it was idle: who is done leaves, who gets a slot joins, the next one begins."""
        device = self.devices[place]
        for request, count in device.leaving.pop(device.calls, ()):
            device.active -= count
            self.left[request] -= count
            if not self.left[request]:
                self.done_s[request] = now_s
                self.held -= self.images[request]
                self.backlog.add(place, -self.images[request] * self.steps[request])
        if device.waiting and device.active < self.capacity:
            self._admit(device, now_s)
        device.running = bool(device.active)
        if device.active:
            taken_s = self.site.call_s[device.active]
            device.calls += 1
            self.busy_s += taken_s
            self.network_calls += 1
            self.rows += device.active
            heappush(self.clock, (now_s + taken_s, place))

    def _admit(self, device: _Device, now_s: float) -> None:
        waiting = device.waiting
        for grant in self.site.policy(waiting.values(), self.capacity - device.active, now_s):
            request, count = grant.request, grant.images
            device.active += count
            device.leaving.setdefault(device.calls + self.steps[request], []).append((request, count))
            entry = waiting[request]
            if entry.images == count:
                del waiting[request]
            else:
                waiting[request] = replace(entry, images=entry.images - count)


class Backlog:
    """Network calls that each device owes, image by image."""

    def __init__(self, devices: int) -> None:
        self.owed: list[int] | NDArray[np.int64] = np.zeros(devices, np.int64) if devices > FEW else [0] * devices

    def add(self, place: int, calls: int) -> None:
        self.owed[place] += calls

    def least(self) -> int:
        """The device that owes the least; of several, the first."""
        if isinstance(self.owed, list):
            return self.owed.index(min(self.owed)) if len(self.owed) > 1 else 0
        return int(self.owed.argmin())
