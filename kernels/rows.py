"""What the step kernels are told about every image, as arrays on the device, and where they write."""

from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

CLAMP = 1  # flag: clip the denoised image to [-1, 1]
KNOWN = 2  # flag: some pixels are known; mask and image lie in the row `slot` of an `Inpainting`
STARTED = 4  # flag: the first noise lies on the image in the row `slot` of an `Inpainting`, not on nothing


@dataclass(frozen=True)
class Rows:
    """One entry per image in a launch, each field [n] on the device; sources and targets are distinct within a launch.

    An image keeps its slot from admission to its end, so x is updated in place. Its row among the network's inputs may
    change at every call: that is what keeps those rows dense while images end. The c_* are what
    `fewstep.precond.edm_scalings` makes of a row's levels: once a row where the levels are, not once a thread here.
    """

    slot: Tensor  # int32: its row of x, mask and known
    source: Tensor  # int32: its row of the network's output
    target: Tensor  # int32: its row of the network's next input, or of the pixels on its last step
    c_skip: Tensor  # float32: of the level of the call just made
    c_out: Tensor  # float32
    sigma_next: Tensor  # float32: level of the next call; 0: there is none
    c_in: Tensor  # float32: of the level of the next call
    c_noise: Tensor  # float32
    seed: Tensor  # int64, the bit pattern
    call: Tensor  # int32: index of the next call from 0, which is also the index of the noise before it
    label: Tensor  # int32: class; negative: none
    flags: Tensor  # int32: CLAMP | KNOWN | STARTED

    def __len__(self) -> int:
        return len(self.slot)

    def __getitem__(self, index: slice | Tensor) -> "Rows":
        return Rows(*(getattr(self, field.name)[index] for field in fields(self)))


class NetworkInput(Protocol):
    """The static buffers a network reads: `export.device_network.DeviceNetwork` is one."""

    @property
    def x(self) -> Tensor:
        """[capacity, C + extra, H, W], contiguous as NCHW or channels_last."""
        ...

    @property
    def c_noise(self) -> Tensor:
        """[capacity] float32."""
        ...

    @property
    def onehot(self) -> Tensor:
        """[capacity, classes] in the dtype of x; classes may be 0."""
        ...


@dataclass(frozen=True)
class Inpainting:
    """Images to begin at or to keep a part of, one row per slot, in the memory order of x."""

    mask: Tensor  # [slots, C, H, W] bool, True where a pixel is known; read for rows flagged KNOWN
    image: Tensor  # [slots, C, H, W] float32 in [-1, 1]; read for rows flagged KNOWN or STARTED

    def check(self, x: Tensor) -> None:
        """Raises ValueError unless mask and image lie in memory as x does."""
        if not self.mask.stride() == self.image.stride() == x.stride():
            raise ValueError("mask and image of an inpainting must lie in memory as x does")


Layout = Literal["channels_first", "channels_last"]


def layout(x: Tensor) -> Layout:
    """How an [N, C, H, W] tensor lies in memory. Raises ValueError when it is dense in neither order."""
    if x.is_contiguous():
        return "channels_first"
    if x.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    raise ValueError(
        f"a tensor of shape {tuple(x.shape)} and strides {x.stride()} is neither contiguous nor channels_last; "
        "call .contiguous() where it is made"
    )


@dataclass(frozen=True)
class Tile:
    """What one program computes: `parts` times `channels` x `positions` of one image. Any powers of two are correct."""

    channels: int
    positions: int
    warps: int = 4
    parts: int = 1  # one after the other; what is the same for a row is paid once
    rgb: bool = False  # 128 pixels of three channels a warp, as they lie in memory; where `rgb_fits`

    @classmethod
    def choose(cls, channels: int, extra: int, area: int, *memory: Layout) -> "Tile":
        """Four elements a thread at a time; one channel a program where all memory is NCHW, else all channels.

        With four, each thread loads, generates and stores its own elements, in whichever dtype, and nothing moves
        through shared memory. Channels side by side in memory belong to one program: three programs that write every
        third element each would touch every sector three times. Three of them in a tile of four would leave a quarter
        of the threads idle, and the others' accesses twelve bytes apart; so, where all memory is alike, a warp takes
        384 neighbours, and a thread four of them three times.
        """
        if rgb_fits(channels, extra, area, *memory):
            positions = 128 if area <= 128 else 256
            parts = 2 if area >= 64 * positions else 1
            return cls(4, positions, positions // 128, parts, rgb=True)
        together = triton.next_power_of_2(channels) if "channels_last" in memory else 1
        positions = min(triton.next_power_of_2(area), max(512 // together, 32))
        parts = 4 if area >= 64 * positions else 1  # small images need every program for themselves
        return cls(together, positions, max(1, min(together * positions // 128, 8)), parts)

    @classmethod
    def checked(cls, tile: "Tile | None", channels: int, extra: int, area: int, *memory: Layout) -> "Tile":
        """The tile, or the one to choose. Raises ValueError when it is for RGB and the images are not."""
        tile = tile or cls.choose(channels, extra, area, *memory)
        if tile.rgb and not (rgb_fits(channels, extra, area, *memory) and tile.channels == 4 and tile.positions >= 128):
            raise ValueError(
                f"{tile} is for three channels, all channels_last and without a latent, whose pixels come in fours; "
                "such a tile has 4 channels and at least 128 positions, which is what a warp takes"
            )
        return tile

    def grid(self, channels: int, extra: int, area: int, rows: int) -> tuple[int, int, int]:
        """Programs: tiles of positions, groups of image channels and behind them of latent channels, rows."""
        groups = triton.cdiv(channels, self.channels) + triton.cdiv(extra, self.channels)
        return triton.cdiv(area, self.positions * self.parts), groups, rows


def rgb_fits(channels: int, extra: int, area: int, *memory: Layout) -> bool:
    """Whether an element lies at the same place of state, output and input, and four pixels never cross an end."""
    return channels == 3 and not extra and area % 4 == 0 and set(memory) == {"channels_last"}


def check_state(x: Tensor, network_input: NetworkInput) -> None:
    """Raises ValueError when the state and the network's buffers do not belong together."""
    if x.dtype != torch.float32:
        raise ValueError(f"the state x must be float32, not {x.dtype}")
    shape = network_input.x.shape
    if shape[2:] != x.shape[2:] or shape[1] < x.shape[1]:
        raise ValueError(f"the network takes {tuple(shape)}, which does not hold images of {tuple(x.shape[1:])}")
    if network_input.onehot.dtype != network_input.x.dtype or network_input.c_noise.dtype != torch.float32:
        raise ValueError("the network's onehot must have the dtype of its x, and c_noise must be float32")


class RowsUpload:
    """Rows written on the host and carried to the device in one copy."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(capacity * _ROW_BYTES, dtype=torch.uint8, pin_memory=on_gpu)
        self._device = torch.zeros_like(self._host, device=device)
        self._host_rows, self._device_rows = _rows_in(self._host), _rows_in(self._device)
        self._sent = torch.cuda.Event() if on_gpu else None

    def send(self, count: int, **values: NDArray) -> Rows:
        """Rows [count] on the device from arrays [count]; a field not given is zero. Valid until the next send.

        The copy is asynchronous. This waits for the copy before it only, whose memory it reuses.
        """
        if self._sent is not None:
            self._sent.synchronize()
        self._host.zero_()
        for name, value in values.items():
            getattr(self._host_rows, name).numpy()[:count] = value
        self._device.copy_(self._host, non_blocking=True)
        if self._sent is not None:
            self._sent.record()
        return self._device_rows[:count]


_FLOATS = ("c_skip", "c_out", "sigma_next", "c_in", "c_noise")
_WORDS = {"seed": torch.int64, **dict.fromkeys(_FLOATS, torch.float32)}  # the other fields: int32
_ROW_BYTES = sum(_WORDS.get(field.name, torch.int32).itemsize for field in fields(Rows))


def _rows_in(buffer: Tensor) -> Rows:
    """Fields as views of one buffer, one behind the other; seeds first, so that each is aligned to its size."""
    capacity, start, views = len(buffer) // _ROW_BYTES, 0, {}
    for name in sorted((field.name for field in fields(Rows)), key=lambda name: name != "seed"):
        dtype = _WORDS.get(name, torch.int32)
        views[name] = buffer[start : start + capacity * dtype.itemsize].view(dtype)
        start += capacity * dtype.itemsize
    return Rows(**views)
