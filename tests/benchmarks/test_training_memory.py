"""What a process keeps between two updates, counted on tensors without values."""

import pytest

from benchmarks.training_memory import SMOKE, memory
from fewstep.network import UNet

(TINY,) = SMOKE.values()


def test_a_divided_process_keeps_its_share():
    weights = 4 * sum(parameter.numel() for parameter in UNet(TINY).parameters())
    alone, divided = memory(TINY, "teacher", 1, None, 16), memory(TINY, "teacher", 2, None, 16)
    assert alone.kept == pytest.approx(5 * weights, rel=0.05)  # with two moments and two averages
    assert divided.kept == pytest.approx(alone.kept / 2, rel=0.1)
    assert alone.peak > alone.kept + weights  # with gradients and activations
