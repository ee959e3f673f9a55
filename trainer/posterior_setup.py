"""What a posterior's run works with: the values that its stages share."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.adapters import Adapter, adapted
from fewstep.ancestral import Chain
from fewstep.card import Card
from fewstep.precond import Denoiser
from trainer.data.format import ImageSet
from trainer.methods.rtb import Problem
from trainer.posterior_checks import content_sha256
from trainer.posterior_options import Order
from trainer.rewards.named import Reward

# A log-ratio is a sum over pixel values, so its gradient grows with the image: 0.002 for 8x8, 0.0005 for 32x32 gray. At
# 0.002 tilted denoising ruined a denoiser of 32x32 gray (docs/log.md).
ROOT_LR = 0.016


def usual_lr(image_shape: tuple[int, ...]) -> float:
    """The learning rate of an adapter for images of this shape (C, H, W), where none is asked for."""
    return ROOT_LR / math.sqrt(math.prod(image_shape))


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

    def identity(self) -> dict[str, Any]:
        """What a run that goes on must share with the one it continues: settings, and the content of files.

        Those of --distil have their own (trainer.posterior_distil): the chain may be kept, and distilled later.
        """
        free = ("prior", "out", "data", "device", "checkpoint_s", "evaluated", "merged", "distil")
        named = {name: value for name, value in asdict(self.order).items() if name not in free}
        data = (self.order.data,) if self.order.data else ()
        contents = {"reward_sha256": content_sha256(self.reward.files), "data_sha256": content_sha256(data)}
        return json.loads(json.dumps({**named, "prior": self.card.weights, **contents}))

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
