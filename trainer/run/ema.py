"""Post-hoc averages of the weights. They are sampled from, saved and served.

Two averages are updated during training, and both are stored several times. An average of any other width is computed
from the stored ones by least squares (Karras et al. 2024, Section 3: post-hoc EMA). The profile of an average is a
power function: at time t the weights of an earlier time s count in proportion to s^gamma. Its width is the standard
deviation of that profile in units of t: about a twentieth of the run for 0.05, a fifth for 0.2.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fewstep.card import CheckpointError, write_atomically
from trainer.run.distributed import rank
from trainer.run.older import current_tensor_name
from trainer.run.sharding import undivided, whole
from trainer.settings import WIDEST

Module = TypeVar("Module", bound=nn.Module)

WIDTHS = (0.05, 0.15)  # of the two averages that are kept
STORED = 8  # times in a run that both are stored
FOLDER = "averages"


def average_of(network: Module) -> Module:
    """A frozen copy to hold the average."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def blend(average: nn.Module, network: nn.Module, decay: float | Tensor) -> None:
    """average = decay average + (1 - decay) network, in place. decay: a tensor where updates are recorded."""
    means: list[Tensor] = list(average.parameters())
    weights: list[Tensor] = list(network.parameters())
    if isinstance(decay, Tensor):  # lerp of lists takes a number of the host
        steps = torch._foreach_sub(weights, means)  # pyright: ignore
        torch._foreach_mul_(steps, 1 - decay)  # pyright: ignore
        torch._foreach_add_(means, steps)  # pyright: ignore
    else:
        get_ema_multi_avg_fn(decay)(means, weights, None)
    for kept, fresh in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(fresh)


def gamma_of(width: float) -> float:
    """The exponent of the power function with this width, from 0 to 1 / sqrt(12) (Karras et al. 2024, Equation 126).

    Raises ValueError for a width outside.
    """
    if not 0 < width <= WIDEST:
        raise ValueError(f"an average's width must be above 0 and at most {WIDEST}, not {width:g}")
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_decay(width: float, batch: int, images: int) -> float:
    """The factor of the average in its update after a step of `batch` images, the last of `images` (Equation 127)."""
    return (1 - batch / images) ** (gamma_of(width) + 1)


@dataclass(frozen=True)
class Profile:
    """A stored average: of this exponent, at this time (in images)."""

    gamma: float
    time: float


def coefficients(stored: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """The factors [n], summing to 1, of the combination of stored averages whose profile is closest to the wanted one.

    Least squares between profiles over time (Equation 138), with the sum as a constraint, so that weights which do not
    change during training are exact.
    """
    inner = np.array([[_inner(a, b) for b in stored] for a in stored])
    scale = np.trace(inner) / len(stored)
    ones = np.ones((len(stored), 1))
    system = np.block([[inner / scale, ones], [ones.T, np.zeros((1, 1))]])
    right = np.append(np.array([_inner(a, wanted) for a in stored]) / scale, 1.0)
    solved = np.linalg.lstsq(system, right, rcond=None)[0]  # solve() fails where the same profile is stored twice
    return solved[:-1].astype(np.float64)


def _inner(a: Profile, b: Profile) -> float:
    """The integral over time of the product of two profiles (Equation 136)."""
    early, late = (a, b) if a.time <= b.time else (b, a)
    shared = (early.time / late.time) ** late.gamma
    return (a.gamma + 1) * (b.gamma + 1) * shared / ((a.gamma + b.gamma + 1) * late.time)


@dataclass
class Averages:
    """The two averages of a network during its training."""

    network: nn.Module
    kept: dict[str, nn.Module] = field(init=False)  # by name, for the state of the run

    def __post_init__(self) -> None:
        self.kept = {f"average-{width}": average_of(self.network) for width in WIDTHS}

    def update(self, batch: int, images: int) -> None:
        """After a step of `batch` images, the last of `images`."""
        self.move([power_decay(width, batch, images) for width in WIDTHS])

    def move(self, decays: Sequence[float | Tensor]) -> None:
        """Move the averages on by these factors."""
        for decay, average in zip(decays, self.kept.values(), strict=True):
            blend(average, self.network, decay)

    def store(self, folder: Path, images: int) -> None:
        """Both averages, as float16, in one file of `folder`/averages.

        Every process takes part where they are divided; the first one writes.
        """
        tensors = {
            f"{width}.{name}": undivided(value.detach()).to("cpu", torch.float16).contiguous()
            for width, average in zip(WIDTHS, self.kept.values(), strict=True)
            for name, value in average.named_parameters()
        }
        if rank() > 0:
            return
        facts = {"images": images, "widths": WIDTHS}
        path = folder / FOLDER / f"{images:09d}.safetensors"
        write_atomically(path, save_tensors(tensors, metadata={"facts": json.dumps(facts)}))

    def of_width(self, width: float, folder: Path, images: int) -> nn.Module:
        """The average of this width at `images`, from those stored in `folder` and the two current ones.

        Every process takes part where they are divided.
        """
        current = [whole(average) for average in self.kept.values()]
        if images == 0 or rank() > 0:  # before the first step both are the network; only the first process saves
            return average_of(current[0])
        kept = zip(WIDTHS, current, strict=True)
        here = [(Profile(gamma_of(own), images), dict(average.named_parameters())) for own, average in kept]
        return combine_averages(current[0], [*stored_before(folder, images), *here], Profile(gamma_of(width), images))


Stored = tuple[Profile, Mapping[str, Tensor]]


def stored_before(folder: Path, images: int) -> list[Stored]:
    """The averages stored in `folder` before `images`. Raises CheckpointError for a file that cannot be read."""
    found: list[Stored] = []
    for path in sorted((folder / FOLDER).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                facts: dict[str, Any] = json.loads(file.metadata()["facts"])
                if facts["images"] >= images:
                    continue
                tensors = {current_tensor_name(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a stored average ({error}); delete it to go on without") from error
        for width in facts["widths"]:
            prefix = f"{width}."
            own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            found.append((Profile(gamma_of(width), facts["images"]), own))
    return found


@torch.no_grad()
def combine_averages(network: Module, stored: Sequence[Stored], wanted: Profile) -> Module:
    """A copy of `network` whose weights are the average of the wanted profile; buffers stay as they are."""
    factors = coefficients([profile for profile, _ in stored], wanted)
    result = average_of(network)
    for name, parameter in result.named_parameters():
        total = sum(
            factor * values[name].to("cpu", torch.float64) for factor, (_, values) in zip(factors, stored, strict=True)
        )
        parameter.copy_(total)  # pyright: ignore[reportArgumentType]
    return result
