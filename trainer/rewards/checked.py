"""What every reward must return, said in a sentence when it does not."""

import contextlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from trainer.methods.rtb import LogReward

FLOOR = -20.0  # of log r: smaller ones only say "no", and would rule the gradient
HOPELESS = 4096  # images at the floor, from the first on, after which a run stops


class RewardError(ValueError):
    """A reward that cannot be used; the message says what it returned and what is allowed."""


def checked(reward: LogReward, name: str, floor: float = FLOOR) -> LogReward:
    """The reward, in float32 and at least `floor`. Where it returns no finite log r [B], RewardError says so.

    -inf is allowed, for images that are impossible: it becomes the floor. When the first HOPELESS images are all at the
    floor, RewardError says that there is nothing to learn.
    """
    seen, above = 0, False

    @torch.no_grad()
    def run(images: Tensor, y: Tensor) -> Tensor:
        nonlocal seen, above
        with unchanged():
            found = reward(images.clone(), y.clone())  # what it writes into its arguments stays with it
        if not isinstance(found, Tensor):
            raise RewardError(f"the reward {name} returned {type(found).__name__}; it must return a tensor of log r")
        if tuple(found.shape) != (len(images),):
            raise RewardError(
                f"the reward {name} returned the shape {list(found.shape)} for {len(images)} images; it must return "
                f"one log r for every image, the shape [{len(images)}]"
            )
        if found.is_complex() or found.is_meta or found.layout != torch.strided:
            raise RewardError(
                f"the reward {name} returned a tensor of {found.dtype} on {found.device}, {found.layout}; it must "
                "return real numbers, one for every image"
            )
        found = found.to(images.device, torch.float32)
        bad = {"NaN": found.isnan().sum(), "+inf": found.isposinf().sum()}
        for what, count in bad.items():
            if count:
                raise RewardError(
                    f"the reward {name} returned {what} for {int(count)} of {len(images)} images; log r must be a "
                    "number, or -inf where an image is impossible"
                )
        seen, above = seen + len(found), above or bool((found > floor).any())
        if not above and seen >= HOPELESS:
            raise RewardError(
                f"the reward {name} gives each of the first {seen:,} images the floor of log r, {floor:g}, or less: "
                "there is nothing to learn. Give a reward that some image of the prior has"
            )
        return found.clamp(min=floor)

    return run


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Put back at the end what a reward may have changed for the whole process: the folder in which relative paths
    begin, and torch's default dtype and device. A run that went on with another would write elsewhere, or compute
    something else."""
    folder, dtype, device = Path.cwd(), torch.get_default_dtype(), torch.get_default_device()
    try:
        yield
    finally:
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        os.chdir(folder)


def blamed(error: BaseException, file: Path | None) -> str:
    """`FILE, line N: NameError: name 'x' is not defined`: the exception, and where in `file`, or else where at all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file and Path(frame.filename).absolute() == file.absolute()]
    said = f"{type(error).__name__}: {error}"
    if own:
        return f"{own[-1].filename}, line {own[-1].lineno}: {said}"
    return f"{file}: {said}" if file else said
