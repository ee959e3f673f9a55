"""Where the conditions of a training batch come from: the images themselves, or a draw."""

from torch import Tensor
from torch.nn import functional

from fewstep.conditions import GUIDANCE, LOW, Condition, Conditions
from trainer.run.draws import Draws

KNOWN = (LOW, GUIDANCE)  # those that a batch of images has


def of_images(conditions: Conditions, images: Tensor) -> dict[str, Tensor]:
    """What follows from images [B, C, H, W] in [-1, 1]: `low`, the means over squares of their pixels."""
    return {condition.name: reduced(images, condition) for condition in conditions if condition.name == LOW}


def reduced(images: Tensor, condition: Condition) -> Tensor:
    """The images [B, C, H, W] at the size of `low` [B, C, h, w], of which H and W are multiples."""
    _, height, width = condition.shape
    return functional.adaptive_avg_pool2d(images, (height, width))


def enlarged_again(images: Tensor, condition: Condition) -> Tensor:
    """The images [B, C, H, W] reduced to `low` and enlarged as a network sees it."""
    return functional.interpolate(
        reduced(images, condition), size=images.shape[2:], mode="bilinear", align_corners=False
    )


def drawn(conditions: Conditions, images: Tensor, rng: Draws) -> dict[str, Tensor]:
    """`of_images`, and guidance weights [B], uniform over their range."""
    values = of_images(conditions, images)
    for condition in conditions:
        if condition.name == GUIDANCE:
            values[GUIDANCE] = condition.low + (condition.high - condition.low) * rng.uniform(len(images))
    return values


def without_some(labels: Tensor, share: float, rng: Draws) -> Tensor:
    """The labels [B] with this share of them, on average, replaced by -1, no class. 0 draws nothing."""
    return labels if share == 0 else labels.masked_fill(rng.uniform(len(labels)) < share, -1)
