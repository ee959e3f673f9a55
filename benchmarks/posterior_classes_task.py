"""What `benchmarks/posterior_classes.py` asks: a prior without classes, twelve rewards, and their exact posteriors.

y from 0 to 9 stands for a class of Fashion-MNIST, 10 for the even and 11 for the odd ones: r(x, y) is the probability
that a classifier gives them. Stages that take long are kept as files of --work, and read there the next time.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.inputs import MODELS
from benchmarks.posterior_classless import make_prior
from benchmarks.posterior_results import kept
from fewstep.adapters import Adapter, adapted, told
from fewstep.ancestral import Chain, ancestral_chain, denoising_errors, sample_ancestral
from fewstep.card import read_card
from fewstep.checkpoint import load_denoiser
from fewstep.pixels import from_pixels
from fewstep.precond import Denoiser
from fewstep.schedule import karras_sigmas
from trainer.data.format import ImageSet, read_image_set
from trainer.data.sources.selection import halved
from trainer.methods.rtb import Problem
from trainer.run.draws import seeded

CLASSES, RANK = 10, 4
KINDS = (*range(CLASSES), "even", "odd")
GROUPS = len(KINDS)
SIGMA_MIN, SIGMA_MAX = 0.05, 20.0
ROWS = 64  # images of a network call
NOISE, SMOOTHING, BATCH = 0.1, 0.02, 128
Tensors = dict[str, Tensor]


def build() -> nn.Sequential:
    """images [N, 1, 32, 32] in [-1, 1] -> logits [N, 10]. About 90,000 weights."""
    layers: list[nn.Module] = []
    for before, after in ((1, 24), (24, 48), (48, 48)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 16, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def fit(data: ImageSet, updates: int, seed: int) -> nn.Sequential:
    """A classifier, frozen. Images are noised a little, as those of a chain are; label smoothing keeps log r of a wrong
    class above log(SMOOTHING / 10) or so."""
    torch.manual_seed(seed)
    network, rng = build(), seeded(seed)
    answers = torch.from_numpy(data.labels).long()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for update in range(updates):
        rows = rng.integers(len(answers), BATCH)
        images = torch.from_numpy(from_pixels(data.images[rows.numpy()]))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - update / updates)
        noisy = images + NOISE * rng.normal_like(images)
        loss = functional.cross_entropy(network(noisy), answers[rows], label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def log_rewards(classifier: nn.Module, images: Tensor, y: Tensor) -> Tensor:
    """log r [B] of images [B, 1, 32, 32] for y [B] below GROUPS."""
    with torch.no_grad():
        return by_kind(classifier(images)).gather(1, y[:, None])[:, 0]


def by_kind(logits: Tensor) -> Tensor:
    """Logits [B, 10] -> log r [B, GROUPS]."""
    each = logits.log_softmax(dim=1)
    parity = [each[:, first::2].logsumexp(dim=1, keepdim=True) for first in (0, 1)]
    return torch.cat([each, *parity], dim=1)


def fits(classes: Tensor, y: Tensor) -> Tensor:
    """Whether a class [B] is what y [B] asks for."""
    return torch.where(y < CLASSES, classes == y, classes % 2 == y - CLASSES)


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

    def classifier_of(self, half: int, seed: int) -> nn.Sequential:
        data, updates = self.halves[half], self.args.classifier_updates
        stored = self.kept(f"classifier-{seed}", lambda: fit(data, updates, seed).state_dict())
        stored.pop("cpu_s")
        made = build()
        made.load_state_dict(stored)
        return made.eval().requires_grad_(False)

    @cached_property
    def classifier(self) -> nn.Sequential:
        """Whose probability is r."""
        return self.classifier_of(0, 11)

    @cached_property
    def judge(self) -> nn.Sequential:
        """Trained on other images; nothing is trained on its answers."""
        return self.classifier_of(1, 12)

    @cached_property
    def prior_folder(self) -> Path:
        return make_prior(MODELS / "teacher", self.args.data, self.args.prior_images, self.args.work)

    @cached_property
    def prior(self) -> Denoiser:
        return load_denoiser(self.prior_folder)[0]

    @cached_property
    def network(self) -> nn.Module:
        """The prior's, with an input for y."""
        assert isinstance(self.prior.network, nn.Module)
        return told(self.prior.network, read_card(self.prior_folder), GROUPS).requires_grad_(False)

    @cached_property
    def chain(self) -> Chain:
        def make() -> Tensors:
            sigmas = karras_sigmas(self.args.levels, SIGMA_MIN, SIGMA_MAX)
            images = torch.from_numpy(from_pixels(self.halves[0].images[:ROWS]))
            with torch.no_grad():
                errors = denoising_errors(self.prior, images, sigmas, lambda i: seeded(i).normal_like(images))
            return {"sigmas": torch.tensor(sigmas), "errors": torch.tensor(errors)}

        stored = self.kept("chain", make)
        return ancestral_chain(stored["sigmas"].tolist(), "opt", stored["errors"].tolist())

    def prior_images(self, count: int, seed: int) -> Tensor:
        """Images [count, 1, 32, 32] of the prior's chain."""
        rng, images = seeded(seed), []
        for first in range(0, count, ROWS):
            noise = torch.empty(min(ROWS, count - first), 1, 32, 32)
            with torch.no_grad():
                images.append(
                    sample_ancestral(self.prior, lambda _, like=noise: rng.normal_like(like), self.chain).images
                )
        return torch.cat(images)

    @cached_property
    def proposals(self) -> Tensors:
        """Images of the prior's chain and their log r [N, GROUPS]. Those behind `--proposals` are learned from."""
        classifier, _ = self.classifier, self.chain  # made first: their time is not that of these images

        def make() -> Tensors:
            images = self.prior_images(self.args.proposals + self.args.pool, seed=1)
            return {"images": images, "log_rewards": by_kind(classifier(images))}

        return self.kept("proposals", make)

    @cached_property
    def reference(self) -> list[tuple[Tensor, Tensor]]:
        """Of every y, the images that rejection accepts, in halves: one is a row, all rows are judged by the other."""
        count, rng, found = self.args.proposals, seeded(2), []
        for y in range(GROUPS):
            taken = rng.uniform(count).log() < self.proposals["log_rewards"][:count, y]
            images = self.proposals["images"][:count][taken]
            images = images[torch.randperm(len(images), generator=rng.generator)]
            half = min(len(images) // 2, self.args.judged)
            if half < 2:
                sys.exit(f"error: rejection accepts {len(images)} images of {KINDS[y]}; give more --proposals")
            found.append((images[:half], images[half : 2 * half]))
        return found

    @cached_property
    def y(self) -> Tensor:
        """Of every image of a row: as many of each y as rejection has."""
        return torch.cat([torch.full((len(images),), y) for y, (images, _) in enumerate(self.reference)])

    def log_z(self, y: int) -> float:
        """Exact but for the number of proposals: the log of the mean of r."""
        return float(self.proposals["log_rewards"][: self.args.proposals, y].exp().mean().log())

    def told(self, adapter: Adapter) -> Denoiser:
        """The posterior's denoiser."""
        return Denoiser(adapted(self.network, adapter), self.prior.sigma_data, GROUPS)

    def problem(self, adapter: Adapter) -> Problem:
        posterior = self.told(adapter)
        return Problem(
            lambda x, s, y: self.prior(x, s), lambda x, s, y: posterior(x, s, y), self.chain,
            partial(log_rewards, self.classifier), adapter.log_variance, GROUPS,
        )  # fmt: skip

    def new_adapter(self) -> Adapter:
        return Adapter(self.network, RANK, self.chain.steps, torch.Generator().manual_seed(700))
