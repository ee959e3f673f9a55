"""The Earth's surface enlarged four times: 64x64 RGB crops of it, made from their 16x16 reductions.

The network is convolutions alone, so that what is trained on crops of 64 pixels runs on 256. Levels are low: the reduction
fixes brightness and shapes, and what is left to draw has a deviation of about 0.1. The student starts where its noise
covers that.
"""

from fewstep.conditions import low_image
from fewstep.unet_config import UNetConfig
from trainer.recipes.recipe import Recipe, Stage
from trainer.settings import NoiseDistribution, StudentConfig, TeacherConfig

SIDE, FACTOR = 64, 4
NETWORK = UNetConfig(
    SIDE, 3, width=32, mult=(1, 2), blocks=1, patch=2, inner_attention=False,
    conditions=(low_image(3, SIDE // FACTOR),),
)  # fmt: skip
EARTH_X4 = Recipe(
    NETWORK,
    stages=(Stage("teacher", "teacher", 0.55), Stage("dpdm", "dpdm", 0.45)),
    teacher=TeacherConfig(noise=NoiseDistribution(-1.6, 1.0)),
    student=StudentConfig(sigma_max=1.0),
    teacher_images=200_000,
    student_images=80_000,
    flip=True,
)
