"""The network: published sizes, every style's shapes, and what its output may depend on."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from fewstep.network import Conv, UNet
from fewstep.unet_config import UNetConfig, adm, ddpmpp, ncsnpp

SMALL = UNetConfig(resolution=16, channels=3, classes=4, width=16, mult=(1, 2), blocks=1, attention=(8,))
STYLES = {
    "ddpm++": SMALL,
    "ncsn++": replace(SMALL, embedding="fourier", encoder="residual", resample=(1, 3, 3, 1)),
    "adm": replace(SMALL, style="adm", head_width=8),
    "patch 2": replace(SMALL, patch=2, attention=()),
    "one level": replace(SMALL, mult=(2,)),
    "three levels": replace(SMALL, mult=(1, 2, 2)),
    "odd width": replace(SMALL, width=12),
    "gray": replace(SMALL, channels=1),
    "unconditional": replace(SMALL, classes=0),
}
every_style = pytest.mark.parametrize("config", STYLES.values(), ids=STYLES.keys())


def randomised(config: UNetConfig, seed: int = 0) -> UNet:
    """A network none of whose layers starts at zero, so that every path shows in the output."""
    torch.manual_seed(seed)
    network = UNet(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs(config: UNetConfig, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """x, c_noise and one-hot labels that differ in every row."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.channels, config.resolution, config.resolution, generator=generator)
    onehot = torch.zeros(batch, config.classes)
    for row in range(batch if config.classes else 0):
        onehot[row, row % config.classes] = 1
    return x, torch.linspace(-1, 1, batch), onehot


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ddpmpp(32, 3, 0), 55_732_739),
        (ddpmpp(32, 3, 10), 55_734_147),
        (ncsnpp(32, 3, 0), 56_395_523),
        (adm(64, 3, 1000), 295_899_267),
    ],
    ids=["ddpm++", "ddpm++ with 10 classes", "ncsn++", "adm"],
)
def test_published_configurations_have_their_published_size(config: UNetConfig, parameters: int):
    with torch.device("meta"):
        network = UNet(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@every_style
@torch.no_grad()
def test_output_has_the_shape_of_the_input_and_is_finite(config: UNetConfig):
    x, c_noise, onehot = inputs(config)
    output = randomised(config)(x, c_noise, onehot)
    assert output.shape == x.shape
    assert output.isfinite().all()
    assert output.std() > 0


@every_style
@torch.no_grad()
def test_a_row_does_not_depend_on_the_others(config: UNetConfig):
    network, (x, c_noise, onehot) = randomised(config), inputs(config)
    together = network(x, c_noise, onehot)
    for row in range(len(x)):
        alone = network(x[row : row + 1], c_noise[row : row + 1], onehot[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@every_style
@torch.no_grad()
def test_noise_level_and_class_change_the_output(config: UNetConfig):
    network, (x, c_noise, onehot) = randomised(config), inputs(config)
    output = network(x, c_noise, onehot)
    assert (network(x, c_noise + 0.5, onehot) - output).abs().amax() > 1e-4
    if config.classes:
        assert (network(x, c_noise, onehot.roll(1, dims=1)) - output).abs().amax() > 1e-4
        assert (network(x, c_noise, torch.zeros_like(onehot)) - output).abs().amax() > 1e-4


@every_style
def test_every_parameter_receives_a_gradient(config: UNetConfig):
    network, (x, c_noise, onehot) = randomised(config), inputs(config)
    network(x, c_noise, onehot).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or _cannot_matter(name), name


def _cannot_matter(name: str) -> bool:
    """The bias of keys adds the same to all scores of a query, which softmax ignores; qkv share one tensor."""
    return name.endswith("qkv.conv.bias")


@every_style
@torch.no_grad()
def test_an_untrained_network_says_almost_nothing(config: UNetConfig):
    # The last convolution starts at (almost) zero, so that D starts as c_skip * x.
    torch.manual_seed(0)
    output = UNet(config).eval()(*inputs(config))
    assert output.abs().max() < 1e-3


@torch.no_grad()
def test_every_pixel_of_the_input_reaches_every_pixel_of_the_output():
    # Attention in the innermost block sees the whole image, with a patch stem too.
    for config in (SMALL, STYLES["patch 2"]):
        network, (x, c_noise, onehot) = randomised(config), inputs(config, batch=1)
        changed = x.clone()
        changed[0, 0, 0, 0] += 5
        difference = (network(changed, c_noise, onehot) - network(x, c_noise, onehot)).abs()
        assert (difference.amax(dim=1) > 0).float().mean() > 0.99


@torch.no_grad()
def test_the_box_filter_is_the_general_filter_with_two_equal_taps():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    directions: tuple[Literal["up", "down"], ...] = ("up", "down")
    for direction in directions:
        box, general = (Conv(3, 3, 0, direction, (1, 1)) for _ in range(2))
        general.box = False
        general.register_buffer("filter", torch.full((3, 1, 2, 2), 0.25))
        torch.testing.assert_close(box(x), general(x))


@torch.no_grad()
def test_a_wide_filter_keeps_a_constant_image_constant_and_the_size_exact():
    x = torch.full((1, 2, 8, 8), 3.0)
    directions: dict[Literal["up", "down"], int] = {"up": 16, "down": 4}
    for direction, side in directions.items():
        output = Conv(2, 2, 0, direction, (1, 3, 3, 1))(x)
        assert output.shape == (1, 2, side, side)
        torch.testing.assert_close(output[..., 1:-1, 1:-1], torch.full((1, 2, side - 2, side - 2), 3.0))


@torch.no_grad()
def test_dropout_acts_in_training_only():
    network, given = randomised(replace(SMALL, dropout=0.5)), inputs(SMALL)
    torch.testing.assert_close(network(*given), network(*given), rtol=0, atol=0)
    network.train()
    torch.manual_seed(0)
    assert not torch.equal(network(*given), network(*given))


@torch.no_grad()
def test_an_empty_batch_passes():
    x, c_noise, onehot = inputs(SMALL, batch=2)
    assert randomised(SMALL)(x[:0], c_noise[:0], onehot[:0]).shape == (0, *x.shape[1:])


@pytest.mark.parametrize(
    "fields",
    [{"resolution": 15}, {"resolution": 16, "patch": 3}, {"mult": (1, 1, 1, 1, 1, 1)}, {"resample": (1, 2, 1)}],
    ids=str,
)
def test_a_shape_that_cannot_be_halved_is_refused_in_words(fields: dict[str, int]):
    with pytest.raises(ValueError, match=r"multiple|even number"):
        replace(SMALL, **fields)


@pytest.mark.parametrize("style", ["song", "adm"])
def test_the_noise_level_enters_as_sines_and_cosines_in_the_order_of_the_published_weights(style):
    # DDPM++ lists the sines first and ends its frequencies at 1 / 10000; ADM lists the cosines first.
    embedding = UNet(UNetConfig(resolution=8, width=16, mult=(1,), blocks=1, style=style)).embedding
    seen = []
    embedding.linear0.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    embedding(torch.tensor([0.7]), torch.zeros(1, 0), {})
    exponents = torch.arange(8) / (7 if style == "song" else 8)
    angles = 0.7 * 10000.0**-exponents
    halves = (angles.sin(), angles.cos()) if style == "song" else (angles.cos(), angles.sin())
    torch.testing.assert_close(seen[0][0], torch.cat(halves))


def test_a_class_enters_ddpmpp_as_its_column_times_the_root_of_the_number_of_classes():
    embedding = UNet(UNetConfig(resolution=8, classes=9, width=16, mult=(1,), blocks=1)).embedding
    seen = []
    embedding.linear0.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    embedding(torch.zeros(2), torch.stack([torch.zeros(9), torch.eye(9)[4]]), {})
    torch.testing.assert_close(seen[0][1] - seen[0][0], 3.0 * embedding.label.weight[:, 4])


@pytest.mark.parametrize(
    ("extra", "says"), [(0, r"takes 1 channels \(0 latent\), not 3"), (2, r"takes 3 channels \(2 latent\), not 1")]
)
def test_a_wrong_number_of_channels_is_refused_in_words(extra: int, says: str):
    network = UNet(UNetConfig(resolution=8, channels=1, width=16, mult=(1,), blocks=1, extra=extra))
    with pytest.raises(ValueError, match=says):
        network(torch.zeros(2, 3 - extra, 8, 8), torch.zeros(2), torch.zeros(2, 0))


def test_features_are_the_last_map_of_every_level_from_the_finest_to_the_innermost():
    network = UNet(UNetConfig(resolution=16, channels=1, width=8, mult=(1, 2, 2), blocks=2, patch=2)).eval()
    last: dict[int, torch.Tensor] = {}  # by the side of the map

    def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        last[output.shape[2]] = output

    for block in [*network.encoder, *network.middle]:
        block.register_forward_hook(keep)
    maps = network.features(torch.randn(3, 1, 16, 16), torch.zeros(3), torch.zeros(3, 0))
    assert [tuple(found.shape[1:]) for found in maps] == [(8, 8, 8), (16, 4, 4), (16, 2, 2)]
    assert network.feature_widths == (8, 16, 16)
    assert all(torch.equal(found, last[found.shape[2]]) for found in maps)
