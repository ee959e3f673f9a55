"""Twelve posteriors of Fashion-MNIST: their rewards, and the prior without classes that they begin at."""

import numpy as np
import torch
from torch import nn

from benchmarks.posterior_classes import rows_of
from benchmarks.posterior_classes_task import CLASSES, GROUPS, by_kind, fits, log_rewards
from benchmarks.posterior_classless import without_classes
from fewstep.network import UNet
from fewstep.unet_config import UNetConfig


def test_a_network_without_classes_is_the_shipped_one_at_the_mean_of_all_classes():
    torch.manual_seed(0)
    config = UNetConfig(8, 1, 4, 16, (1,), blocks=1, attention=())
    told = UNet(config)
    for value in told.parameters():
        nn.init.normal_(value, std=0.1)
    plain = UNet(UNetConfig(8, 1, 0, 16, (1,), blocks=1, attention=()))
    plain.load_state_dict(without_classes(told))
    x, c_noise = torch.randn(3, 1, 8, 8), torch.randn(3)
    with torch.no_grad():
        mean = told(x, c_noise, torch.full((3, 4), 0.25))
        torch.testing.assert_close(plain(x, c_noise, torch.zeros(3, 0)), mean)
        assert not torch.allclose(mean, told(x, c_noise, torch.eye(4)[:3]), atol=1e-3), (
            "the class changes what it makes"
        )


def test_even_and_odd_are_the_sums_of_their_classes():
    logits = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(1))
    shares = logits.softmax(dim=1)
    found = by_kind(logits).exp()
    torch.testing.assert_close(found[:, :CLASSES], shares)
    torch.testing.assert_close(found[:, 10], shares[:, [0, 2, 4, 6, 8]].sum(dim=1))
    torch.testing.assert_close(found[:, 10] + found[:, 11], torch.ones(5))
    y = torch.tensor([0, 9, 10, 11, 3])
    asked = log_rewards(nn.Flatten(), logits[:, :, None, None], y)
    torch.testing.assert_close(asked, by_kind(logits)[torch.arange(5), y])


def test_a_class_fits_what_was_asked():
    classes = torch.tensor([3, 3, 4, 4, 4, 5])
    assert fits(classes, torch.tensor([3, 4, 10, 11, 4, 11])).tolist() == [True, False, True, False, True, True]


def test_rows_are_means_over_what_was_asked():
    one, two = rows_of("m", {"distance": torch.arange(GROUPS).float()}, {"nfe": 10, "ess": torch.ones(GROUPS)})
    assert (one["kind"], two["kind"]) == ("class", "even or odd")
    np.testing.assert_allclose([one["distance"], two["distance"], one["ess"]], [4.5, 10.5, 1.0])
    assert two["each"]["distance"] == [10.0, 11.0] and two["nfe"] == 10
