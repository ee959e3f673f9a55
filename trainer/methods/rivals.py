"""Other distillation methods as settings of the same student. DMD2, consistency and progressive distillation have
files of their own.

Each keeps the settings that define the method and takes the recipe's optimisers, so that a table compares methods and
not learning rates. The papers' own rates are for runs a hundred times longer.
"""

from dataclasses import replace

from fewstep.schedule import SIGMA_MAX
from trainer.settings import StudentConfig


def diff_instruct(base: StudentConfig) -> StudentConfig:
    """Luo et al. 2023: one step from sigma 2.5, no data, unweighted score difference at EDM's training levels."""
    return replace(
        base,
        renoise="lognormal",
        steps=(1,),
        sigma_max=2.5,
        floor=0.002,
        weight="one",
        auxiliary_sees_level=False,  # there is only one level
    )


def tied(base: StudentConfig) -> StudentConfig:
    """The DPDM paper's own variant: outputs are noised to the level of the student's input (Eq. 3.4)."""
    return replace(
        base,
        renoise="tied",
        sigma_max=SIGMA_MAX,
        auxiliary_sees_level=False,
        simulate=0.0,
        warm=0.0,
    )
