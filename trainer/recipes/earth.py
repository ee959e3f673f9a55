"""Crops of the Earth's surface, 64x64 RGB, six classes.

DPDM, then one call by self-distillation, then all calls against critics on the features of a classifier.
"""

from dataclasses import replace

from trainer.recipes.photos import PHOTOS_64
from trainer.recipes.recipe import Stage

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

EARTH = replace(PHOTOS_64, stages=STAGES)
