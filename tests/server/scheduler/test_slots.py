from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.analytic import Gaussian
from fewstep.card import CheckpointError
from fewstep.latent import with_latent
from fewstep.noise import latent_for, noise_for
from fewstep.pixels import Pixels, to_pixels
from fewstep.precond import Denoiser, Network
from fewstep.samplers import sample_dpdm
from server.scheduler import slots
from server.scheduler.row_independence import check_rows_independent
from server.scheduler.slots import Image, ImageKey, SlotTable, buckets_for
from tests.ncvsd import ncvsd_network
from tests.server.fakes import CLASSES, LEVELS, SHAPE, SIGMA_DATA, GaussianNetwork, expected_pixels

NCVSD = ncvsd_network(Gaussian(0.0, SIGMA_DATA), SIGMA_DATA)
GOLDEN = {3: [91, 0, 119, 168, 206, 253, 109, 207], 8: [140, 74, 201, 129, 82, 220, 225, 132]}


def table_of(network: Network, capacity: int, exact: bool = False, extra: int = 0) -> SlotTable:
    return SlotTable(network, SHAPE, CLASSES, SIGMA_DATA, buckets_for(capacity, exact), extra)


def image(request: int, steps: int, seed: int = 0, label: int = 0) -> Image:
    return Image(ImageKey(request, 0), seed, label, LEVELS[steps])


def drain(table: SlotTable) -> list[tuple[int, Pixels]]:
    """(request, pixels) in the order in which they finish."""
    finished = []
    while table.requests():
        finished += [(key.request, pixels) for key, pixels in table.tick().finished]
    return finished


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_slot_ends_in_the_image_of_the_sampler(steps: int):
    table = table_of(GaussianNetwork(), capacity=2)
    table.admit([image(0, steps, seed=11, label=2)])
    ((_, pixels),) = drain(table)
    np.testing.assert_array_equal(pixels, expected_pixels(11, 2, steps))


@pytest.mark.parametrize("steps", GOLDEN)
def test_the_bytes_of_a_marginal_student_never_change(steps: int):
    table = table_of(GaussianNetwork(), capacity=4, exact=True)
    table.admit([image(0, steps, seed=7, label=1)])
    ((_, pixels),) = drain(table)
    assert pixels[0, :, 0].tolist() == GOLDEN[steps]  # before rounding, none is within 0.01 of the next byte


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_an_ncvsd_student_is_served_with_the_latents_of_its_seed(steps: int):
    table = table_of(NCVSD, capacity=2, extra=1)
    table.admit([image(0, steps, seed=11)])
    ((_, pixels),) = drain(table)
    bound = with_latent(Denoiser(NCVSD, SIGMA_DATA), latent_for([11], SHAPE))
    sample = sample_dpdm(bound, noise_for([11], SHAPE), LEVELS[steps])
    np.testing.assert_array_equal(pixels, to_pixels(sample.images)[0])
    silent = sample_dpdm(
        with_latent(Denoiser(NCVSD, SIGMA_DATA), lambda step: np.zeros((1, *SHAPE))),
        noise_for([11], SHAPE),
        LEVELS[steps],
    )
    assert np.abs(sample.images - silent.images).mean() > 0.1, "the latent has a say"


def test_mixed_step_counts_share_every_call_and_retire_when_they_are_done():
    network = GaussianNetwork()
    table = table_of(network, capacity=8)
    table.admit([image(request, steps) for request, steps in enumerate([8, 1, 4, 2])])
    assert [request for request, _ in drain(table)] == [1, 3, 2, 0]
    assert network.batches == [4, 3, 2, 2, 1, 1, 1, 1]


def test_fast_mode_pads_to_the_next_bucket_and_exact_mode_to_the_capacity():
    network = GaussianNetwork()
    for exact in (False, True):
        table = table_of(network, 16, exact)
        table.admit([image(request, 1) for request in range(9)])
        tick = table.tick()
        assert (tick.active, tick.batch) == (9, network.batches[-1])
    assert network.batches == [10, 16]


def test_padding_is_zero_whatever_was_there_before():
    padding = []

    def network(x: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray) -> np.ndarray:
        padding.append([part[len([image.key for image in table.images]) :].copy() for part in (x, c_noise, onehot)])
        return x

    table = table_of(network, 4, exact=True)
    table.admit([image(request, steps, label=2) for request, steps in enumerate([1, 3, 2, 3])])
    for _ in range(2):
        table.tick()
    table.evict(3)
    table.tick()
    table.admit([image(request, 1, label=2) for request in range(4, 8)])
    table.evict(7)  # before its first call
    table.tick()
    assert [len(x) for x, _, _ in padding] == [0, 1, 3, 1]
    assert not any(part.any() for parts in padding for part in parts)


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 8, 9, 16, 33, 64, 100])
def test_buckets_ascend_to_the_capacity_and_waste_a_quarter_at_most(capacity: int):
    buckets = buckets_for(capacity, exact=False)
    assert buckets[0] == 1 and buckets[-1] == capacity
    assert all(low < high <= 1.25 * low + 1 for low, high in pairwise(buckets))
    assert buckets_for(capacity, exact=True) == buckets_for(capacity, exact=True, any_size=True) == (capacity,)
    assert buckets_for(capacity, exact=False, any_size=True) == tuple(range(1, capacity + 1))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**63 - 1), st.integers(1, 8), st.integers(0, CLASSES - 1)),
        min_size=2,
        max_size=31,
    ),
    st.integers(0, 5),
    st.sampled_from(["marginal", "ncvsd"]),
)
def test_exact_mode_gives_the_same_bytes_alone_and_among_thirty_others(
    requests: list[tuple[int, int, int]], head_start: int, kind: str
):
    (seed, steps, label), *others = requests
    network, extra = (GaussianNetwork(), 0) if kind == "marginal" else (NCVSD, 1)
    alone = table_of(network, 32, exact=True, extra=extra)
    alone.admit([image(0, steps, seed, label)])
    mixed = table_of(network, 32, exact=True, extra=extra)
    mixed.admit([image(i, k, s, c) for i, (s, k, c) in enumerate(others, start=1)])
    for _ in range(head_start):
        mixed.tick()
    mixed.admit([image(0, steps, seed, label)])
    np.testing.assert_array_equal(dict(drain(mixed))[0], drain(alone)[0][1])


def test_evicting_a_request_frees_all_its_slots_and_no_other():
    table = table_of(GaussianNetwork(), capacity=4)
    table.admit([Image(ImageKey(5, i), i, 0, LEVELS[8]) for i in range(3)] + [image(6, 8)])
    table.tick()
    assert table.evict(5) == 3
    assert (table.free, table.requests()) == (3, {6})
    assert table.evict(5) == 0


def test_rows_that_are_not_finite_are_named_and_freed_while_the_others_go_on():
    network = GaussianNetwork()
    table = table_of(network, capacity=4)
    table.admit([image(0, 2, seed=1), image(1, 2, seed=2)])

    def poison(x: np.ndarray, c_noise: np.ndarray) -> None:
        x[0] = np.nan

    network.before = poison
    tick = table.tick()
    assert tick.broken == (ImageKey(0, 0),)
    network.before = lambda x, c_noise: None
    ((request, pixels),) = drain(table)
    assert request == 1
    np.testing.assert_array_equal(pixels, expected_pixels(2, 0, 2))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(1, 8), max_size=4), st.booleans()), max_size=12), st.integers(0, 999))
def test_noise_drawn_ahead_gives_the_bytes_of_noise_drawn_for_every_call(arrivals: list, limit: int):
    """Whatever arrives, breaks (the first row) or is evicted. limit: normals that are drawn ahead in one tick."""

    def run(normals: int) -> list:
        network, results = GaussianNetwork(), []
        table = table_of(network, capacity=8)
        with mock.patch.object(slots, "FEW_NORMALS", normals):
            for tick, (newcomers, breaks) in enumerate([*arrivals, *[([], False)] * 8]):
                table.admit([image(9 * tick + i, k, seed=tick + i) for i, k in enumerate(newcomers)][: table.free])
                table.evict(9 * (tick - 2) + 1)
                network.before = lambda x, c_noise, breaks=breaks: x.__setitem__(0, np.nan) if breaks else None
                result = table.tick()
                results.append((result.broken, [(key, pixels.tolist()) for key, pixels in result.finished]))
        assert table.free == 8
        return results

    assert run(limit) == run(-1)


def test_noise_drawn_ahead_is_bounded_and_goes_with_its_image():
    table = SlotTable(lambda x, c_noise, onehot: x, (3, 64, 64), 0, SIGMA_DATA, (4,))
    table.admit([image(0, 8, label=-1), image(1, 2, label=-1)])
    table.tick()
    assert table.ahead == [None, None], "images of 64x64x3 are too large for more than two steps ahead"
    table.admit([image(2, 2, label=-1)])
    table.tick()
    assert not any(each is not None for each in table.ahead), "an image that comes to others does not draw ahead"
    for request in range(3):
        table.evict(request)
    table.admit([image(3, 2, label=-1)])
    table.tick()
    ((_, ahead),) = [(row, each) for row, each in enumerate(table.ahead) if each is not None]
    assert ahead.base is None and ahead.shape == (1, 3, 64, 64)
    table.evict(3)
    assert table.ahead == []


def test_an_empty_table_does_not_call_the_network():
    network = GaussianNetwork()
    assert table_of(network, 4).tick().batch == 0
    assert network.batches == []


def test_an_unconditional_network_gets_a_onehot_of_no_columns():
    shapes = []

    def network(x: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray) -> np.ndarray:
        shapes.append(onehot.shape)
        return x

    table = SlotTable(network, SHAPE, 0, SIGMA_DATA, (4,))
    table.admit([image(0, 1, label=-1)])
    table.tick()
    assert shapes == [(4, 0)]


@pytest.mark.parametrize("capacity", [1, 2, 3, 8])
def test_the_self_check_accepts_rows_that_are_independent(capacity: int):
    check_rows_independent(GaussianNetwork(), SHAPE, CLASSES, capacity)


def by_slot(x: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray) -> np.ndarray:
    return x + np.arange(len(x), dtype=np.float32)[:, None, None, None] * 1e-6


def by_batch(x: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray) -> np.ndarray:
    return x - x.mean()


def by_neighbour(x: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray) -> np.ndarray:
    return x + 1e-6 * np.roll(x, 1, axis=0)


@pytest.mark.parametrize("network", [by_slot, by_batch, by_neighbour])
def test_the_self_check_refuses_rows_that_know_their_slot_or_their_batch(network: Network):
    with pytest.raises(CheckpointError, match="exact mode is not possible"):
        check_rows_independent(network, SHAPE, CLASSES, capacity=4)


def test_what_is_done_meanwhile_is_done_once_a_call_and_before_the_network_is_asked():
    order: list[str] = []
    network = GaussianNetwork()
    network.before = lambda x, c_noise: order.append("network")
    table = table_of(network, 4)
    table.tick(lambda: order.append("meanwhile"))
    assert order == [], "without images there is no call"
    table.admit([image(0, 2)])
    for _ in range(2):
        table.tick(lambda: order.append("meanwhile"))
    assert order == ["meanwhile", "network"] * 2
