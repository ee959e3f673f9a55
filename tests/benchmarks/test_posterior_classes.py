"""Twelve posteriors of Fashion-MNIST: their rewards, and the prior without classes that they begin at."""

import argparse
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.posterior_classes import best_of, facts_of, rows_of, sheet
from benchmarks.posterior_classes_task import CLASSES, GROUPS, Task, by_kind, fits, log_rewards
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


@pytest.fixture
def task() -> Task:
    """200 proposals and 20 images to learn from, the class of image i is i % 10, and r is 1 or e^-8."""
    task = Task(argparse.Namespace(proposals=200, pool=20, judged=5))
    classes = torch.arange(220) % CLASSES
    images = torch.arange(220.0).view(-1, 1, 1, 1)
    hit = torch.stack([fits(classes, torch.full_like(classes, y)) for y in range(GROUPS)], dim=1)
    vars(task)["proposals"] = {"images": images, "log_rewards": torch.where(hit, 0.0, -8.0)}
    return task


def test_rejection_accepts_what_was_asked_and_says_z(task: Task):
    for y, halves in enumerate(task.reference):
        for images in halves:
            assert len(images) == 5 and bool(fits(images.flatten().long() % CLASSES, torch.full((5,), y)).all())
    assert task.log_z(3) == pytest.approx(np.log(0.1 + 0.9 * np.exp(-8)), abs=1e-4)
    assert task.log_z(10) == pytest.approx(np.log(0.5 + 0.5 * np.exp(-8)), abs=1e-4)


def test_the_best_of_four_are_images_that_no_other_row_judges(task: Task):
    images = best_of(task).flatten()
    assert len(images) == len(task.y) and float(images.min()) >= 200
    even = images[task.y == 10]
    assert even.tolist() == [200.0, 204.0, 208.0, 212.0, 216.0], "the first even one of each four"


def test_rows_are_held_against_rejection(task: Task):
    exact = {"log_reward": torch.zeros(GROUPS), "accuracy": torch.ones(GROUPS), "distance": torch.ones(GROUPS)}
    exact["pairwise"] = torch.full((GROUPS,), 8.0)
    near = {**exact, "log_reward": torch.full((GROUPS,), -0.2), "pairwise": torch.full((GROUPS,), 6.0)}
    rows = rows_of("rejection", exact, {}) + rows_of("RTB", near, {"log_z_error": torch.full((GROUPS,), 0.1)})
    found = facts_of(task, rows)["beside_rejection"]["RTB: class"]
    assert found["hit"] == ["nats_below", "accuracy_below", "distance_ratio", "log_z_error"]
    assert found["pairwise_off"] == pytest.approx(0.25)


def test_each_method_is_one_row_of_the_sheet_where_classes_have_few_images():
    few = torch.zeros(GROUPS * 2, 1, 32, 32)
    one, two = (Image.open(io.BytesIO(sheet(dict.fromkeys(names, few)))).height for names in ("a", "ab"))
    assert two - one == 32
