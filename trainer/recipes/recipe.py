"""A recipe: the networks, the settings and the stages that suit a data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fewstep.unet_config import UNetConfig
from trainer.settings import (
    AdversarialConfig,
    ConsistencyConfig,
    MethodName,
    ProgressiveConfig,
    StudentConfig,
    TeacherConfig,
)

NetworkSize = Literal["small", "large"]


@dataclass(frozen=True)
class Stage:
    """One training run of a recipe. `start`, `kept` and `critics` name earlier stages whose results it uses."""

    name: str  # and the folder of its result
    method: Literal["teacher", "classifier"] | MethodName
    share: float  # of the budget's training time; the shares of a recipe sum to 1
    start: str | None = None  # the student that is continued
    kept: str | None = None  # progressive distillation: the student that anchored calls imitate
    critics: tuple[str, ...] = ()  # adversarial continuation: the classifiers
    switches: Mapping[str, Any] = field(default_factory=dict)  # of the method, named as on the command line
    batch: int | None = None  # where it is not the recipe's
    seed: int = 0

    @property
    def parents(self) -> tuple[str, ...]:
        """The stages whose results it uses. Every student is distilled from the stage `teacher`."""
        teacher = () if self.method in ("teacher", "classifier") else ("teacher",)
        return (*teacher, *(name for name in (self.start, self.kept) if name), *self.critics)


TEACHER_AND_STUDENT = (Stage("teacher", "teacher", 0.55), Stage("dpdm", "dpdm", 0.45))


@dataclass(frozen=True)
class Recipe:
    network: UNetConfig  # that a CPU can train; resolution, channels and classes are taken from the data
    large: UNetConfig | None = None  # that needs a GPU
    stages: tuple[Stage, ...] = TEACHER_AND_STUDENT  # the last one makes the student that is exported
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    progressive: ProgressiveConfig = ProgressiveConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    batch: int = 64
    large_batch: int = 256
    teacher_images: int = 1_000_000  # length of a single stage's run without --images or --budget
    student_images: int = 500_000
    classifier_images: int = 400_000
    flip: bool = False  # mirrored images belong to the data

    def network_of(self, size: NetworkSize) -> UNetConfig:
        return self.large if size == "large" and self.large else self.network

    def batch_of(self, size: NetworkSize) -> int:
        return self.large_batch if size == "large" and self.large else self.batch
