"""Handwritten digits, 8x8 gray, from scikit-learn: for tests and first runs."""

from fewstep.unet_config import UNetConfig
from trainer.recipes.recipe import Recipe

DIGITS = Recipe(
    UNetConfig(resolution=8, width=32, mult=(1, 2), blocks=1),
    large=UNetConfig(resolution=8, width=64, mult=(1, 2), blocks=2),
    batch=128,
    teacher_images=400_000,
    student_images=150_000,
)
