"""What a posterior's run is asked for, and what it works with: the values that its stages share."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.adapters import Adapter, adapted
from fewstep.ancestral import Chain, VarianceRule
from fewstep.card import Card
from fewstep.precond import Denoiser
from trainer.data.format import ImageSet
from trainer.methods.rtb import Problem
from trainer.posterior_checks import content_sha256
from trainer.rewards.named import Reward
from trainer.settings import DistilConfig, PosteriorConfig


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    prior: Path
    reward: str
    out: Path
    config: PosteriorConfig = PosteriorConfig()
    lr: float | None = None  # None: by the number of pixel values
    data: Path | None = None
    updates: int = 300
    batch: int = 64
    steps: int = 30  # network calls of an image
    sigma_min: float = 0.05
    sigma_max: float = 80.0
    variance: VarianceRule = "opt"
    rank: int = 4
    noise: float = 0.1  # standard deviation of a measurement
    warm_start: int = 0  # updates of tilted denoising
    pool: int = 4096
    evaluated: int = 1000
    merged: bool = False
    distil: DistilConfig | None = None  # None: no student
    seed: int = 0
    device: str | None = None
    checkpoint_s: float = 300.0

    def identity(self, prior: Card, reward: Reward) -> dict[str, Any]:
        """What a run that goes on must share with the one it continues: settings, and the content of files."""
        free = ("prior", "out", "data", "device", "checkpoint_s", "evaluated", "merged", "distil")
        named = {name: value for name, value in asdict(self).items() if name not in free}
        data = (self.data,) if self.data else ()
        contents = {"reward_sha256": content_sha256(reward.files), "data_sha256": content_sha256(data)}
        return json.loads(json.dumps({**named, "prior": prior.weights, **contents}))


@dataclass(frozen=True)
class Setup:
    """Prior and posterior of a run. y is told to the posterior alone (a reward for each group), to both (a prior with
    classes), or to none."""

    order: Order
    card: Card
    denoiser: Denoiser  # the prior's
    network: nn.Module  # the prior's, with an input for y where the posterior is told one
    reward: Reward
    data: ImageSet | None
    chain: Chain
    device: str

    @property
    def groups(self) -> int:
        return self.reward.groups or self.denoiser.classes

    def prior(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        return self.denoiser(x, sigma, y if self.denoiser.classes else None)

    def posterior(self, adapter: Adapter) -> Denoiser:
        return Denoiser(adapted(self.network, adapter), self.denoiser.sigma_data, self.groups)

    def problem(self, adapter: Adapter) -> Problem:
        posterior = self.posterior(adapter)
        return Problem(
            self.prior, lambda x, sigma, y: posterior(x, sigma, y if self.groups else None), self.chain,
            self.reward.log_reward, adapter.log_variance, max(self.groups, 1),
        )  # fmt: skip

    def y(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device) % max(self.groups, 1)

    def like(self, count: int) -> Tensor:
        return torch.zeros(count, *self.card.image_shape, device=self.device)
