"""Any colour pictures of one kind, 32x32 or 64x64: what a folder of pictures is trained with.

The CPU's network at 64 pixels is thin at full resolution: patch 2, width 32, mult (1, 2, 3), one block, 1.9 M
parameters. Of six networks that were trained on `earth` for the same minutes of a core (benchmarks/networks.py) it had
the least held-out loss: 0.41 after 7.5 minutes, where the others had 0.50 to 0.62, and 0.22 after 20, where the next
best had 0.25.

Students start at noise level 20 with 64x64 pixels. Noise of 2.5, where those of Fashion-MNIST start, does not hide the
brightness of such a picture: noise of level s moves the mean of side x side pixels by s / side, here 0.04, and the
brightness of photographs varies ten times as much. The teacher takes pure noise of 2.5 for a gray picture of any class,
and the student cannot leave that: on `earth` coasts were white after 19,000 images from 2.5, and right after 5,000
from 20. At 32x32 pixels level 10 moves the mean as much as 20 does at 64x64.
"""

from dataclasses import replace

from fewstep.unet_config import UNetConfig, ddpmpp
from trainer.recipes.recipe import Recipe
from trainer.settings import StudentConfig

PHOTOS = Recipe(
    UNetConfig(width=64, mult=(1, 2, 2), blocks=2, patch=2), student=StudentConfig(sigma_max=10.0), large=ddpmpp(32),
    flip=True,
)  # fmt: skip
PHOTOS_64 = replace(
    PHOTOS, network=UNetConfig(64, width=32, mult=(1, 2, 3), blocks=1, patch=2), student=StudentConfig(sigma_max=20.0),
    large=ddpmpp(64), large_batch=128,
)  # fmt: skip
