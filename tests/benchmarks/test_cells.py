"""The cache and the cells in it: nothing is made twice, nothing half, and nothing passes for what it is not."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from benchmarks.cells import Task, fill, read_cell, verify
from benchmarks.generators import Batch
from fewstep.card import CheckpointError
from fewstep.metrics.cache import Cache
from fewstep.metrics.reference import make_reference
from fewstep.samplers import sample_dpdm
from tests.benchmarks.worlds import PAIR, generator, image_set, pixel_net, reference


class Counting:
    """A task whose samplings are counted."""

    def __init__(self, count: int = 30, nfe: int = 2, brightness: int = 0) -> None:
        self.made = 0
        self.brightness = brightness
        one = generator(PAIR.student)

        def batches(seeds: Sequence[int]) -> Iterator[Batch]:
            for pixels, calls in one.sample(sample_dpdm, (5.0, 0.5), seeds, size=8):
                self.made += len(pixels)
                yield Batch(pixels + np.uint8(self.brightness), calls)

        seeds = range(100, 100 + count)
        self.task = Task({"method": "dpdm", "seeds": [100, 100 + count]}, batches, seeds, nfe, one.labels(seeds))


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cells")


def test_what_is_written_comes_back_under_its_key_alone(cache):
    key = {"kind": "test", "a": 1, "b": [0.5]}
    cache.write(key, values=np.arange(3), name=np.array("x"))
    found = cache.read({"b": [0.5], "a": 1, "kind": "test"})
    assert found is not None and found["values"].tolist() == [0, 1, 2]
    assert cache.read({**key, "a": 2}) is None
    assert [path.name for path in cache.folder.iterdir()] == [cache.path(key).name]


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_a_damaged_file_is_named_not_used(cache, damage):
    key, other = {"kind": "test", "a": 1}, {"kind": "test", "a": 2}
    cache.write(key, values=np.arange(3))
    cache.write(other, values=np.arange(4))
    cache.path(key).write_bytes(cache.path(other).read_bytes() if damage is None else damage)
    with pytest.raises(CheckpointError, match="is damaged; delete it"):
        cache.read(key)


def test_a_cell_keeps_moments_of_all_images_and_the_first_few(cache):
    counting, net = Counting(), reference(cache, pixel_net(classes=True))
    ticks = []
    fill(cache, counting.task, [net], stored=10, tick=ticks.append)
    cell = read_cell(cache, counting.task, net, stored=10)
    assert cell is not None and counting.made == 30 and sum(ticks) == counting.task.calls == 60
    images = np.concatenate([batch.pixels for batch in counting.task.batches(counting.task.seeds)])
    features = images.reshape(30, -1).astype(np.float64) / 127.5 - 1
    np.testing.assert_array_equal(cell.pixels, images[:10])
    np.testing.assert_allclose(cell.features, features[:10], atol=1e-6)
    np.testing.assert_allclose(cell.moments.mean, features.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(cell.moments.covariance, np.cov(features, rowvar=False), atol=1e-6)
    assert cell.moments.count == 30 and cell.accuracy == 0.5  # it always sees class 1


def test_a_net_that_is_no_classifier_gives_no_accuracy(cache):
    counting, net = Counting(), reference(cache)
    fill(cache, counting.task, [net], stored=5)
    cell = read_cell(cache, counting.task, net, stored=5)
    assert cell is not None and cell.accuracy is None


def test_a_cell_with_too_few_kept_images_or_another_net_is_missing(cache):
    counting, net = Counting(), reference(cache)
    fill(cache, counting.task, [net], stored=10)
    assert read_cell(cache, counting.task, net, stored=10) is not None
    assert read_cell(cache, counting.task, net, stored=11) is None
    assert read_cell(cache, counting.task, reference(cache, pixel_net("other")), stored=10) is None


def test_an_interrupted_cell_leaves_nothing_that_counts(cache):
    counting, net = Counting(), reference(cache)

    def stop(calls: int) -> None:
        if counting.made > 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(cache, counting.task, [net], stored=10, tick=stop)
    assert read_cell(cache, counting.task, net, stored=10) is None


def test_a_wrong_count_of_calls_is_an_error_not_a_row(cache):
    with pytest.raises(RuntimeError, match="made 2 network calls per image, not 3"):
        fill(cache, Counting(nfe=3).task, [reference(cache)], stored=10)


def test_verify_notices_code_that_makes_other_images(cache):
    net = reference(cache)
    verify(cache, Counting().task)  # nothing kept, nothing to compare
    fill(cache, Counting().task, [net], stored=10)
    again = Counting()
    verify(cache, again.task)
    assert again.made == 4
    verify(cache, Counting(brightness=1).task)  # another rounding
    with pytest.raises(CheckpointError, match="not what the code makes now"):
        verify(cache, Counting(brightness=2).task)


def test_a_reference_is_made_once_and_its_identity_follows_its_axes(cache):
    calls = []

    def counted(net):
        run = net.run
        return type(net)(**{**net.__dict__, "run": lambda pixels: calls.append(len(pixels)) or run(pixels)})

    train, held_out = image_set(400, 0), image_set(200, 1)
    first = make_reference(counted(pixel_net()), train, held_out, cache)
    assert sum(calls) == 600
    again = make_reference(counted(pixel_net()), train, held_out, cache)
    assert sum(calls) == 600 and again.identity == first.identity
    np.testing.assert_array_equal(first.train, again.train)

    def on_axes(images):
        net = type(first.net)(**{**pixel_net().__dict__, "axes": 3})
        return make_reference(net, images, held_out, cache)

    projected = on_axes(train)
    assert projected.train.shape == (400, 3) and projected.moments.mean == pytest.approx(0, abs=1e-5)
    assert len({first.identity, projected.identity, on_axes(image_set(400, 2)).identity}) == 3
    features, _ = projected.features(train.images[:5])
    assert features.shape == (5, 3)


def test_the_floor_takes_disjoint_held_out_images(cache):
    net = reference(cache)
    assert len(net.floor(60)) == 3 and len(net.floor(200)) == 1 and net.floor(201) == []
    assert np.mean(net.floor(40)) > net.floor(200)[0] > 0  # the bias falls with N
