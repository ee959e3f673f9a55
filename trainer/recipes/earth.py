"""Crops of the Earth's surface, 64x64 RGB, six classes.

DPDM, then one call by self-distillation, then all calls against critics on the features of a classifier.

Students start at noise level 20. Noise of 2.5, where other recipes start, does not hide the brightness of 64x64
pixels: the teacher takes pure noise of that level for a gray picture of any class (mean -0.2 to 0.0, where the means of
the classes are -0.8 to -0.1), and at 20 for a picture of the class (-0.7 to -0.1). From 2.5, coasts were still white
after 19,000 images.
"""

from dataclasses import replace

from trainer.recipes.photos import PHOTOS_64
from trainer.recipes.recipe import Stage
from trainer.settings import StudentConfig

STAGES = (
    Stage("teacher", "teacher", 0.53),
    Stage("dpdm", "dpdm", 0.28),
    Stage("self-distill", "progressive", 0.07, start="dpdm", switches={"further_for": 1}),
    Stage("classifier", "classifier", 0.03, seed=1),
    Stage(
        "adversarial", "adversarial", 0.09, start="self-distill", critics=("classifier",), switches={"clip": True},
        seed=2,
    ),
)  # fmt: skip

EARTH = replace(PHOTOS_64, stages=STAGES, student=StudentConfig(sigma_max=20.0))
