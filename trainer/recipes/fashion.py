"""Fashion-MNIST, 32x32 gray, ten classes: the stages that the shipped student was made by.

Distillation by DPDM; two rounds in which one call learns what further calls would have made of it; critics on the
features of three classifiers; one call alone, first with black that is black, then against the critics, and mended
while the other calls are kept; critics of the other calls. docs/log.md says what each of them brought. The shares are
what the stages of the shipped student took; the means over several of its runs are post-hoc averages of one run here.
"""

from typing import Any

from fewstep.unet_config import UNetConfig, ddpmpp
from trainer.recipes.recipe import Recipe, Stage

CRITICS = ("classifier-1", "classifier-2", "classifier-3")
BLACK: dict[str, Any] = {"further_for": 1, "saturate": 0.02}

STAGES = (
    Stage("teacher", "teacher", 0.16),
    Stage("dpdm", "dpdm", 0.18),
    Stage("further", "progressive", 0.08, start="dpdm", batch=128),
    Stage("further-again", "progressive", 0.05, start="further", switches={"lr": 1e-4}, batch=128, seed=1),
    *(Stage(name, "classifier", 0.015, seed=seed) for seed, name in enumerate(CRITICS, start=1)),
    Stage("critics", "adversarial", 0.17, start="further-again", critics=CRITICS, seed=4),
    Stage("black", "progressive", 0.03, start="critics", switches={**BLACK, "top": 0.3, "lr": 2e-5}, seed=1),
    Stage(
        "alone", "adversarial", 0.08, start="black", critics=CRITICS,
        switches={"play": "first", "clip": True, "keep": 0.3, "lr": 6e-6}, seed=9,
    ),
    Stage(
        "mended", "progressive", 0.12, start="alone", kept="black",
        switches={**BLACK, "simulate": 0.5, "top": 0.45, "lr": 1e-4}, seed=4,
    ),
    Stage(
        "rest", "adversarial", 0.045, start="mended", critics=CRITICS,
        switches={"play": "rest", "clip": True, "simulate": 1.0, "keep": 0.5}, seed=21,
    ),
    Stage(
        "mended-again", "progressive", 0.04, start="rest", kept="critics",
        switches={**BLACK, "simulate": 0.5, "top": 0.45, "lr": 5e-5}, seed=6,
    ),
)  # fmt: skip

# A patch-2 stem halves the side the network works at: four times cheaper, and not visibly worse at 32x32.
FASHION = Recipe(UNetConfig(width=48, mult=(1, 2), blocks=2, patch=2), large=ddpmpp(32, 1), stages=STAGES)
