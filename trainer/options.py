"""What one asks of the training commands: frozen values, a flag for each (fewstep.command_line).

Without torch, so that `--help` is quick.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fewstep.command_line import DURATION, FlagsOf, Flat, Hidden, Positional, Switch, arg, exclusive, value_of
from fewstep.ranges import COUNT, POSITIVE, SEED, Range, check_given, check_ranges
from fewstep.schedule import check_levels
from trainer.recipes.by_name import RECIPES
from trainer.recipes.recipe import NetworkSize
from trainer.settings import (
    BELOW_ONE,
    RATE,
    WIDTH,
    AdversarialConfig,
    ConsistencyConfig,
    Half,
    MethodName,
    ProgressiveConfig,
    StudentConfig,
)
from trainer.switches import CRITICS, FURTHER, TRAJECTORY

DIR = arg(metavar="DIR")


@dataclass(frozen=True)
class RunOptions:
    """The options of a run of one stage; all other settings come from the recipe. Raises RangeError."""

    recipe: Annotated[str, arg(metavar="NAME", help=f"{', '.join(RECIPES)}.")]
    out: Annotated[Path, DIR]
    """Folder of the result."""
    images: Annotated[int | None, COUNT] = None
    """Stop after so many training images (default: the recipe's, unless --budget is given)."""
    budget_s: Annotated[float | None, POSITIVE, DURATION, arg(name="budget")] = None
    """Stop after this long: 90s, 30m, 2h."""
    batch: Annotated[int | None, Range(1, 2**20, whole=True)] = None
    """Images of an update (default: the recipe's)."""
    seed: Annotated[int, SEED] = 0
    """Another one: another run."""
    resume: Switch[bool] = False
    """Continue the run in --out."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the network; auto measures which is faster."""
    tf32: Literal["on", "off"] = "on"
    """On a GPU: multiply float32 in TensorFloat-32, which keeps 10 bits of a factor and is several times faster."""
    compile: Literal["auto", "on", "off"] = "auto"
    """auto compiles where that saves time."""
    cuda_graphs: Switch[bool] = False
    """On a GPU: record whole updates as CUDA graphs, and replay them. For one process; never tried on a GPU yet."""
    device: Annotated[str | None, arg(metavar="{cpu,cuda}")] = None
    """cuda where there is one, unless given."""
    rows: Annotated[int | None, COUNT, arg(name="rows-at-once")] = None
    """Images of one network call in a process (default: all). A larger batch is computed in parts, and each part again
    for the gradient: less memory, a third more time, the same result."""
    shard: Switch[bool] = False
    """Divide networks, moments and averages among torchrun's processes (FSDP2); each has its own copy without it."""
    checkpoint_s: Annotated[float, Range(0), DURATION, arg(name="checkpoint-every")] = 300.0
    """How often the checkpoint is written."""
    snapshot_images: Annotated[int | None, COUNT, arg(name="snapshot-every")] = None
    """Also keep a checkpoint every so many training images, in OUT/snapshots."""
    network: Hidden[NetworkSize] = "small"
    label: Hidden[str | None] = None  # names the run in progress lines; None: the folder's name
    sheets: Hidden[bool] = True  # sample sheets beside the checkpoints
    announces: Hidden[bool] = True  # says how it computes, before the first update

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Distillation:
    """What a student run adds to RunOptions."""

    teacher: Annotated[Path, DIR]
    """Checkpoint folder of the teacher."""
    method: MethodName = "dpdm"
    """dpdm; a rival trained by the same loop; progressive: --init imitates itself with further calls; or adversarial:
    --init is trained on against --critic."""
    switches: Hidden[dict[str, Any]] = field(default_factory=dict)  # settings of the method that are given, by name
    start: Annotated[Path | None, DIR, arg(name="init")] = None
    """Continue this student with other settings, and its auxiliary if its folder has the state of its run."""
    lists: Annotated[Path | None, DIR, arg(name="lists-of")] = None
    """Train the level lists that this student serves, calibrated ones included, instead of Karras' levels."""
    kept: Annotated[Path | None, DIR] = None
    """--method progressive: the student that the anchored calls imitate (default: --init)."""
    critics: Annotated[tuple[Path, ...], arg(name="critic", metavar="DIR [DIR ...]")] = ()
    """Classifiers (trainer classifier) whose features --method adversarial uses."""


@dataclass(frozen=True)
class Images:
    """The images of a run."""

    data: Annotated[Path | None, arg(metavar="PATH")] = None
    """Your own data set, or a folder or zip of pictures (default: the recipe's)."""


@dataclass(frozen=True)
class TeacherCommand:
    run: Flat[RunOptions]
    images: Flat[Images]
    init: Annotated[Path | None, DIR] = None
    """Continue this teacher (it may be published or imported)."""
    lr: Annotated[float | None, RATE] = None
    """Learning rate (default: the recipe's)."""
    label_dropout: Annotated[float | None, BELOW_ONE] = None
    """Share of the images whose class the teacher is not told, such as 0.1: a student of it may take a guidance weight
    (default: the recipe's)."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class ClassifierCommand:
    run: Flat[RunOptions]
    images: Flat[Images]


def _levels(text: str) -> tuple[float, ...]:
    try:
        levels = tuple(float(part) for part in text.split(","))
        check_levels(levels)
    except ValueError as error:
        raise ValueError(f"{text!r} are no levels: write 0.1,0.05 ({error})") from None
    return levels


DPDM = FlagsOf(StudentConfig, (
    "renoise", "loss", "alpha", "weight", "objective", "auxiliary_sees_level", "auxiliary_updates", "auxiliary_first",
    "simulate", "simulate_from", "warm", "warm_pairs", "sigma_max", "top", "coarse", "guidance_max",
))  # fmt: skip
PROGRESSIVE = FlagsOf(
    ProgressiveConfig,
    FURTHER,
    values={"further": value_of(_levels, "SIGMA,...", lambda levels: ",".join(f"{level:g}" for level in levels))},
)
CONSISTENCY = FlagsOf(ConsistencyConfig, TRAJECTORY)
ADVERSARIAL = FlagsOf(AdversarialConfig, CRITICS)
Given = dict[str, Any]  # settings that are given on the command line, by the names of their fields


@dataclass(frozen=True)
class StudentCommand:
    run: Flat[RunOptions]
    images: Flat[Images]
    distillation: Flat[Distillation]
    dpdm: Annotated[Given, DPDM]
    """Variants of DPDM; what is not given is the recipe's. --top, --simulate and --coarse are of other methods, too."""
    progressive: Annotated[Given, PROGRESSIVE]
    """Progressive distillation of --init by itself."""
    consistency: Annotated[Given, CONSISTENCY]
    """Consistency distillation."""
    adversarial: Annotated[Given, ADVERSARIAL]
    """Continuation of --init against critics."""
    lr: Annotated[float | None, RATE] = None
    """Learning rate of the student (default: the recipe's)."""
    auxiliary_lr: Annotated[float | None, RATE] = None
    """Learning rate of the auxiliary and of the adversarial head (default: the recipe's)."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for flags, given in (
            (DPDM, self.dpdm), (PROGRESSIVE, self.progressive), (CONSISTENCY, self.consistency),
            (ADVERSARIAL, self.adversarial),
        ):  # fmt: skip
            check_given(flags.config, given)

    @property
    def switches(self) -> dict[str, Any]:
        """The settings of the method that are given, by name."""
        rates = {"lr": self.lr, "auxiliary_lr": self.auxiliary_lr}
        given = {name: rate for name, rate in rates.items() if rate is not None}
        return {**self.dpdm, **self.progressive, **self.consistency, **self.adversarial, **given}


@dataclass(frozen=True)
class AverageCommand:
    model: Annotated[Path, DIR]
    """Folder of the run."""
    width: Annotated[float, WIDTH]
    """Standard deviation of its profile, as a share of the run: 0.05, 0.15 (the student's), 0.2."""
    out: Annotated[Path, DIR]
    """Folder of the result."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class PublishCommand:
    model: Annotated[Path, DIR]
    """Checkpoint folder."""
    out: Annotated[Path, DIR]
    """Folder of the copy."""


LENGTH = exclusive("budget")  # --preset or --budget
FREE = ("out", "device", "processes")  # options of `fewstep train` that may differ when a run goes on


@dataclass(frozen=True)
class Order:
    """What `fewstep train` is asked for. None: not given."""

    photos: Positional[Annotated[str, arg(metavar="PHOTOS")]]
    """Pictures, or a recipe's name."""
    out: Annotated[Path, DIR]
    """Where everything goes."""
    budget_s: Annotated[float | None, POSITIVE, DURATION, LENGTH, arg(name="budget")] = None
    """For the whole command: 90s, 30m, 6h."""
    size: Literal[32, 64] | None = None
    """Side of the images in pixels (default: 32)."""
    network: NetworkSize | None = None
    """Default: small on a CPU, large on a GPU."""
    device: Literal["cpu", "cuda"] | None = None
    """Default: cuda where there is one."""
    seed: Annotated[int | None, Range(0, 2**31, whole=True)] = None
    """Another one: another run (default: 0)."""
    half: Half | None = None
    """Of a recipe's pictures; a leaves b to the judges of the panel (default: all)."""
    processes: Annotated[int | None, Range(1, 64, whole=True)] = None
    """Processes that share every batch: on GPUs one for each (default: one process)."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def facts(self) -> dict[str, Any]:
        """The options that decide the result, JSON-able."""
        given = asdict(self) | {"photos": self.photos if self.names_recipe else str(Path(self.photos).resolve())}
        return {name: value for name, value in given.items() if value is not None and name not in FREE}

    @property
    def where(self) -> str:
        from trainer.run.compute import usable_device

        return usable_device(self.device)

    @property
    def names_recipe(self) -> bool:
        """Whether `photos` is a recipe's name. A file or folder of that name has precedence."""
        return self.photos in RECIPES and not Path(self.photos).exists()


@dataclass(frozen=True)
class TrainCommand:
    order: Flat[Order]
    preset: Annotated[Literal["quick", "good", "overnight"] | None, LENGTH] = None
    """A budget: 10 minutes, 2 hours (the default) or 8 hours."""
    dry_run: Switch[bool] = False
    """Measure, print the plan, and write nothing."""
    first: Annotated[str | None, arg(name="from", metavar="STAGE")] = None
    """Make this stage and what follows anew: data, teacher, dpdm (and a recipe's own), export, report."""
    serve: Switch[bool] = False
    """Then serve the student."""
