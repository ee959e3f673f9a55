"""The radial power spectrum against what Fourier says."""

import numpy as np
import pytest

from fewstep.metrics.spectrum import power_ratios, radial_power, spectrum_deviation


def noise(count: int, spread: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).integers(128 - spread, 128 + spread, (count, 16, 16, 1))
    return values.astype(np.uint8)


def test_a_wave_has_all_its_power_at_its_own_radius():
    waves = np.rint(128 + 100 * np.cos(2 * np.pi * 3 * np.arange(16) / 16)).astype(np.uint8)
    power = radial_power(np.broadcast_to(waves[None, None, :, None], (2, 16, 16, 1)))
    assert power.shape == (9,)
    assert power[3] == power[1:].max() and power[3] > 1000 * np.delete(power, [0, 3]).max()


def test_white_noise_has_its_variance_at_every_radius():
    images = noise(2000, 60, 0)
    np.testing.assert_allclose(radial_power(images)[1:], images.astype(float).var(), rtol=0.05)


def test_the_power_of_all_coefficients_is_that_of_all_pixels():
    images = noise(3, 60, 1)  # Parseval; the corners lie beyond the last radius, so only a low-pass image is whole
    low = np.repeat(np.repeat(images[:, ::8, ::8], 8, axis=1), 8, axis=2)
    assert radial_power(low, block=2)[0] == pytest.approx(np.square(low.astype(float).sum((1, 2, 3)) / 16).mean())


def test_doubled_contrast_is_four_times_the_power_and_equal_sets_do_not_deviate():
    real = noise(50, 30, 2)
    doubled = (2 * (real.astype(int) - 128) + 128).astype(np.uint8)
    np.testing.assert_allclose(power_ratios(doubled, real), 4)
    assert spectrum_deviation(doubled, real) == pytest.approx(3) and spectrum_deviation(real, real) == 0


def test_a_blur_shows_at_the_highest_radius():
    real = noise(500, 60, 3)
    blurred = ((real.astype(int) + np.roll(real, 1, axis=1)) // 2).astype(np.uint8)
    ratios = power_ratios(blurred, real)
    assert ratios.argmin() == len(ratios) - 1 and ratios[0] > 0.95
    with pytest.raises(ValueError, match="all of one colour"):
        power_ratios(real, np.full_like(real, 7))
