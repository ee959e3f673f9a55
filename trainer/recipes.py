"""Recipes: a data set together with the network and the settings that suit it."""

from dataclasses import dataclass, replace

from fewstep.unet_config import UNetConfig
from trainer.dataset import ImageSet
from trainer.settings import AdversarialConfig, ConsistencyConfig, ProgressiveConfig, StudentConfig, TeacherConfig


class UnknownRecipeError(ValueError):
    """No recipe of that name."""


@dataclass(frozen=True)
class Recipe:
    network: UNetConfig  # resolution, channels and classes are taken from the data
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    progressive: ProgressiveConfig = ProgressiveConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    batch: int = 64
    teacher_images: int = 1_000_000  # length of a run without --images or --budget
    student_images: int = 500_000
    classifier_images: int = 400_000
    flip: bool = False  # mirrored images belong to the data


# A patch-2 stem halves the side the network works at: four times cheaper, and not visibly worse at 32x32.
_SMALL32 = UNetConfig(width=48, mult=(1, 2), blocks=2, patch=2)
_COLOUR32 = UNetConfig(width=64, mult=(1, 2, 2), blocks=2, patch=2)

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        UNetConfig(resolution=8, width=32, mult=(1, 2), blocks=1),
        batch=128,
        teacher_images=400_000,
        student_images=150_000,
    ),
    "fashion": Recipe(_SMALL32),
    "sprites": Recipe(_COLOUR32, flip=True),
    "emoji": Recipe(_COLOUR32),
}


def recipe(name: str) -> Recipe:
    """Raises UnknownRecipeError, listing those that exist."""
    if name not in RECIPES:
        raise UnknownRecipeError(f"there is no recipe {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]


def fitted(network: UNetConfig, data: ImageSet) -> UNetConfig:
    """The network with the shape of the data."""
    _, resolution, _, channels = data.images.shape
    classes = len(data.class_names) if (data.labels >= 0).any() else 0
    return replace(network, resolution=resolution, channels=channels, classes=classes)
