"""Preconditioning: the properties Karras et al. derive Table 1 from, and the denoiser around any network."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.precond import Denoiser, edm_scalings, onehot

sigmas = st.floats(1e-3, 1e3)
datas = st.floats(0.05, 5.0)


@given(sigma=sigmas, sigma_data=datas)
def test_the_network_input_has_unit_variance(sigma: float, sigma_data: float):
    c_in = edm_scalings(np.array([sigma]), sigma_data).c_in[0]
    assert c_in**2 * (sigma_data**2 + sigma**2) == pytest.approx(1.0)


@given(sigma=sigmas, sigma_data=datas)
def test_the_training_target_has_unit_variance(sigma: float, sigma_data: float):
    c_skip, c_out, _, _ = (float(factor[0]) for factor in edm_scalings(np.array([sigma]), sigma_data))
    # target = (x0 - c_skip (x0 + sigma eps)) / c_out
    variance = ((1 - c_skip) ** 2 * sigma_data**2 + (c_skip * sigma) ** 2) / c_out**2
    assert variance == pytest.approx(1.0, rel=1e-6)


@given(sigma=sigmas, sigma_data=datas)
def test_c_skip_makes_the_error_of_the_network_count_least(sigma: float, sigma_data: float):
    # c_out^2 as a function of c_skip is (1 - c)^2 sigma_data^2 + c^2 sigma^2; Table 1 stands at its minimum.
    c_skip, c_out, _, _ = (float(factor[0]) for factor in edm_scalings(np.array([sigma]), sigma_data))
    for other in (c_skip - 1e-3, c_skip + 1e-3):
        assert (1 - other) ** 2 * sigma_data**2 + (other * sigma) ** 2 > c_out**2 * (1 - 1e-12)


def test_without_noise_the_image_passes_through_and_with_much_noise_only_the_network_speaks():
    c_skip, c_out, c_in, c_noise = edm_scalings(np.array([1e-8, 1e8]), 0.5)
    np.testing.assert_allclose(c_skip, [1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(c_out, [0.0, 0.5], atol=1e-7)
    np.testing.assert_allclose(c_in, [2.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(c_noise, np.log([1e-8, 1e8]) / 4)


def test_scalings_are_the_same_in_torch_and_numpy_and_keep_float32():
    values = np.geomspace(0.002, 80, 40).astype(np.float32)
    ours, theirs = edm_scalings(values, 0.5), edm_scalings(torch.from_numpy(values), 0.5)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == np.float32
        assert b.dtype == torch.float32
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-6)


def test_onehot_marks_the_class_and_leaves_no_class_empty():
    rows = onehot(np.array([2, -1, 0]), 3, like=np.zeros(1, np.float32))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    other = onehot(torch.tensor([2, -1, 0]), 3, like=torch.zeros(1))
    assert other.dtype == torch.float32
    np.testing.assert_array_equal(other.numpy(), rows)


def test_onehot_of_an_unconditional_network_has_no_columns():
    assert onehot(np.array([-1, -1]), 0, like=np.zeros(1, np.float32)).shape == (2, 0)


def test_the_denoiser_is_table_1_around_an_arbitrary_network():
    rng = np.random.default_rng(0)
    x, sigma = rng.normal(size=(3, 2, 4, 4)), np.array([0.1, 1.0, 50.0])
    labels = np.array([1, -1, 0])
    weights = rng.normal(size=(2, 2))

    def network(x_in, c_noise, classes):
        shift = c_noise + classes @ np.array([3.0, 5.0])
        return np.einsum("bchw,cd->bdhw", np.tanh(x_in), weights) + shift[:, None, None, None]

    denoised = Denoiser(network, sigma_data=0.7, classes=2)(x, sigma, labels)
    for row, (s, shift) in enumerate(zip(sigma, (5.0, 0.0, 3.0), strict=True)):
        total = 0.7**2 + s**2
        f = np.einsum("chw,cd->dhw", np.tanh(x[row] / np.sqrt(total)), weights) + np.log(s) / 4 + shift
        np.testing.assert_allclose(denoised[row], 0.49 / total * x[row] + 0.7 * s / np.sqrt(total) * f)


def test_the_denoiser_gives_the_same_in_torch_and_numpy():
    x = np.random.default_rng(1).normal(size=(4, 1, 3, 3)).astype(np.float32)
    sigma, labels = np.array([0.01, 0.5, 3.0, 80.0], np.float32), np.array([0, 1, 2, -1])
    denoiser = Denoiser(lambda x_in, c_noise, classes: x_in * c_noise[:, None, None, None], 0.5, classes=3)
    ours = denoiser(x, sigma, labels)
    theirs = denoiser(torch.from_numpy(x), torch.from_numpy(sigma), torch.from_numpy(labels))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_no_labels_is_the_same_as_no_class():
    seen = []

    def network(x_in, c_noise, classes):
        seen.append(classes)
        return x_in

    denoiser = Denoiser(network, 0.5, classes=4)
    x, sigma = np.ones((2, 1, 2, 2)), np.ones(2)
    np.testing.assert_array_equal(denoiser(x, sigma), denoiser(x, sigma, np.array([-1, -1])))
    for classes in seen:
        np.testing.assert_array_equal(classes, np.zeros((2, 4)))


def test_a_half_precision_network_does_not_lower_the_precision_of_the_result():
    denoiser = Denoiser(lambda x_in, c_noise, classes: x_in.to(torch.bfloat16), 0.5)
    x = torch.linspace(-1, 1, 8).reshape(2, 1, 2, 2)
    assert denoiser(x, torch.ones(2)).dtype == torch.float32
