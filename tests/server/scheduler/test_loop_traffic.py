"""Arrivals, departures, faults and deadlines in any order: what the engine loop promises whatever happens."""

import math
from collections import defaultdict

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.scheduler.events import Finished, Progress, is_last
from server.scheduler.model import PROBE
from server.scheduler.policy import Policy, earliest_deadline, fifo
from server.scheduler.request import Previews, spread_calls
from tests.server.fakes import CLASSES, expected_pixels
from tests.server.loop_bench import Bench, explode, poison_all, poison_first

CAPACITIES = {"a": 5, "b": 2}
CALL_S = {"a": 1.0, "b": 3.0}
FAULTS = {"raise": explode, "nan": poison_first, "all nan": poison_all}


class Traffic(RuleBasedStateMachine):
    """Every request ends exactly once, in time, with the right images; no slot leaks; no request starves."""

    policy: Policy = staticmethod(fifo)

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(CAPACITIES, self.policy, CALL_S)
        self.submitted: dict[int, tuple[str, int, int, float]] = {}  # model, steps, images, deadline
        self.previews: dict[int, Previews] = {}
        self.wanted: dict[int, list[int]] = {}  # calls that Progress is to be sent after, but for the last
        self.pictured: dict[int, list[int]] = {}  # those of them whose image is to be sent, too
        self.cancelled: dict[int, int] = {}  # how many events there were by then

    @rule(
        model=st.sampled_from(sorted(CAPACITIES)),
        steps=st.integers(1, 8),
        images=st.integers(1, 12),
        timeout_s=st.sampled_from([0.5, 6.0, 40.0, math.inf]),
        previews=st.sampled_from(["none", "steps", "images"]),
        count=st.none() | st.integers(0, 8),
        every_call=st.booleans(),
    )
    def arrive(
        self, model: str, steps: int, images: int, timeout_s: float, previews: Previews, count: int | None,
        every_call: bool,
    ) -> None:  # fmt: skip
        number = len(self.submitted)
        self.submitted[number] = (model, steps, images, self.bench.now_s + timeout_s)
        self.previews[number] = previews
        chosen = [] if previews == "none" else list(spread_calls(count, steps))
        self.wanted[number] = list(range(1, steps)) if every_call else chosen
        self.pictured[number] = [*chosen, steps] if previews == "images" else []
        self.bench.submit(
            number, steps, images, 1000 * number, model, timeout_s, previews=previews, preview_count=count,
            every_call=every_call,
        )  # fmt: skip

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.submitted)))
        self.bench.cancel(number)
        assert self.bench.loop.receive(0)
        self.cancelled.setdefault(number, len(self.bench.events.get(number, ())))

    @rule(fault=st.sampled_from(["none", "none", "none", "raise", "nan", "all nan"]), times=st.integers(1, 3))
    def turn(self, fault: str, times: int) -> None:
        self.bench.faults = dict.fromkeys(CAPACITIES, FAULTS[fault]) if fault in FAULTS else {}
        for _ in range(times):
            before_s = self.bench.now_s
            self.bench.turn()
            late = [n for n, flight in self.bench.loop.flights.items() if flight.deadline_s <= before_s]
            assert not late, "their time was up before this call, and they still hold slots"

    @rule(seconds=st.floats(0.0, 5.0))
    def wait(self, seconds: float) -> None:
        self.bench.now_s += seconds

    @invariant()
    def slots_and_flights_agree(self) -> None:
        flights = self.bench.loop.flights
        assert not set(self.bench.ended_s) & set(flights)
        for name, served in self.bench.models.items():
            keys = [image.key for image in self.bench.tables[name].images]
            assert len(set(keys)) == len(keys) <= CAPACITIES[name]
            mine = {number: flight for number, flight in flights.items() if flight.request.model == name}
            held = served.table.requests() - {PROBE.request}  # a failing model's trial, waiting for its turn
            assert held | set(served.waiting) == set(mine)
            for number, flight in mine.items():
                running = sum(key.request == number for key in keys)
                waiting = served.waiting[number].images if number in served.waiting else 0
                assert running + waiting + len(flight.pixels) == flight.request.images
                assert running + len(flight.pixels) == flight.granted

    @invariant()
    def events_are_in_order(self) -> None:
        """Progress, ascending by image, if it was asked for; then one end; nothing more, and nothing after a cancel."""
        for number, events in self.bench.events.items():
            assert not any(map(is_last, events[:-1]))
            assert len(events) <= self.cancelled.get(number, len(events))
            _, steps, images, _ = self.submitted[number]
            told: dict[int, list[int]] = defaultdict(list)
            for event in events:
                if isinstance(event, Progress):
                    told[event.image].append(event.step)
                    assert event.of == steps
                    assert (event.preview is not None) == (event.step in self.pictured[number])
            if isinstance(events[-1], Finished):
                last = images - 1 if self.previews[number] == "images" else 0  # images whose last call is told, too
                each = sorted((told[image] for image in range(images)), key=len)
                assert each == [self.wanted[number]] * (images - last) + [[*self.wanted[number], steps]] * last
            else:
                complete = [*self.wanted[number], steps]
                assert all(calls == complete[: len(calls)] for calls in told.values())

    @invariant()
    def no_request_is_overtaken(self) -> None:
        if self.policy is not fifo:
            return
        for served in self.bench.models.values():
            running = served.table.requests()
            assert all(first >= max(running, default=first) for first in list(served.waiting)[:1])

    @invariant()
    def no_request_is_given_up_early(self) -> None:
        for number, code in self.bench.failed().items():
            assert code != "timeout" or self.bench.ended_s[number] >= self.submitted[number][3]

    @invariant()
    def device_time_is_shared(self) -> None:
        loop = self.bench.loop
        busy = [loop.used_s[name] for name, served in self.bench.models.items() if served.busy]
        call_s = max(CALL_S.values()) + 1e-9  # sums of floats
        assert all(used_s >= loop.virtual_s - call_s for used_s in busy)
        assert max(busy, default=0.0) - min(busy, default=0.0) <= call_s

    def teardown(self) -> None:
        """Left alone, the loop finishes everything within the calls that it takes, and then rests."""
        bench = self.bench
        bench.faults = {}
        rows = sum(steps * images for _, steps, images, _ in self.submitted.values())
        bench.turn(rows + 2 * len(CAPACITIES))
        self.events_are_in_order()
        assert set(bench.ended_s) | set(self.cancelled) == set(self.submitted)
        assert not bench.loop.flights
        for name, served in bench.models.items():
            assert (served.table.free, served.waiting, served.busy) == (CAPACITIES[name], {}, False)
        for result in bench.results:
            if isinstance(result, Finished):
                _, steps, images, _ = self.submitted[result.id]
                assert len(result.images) == images
                np.testing.assert_array_equal(
                    result.images[-1], expected_pixels(1000 * result.id + images - 1, (images - 1) % CLASSES, steps)
                )


class DeadlineTraffic(Traffic):
    policy = staticmethod(earliest_deadline)


Traffic.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
DeadlineTraffic.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestFifo = Traffic.TestCase
TestDeadline = DeadlineTraffic.TestCase
