"""The Earth's surface enlarged four times: 64x64 RGB crops of it, made from their 16x16 reductions.

The network is convolutions alone, so that what is trained on crops of 64 pixels runs on 256. It learns what an enlarged
image lacks (fewstep.residual_precond). That has a deviation of 0.10, a fifth of EDM's images', and so the levels are a
fifth of EDM's.
"""

import math
from dataclasses import replace

from fewstep.conditions import low_image
from fewstep.unet_config import UNetConfig
from trainer.recipes.recipe import Recipe, Stage
from trainer.settings import NoiseDistribution, StudentConfig, TeacherConfig

SIDE, FACTOR = 64, 4
NETWORK = UNetConfig(
    SIDE, 3, width=32, mult=(1, 2, 2), blocks=1, patch=2, inner_attention=False,
    precond="residual", conditions=(low_image(3, SIDE // FACTOR),),
)  # fmt: skip
LEVELS = NoiseDistribution(math.log(0.10 / 0.5) - 1.2, 1.2)
EARTH_X4 = Recipe(
    NETWORK,
    large=replace(NETWORK, width=96, blocks=2),
    stages=(Stage("teacher", "teacher", 0.55), Stage("dpdm", "dpdm", 0.45)),
    teacher=TeacherConfig(noise=LEVELS),
    student=StudentConfig(sigma_min=0.004, sigma_max=1.0, floor=0.01, lognormal=LEVELS),
    batch=32,
    teacher_images=100_000,
    student_images=40_000,
    flip=True,
)
