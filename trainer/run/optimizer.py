"""Adam with warm-up, linear decay and clipping, as all methods use it."""

import torch
from torch import Tensor, nn

from trainer.run.sharding import undivided
from trainer.run.tape import number_at
from trainer.settings import AdamConfig


def adam(network: nn.Module, config: AdamConfig) -> torch.optim.Adam:
    """Of all parameters of the network; fused, so that the host does not wait for its step count."""
    return torch.optim.Adam(network.parameters(), config.lr, config.betas, fused=True)


def learning_rate(config: AdamConfig, progress: float) -> float:
    """At this share of the run, 0 to 1: it rises over `warmup`, and from `decay_from` falls to `final` of `lr`."""
    rise = min((progress + 1e-3) / config.warmup, 1.0) if config.warmup else 1.0
    fallen = max(progress - config.decay_from, 0.0) / max(1 - config.decay_from, 1e-9)
    return config.lr * rise * (1 - fallen * (1 - config.final))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, config: AdamConfig, progress: float) -> Tensor:
    """One clipped step down the loss; returns the gradient norm before clipping."""
    group = optimizer.param_groups[0]
    group["lr"] = number_at(progress, lambda now: learning_rate(config, now))
    loss.backward()
    norm = nn.utils.clip_grad_norm_(group["params"], config.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return undivided(norm)
