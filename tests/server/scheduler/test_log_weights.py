"""Log weights of trajectories: those of `fewstep.ancestral`, in both slot tables, whatever shares their calls."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace

from fewstep.ancestral import log_ratio, sample_weighted, student_chain
from fewstep.noise import noise_for
from fewstep.pixels import from_pixels, to_pixels
from fewstep.precond import Denoiser
from fewstep.step import step_log_weight
from server.scheduler.policy import Grant, Waiting, fifo, shortest
from server.scheduler.slots import Image, ImageKey, Slots, SlotTable, Tick, buckets_for
from tests.server.fakes import CLASSES, LEVELS, SHAPE, SIGMA_DATA
from tests.server.loop_bench import Bench
from tests.server.scheduler.test_device_slots import Device, device_table


class Tilted:
    """A network whose adapter 1 adds a tilt that depends on the state, the level and the class."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []  # the adapters of each call
        self.before: Callable[[np.ndarray, np.ndarray], None] = lambda x, adapter: None

    def __call__(self, x: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray, adapter: np.ndarray) -> np.ndarray:
        self.rows.append(adapter.tolist())
        self.before(x, adapter)
        told = (onehot @ np.array([0.1, 0.2, 0.3], np.float32) - 0.1 * c_noise)[:, None, None, None]
        tilt = 0.05 * x + told
        return np.float32(0.4) * x + tilt * (adapter > 0)[:, None, None, None].astype(np.float32)

    def denoiser(self, adapter: int) -> Denoiser:
        return Denoiser(
            lambda x, c_noise, onehot: self(x, c_noise, onehot, np.full(len(x), adapter)), SIGMA_DATA, CLASSES
        )


def host(network: Tilted, capacity: int, exact: bool = False) -> Slots:
    return SlotTable(network, SHAPE, CLASSES, SIGMA_DATA, buckets_for(capacity, exact), adapters=True)


def on_device(network: Tilted, capacity: int, exact: bool = False) -> Slots:
    return device_table(Device(network, buckets_for(capacity, exact), adapters=True))  # pyright: ignore[reportArgumentType]


TABLES = pytest.mark.parametrize("table_of", [host, on_device])


def weighed(request: int, steps: int = 4) -> Image:
    """Of the chain's adapter, whose last call is the backbone's."""
    return Image(
        ImageKey(request, 0), request, request % CLASSES, LEVELS[steps], adapter=1, last_adapter=0, weighed=True
    )


def expected(image: Image) -> tuple[float, np.ndarray]:
    """Log weight and pixels, by the chain's own sampler. An image of one level has no step."""
    network, labels = Tilted(), np.array([image.label])
    prior, posterior = (network.denoiser(adapter) for adapter in (0, 1))
    made = sample_weighted(
        lambda x, sigma: prior(x, sigma, labels), lambda x, sigma: posterior(x, sigma, labels),
        noise_for([image.seed], SHAPE), student_chain(image.sigmas), lambda images: np.zeros(len(images)),
    )  # fmt: skip
    return float(made.log_weight[0]), to_pixels(made.images)[0]


def drain(table: Slots) -> dict[int, tuple[float | None, np.ndarray]]:
    """Log weight and pixels by request."""
    made: dict[int, tuple[float | None, np.ndarray]] = {}
    while table.requests():
        tick = table.tick()
        log_weights = dict(tick.log_weights)
        made |= {key.request: (log_weights.get(key), pixels) for key, pixels in tick.finished}
    return made


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_log_weight_of_a_step_is_minus_its_log_ratio_at_levels_that_differ_by_row(kind: str):
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((3, *SHAPE), dtype=np.float32) for _ in range(3)]
    of = torch.from_numpy if kind == "torch" else np.asarray
    prior, posterior, noise = map(of, arrays)
    sigma = of(np.array([0.5, 1.5, 0.1], np.float32))
    made = step_log_weight(posterior - prior, noise, sigma)
    assert made.dtype == array_namespace(made).float64
    for row, level in enumerate([0.5, 1.5, 0.1]):
        each = slice(row, row + 1)
        chain, x_next = student_chain((9.0, level)), posterior[each] + level * noise[each]
        ratio = log_ratio(chain, 0, noise[each], x_next, prior[each], posterior[each])
        assert float(made[row]) == pytest.approx(-float(ratio[0]), rel=1e-4)


@TABLES
def test_images_of_all_kinds_share_calls_and_the_weights_are_those_of_the_sampler(table_of):
    """Of weighed images, of others, and of other step counts; one that leaves makes the rest move."""
    network = Tilted()
    table = table_of(network, 10)
    plain = [
        Image(ImageKey(number, 0), number, 0, LEVELS[steps], adapter=number % 2)
        for number, steps in ((11, 4), (12, 1), (13, 3))
    ]
    weights = [weighed(1), weighed(2, steps=2), weighed(3, steps=8)]
    table.admit([plain[0], weights[0], plain[1], weights[1]])
    assert table.free == 10 - 2 - 2 * 2
    first = table.tick()
    assert (first.active, first.batch) == (6, 6) and not first.log_weights
    assert sorted(network.rows[0]) == [0, 0, 0, 1, 1, 1]  # a second row of each weighed image is the backbone's
    made: dict[int, tuple[float | None, np.ndarray]] = {key.request: (None, pixels) for key, pixels in first.finished}
    table.evict(11)
    table.admit([weights[2], plain[2]])
    assert table.free == 10 - 1 - 3 * 2
    made |= drain(table)
    assert set(made) == {1, 2, 3, 12, 13} and table.free == 10
    for image in weights:
        log_weight, pixels = expected(image)
        found, image_made = made[image.key.request]
        assert found == pytest.approx(log_weight, abs=1e-5) and abs(log_weight) > 0.05
        assert np.abs(image_made.astype(int) - pixels).max() <= 1
    assert made[12][0] is None and made[13][0] is None


@TABLES
def test_an_image_of_one_call_has_the_weight_zero(table_of):
    table = table_of(Tilted(), 2)
    table.admit([weighed(1, steps=1)])
    tick = table.tick()
    assert tick.log_weights == ((ImageKey(1, 0), 0.0),) and tick.active == 1


def test_in_exact_mode_other_rows_do_not_change_a_weight():
    lonely, full = (host(Tilted(), 9, exact=True) for _ in range(2))
    lonely.admit([weighed(7)])
    full.admit([weighed(5, steps=2), weighed(7), Image(ImageKey(8, 0), 8, 1, LEVELS[3]), weighed(6)])
    assert drain(lonely)[7][0] == drain(full)[7][0]


@TABLES
def test_a_second_row_that_is_not_finite_ends_its_image_alone(table_of):
    network = Tilted()

    def poison(x: np.ndarray, adapter: np.ndarray) -> None:
        """The backbone's row of the first of two images, in its second call."""
        if len(network.rows) == 2:
            x[2] = np.nan if adapter[2] == 0 else x[2]

    network.before = poison
    table = table_of(network, 4)
    table.admit([weighed(1), weighed(2)])
    ticks: list[Tick] = []
    while table.requests():
        ticks.append(table.tick())
    assert [key.request for tick in ticks for key in tick.broken] == [1]
    (made,) = [pair for tick in ticks for pair in tick.log_weights]
    assert made[0].request == 2 and made[1] == pytest.approx(expected(weighed(2))[0], abs=1e-4)


def test_weighted_images_of_a_wrong_posterior_have_the_mean_of_the_true_one():
    """Everything is Gaussian in the one pixel that matters. The prior's chain ends in N(0, v); with r = exp(b x) the
    tilted mean is b v, and the adapter goes six tenths of the way."""
    sigmas, b, count = (1.0, 0.3, 0.1), 2.0, 2048
    gain = 0.6  # of both denoisers, at all levels: D(x) = 0.6 x

    def network(x: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray, adapter: np.ndarray) -> np.ndarray:
        sigma = np.exp(4 * c_noise)[:, None, None, None]
        total = np.sqrt(sigma**2 + SIGMA_DATA**2)
        denoised = gain * total * x
        denoised[:, 0, 0, 0] += shift * (adapter > 0)
        return (denoised - SIGMA_DATA**2 / total * x) * total / (sigma * SIGMA_DATA)

    v = 0.0
    for sigma in sigmas:
        v = gain**2 * (v + sigma**2)
    shift = 0.6 * b * v / (gain + gain**2)  # of both steps, as it reaches the image
    table = SlotTable(network, SHAPE, 0, SIGMA_DATA, (128,), adapters=True)
    values, log_weights = np.zeros(count), np.zeros(count)
    for begin in range(0, count, 64):
        table.admit([
            Image(ImageKey(seed, 0), seed, -1, sigmas, adapter=1, last_adapter=0, weighed=True)
            for seed in range(begin, begin + 64)
        ])  # fmt: skip
        while table.requests():
            tick = table.tick()
            for (key, pixels), (_, log_weight) in zip(tick.finished, tick.log_weights, strict=True):
                values[key.request] = from_pixels(pixels[None])[0, 0, 0, 0]
                log_weights[key.request] = log_weight
    exponent = log_weights + b * values
    shares = np.exp(exponent - exponent.max())
    shares /= shares.sum()
    truth, error = b * v, np.sqrt(v * (shares**2).sum())
    assert abs(values.mean() - 0.6 * truth) < 4 * np.sqrt(v / count)
    assert abs(shares @ values - truth) < 4 * error and 4 * error < 0.3 * truth
    estimate = np.log(np.exp(exponent).mean())  # of log Z = b^2 v / 2
    assert estimate == pytest.approx(b**2 * v / 2, abs=0.05)


def test_an_image_of_two_slots_waits_for_the_second_and_the_later_ones_behind_it():
    waiting = [Waiting(1, 2, 0.0, slots=2), Waiting(2, 3, 1.0)]
    assert fifo(waiting, free=1, now_s=2.0) == []
    assert fifo(waiting, free=3, now_s=2.0) == [Grant(1, 1)]
    assert fifo(waiting, free=5, now_s=2.0) == [Grant(1, 2), Grant(2, 1)]
    assert Waiting(1, 2, 0.0, calls=4, slots=2).work == 16
    assert shortest([Waiting(1, 1, 0.0, calls=2, slots=2), Waiting(2, 1, 0.0, calls=3)], 1, 0.0, 1.0) == [Grant(2, 1)]


def test_a_model_of_one_slot_refuses_in_a_sentence():
    bench = Bench({"tiny": 1})
    bench.submit(1, steps=2, log_weight=True)
    bench.submit(2, steps=2)
    bench.turn(3)
    assert bench.failed() == {1: "unsupported_log_weight"} and bench.finished() == [2]
    assert "start the server with --capacity 2 or more" in bench.results[0].message  # pyright: ignore[reportAttributeAccessIssue]
