"""What a recipe says: the network and the settings that suit a data set."""

from dataclasses import dataclass

from fewstep.unet_config import UNetConfig
from trainer.settings import AdversarialConfig, ConsistencyConfig, ProgressiveConfig, StudentConfig, TeacherConfig


@dataclass(frozen=True)
class Recipe:
    network: UNetConfig  # resolution, channels and classes are taken from the data
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    progressive: ProgressiveConfig = ProgressiveConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    batch: int = 64
    teacher_images: int = 1_000_000  # length of a run without --images or --budget
    student_images: int = 500_000
    classifier_images: int = 400_000
    flip: bool = False  # mirrored images belong to the data
