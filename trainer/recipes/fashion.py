"""Fashion-MNIST, 32x32 gray, ten classes: the stages that the shipped student was made by.

Distillation by DPDM; two rounds of self-distillation; all calls against critics on the features of three classifiers;
then the list of one call alone, by self-distillation with saturated targets, against the critics, and by
self-distillation again while the other calls are anchored; the other calls against the critics; and a last round of
self-distillation. docs/log.md says what each of them brought. The shares are the times that the stages of the shipped
student took; where that student was the mean of several runs, the average of one run (trainer.run.ema) is used here.
"""

from typing import Any

from fewstep.unet_config import UNetConfig, ddpmpp
from trainer.recipes.recipe import Recipe, Stage

CRITICS = ("classifier-1", "classifier-2", "classifier-3")
# Self-distillation of the list of one call, with targets that are exactly black or white where they almost are.
SATURATED: dict[str, Any] = {"further_for": 1, "saturate": 0.02}

STAGES = (
    Stage("teacher", "teacher", 0.16),
    Stage("dpdm", "dpdm", 0.18),
    Stage("self-distill-1", "progressive", 0.08, start="dpdm", batch=128),
    Stage("self-distill-2", "progressive", 0.05, start="self-distill-1", switches={"lr": 1e-4}, batch=128, seed=1),
    *(Stage(name, "classifier", 0.015, seed=seed) for seed, name in enumerate(CRITICS, start=1)),
    Stage("adversarial-all-calls", "adversarial", 0.17, start="self-distill-2", critics=CRITICS, seed=4),
    Stage(
        "self-distill-one-call", "progressive", 0.03, start="adversarial-all-calls",
        switches={**SATURATED, "top": 0.3, "lr": 2e-5}, seed=1,
    ),
    Stage(
        "adversarial-one-call", "adversarial", 0.08, start="self-distill-one-call", critics=CRITICS,
        switches={"trained_steps": "first", "clip": True, "imitation_share": 0.3, "lr": 6e-6}, seed=9,
    ),
    Stage(
        "self-distill-one-call-2", "progressive", 0.12, start="adversarial-one-call", kept="self-distill-one-call",
        switches={**SATURATED, "simulate": 0.5, "top": 0.45, "lr": 1e-4}, seed=4,
    ),
    Stage(
        "adversarial-other-calls", "adversarial", 0.045, start="self-distill-one-call-2", critics=CRITICS,
        switches={"trained_steps": "rest", "clip": True, "simulate": 1.0, "imitation_share": 0.5}, seed=21,
    ),
    Stage(
        "self-distill-one-call-3", "progressive", 0.04, start="adversarial-other-calls", kept="adversarial-all-calls",
        switches={**SATURATED, "simulate": 0.5, "top": 0.45, "lr": 5e-5}, seed=6,
    ),
)  # fmt: skip

# A patch-2 stem halves the side the network works at: four times cheaper, and not visibly worse at 32x32.
FASHION = Recipe(UNetConfig(width=48, mult=(1, 2), blocks=2, patch=2), large=ddpmpp(32, 1), stages=STAGES)
