"""The DDPM network: its U-Net equals diffusers' UNet2DModel, and around it F is D = x - sigma * eps, rearranged."""

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from fewstep.ddpm_network import DDPMConfig, DDPMNetwork, UNet2D, log_sigmas
from fewstep.precond import Denoiser

TINY = DDPMConfig(8, 1, (8, 16), (False, True), (True, False), blocks=1, head_width=8, groups=4, middle_groups=4)


def randomised(config: DDPMConfig) -> DDPMNetwork:
    torch.manual_seed(0)
    network = DDPMNetwork(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return network


VARIANTS: dict[str, tuple[DDPMConfig, dict[str, Any]]] = {
    "ddpm-cifar10": (
        replace(TINY, head_width=0, sines_first=True, freq_shift=1.0, down_padding=0, eps=1e-6),
        {"attention_head_dim": None, "flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0,
         "norm_eps": 1e-6},
    ),
    "heads": (replace(TINY, head_width=4, dropout=0.1), {"attention_head_dim": 4, "dropout": 0.1}),
    "classes": (replace(TINY, classes=5), {"num_class_embeds": 5}),
    "scale and shift": (
        replace(TINY, scale_shift=True, middle_groups=0), {"resnet_time_scale_shift": "scale_shift"},
    ),
    "middle groups": (replace(TINY, middle_groups=2), {"attn_norm_num_groups": 2}),
    "no middle attention": (replace(TINY, middle_attention=False), {"add_attention": False}),
    "three levels, one-sided attention": (
        replace(TINY, widths=(8, 16, 24), down_attention=(True, False, False), up_attention=(False, True, False),
                blocks=2),
        {"block_out_channels": (8, 16, 24), "layers_per_block": 2,
         "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")},
    ),
    "resized by residual blocks": (
        replace(TINY, down_attention=(False, True), residual_resize=True, scale_shift=True),
        {"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), "downsample_type": "resnet",
         "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"), "upsample_type": "resnet",
         "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    ),
    "one level": (
        replace(TINY, widths=(16,), down_attention=(False,), up_attention=(True,)),
        {"block_out_channels": (16,), "down_block_types": ("DownBlock2D",), "up_block_types": ("AttnUpBlock2D",)},
    ),
}  # fmt: skip


def theirs(options: dict[str, Any]) -> UNet2DModel:
    """diffusers' network of TINY, with other options."""
    given = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DModel(**given | options).eval()


@pytest.mark.parametrize(("config", "options"), VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_the_unet_equals_that_of_diffusers(config: DDPMConfig, options: dict[str, Any]):
    ours = randomised(config).unet
    reference = theirs(options)
    reference.load_state_dict(ours.state_dict())  # the same names and shapes
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([0, 7, 500, 999])
    labels = torch.arange(4) if config.classes else None
    onehot = torch.eye(5)[:4, : config.classes]
    expected = reference(x, timestep, class_labels=labels).sample
    assert expected.abs().mean() > 0.05, "a network that returns zeros proves nothing"
    torch.testing.assert_close(ours(x, timestep.float(), onehot), expected, rtol=1e-5, atol=1e-5)


SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled_linear": {"betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"betas": "squaredcos_cap_v2"},
    "few steps": {"timesteps": 50},
}


def schedule_of(config: DDPMConfig) -> Tensor:
    """sigma [T], float64, of diffusers' own table."""
    assert config.prediction != "consistency"
    scheduler = DDPMScheduler(
        config.timesteps, config.beta_start, config.beta_end, config.betas, prediction_type=config.prediction
    )
    bar = scheduler.alphas_cumprod.double()
    return ((1 - bar) / bar).sqrt()


@pytest.mark.parametrize("fields", SCHEDULES.values(), ids=SCHEDULES)
def test_the_noise_levels_are_those_of_the_scheduler_and_lie_on_whole_timesteps(fields: dict[str, Any]):
    config = replace(TINY, **fields)
    sigma = schedule_of(config)
    torch.testing.assert_close(log_sigmas(config).exp(), sigma, rtol=1e-12, atol=0)
    network = DDPMNetwork(config)
    steps = torch.arange(config.timesteps)
    found = network.timestep(sigma.log().float())
    torch.testing.assert_close(found, steps.float(), rtol=0, atol=2e-3)
    between = network.timestep((sigma[1:].log() + sigma[:-1].log()).float() / 2)
    torch.testing.assert_close(between, steps[1:] - 0.5, rtol=0, atol=2e-3)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.2])
@torch.no_grad()
def test_the_denoiser_subtracts_the_noise_that_diffusers_predicts(schedule: str, sigma_data: float):
    config = replace(TINY, sigma_data=sigma_data, classes=3, **SCHEDULES[schedule])
    network = randomised(config)
    denoiser = Denoiser(network, sigma_data, 3)
    reference = theirs({"num_class_embeds": 3})
    reference.load_state_dict(network.unet.state_dict())
    rng = torch.Generator().manual_seed(1)
    for step in (0, 1, 30, 400, 700, 999):
        sigma = schedule_of(config)[step].float()
        noisy = torch.randn(2, 1, 8, 8, generator=rng)
        x = noisy * (1 + sigma**2).sqrt()
        labels = torch.tensor([0, 2])
        eps = reference(noisy, step, class_labels=labels).sample
        expected = x - sigma * eps
        scale = max(1.0, float(sigma))  # D is a difference of terms of this size
        torch.testing.assert_close(denoiser(x, sigma.expand(2), labels), expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@torch.no_grad()
def test_every_prediction_gives_the_denoiser_of_its_definition(prediction: Any):
    config = replace(TINY, prediction=prediction)
    network = randomised(config)
    denoiser = Denoiser(network, config.sigma_data)
    scheduler = DDPMScheduler(prediction_type=prediction, clip_sample=False)
    for step in (5, 300, 800):
        sigma = schedule_of(config)[step].float()
        noisy = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        predicted = network.unet(noisy, torch.full((2,), float(step)), torch.zeros(2, 0))
        expected = scheduler.step(predicted, step, noisy).pred_original_sample  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        found = denoiser(noisy * (1 + sigma**2).sqrt(), sigma.expand(2))
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


class Exact(torch.nn.Module):
    """The optimal epsilon prediction for data N(0, s^2) per pixel, in float64 inside."""

    def __init__(self, config: DDPMConfig, spread: float) -> None:
        super().__init__()
        self.sigmas, self.spread = log_sigmas(config).exp(), spread

    def forward(self, x: Tensor, timestep: Tensor, onehot: Tensor) -> Tensor:
        log = np.interp(timestep.double(), np.arange(len(self.sigmas)), self.sigmas.log())
        sigma = torch.from_numpy(np.exp(log))[:, None, None, None]
        return (x.double() * sigma * (1 + sigma**2).sqrt() / (sigma**2 + self.spread**2)).float()


@torch.no_grad()
def test_an_exact_noise_prediction_gives_the_exact_denoiser_at_every_level():
    spread = 0.7
    network = DDPMNetwork(TINY)
    network.unet = Exact(TINY, spread)  # pyright: ignore[reportAttributeAccessIssue]
    denoiser = Denoiser(network, TINY.sigma_data)
    for sigma in (0.011, 0.1, 1.0, 12.3, 80.0, 150.0):
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * math.hypot(sigma, spread)
        expected = spread**2 / (sigma**2 + spread**2) * x
        error = (denoiser(x, torch.full((2,), sigma)) - expected).abs().max()
        assert error < 1e-6 * max(1.0, sigma), sigma


@pytest.mark.parametrize("fields", SCHEDULES.values(), ids=SCHEDULES)
@torch.no_grad()
def test_outside_the_table_the_output_stays_what_it_is_at_its_end(fields: dict[str, Any]):
    config = replace(TINY, **fields)
    network = randomised(config)
    table = log_sigmas(config)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for end, beyond in ((table[0], table[0] - 3), (table[-1], table[-1] + 3)):
        at_end, outside = (network(x, (level / 4).float().expand(2), torch.zeros(2, 0)) for level in (end, beyond))
        torch.testing.assert_close(outside, at_end, rtol=1e-4, atol=1e-4)
    # Below the table almost nothing is taken away, as there is almost no noise.
    denoised = Denoiser(network, config.sigma_data)(x, torch.full((2,), 1e-4))
    torch.testing.assert_close(denoised, x, rtol=0, atol=1e-2)
    # Above, D is of the size of an image however large sigma is.
    big = Denoiser(network, config.sigma_data)(1e6 * x, torch.full((2,), 1e6))
    assert big.abs().max() < 2 * config.sigma_data * network(x, table[-1:].float() / 4, torch.zeros(2, 0)).abs().max()


@torch.no_grad()
def test_rows_are_independent_and_autocast_does_not_reach_inside():
    network = randomised(replace(TINY, classes=2))
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    c_noise, onehot = torch.tensor([-1.0, 0.1, 1.05]), torch.tensor([[1.0, 0], [0, 1], [0, 0]])
    together = network(x, c_noise, onehot)
    for row in range(3):
        alone = network(x[row : row + 1], c_noise[row : row + 1], onehot[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    assert (together - network(x, c_noise, onehot.roll(1, 0))).abs().amax() > 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(x, c_noise, onehot), together, rtol=0, atol=0)


def test_gradients_reach_every_parameter():
    network = randomised(replace(TINY, classes=2)).requires_grad_(True)
    network(torch.randn(2, 1, 8, 8), torch.tensor([-0.5, 0.5]), torch.eye(2)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and (parameter.grad.abs().sum() > 0 or name.endswith("to_k.bias")), name


def test_the_published_configuration_has_its_published_size():
    config = DDPMConfig(  # of google/ddpm-cifar10-32
        32, 3, (128, 256, 256, 256), (False, True, False, False), (False, False, True, False), head_width=0,
        sines_first=True, freq_shift=1.0, down_padding=0, eps=1e-6,
    )  # fmt: skip
    with torch.device("meta"):
        network = UNet2D(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == 35_746_307


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resolution": 9}, "resolution 9 is not a multiple"),
        ({"widths": (8, 18)}, "not multiples of 4 groups"),
        ({"head_width": 3}, "not multiples of 3 channels a head"),
        ({"middle_groups": 3}, "not a multiple of 3 groups"),
        ({"up_attention": (True,)}, "2 widths need 2 entries"),
        ({"betas": "sigmoid"}, "betas 'sigmoid' is none of linear, scaled_linear, squaredcos_cap_v2"),
        ({"prediction": "flow"}, "prediction 'flow' is none of"),
        ({"down_padding": 2}, "down_padding 2 is none of 0, 1"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_built_is_refused_in_words(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **fields)


@pytest.mark.parametrize("fields", [{"beta_start": 0.0}, {"beta_end": 1.5}, {"beta_start": -0.1}, {"timesteps": 1}])
def test_noise_levels_that_do_not_rise_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValueError, match="no noise levels that rise"):
        DDPMNetwork(replace(TINY, **fields))


def test_the_configuration_names_its_family_and_what_every_card_has():
    described = asdict(TINY)
    assert described["family"] == "ddpm"
    assert (described["resolution"], described["channels"], described["classes"]) == (8, 1, 0)


@torch.no_grad()
def test_a_consistency_model_keeps_its_end_and_is_its_unet_far_from_it():
    config = replace(TINY, prediction="consistency", sigma_min=0.01, sigma_data=0.4)
    network = randomised(config)
    denoiser = Denoiser(network, config.sigma_data)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    end = torch.full((3,), 0.01)
    torch.testing.assert_close(denoiser(x, end), x, rtol=1e-5, atol=1e-6)  # c_skip = 1, c_out = 0
    for level in (0.02, 0.4, 7.0, 80.0):
        s = torch.full((3,), level)
        raw = network.unet(x / (level**2 + 0.16) ** 0.5, 250 * s.log(), torch.zeros(3, 0))
        skip = 0.16 / ((level - 0.01) ** 2 + 0.16)  # Song et al. 2023, Appendix C
        out = 0.4 * (level - 0.01) / (level**2 + 0.16) ** 0.5
        torch.testing.assert_close(denoiser(x, s), skip * x + out * raw, rtol=1e-4, atol=1e-5)


def test_sigma_min_has_a_range():
    for wrong in (0.0, -1.0, 1.0):
        with pytest.raises(ValueError, match=r"sigma_min .* does not lie between 0 and 1"):
            replace(TINY, sigma_min=wrong)
