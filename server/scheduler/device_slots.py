"""The slot table of a GPU: images stay on the device from their first noise to their pixels.

The same methods as `server.scheduler.slots.SlotTable`. A tick is one small copy to the device, one network call, one
step kernel and one copy back of what has finished. The host knows the step counts, so it knows before a call who
ends with it, and which row of the input every other image moves to; it waits once, for pixels and the flags of
rows that are not finite. On a CPU device the kernels' references run, which is how this is tested without a GPU.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.blend import Blend, weights
from fewstep.conditions import Conditions
from fewstep.noise import STREAM_LATENT, STREAM_NOISE
from fewstep.pixels import Pixels
from fewstep.schedule import MAX_STEPS
from fewstep.step import Levels, levels_of, step_log_weight
from kernels.initial_noise import initial_noise
from kernels.philox import normals_reference
from kernels.rows import KNOWN, STARTED, Inpainting, RowsUpload, layout
from kernels.step import step, to_pixels_reference
from server.scheduler.slots import Image, ImageKey, Start, Tick, nothing, row_of

if TYPE_CHECKING:
    from export.engine import DeviceNetwork

_FREE = -1


class DeviceSlotTable:
    """`network.capacity` slots on the network's device, stepped at `network.buckets`.

    An image keeps its slot, a row of x. Its row of the network's input changes as others end, so that the rows in use
    are the first ones after every step; an eviction leaves a gap for one call at most. Exact mode is a network with a
    single bucket. Everything runs on the calling thread's current stream.
    """

    def __init__(
        self, network: "DeviceNetwork", *, shape: tuple[int, int, int], classes: int, sigma_data: float, extra: int = 0,
        conditions: Conditions = (),
    ) -> None:  # fmt: skip
        expected = (network.capacity, shape[0] + extra, *shape[1:])
        assert tuple(network.x.shape) == expected, f"the network takes {tuple(network.x.shape)}, not {expected}"
        assert network.onehot.shape[1] == classes, f"the network takes {network.onehot.shape[1]} classes, not {classes}"
        named = [condition.name for condition in conditions]
        assert list(network.conditions) == named, f"the network takes {list(network.conditions)}, not {named}"
        self.network = network
        self.conditions = conditions
        self.sigma_data = sigma_data
        self.buckets = network.buckets
        self.capacity = capacity = network.capacity
        device, on_gpu = network.device, network.device.type == "cuda"

        # On the device.
        last = layout(network.x) == "channels_last"
        self.x = torch.zeros((capacity, *shape), device=device)
        self.x = self.x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        # Always handed to the kernels, which a first edit would otherwise compile again while others wait.
        self.inpainting = Inpainting(torch.zeros_like(self.x, dtype=torch.bool), torch.zeros_like(self.x))
        self.pixels = torch.zeros((capacity, *shape[1:], shape[0]), dtype=torch.uint8, device=device)
        self.broken = torch.zeros(capacity, dtype=torch.int32, device=device)
        self.given = [torch.zeros((capacity, *each.shape), device=device) for each in conditions]  # by slot
        self.log_weight = torch.zeros(capacity, dtype=torch.float64, device=device)  # by slot, of the steps made
        # What the host sends to it and reads from it.
        self.admitted, self.stepped = RowsUpload(capacity, device), RowsUpload(capacity, device)
        self.pixels_read = torch.zeros(self.pixels.shape, dtype=torch.uint8, pin_memory=on_gpu)
        self.broken_read = torch.zeros(capacity, dtype=torch.int32, pin_memory=on_gpu)
        self.read = torch.cuda.Event() if on_gpu else None
        self.stamp = 0  # of the last step
        # What the host knows of every slot.
        self.keys: list[ImageKey | None] = [None] * capacity
        self.row = np.full(capacity, _FREE, np.int64)  # of the network's input
        self.levels = np.zeros((capacity, MAX_STEPS + 1, len(Levels._fields)), np.float32)  # behind the last: anything
        self.calls = np.zeros(capacity, np.int64)  # network calls made
        self.seeds = np.zeros(capacity, np.uint64)
        self.labels = np.zeros(capacity, np.int64)
        self.adapters = np.zeros((capacity, 2), np.int64)  # Image.adapters
        self.weighed = np.zeros(capacity, bool)
        self.flags = np.zeros(capacity, np.int64)
        self.previews = np.zeros((capacity, MAX_STEPS + 1), bool)  # by call, from 1
        self.reported = np.zeros((capacity, MAX_STEPS + 1), bool)  # likewise
        self.blends: dict[int, Blend] = {}  # by slot, of the few images that mix the noise of another seed into theirs

    @property
    def free(self) -> int:
        in_use = self.row != _FREE
        return self.capacity - int(np.count_nonzero(in_use)) - int(np.count_nonzero(self.weighed & in_use))

    def requests(self) -> set[int]:
        """The requests that hold a slot."""
        return {key.request for key in self.keys if key is not None}

    def admit(self, images: Sequence[Image]) -> None:
        """Give each image a slot, and write its noise and the input of its first call. There must be enough slots."""
        count = len(images)
        assert sum(image.slots for image in images) <= self.free, "the policy admitted more than there are free slots"
        if not count:
            return
        slots, rows = np.flatnonzero(self.row == _FREE)[:count], self._free_rows(count)
        for slot, image in zip(slots, images, strict=True):
            self.levels[slot, : len(image.sigmas)] = levels_of(image.sigmas, self.sigma_data)
        self.seeds[slots] = [image.seed for image in images]
        self.labels[slots] = [image.label for image in images]
        self.adapters[slots] = [image.adapters for image in images]
        self.weighed[slots] = [image.weighed for image in images]
        if self.weighed[slots].any():
            self.log_weight[torch.from_numpy(slots).to(self.log_weight.device)] = 0
        self.calls[slots] = 0
        self.flags[slots] = [self._begin_at(slot, image.start) for slot, image in zip(slots, images, strict=True)]
        self.previews[slots] = self.reported[slots] = False
        for slot, image in zip(slots, images, strict=True):
            self.previews[slot, list(image.previews)] = True
            self.reported[slot, list(image.reported)] = True
        levels = Levels(*self.levels[slots, 0].T)
        sent = self.admitted.send(
            count, slot=slots, target=rows, sigma_next=levels.sigma, c_in=levels.c_in, c_noise=levels.c_noise,
            seed=self.seeds[slots].view(np.int64), label=self.labels[slots], flags=self.flags[slots],
        )  # fmt: skip
        initial_noise(self.x, sent, self.network, inpainting=self.inpainting)
        for condition, by_slot in zip(self.conditions, self.given, strict=True):
            rows_given = np.empty((count, *condition.shape), np.float32)
            for place, image in enumerate(images):
                rows_given[place] = row_of(condition, image)
            by_slot[torch.from_numpy(slots).to(by_slot.device)] = torch.from_numpy(rows_given).to(by_slot.device)
        self.blends |= {int(slot): image.blend for slot, image in zip(slots, images, strict=True) if image.blend}
        self._blend(slots, rows, self.calls[slots], levels.sigma, levels.c_in)
        self.row[slots] = rows
        for slot, image in zip(slots, images, strict=True):
            self.keys[slot] = image.key

    def _free_rows(self, count: int) -> NDArray[np.int64]:
        """The first rows of the network's input that no image has."""
        return np.setdiff1d(np.arange(self.capacity), self.row)[:count]

    def _begin_at(self, slot: int, start: Start | None) -> int:
        """Put what an image begins at and keeps on the device, if it is to; returns the flags of its row."""
        if start is None:
            return 0
        self.inpainting.image[slot] = torch.from_numpy(start.image)
        if start.known is None:
            return STARTED
        self.inpainting.mask[slot] = torch.from_numpy(start.known)  # [1, H, W], for all channels
        return STARTED | KNOWN

    def evict(self, request: int) -> int:
        """Free the slots of a request; returns how many it held."""
        slots = [slot for slot, key in enumerate(self.keys) if key is not None and key.request == request]
        self._release(slots)
        return len(slots)

    def tick(self, meanwhile: Callable[[], None] = nothing) -> Tick:
        """See `Slots.tick`."""
        slots = np.flatnonzero(self.row != _FREE)
        if not len(slots):
            return Tick()
        slots = slots[np.argsort(self.row[slots])]
        made = self.calls[slots] + 1
        before, after = (Levels(*self.levels[slots, call].T) for call in (made - 1, made))  # after the last: not read
        last = before.sigma_next == 0
        target = np.where(last, np.cumsum(last), np.cumsum(~last)) - 1  # rows of the pixels, and of the next input
        sent = self.stepped.send(
            len(slots), slot=slots, source=self.row[slots], target=target, c_skip=before.c_skip, c_out=before.c_out,
            sigma_next=before.sigma_next, c_in=after.c_in, c_noise=after.c_noise, seed=self.seeds[slots].view(np.int64),
            call=made, label=self.labels[slots], flags=self.flags[slots],
        )  # fmt: skip
        weighed = self.weighed[slots] & ~last
        second = self._second_rows(slots[weighed])
        in_use = int(max((self.row[slots[-1]], *second))) + 1
        batch = next(bucket for bucket in self.buckets if bucket >= in_use)
        if self.network.adapter is not None:
            by_row = np.zeros(batch, np.int64)
            by_row[self.row[slots]] = self.adapters[slots, last.astype(np.int64)]  # 0, the backbone, in second rows
            self.network.adapter[:batch].copy_(torch.from_numpy(by_row))
        if self.conditions:
            self._bring_conditions(slots, batch, slots[weighed], second)
        output = self.network.run(batch)
        if len(second):
            self._weigh(slots[weighed], second, output, before.c_out[weighed], before.sigma_next[weighed])
        shown = np.flatnonzero(self.previews[slots, made] & ~last)
        denoised = (
            self._denoised(output, slots[shown], before.c_skip[shown], before.c_out[shown]) if len(shown) else None
        )
        self.stamp = self.stamp % (2**31 - 1) + 1
        step(
            self.x, output, sent, self.network, self.pixels, self.broken,
            stamp=self.stamp, inpainting=self.inpainting,
        )  # fmt: skip
        self._blend(slots[~last], target[~last], made[~last], before.sigma_next[~last], after.c_in[~last])
        meanwhile()
        pixels, sound = self._read(len(slots), int(np.count_nonzero(last)))
        log_weight = self._read_log_weights(slots)
        sound &= np.isfinite(log_weight)

        reported = np.flatnonzero(self.reported[slots, made] & ~last)
        images: list[Pixels | None] = [None] * len(reported)
        if denoised is not None:
            images += [*denoised.cpu().numpy()]
        previews = tuple(
            (self._key(slots[place]), int(made[place]), image)
            for place, image in zip((*reported, *shown), images, strict=True)
            if sound[place]
        )
        broken = tuple(self._key(slot) for slot in slots[~sound])
        finished = tuple(
            (self._key(slot), pixels[place])
            for slot, place in zip(slots[last & sound], target[last & sound], strict=True)
        )
        told_weights = tuple(
            (self._key(slots[place]), float(log_weight[place]))
            for place in np.flatnonzero(last & sound & self.weighed[slots])
        )
        self.calls[slots] = made
        self.row[slots] = target
        self._release(slots[last | ~sound])
        return Tick(finished, broken, len(slots) + len(second), batch, previews, told_weights)

    def _second_rows(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the network's input for the backbone's call at the states of these slots, with what it reads there
        but adapter and conditions."""
        rows = self._free_rows(len(slots))
        if len(slots):
            device = self.x.device
            first, second = (torch.from_numpy(each).to(device) for each in (self.row[slots], rows))
            for given in (self.network.x, self.network.c_noise, self.network.onehot):
                given[second] = given[first]
        return rows

    def _weigh(
        self, slots: NDArray[np.int64], second: NDArray[np.int64], output: Tensor, c_out: NDArray[np.float32],
        sigma: NDArray[np.float32],
    ) -> None:  # fmt: skip
        """Add the log-ratios of the next step, whose noise has the level sigma; `calls` is the index of the last."""
        device = self.x.device
        slot, row, other = (torch.from_numpy(each).to(device) for each in (slots, self.row[slots], second))
        factor, level = (torch.from_numpy(each).to(device) for each in (c_out, sigma))
        moved = factor[:, None, None, None] * (output[row].float() - output[other].float())
        seed, call = self.seeds[slots].view(np.int64), self.calls[slots] + 1
        seed, call = (torch.from_numpy(each).to(device) for each in (seed, call))
        noise = normals_reference(seed, call, STREAM_NOISE, tuple(self.x.shape[1:]))
        self.log_weight[slot] += step_log_weight(moved, noise, level)

    def _read_log_weights(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of the steps made; 0 for images that are not weighed. Waits for the device only where one is."""
        if not self.weighed[slots].any():
            return np.zeros(len(slots))
        read = self.log_weight[torch.from_numpy(slots).to(self.log_weight.device)].cpu().numpy()
        return np.where(self.weighed[slots], read, 0.0)

    def _bring_conditions(
        self, slots: NDArray[np.int64], batch: int, weighed: NDArray[np.int64], second: NDArray[np.int64]
    ) -> None:
        """Put each image's conditions into its row of the network's input, and those of `weighed` into the rows
        `second`, too; rows without an image have those of any."""
        by_row = np.full(batch, slots[0])
        by_row[self.row[slots]] = slots
        by_row[second] = weighed
        index = torch.from_numpy(by_row).to(self.x.device)
        for by_slot, given in zip(self.given, self.network.conditions.values(), strict=True):
            torch.index_select(by_slot, 0, index, out=given[:batch])

    def _blend(
        self, slots: NDArray[np.int64], target: NDArray[np.int64], call: NDArray[np.int64],
        sigma: NDArray[np.float32], c_in: NDArray[np.float32],
    ) -> None:  # fmt: skip
        """Mix the noise of other seeds into that which x and the network's input have just been given.

        For the few that asked, and after the kernel: it draws for one seed only.
        """
        places = [place for place, slot in enumerate(slots) if int(slot) in self.blends]
        if not places:
            return
        blends, device = [self.blends[int(slots[place])] for place in places], self.x.device
        slot, row, step = (torch.from_numpy(each[places]).to(device) for each in (slots, target, call))
        level, scale = (torch.from_numpy(each[places]).to(device)[:, None, None, None] for each in (sigma, c_in))
        pairs = torch.tensor([weights(each.mix) for each in blends], device=device)[:, :, None, None, None]
        seed = torch.from_numpy(self.seeds[slots[places]].view(np.int64)).to(device)
        seed_to = torch.tensor([each.seed for each in blends], device=device)

        def mixed(stream: int, shape: tuple[int, ...], less: float) -> Tensor:
            own, other = (normals_reference(each, step, stream, shape) for each in (seed, seed_to))
            return (pairs[:, 0] - less) * own + pairs[:, 1] * other

        channels, size = self.x.shape[1], tuple(self.x.shape[2:])
        self.x[slot] += level * mixed(STREAM_NOISE, (channels, *size), less=1)  # once its own noise is there already
        given = self.network.x
        given[row, :channels] = (scale * self.x[slot]).to(given.dtype)
        if extra := given.shape[1] - channels:
            given[row, channels:] = mixed(STREAM_LATENT, (extra, *size), less=0).to(given.dtype)

    def _denoised(
        self, output: Tensor, slots: NDArray[np.int64], c_skip: NDArray[np.float32], c_out: NDArray[np.float32]
    ) -> Tensor:
        """The denoised images of some slots before they are re-noised, uint8 [n, H, W, C] on the device.

        For the few that asked, and before the step: its kernel computes the same for all rows, and keeps none of it.
        """
        device = self.x.device
        slot, row = (torch.from_numpy(index).to(device) for index in (slots, self.row[slots]))
        skip, out = (torch.from_numpy(factor).to(device)[:, None, None, None] for factor in (c_skip, c_out))
        known = torch.from_numpy((self.flags[slots] & KNOWN) != 0).to(device)[:, None, None, None]
        images = skip * self.x[slot] + out * output[row].float()
        images = torch.where(known & self.inpainting.mask[slot], self.inpainting.image[slot], images)
        return to_pixels_reference(images)

    def _read(self, rows: int, finished: int) -> tuple[Pixels, NDArray[np.bool_]]:
        """The first images of `pixels`, and which rows of the step were finite. Here the host waits for the device."""
        self.broken_read[:rows].copy_(self.broken[:rows], non_blocking=True)
        self.pixels_read[:finished].copy_(self.pixels[:finished], non_blocking=True)
        if self.read is not None:
            self.read.record()
            self.read.synchronize()
        return self.pixels_read[:finished].numpy().copy(), self.broken_read[:rows].numpy() != self.stamp

    def _key(self, slot: int) -> ImageKey:
        key = self.keys[slot]
        assert key is not None, "a slot in use has lost its image"
        return key

    def _release(self, slots: Sequence[int] | NDArray[np.int64]) -> None:
        for slot in slots:
            self.keys[slot] = None
            self.blends.pop(int(slot), None)
            self.row[slot] = _FREE
