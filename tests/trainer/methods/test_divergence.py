"""The gradients in closed form: linear score networks, autograd, and the KL divergence as a special case of SiD."""

import pytest
import torch

from tests.trainer.tiny import normals
from trainer.methods.divergence import kl_gradient, sid_gradient

OUTPUTS, NOISE = normals(6, 1, 4, 4), 0.7 * normals(6, 1, 4, 4, seed=1)


def teacher(noisy: torch.Tensor) -> torch.Tensor:
    return 0.4 * noisy.tanh() + 0.1


def auxiliary(noisy: torch.Tensor) -> torch.Tensor:
    return 0.8 * noisy.sin()


def detached(network):
    return lambda noisy: network(noisy).detach() + 0 * noisy  # constant in its input, as autograd sees it


@pytest.mark.parametrize("weight", ["l1", "one"])
def test_sid_with_alpha_zero_and_networks_that_pass_no_gradient_is_kl(weight):
    sid = sid_gradient(OUTPUTS, NOISE, detached(teacher), detached(auxiliary), weight, alpha=0.0)
    torch.testing.assert_close(sid, kl_gradient(OUTPUTS, OUTPUTS + NOISE, teacher, auxiliary, weight))


def test_kl_is_the_difference_of_the_score_networks():
    noisy = OUTPUTS + NOISE
    expected = auxiliary(noisy) - teacher(noisy)
    torch.testing.assert_close(kl_gradient(OUTPUTS, noisy, teacher, auxiliary, "one"), expected)


def test_sid_with_alpha_one_half_is_half_the_difference_of_squared_errors():
    outputs = OUTPUTS.clone().requires_grad_(True)
    noisy = outputs + NOISE
    loss = ((teacher(noisy) - outputs).square() - (auxiliary(noisy) - outputs).square()).sum() / 2
    expected = torch.autograd.grad(loss, outputs)[0]
    torch.testing.assert_close(sid_gradient(OUTPUTS, NOISE, teacher, auxiliary, "one", alpha=0.5), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_sid_of_linear_score_networks_in_closed_form(alpha):
    a, b = 0.3, 0.9
    noisy = OUTPUTS + NOISE
    gap = (a - b) * noisy
    # d/dx of gap * ((a noisy - x) - alpha gap), where noisy = x + noise
    expected = (a - b) * (a * noisy - OUTPUTS - alpha * gap) + gap * ((a - 1) - alpha * (a - b))
    gradient = sid_gradient(OUTPUTS, NOISE, lambda x: a * x, lambda x: b * x, "one", alpha)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("loss", ["kl", "sid"])
def test_l1_divides_each_image_by_the_teachers_mean_absolute_error(loss):
    def gradient(weight):
        if loss == "kl":
            return kl_gradient(OUTPUTS, OUTPUTS + NOISE, teacher, auxiliary, weight)
        return sid_gradient(OUTPUTS, NOISE, teacher, auxiliary, weight, 1.0)

    error = (OUTPUTS - teacher(OUTPUTS + NOISE)).abs().flatten(1).mean(1)
    torch.testing.assert_close(gradient("l1"), gradient("one") / error[:, None, None, None])  # not differentiated


def test_a_teacher_without_error_does_not_divide_by_zero():
    agreeing = lambda noisy: OUTPUTS  # noqa: E731
    gradient = kl_gradient(OUTPUTS, OUTPUTS + NOISE, agreeing, auxiliary, "l1")
    assert gradient.isfinite().all()


def test_no_score_network_is_trained_by_the_gradient():
    layers = [torch.nn.Conv2d(1, 1, 3, padding=1) for _ in range(2)]
    kl = kl_gradient(OUTPUTS, OUTPUTS + NOISE, layers[0], layers[1], "l1")
    sid = sid_gradient(OUTPUTS, NOISE, layers[0], layers[1], "l1", 1.0)
    assert not kl.requires_grad and not sid.requires_grad
    assert all(parameter.grad is None for layer in layers for parameter in layer.parameters())
