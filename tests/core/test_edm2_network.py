"""EDM2's layers preserve magnitudes, in closed form, and networks of the published sizes have the published sizes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.edm2_network import EDM2Config, EDM2Network, MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalized

TINY = EDM2Config(
    resolution=16, channels=3, classes=4, width=16, mult=(1, 2), blocks=1, attention=(8,), noise_width=16,
    embedding_width=32, head_width=16,
)  # fmt: skip


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean_square(x: Tensor) -> float:
    return float(x.double().square().mean())


def test_silu_of_unit_normals_has_unit_magnitude():
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)  # the expectation over unit normals, by quadrature
    squares = mp_silu(torch.from_numpy(nodes)).square().numpy()
    assert weights @ squares / math.sqrt(2 * math.pi) == pytest.approx(1, abs=2e-3)  # 0.596 has three digits


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_sums_and_pairs_of_orthogonal_inputs_have_unit_magnitude(share: float):
    a = torch.tensor([1.0, -1.0]).repeat(8)[None, :, None, None]  # mean square 1, and a * b averages 0
    b = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(4)[None, :, None, None]
    assert mean_square(mp_sum(a, b, share)) == pytest.approx(1, rel=1e-6)
    few = b[:, :4]
    pair = mp_cat(a, few, share)
    assert pair.shape[1] == 20 and mean_square(pair) == pytest.approx(1, rel=1e-6)
    contributed = pair[:, 16:].square().sum() / pair.square().sum()  # whatever the numbers of channels
    assert float(contributed) == pytest.approx(share**2 / ((1 - share) ** 2 + share**2), abs=1e-6)


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_filters_have_unit_norm_whatever_their_weights(kernel: int):
    torch.manual_seed(0)
    layer = MPConv(6, 5, kernel).requires_grad_(False)
    inputs = 6 * max(kernel, 1) ** 2
    pulses = torch.eye(inputs).reshape(inputs, 6, *(kernel, kernel) * (kernel > 0))

    def filters(gain: float) -> Tensor:  # [inputs, 5]: in the middle, the output is a filter's product with the pulse
        answers = layer(pulses, gain)
        return answers[:, :, kernel // 2, kernel // 2] if kernel else answers

    torch.testing.assert_close(filters(1.0).square().sum(0), torch.ones(5), rtol=1e-3, atol=0)
    before = filters(1.0)
    layer.weight.mul_(37)
    torch.testing.assert_close(filters(2.0), 2 * before, rtol=1e-3, atol=1e-5)


def test_fourier_features_have_unit_magnitude_at_every_level():
    features = MPFourier(16)
    features.freqs.fill_(0)
    features.phases.copy_(torch.arange(16) * (2 * math.pi / 16))
    torch.testing.assert_close(features(torch.tensor([-1.5, 0.0, 1.1])).square().mean(1), torch.ones(3))


def test_normalizing_gives_a_mean_square_of_one_along_the_dimensions():
    x = normals(2, 5, 4, 4) * torch.tensor([0.5, 300.0])[:, None, None, None]
    torch.testing.assert_close(normalized(x, (1,)).square().mean(1), torch.ones(2, 4, 4), rtol=2e-3, atol=0)
    assert bool((normalized(torch.zeros(1, 3), (1,)) == 0).all())


@torch.no_grad()
def test_magnitudes_are_kept_through_a_whole_network():
    torch.manual_seed(0)
    deep = EDM2Network(replace(TINY, width=64, noise_width=64, embedding_width=128, blocks=3)).eval()
    seen = []
    deep.out_conv.register_forward_pre_hook(lambda _, inputs: seen.append(mean_square(inputs[0])))
    for name, parameter in deep.named_parameters():
        if name.endswith("gain"):
            parameter.fill_(1.0)
    x, c_noise = normals(8, 3, 16, 16), torch.linspace(-1.5, 1.1, 8)
    output = deep(x, c_noise, torch.eye(4)[[0, 1, 2, 3] * 2])
    # emb_gain 1 doubles a block's scale on average, before a branch that weighs 0.3: not more than a few times 1
    assert 0.3 < seen[0] < 3 and 0.3 < mean_square(output) < 3
    deep.out_gain.fill_(0.0)
    assert bool((deep(x, c_noise, torch.zeros(8, 4)) == 0).all())  # as every network begins


# Parameters in millions of the published models (Karras et al. 2024, Table 2, ImageNet-512 and -64).
@pytest.mark.parametrize(
    ("width", "millions"), [(128, 125), (192, 280), (256, 498), (320, 777), (384, 1119), (448, 1523)]
)
def test_published_sizes_have_the_published_numbers_of_parameters(width: int, millions: int):
    with torch.device("meta"):
        network = EDM2Network(EDM2Config(width=width, noise_width=width, embedding_width=4 * width))
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 15}, "resolution 15 is not a multiple of .* = 2"),
        ({"label_balance": 1.5}, r"label_balance 1\.5 does not lie between 0 and 1"),
        ({"clip": -1.0}, "clip is at least 0"),
        ({"width": 0}, "widths are at least 1"),
    ],
    ids=str,
)
def test_what_makes_no_network_is_refused(change: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)
