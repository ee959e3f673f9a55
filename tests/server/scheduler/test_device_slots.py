"""The GPU's slot table is the CPU's: the same images, the same ticks, whatever arrives, leaves or breaks in between.

Without a GPU the kernels' references run on CPU tensors; with one, this file tests the kernels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.analytic import Gaussian
from fewstep.conditions import Conditions
from fewstep.pixels import from_pixels, to_pixels
from fewstep.precond import Network
from server.scheduler.device_slots import DeviceSlotTable
from server.scheduler.slots import Image, ImageKey, SlotTable, Start, Tick, buckets_for
from tests.ncvsd import ncvsd_network
from tests.server.fakes import CLASSES, LEVELS, SHAPE, SIGMA_DATA, GaussianNetwork, expected_pixels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NCVSD = ncvsd_network(Gaussian(0.0, SIGMA_DATA), SIGMA_DATA)


class Device:
    """A DeviceNetwork around a network on numpy arrays."""

    def __init__(
        self, network: Network, buckets: Sequence[int], extra: int = 0, classes: int = CLASSES,
        memory_format: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32,
        adapters: bool = False, conditions: Conditions = (),
    ) -> None:  # fmt: skip
        self.network = network
        self.device, self.dtype, self.memory_format = DEVICE, dtype, memory_format
        self.buckets, self.capacity = tuple(buckets), buckets[-1]
        shape = (self.capacity, SHAPE[0] + extra, *SHAPE[1:])
        self.x = torch.zeros(shape, device=DEVICE, dtype=dtype).contiguous(memory_format=memory_format)
        self.c_noise = torch.zeros(self.capacity, device=DEVICE)
        self.onehot = torch.zeros((self.capacity, classes), device=DEVICE, dtype=dtype)
        self.conditions = {each.name: torch.zeros((self.capacity, *each.shape), device=DEVICE) for each in conditions}
        self.adapter = torch.zeros(self.capacity, dtype=torch.int64, device=DEVICE) if adapters else None
        self.before: Callable[[], None] = lambda: None  # may raise
        self.output = torch.zeros(0)

    def run(self, bucket: int) -> Tensor:
        self.before()
        buffers = (self.x, self.c_noise, self.onehot, *self.conditions.values())
        inputs = [buffer[:bucket].float().cpu().numpy() for buffer in buffers]
        if self.adapter is not None:
            inputs.append(self.adapter[:bucket].cpu().numpy())
        self.output.fill_(float("nan"))  # the last result is not valid any longer
        self.output = torch.from_numpy(np.asarray(self.network(*inputs), np.float32)).to(DEVICE, self.dtype)
        self.output = self.output.contiguous(memory_format=self.memory_format)
        return self.output


def device_table(network: Device, extra: int = 0, classes: int = CLASSES) -> DeviceSlotTable:
    return DeviceSlotTable(network, shape=SHAPE, classes=classes, sigma_data=SIGMA_DATA, extra=extra)


def table_of(network: Network, capacity: int, exact: bool = False, extra: int = 0) -> DeviceSlotTable:
    return device_table(Device(network, buckets_for(capacity, exact), extra), extra)


def image(request: int, steps: int, seed: int = 0, label: int = 0, index: int = 0) -> Image:
    return Image(ImageKey(request, index), seed, label, LEVELS[steps])


def drain(table: DeviceSlotTable) -> dict[int, np.ndarray]:
    finished = {}
    while table.requests():
        finished |= {key.request: pixels for key, pixels in table.tick().finished}
    return finished


def assert_close(pixels: np.ndarray, expected: np.ndarray) -> None:
    """Noise differs by up to 1e-6 between the two, so a value on the border of two bytes may take either."""
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.05


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_slot_ends_in_the_image_of_the_sampler(steps: int):
    table = table_of(GaussianNetwork(), capacity=2)
    table.admit([image(0, steps, seed=11, label=2)])
    assert_close(drain(table)[0], expected_pixels(11, 2, steps))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_an_ncvsd_student_in_any_layout_gets_the_latents_of_its_seed(memory_format: torch.memory_format):
    cpu = SlotTable(NCVSD, SHAPE, 0, SIGMA_DATA, (4,), extra=1)
    table = device_table(Device(NCVSD, (4,), extra=1, classes=0, memory_format=memory_format), extra=1, classes=0)
    images = [image(request, steps, seed=2**64 - 1 - request, label=-1) for request, steps in enumerate([4, 1, 2])]
    cpu.admit(images)
    table.admit(images)
    expected = {}
    while cpu.requests():
        expected |= {key.request: pixels for key, pixels in cpu.tick().finished}
    for request, pixels in drain(table).items():
        assert_close(pixels, expected.pop(request))
    assert not expected


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_edits_among_ordinary_rows_are_those_of_the_table_in_numpy(memory_format: torch.memory_format):
    rng = np.random.default_rng(0)
    picture = from_pixels(rng.integers(0, 256, (1, *SHAPE[1:], SHAPE[0]), np.uint8))[0]
    kept = rng.random((1, *SHAPE[1:])) < 0.5
    starts = [None, Start(picture), Start(picture, kept), Start(picture), Start(-picture, ~kept), None]
    cpu = SlotTable(GaussianNetwork(), SHAPE, CLASSES, SIGMA_DATA, (3,))
    table = device_table(Device(GaussianNetwork(), (3,), memory_format=memory_format))
    results = []
    for each in (cpu, table):  # three slots: the fourth and the last image get the third's, mask and all
        finished, left = {}, [
            Image(ImageKey(request, 0), request, 1, LEVELS[4][request % 4 :], start)
            for request, start in enumerate(starts)
        ]  # fmt: skip
        while left or each.requests():
            newcomers, left = left[: each.free], left[each.free :]
            each.admit(newcomers)
            finished |= {key.request: pixels for key, pixels in each.tick().finished}
        results.append(finished)
    expected, actual = results
    assert set(expected) == set(actual) == set(range(6))
    for request, pixels in actual.items():
        assert_close(pixels, expected[request])
    np.testing.assert_array_equal(actual[2][kept[0]], to_pixels(picture[None])[0][kept[0]])
    np.testing.assert_array_equal(actual[4][~kept[0]], to_pixels(-picture[None])[0][~kept[0]])


class Half(GaussianNetwork):
    """Rounds what it returns, as a network in half precision does."""

    def __call__(self, x, c_noise, onehot):
        return super().__call__(x, c_noise, onehot).astype(np.float16).astype(np.float32)


def test_a_network_in_half_precision_is_fed_and_read_in_it():
    table = device_table(Device(Half(), (2,), dtype=torch.float16))
    table.admit([image(0, 2, seed=3, label=1)])
    difference = np.abs(drain(table)[0].astype(int) - expected_pixels(3, 1, 2))
    assert difference.max() <= 3


def test_mixed_step_counts_share_every_call_and_rows_close_up_behind_those_that_end():
    network = GaussianNetwork()
    table = table_of(network, capacity=8)
    table.admit([image(request, steps) for request, steps in enumerate([8, 1, 4, 2])])
    order = []
    while table.requests():
        order += [key.request for key, _ in table.tick().finished]
    assert order == [1, 3, 2, 0]
    assert network.batches == [4, 3, 2, 2, 1, 1, 1, 1]


def test_newcomers_take_the_rows_that_an_eviction_left():
    network = GaussianNetwork()
    table = table_of(network, capacity=8)
    table.admit([image(request, 8, seed=request) for request in range(4)])
    assert (table.tick().batch, table.evict(1), table.evict(1), table.free) == (4, 1, 0, 5)
    table.admit([image(9, 1, seed=9)])
    tick = table.tick()
    assert (tick.active, tick.batch) == (4, 4)
    assert [key.request for key, _ in tick.finished] == [9]
    assert_close(tick.finished[0][1], expected_pixels(9, 0, 1))
    table.evict(0)
    assert table.tick().batch == 3, "a gap costs one call"
    assert table.tick().batch == 2
    for request, pixels in drain(table).items():
        assert_close(pixels, expected_pixels(request, 0, 8))


def test_rows_that_are_not_finite_are_named_and_freed_while_the_others_go_on():
    network = GaussianNetwork()
    table = table_of(network, capacity=4)
    table.admit([image(0, 2, seed=1), image(1, 2, seed=2), image(2, 1, seed=3)])

    def poison(x: np.ndarray, c_noise: np.ndarray) -> None:
        x[[0, 2]] = np.nan

    network.before = poison
    tick = table.tick()
    assert set(tick.broken) == {ImageKey(0, 0), ImageKey(2, 0)} and tick.finished == ()
    network.before = lambda x, c_noise: None
    assert table.requests() == {1}
    assert_close(drain(table)[1], expected_pixels(2, 0, 2))


def test_a_call_that_raises_moves_no_slot():
    device = Device(GaussianNetwork(), (1, 2))
    table = device_table(device)
    table.admit([image(0, 4, seed=5), image(1, 1, seed=6)])

    def fail() -> None:
        raise RuntimeError("out of luck")

    device.before = fail
    with pytest.raises(RuntimeError, match="out of luck"):
        table.tick()
    device.before = lambda: None
    finished = drain(table)
    assert_close(finished[0], expected_pixels(5, 0, 4))
    assert_close(finished[1], expected_pixels(6, 0, 1))


def test_an_empty_table_does_not_call_the_network():
    network = GaussianNetwork()
    table = table_of(network, 4)
    table.admit([])
    assert table.tick() == Tick()
    assert network.batches == []


def test_pixels_are_the_callers_own():
    table = table_of(GaussianNetwork(), capacity=2)
    table.admit([image(0, 1, seed=1)])
    ((_, pixels),) = table.tick().finished
    kept = pixels.copy()
    table.admit([image(1, 1, seed=2), image(2, 1, seed=3)])
    table.tick()
    np.testing.assert_array_equal(pixels, kept)


def test_a_network_of_another_shape_is_refused():
    device = Device(GaussianNetwork(), (2,), extra=1)
    with pytest.raises(AssertionError, match=r"\(2, 2, 8, 8\)"):
        device_table(device)


ACTIONS = st.one_of(
    st.tuples(st.just("admit"), st.lists(st.tuples(st.integers(1, 8), st.integers(0, CLASSES - 1)), max_size=4)),
    st.tuples(st.just("evict"), st.integers(0, 30)),
    st.tuples(st.just("tick"), st.booleans()),  # True: the first row is not finite
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ACTIONS, max_size=25), st.booleans())
def test_whatever_happens_both_tables_say_the_same(actions: list, exact: bool):
    capacity, arrived = 6, 0
    poisoned: list[bool] = [False]

    class Poisoned(GaussianNetwork):
        def __call__(self, x, c_noise, onehot):
            return np.where(
                poisoned[0] & (c_noise < -0.2)[:, None, None, None], np.nan, super().__call__(x, c_noise, onehot)
            )

    cpu = SlotTable(Poisoned(), SHAPE, CLASSES, SIGMA_DATA, buckets_for(capacity, exact))
    gpu = table_of(Poisoned(), capacity, exact)
    for name, value in [*actions, *[("tick", False)] * 8]:
        poisoned[0] = False
        if name == "admit":
            images = [image(arrived + i, k, seed=arrived + i, label=c) for i, (k, c) in enumerate(value[: cpu.free])]
            arrived += len(images)
            cpu.admit(images)
            gpu.admit(images)
        elif name == "evict":
            assert cpu.evict(value) == gpu.evict(value)
        else:
            poisoned[0] = value
            one, other = cpu.tick(), gpu.tick()
            assert (one.active, set(one.broken)) == (other.active, set(other.broken))
            theirs = dict(other.finished)
            assert theirs.keys() == dict(one.finished).keys()
            for key, pixels in one.finished:
                assert_close(theirs[key], pixels)
        assert (cpu.free, cpu.requests()) == (gpu.free, gpu.requests())
    assert gpu.free == capacity


def test_what_is_done_meanwhile_is_done_once_the_device_is_busy():
    order: list[str] = []
    network = Device(GaussianNetwork(), buckets_for(4, exact=False))
    network.before = lambda: order.append("network")
    table = device_table(network)
    table.tick(lambda: order.append("meanwhile"))
    assert order == [], "without images there is no call"
    table.admit([image(0, 2)])
    for _ in range(2):
        table.tick(lambda: order.append("meanwhile"))
    assert order == ["network", "meanwhile"] * 2
