"""What `benchmarks/posterior_fashion.py` asks: a prior, a reward, their chain and its exact posterior, by rejection.

Stages that take long are kept as files of --work, and read there the next time.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.inputs import MODELS
from benchmarks.posterior_fashion_tone import Tone, fit, tones
from benchmarks.posterior_results import kept
from fewstep.adapters import Adapter, adapted
from fewstep.ancestral import Chain, ancestral_chain, denoising_errors, sample_ancestral
from fewstep.checkpoint import NetworkModule, load_denoiser
from fewstep.pixels import from_pixels
from fewstep.precond import Denoiser
from fewstep.schedule import karras_sigmas
from trainer.data.format import ImageSet, read_image_set
from trainer.data.sources.selection import halved
from trainer.methods.rtb import Problem
from trainer.run.draws import seeded

CLASSES, RANK = 10, 4
SIGMA_MIN, SIGMA_MAX = 0.05, 20.0
ROWS = 64  # images of a network call
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """Prior, reward and chain, and the images that rejection accepts: all that follows from the options."""

    args: argparse.Namespace

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """The tensors of a stage: of its file in --work where there is one. "cpu_s" says what they cost."""
        return kept(self.args.work, name, make)

    @cached_property
    def halves(self) -> tuple[ImageSet, ImageSet]:
        data = read_image_set(self.args.data)
        return halved(data, "a"), halved(data, "b")

    @cached_property
    def tone(self) -> Tone:
        threshold = float(np.median(tones(self.halves[0].images)))

        def network(half: ImageSet, seed: int) -> nn.Sequential:
            def make() -> Tensors:
                light = tones(half.images) > threshold
                return fit(half.images, light, self.args.classifier_updates, seed).state_dict()

            stored = self.kept(f"classifier-{seed}", make)
            stored.pop("cpu_s")
            made = fit(half.images[:1], np.zeros(1, bool), 0, seed)
            made.load_state_dict(stored)
            return made

        return Tone(network(self.halves[0], 11), network(self.halves[1], 12), threshold)

    @cached_property
    def prior(self) -> Denoiser:
        return load_denoiser(MODELS / "teacher")[0]

    @property
    def network(self) -> NetworkModule:
        assert isinstance(self.prior.network, NetworkModule)
        return self.prior.network.requires_grad_(False)

    @cached_property
    def chain(self) -> Chain:
        def make() -> Tensors:
            half, sigmas = self.halves[0], karras_sigmas(self.args.levels, SIGMA_MIN, SIGMA_MAX)
            images = torch.from_numpy(from_pixels(half.images[:ROWS]))
            labels = torch.from_numpy(half.labels[:ROWS]).long()
            with torch.no_grad():
                errors = denoising_errors(
                    lambda x, sigma: self.prior(x, sigma, labels),
                    images,
                    sigmas,
                    lambda i: seeded(i).normal_like(images),
                )
            return {"sigmas": torch.tensor(sigmas), "errors": torch.tensor(errors)}

        stored = self.kept("chain", make)
        return ancestral_chain(stored["sigmas"].tolist(), "opt", stored["errors"].tolist())

    def chain_images(self, denoiser: Denoiser, y: Tensor, seed: int) -> Tensor:
        """Images [N, 1, 32, 32] of a chain with this denoiser in every step, for labels y [N]."""
        rng, images = seeded(seed), []
        for labels in y.split(ROWS):
            noise = torch.empty(len(labels), 1, 32, 32)
            bound = lambda x, sigma, labels=labels: denoiser(x, sigma, labels)  # noqa: E731
            with torch.no_grad():
                made = sample_ancestral(bound, lambda _, noise=noise: rng.normal_like(noise), self.chain)
            images.append(made.images)
        return torch.cat(images)

    @cached_property
    def proposals(self) -> Tensors:
        """Images of the prior's chain, as many of every class. Those behind `--proposals` are learned from."""
        tone, _ = self.tone, self.chain  # made first: their time is not that of these images

        def make() -> Tensors:
            y = torch.arange(self.args.proposals + self.args.pool) % CLASSES
            images = self.chain_images(self.prior, y, seed=1)
            return {"images": images, "y": y, "log_rewards": tone.log_reward(images)}

        return self.kept("proposals", make)

    @cached_property
    def accepted(self) -> Tensors:
        count, rng = self.args.proposals, seeded(2)
        taken = rng.uniform(count).log() < self.proposals["log_rewards"][:count]
        rows = torch.randperm(int(taken.sum()), generator=rng.generator)
        return {name: self.proposals[name][:count][taken][rows] for name in ("images", "y")}

    @property
    def labels(self) -> Tensor:
        """Those of the first half of the accepted images: of every row."""
        return self.accepted["y"][: len(self.accepted["y"]) // 2]

    def problem(self, adapter: Adapter) -> Problem:
        told = Denoiser(adapted(self.network, adapter), self.prior.sigma_data, CLASSES)
        log_reward = lambda images, y: self.tone.log_reward(images)  # noqa: E731
        return Problem(
            lambda x, s, y: self.prior(x, s, y), lambda x, s, y: told(x, s, y), self.chain, log_reward,
            adapter.log_variance, CLASSES,
        )  # fmt: skip

    def new_adapter(self, steps: int) -> Adapter:
        return Adapter(self.network, RANK, steps, torch.Generator().manual_seed(700))
