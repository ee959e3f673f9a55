"""Widened networks: they start out as what they were made from, and what is new in them can learn."""

from dataclasses import replace

import pytest
import torch

from fewstep.network import UNet
from fewstep.unet_config import UNetConfig
from tests.trainer.tiny import TINY, lively, normals
from trainer.levels.conditioning import LEVEL_FEATURES, level_features, widen
from trainer.settings import served_lists

CONFIGS = {
    "song": TINY,
    "song unconditional": replace(TINY, classes=0),
    "adm": replace(TINY, style="adm"),
    "adm unconditional": replace(TINY, style="adm", classes=0),
    "patch": replace(TINY, channels=3, patch=2),
    "ncsn++": replace(TINY, channels=3, mult=(1, 2, 2), embedding="fourier", encoder="residual", resample=(1, 3, 3, 1)),
    "already widened": replace(TINY, extra=1),
}
SIGMA = torch.tensor([0.07, 0.6, 5.0, 80.0])


def inputs(config: UNetConfig, channels: int, features: int):
    """Old inputs, and a function that puts new ones behind them."""
    x = normals(4, config.channels + config.extra, config.resolution, config.resolution, seed=1)
    onehot = torch.eye(4, config.classes)

    def behind(seed: int):
        image = 3 * normals(4, channels, config.resolution, config.resolution, seed=seed)
        return torch.cat([x, image], 1), SIGMA.log() / 4, torch.cat([onehot, 3 * normals(4, features, seed=seed)], 1)

    return (x, SIGMA.log() / 4, onehot), behind


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize(("channels", "features"), [(3, 0), (0, 5), (2, 16)])
def test_widened_copy_ignores_what_is_new(config: UNetConfig, channels: int, features: int):
    network = lively(config)
    wide = widen(network, channels=channels, features=features)
    old, behind = inputs(config, channels, features)
    with torch.no_grad():
        expected = network(*old)
        assert expected.std() > 0.01  # a silent network would equal anything
        for seed in (2, 3):
            torch.testing.assert_close(wide(*behind(seed)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_new_weights_get_gradients_and_then_matter(config: UNetConfig):
    wide = widen(lively(config), channels=2, features=5)
    _, behind = inputs(config, 2, 5)
    wide(*behind(2)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in wide.named_parameters() if parameter.grad is not None}
    entries = ["stem.conv.weight", *(["feeders.0.conv.weight"] if config.encoder == "residual" else [])]
    fresh = [gradients[name][:, -2 * config.patch**2 :] for name in entries]
    fresh.append(gradients["embedding.label.weight"][:, -5:])
    assert all((gradient != 0).all() for gradient in fresh)

    before = wide(*behind(2))
    torch.optim.SGD(wide.parameters(), 0.1).step()
    assert not torch.equal(wide(*behind(2)), before)
    one, other = behind(3), behind(4)
    with torch.no_grad():
        assert not torch.allclose(wide(*one), wide(*other), rtol=1e-3)  # it looks at the new inputs now
        for index in (0, 2):  # at each of them: image and features
            mixed = [*one]
            mixed[index] = other[index]
            assert not torch.equal(wide(*mixed), wide(*one))


def test_nothing_widened_is_a_copy_of_its_own():
    network = lively()
    copy = widen(network)
    assert copy.config == network.config
    for parameter in copy.parameters():
        torch.nn.init.zeros_(parameter)
    assert all((parameter != 0).any() for parameter in network.parameters())


def test_unpredicted_channels_do_not_come_out():
    wide = widen(lively(CONFIGS["patch"]), channels=3)
    assert wide.config == replace(CONFIGS["patch"], extra=3)
    assert wide(torch.zeros(2, 6, 8, 8), torch.zeros(2), torch.zeros(2, 10)).shape == (2, 3, 8, 8)


def test_a_widened_network_is_rebuilt_from_its_configuration():
    wide = widen(lively(CONFIGS["ncsn++"]), channels=3, features=LEVEL_FEATURES)
    assert isinstance(wide.config, UNetConfig)
    UNet(wide.config).load_state_dict(wide.state_dict())


def test_level_features_tell_every_pair_of_served_levels_apart():
    levels = torch.tensor(sorted({sigma for levels in served_lists(range(1, 9), 0.01) for sigma in levels}))
    features = level_features(levels)
    assert features.shape == (len(levels), LEVEL_FEATURES) and features.abs().max() <= 1
    apart = torch.cdist(features, features) + 10 * torch.eye(len(levels))
    assert apart.min() > 0.5
    assert torch.equal(level_features(levels[3:4]), features[3:4])  # of the level alone, not of the batch
