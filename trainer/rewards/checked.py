"""What every reward must return, said in a sentence when it does not."""

import torch
from torch import Tensor

from trainer.methods.rtb import LogReward

FLOOR = -20.0  # of log r: smaller ones only say "no", and would rule the gradient


class RewardError(ValueError):
    """A reward that cannot be used; the message says what it returned and what is allowed."""


def checked(reward: LogReward, name: str, floor: float = FLOOR) -> LogReward:
    """The reward, in float32 and at least `floor`. Where it returns no finite log r [B], RewardError says so.

    -inf is allowed, for images that are impossible: it becomes the floor.
    """

    @torch.no_grad()
    def run(images: Tensor, y: Tensor) -> Tensor:
        found = reward(images, y)
        if not isinstance(found, Tensor):
            raise RewardError(f"the reward {name} returned {type(found).__name__}; it must return a tensor of log r")
        if tuple(found.shape) != (len(images),):
            raise RewardError(
                f"the reward {name} returned the shape {list(found.shape)} for {len(images)} images; it must return "
                f"one log r for every image, the shape [{len(images)}]"
            )
        found = found.to(images.device, torch.float32)
        bad = {"NaN": found.isnan().sum(), "+inf": found.isposinf().sum()}
        for what, count in bad.items():
            if count:
                raise RewardError(
                    f"the reward {name} returned {what} for {int(count)} of {len(images)} images; log r must be a "
                    "number, or -inf where an image is impossible"
                )
        return found.clamp(min=floor)

    return run
