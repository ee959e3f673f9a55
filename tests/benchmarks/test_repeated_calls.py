"""A network that is asked once: the same images, fewer calls."""

from dataclasses import replace

import numpy as np

from benchmarks.repeated_calls import remembered
from fewstep.samplers import sample_dpdm
from tests.benchmarks.worlds import generator


def counted(kept: int):
    """A generator with a memory, and the shapes that its network was called with."""
    plain, calls = generator(), []

    def network(x, c_noise, onehot):
        calls.append(x.shape)
        return plain.denoiser.network(x, c_noise, onehot)

    return remembered(replace(plain, denoiser=replace(plain.denoiser, network=network)), kept), calls


def test_lists_of_levels_that_begin_alike_share_their_calls_and_images_stay_the_same():
    once, calls = counted(kept=8)
    for levels in ((2.5, 0.9, 0.2), (2.5, 0.9, 0.2, 0.1), (2.5, 0.3)):
        (batch,) = once.sample(sample_dpdm, levels, range(5), 8)
        (expected,) = generator().sample(sample_dpdm, levels, range(5), 8)
        np.testing.assert_array_equal(batch.pixels, expected.pixels)
        assert batch.nfe == len(levels)  # of the sampler, not of what was called
    assert len(calls) == 3 + 1 + 1


def test_other_labels_and_other_noise_are_other_calls_and_old_answers_are_forgotten():
    once, calls = counted(kept=1)
    for seeds in (range(4), range(4), range(1, 5), range(4)):  # seeds decide noise and labels
        list(once.sample(sample_dpdm, (2.5,), seeds, 8))
    assert len(calls) == 3
    noisy = np.zeros((2, 1, 4, 4), np.float32)
    before = len(calls)
    for labels in ([0, 1], [1, 0]):
        once.denoise(noisy, 1.0, np.array(labels), range(2))
    assert len(calls) == before + 2
