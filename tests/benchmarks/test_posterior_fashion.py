"""The reward and the bookkeeping of the posterior of Fashion-MNIST; its training is that of trainer/methods."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.posterior_fashion_judging import verdict
from benchmarks.posterior_fashion_task import Task
from benchmarks.posterior_fashion_tone import Tone, fit, tones
from fewstep.pixels import from_pixels


def garments(count: int, seed: int) -> np.ndarray:
    """uint8 [count, 32, 32, 1]: a rectangle of one level on black."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((count, 32, 32, 1), np.uint8)
    for image in pixels:
        top, left = rng.integers(2, 14, 2)
        image[top : top + 14, left : left + 14] = rng.integers(60, 250)
    return pixels


def test_a_tone_is_the_mean_of_the_garment_alone():
    pixels = np.zeros((2, 32, 32, 1), np.uint8)
    pixels[0, :4] = 200
    pixels[0, 4:6] = 100
    pixels[0, 20:] = 25  # ground
    assert tones(pixels).tolist() == pytest.approx([(4 * 200 + 2 * 100) / 6, 0])


def test_the_reward_is_a_probability_and_the_judge_agrees_on_new_images():
    pixels, others, new = garments(400, 1), garments(400, 2), garments(200, 3)
    threshold = float(np.median(tones(pixels)))
    networks = [fit(each, tones(each) > threshold, 80, seed) for seed, each in enumerate((pixels, others))]
    tone, images = Tone(networks[0], networks[1], threshold), torch.from_numpy(from_pixels(new))
    log_rewards, light = tone.log_reward(images), torch.from_numpy(tones(new) > threshold)
    assert float(log_rewards.max()) <= 0 and float(log_rewards.min()) > -12, "rejection is exact, no floor is needed"
    assert float(((log_rewards.exp() > 0.5) == light).float().mean()) > 0.9
    assert tone.judged(images[light]) > 0.85 > 0.15 > tone.judged(images[~light])


def test_a_finished_stage_is_read_and_not_made_again(tmp_path: Path):
    task, made = Task(argparse.Namespace(work=tmp_path)), []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"images": torch.arange(6.0).view(2, 3).t()}

    first, second = task.kept("stage", make), task.kept("stage", make)
    assert len(made) == 1 and torch.equal(first["images"], second["images"]) and float(second["cpu_s"]) >= 0


def test_a_student_is_held_against_the_chain_it_learned_from():
    rows = [{"method": "RTB", "log_reward": -1.0, "distance": 2.0}]
    rows += [{"method": f"student, served, {n}", "log_reward": -1.0 - 0.1 * n, "distance": 2.0 + n} for n in (1, 2, 4)]
    found = verdict(rows, "RTB", 20)
    assert found["4"] == pytest.approx({"nats_below": 0.4, "distance_ratio": 3.0, "fewer_calls": 5.0})
    assert found["1"]["fewer_calls"] == 20
