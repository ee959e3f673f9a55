"""Crops of the Earth's surface, 64x64 RGB, six classes.

DPDM, then one call by self-distillation, then all calls against critics on the features of a classifier. Each of these
moves the brightness of later calls away from what their input shows, so that the last stage takes it from the teacher.
"""

from dataclasses import replace

from trainer.recipes.photos import PHOTOS_64
from trainer.recipes.recipe import Stage

STAGES = (
    Stage("teacher", "teacher", 0.50),
    Stage("dpdm", "dpdm", 0.27),
    Stage("self-distill", "progressive", 0.07, start="dpdm", switches={"further_for": 1}),
    Stage("classifier", "classifier", 0.03, seed=1),
    Stage(
        "adversarial", "adversarial", 0.08, start="self-distill", critics=("classifier",), switches={"clip": True},
        seed=2,
    ),
    Stage(
        "coarse", "progressive", 0.05, start="adversarial", seed=3,
        switches={"further_for": 1, "further": (0.05,), "coarse": 0.05, "simulate": 0.5, "top": 0.2},
    ),
)  # fmt: skip

EARTH = replace(PHOTOS_64, stages=STAGES)
