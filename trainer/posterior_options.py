"""What one asks of `fewstep posterior`: frozen values, a flag for each (fewstep.command_line)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from fewstep.ancestral import VarianceRule
from fewstep.command_line import FlagsOf, Flat, Hidden, Switch, arg, value_of
from fewstep.ranges import SEED, Range, RangeError, check_ranges, flag_of
from trainer.settings import RATE, AdamConfig, BehaviourMix, PosteriorConfig

DIR = arg(metavar="DIR")
SHARES = tuple(field.name for field in fields(BehaviourMix))
LEVEL = Range(0.001, 10_000)  # in float32 the square of a lower one is lost beside an image
MOST_UPDATES, MOST_IMAGES = 10**7, 10**6  # images: those that are kept in memory


@dataclass(frozen=True)
class DistilConfig:
    """How a posterior's chain becomes a student (trainer.posterior_distil)."""

    student: Annotated[Path | None, arg(name="distil-from", metavar="DIR")] = None
    """A student of the prior, from which the posterior's starts (default: its teacher)."""
    pool: Annotated[int, Range(2, MOST_IMAGES, whole=True), arg(name="distil-pool")] = 4096
    """Images of the chain that it learns from."""
    weighted: Annotated[Switch[bool], arg(name="distil-weighted")] = False
    """Draw these images by their importance weights."""
    consolidate: Annotated[int, Range(1, MOST_UPDATES, whole=True), arg(name="distil-consolidate")] = 400
    """Updates of the teacher of all levels; of a student's one network."""
    updates: Annotated[int, Range(1, MOST_UPDATES, whole=True), arg(name="distil-updates")] = 1000
    """Updates of the student."""
    lr: Annotated[float | None, RATE, arg(name="distil-lr")] = None  # the student's is a quarter of it
    """Learning rate of the teacher's and auxiliary's adapters (default: 0.016 / root of the pixel values)."""
    adam: AdamConfig = AdamConfig(2e-3, (0.9, 0.99), warmup=0.05, decay_from=0.5, final=0.02, clip=1.0)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    prior: Annotated[Path, DIR]
    """A teacher; or a student, on the chain of its own steps."""
    reward: Annotated[str, arg(metavar="REWARD")]
    """See above."""
    out: Annotated[Path, DIR]
    """Where everything goes."""
    config: Hidden[PosteriorConfig] = PosteriorConfig()
    lr: Annotated[float | None, RATE] = None
    """Learning rate (default: 0.016 / root of the pixel values)."""
    data: Annotated[Path | None, arg(metavar="ZIP")] = None
    """Images of the behaviour noised_back."""
    updates: Annotated[int, Range(1, MOST_UPDATES, whole=True)] = 300
    """Batches of trajectories."""
    batch: Annotated[int, Range(2, 2**16, whole=True)] = 64
    """Trajectories of an update."""
    steps: Annotated[int, Range(2, 1000, whole=True)] = 30
    """Network calls of an image."""
    sigma_min: Annotated[float, LEVEL] = 0.05
    """Lowest level."""
    sigma_max: Annotated[float, LEVEL] = 80.0
    """Highest level."""
    variance: VarianceRule = "opt"
    """Of the prior's steps."""
    rank: Annotated[int, Range(1, 1024, whole=True)] = 4
    """Of the adapter."""
    noise: Annotated[float, LEVEL] = 0.1
    """Standard deviation of a measurement."""
    warm_start: Annotated[int, Range(0, MOST_UPDATES, whole=True)] = 0
    """First so many updates of tilted denoising."""
    pool: Annotated[int, Range(2, MOST_IMAGES, whole=True)] = 4096
    """Samples of the prior for the warm start."""
    evaluated: Annotated[int, Range(2, MOST_IMAGES, whole=True), arg(name="evaluate")] = 1000
    """Trajectories behind the monitors."""
    merged: Switch[bool] = False
    """Write OUT/merged, a model with the adapter in its weights, as well."""
    distil: Hidden[DistilConfig | None] = None  # None: no student
    seed: Annotated[int, SEED] = 0
    """Another one: another run."""
    device: Literal["cpu", "cuda"] | None = None
    """Default: cuda where there is one."""
    checkpoint_s: Annotated[float, Range(0), arg(name="checkpoint-every", metavar="SECONDS")] = 300.0
    """Seconds between checkpoints."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.sigma_min >= self.sigma_max:
            low, high = f"{self.sigma_min:g}", f"{self.sigma_max:g}"
            raise RangeError(f"--sigma-min must be below --sigma-max, and {low} is not below {high}")
        if self.config.mix.noised_back and not self.data:
            raise RangeError("--mix with noised_back needs images: give --data ZIP")


def mix(text: str) -> BehaviourMix:
    """A mix such as on_policy=0.7,prior=0.3; what is not named has no share. Raises ValueError."""
    shares = dict.fromkeys(SHARES, 0.0)
    for part in text.split(","):
        name, _, share = part.partition("=")
        if name not in shares:
            raise ValueError(f"{name!r} is no behaviour; the behaviours are {', '.join(SHARES)}")
        try:
            shares[name] = float(share)
        except ValueError:
            raise ValueError(f"{part!r} has no share; write {name}=0.5") from None
    return BehaviourMix(**shares)


def show_mix(shares: BehaviourMix) -> str:
    return ",".join(f"{name}={share:g}" for name, share in vars(shares).items() if share)


TARGET = FlagsOf(
    PosteriorConfig,
    ("beta", "beta_start", "beta_until", "log_z", "mix", "levels", "dead_zone", "clip"),
    defaults=True,
    values={"mix": value_of(mix, "NAME=SHARE,...", show_mix)},
)


DISTIL = FlagsOf(DistilConfig, ("student", "pool", "weighted", "consolidate", "updates", "lr"), defaults=True)


@dataclass(frozen=True)
class PosteriorCommand:
    asked: Flat[Order]
    target: Annotated[Mapping[str, Any], TARGET]
    """The target, and whose trajectories are learned from."""
    student: Annotated[Mapping[str, Any], DISTIL]
    """How --distil makes its student."""
    distilled: Annotated[Switch[bool], arg(name="distil")] = False
    """Make a student of few steps in OUT/student, as well."""
    fixed_variance: Switch[bool] = False
    """The posterior's steps keep the variance of the prior's."""

    @property
    def order(self) -> Order:
        """Raises RangeError."""
        beta = {"beta_start": self.target["beta"]} if "beta" in self.target else {}
        config = PosteriorConfig(**{**beta, **self.target}, learn_variance=not self.fixed_variance)
        if self.student and not self.distilled:
            given = ", ".join(flag_of(DistilConfig, name) for name in self.student)
            raise RangeError(f"{given}: only with --distil; add it")
        distil = DistilConfig(**self.student) if self.distilled else None
        return replace(self.asked, config=config, distil=distil)
