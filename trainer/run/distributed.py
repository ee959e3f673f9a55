"""Training in several processes: PyTorch's DistributedDataParallel under torchrun; with one process, nothing at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the group torchrun describes in the environment, and leave it at the end: gloo on CPUs, nccl on GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def replicated(network: nn.Module) -> nn.Module:
    """The network with gradients averaged over all processes; itself when there is only one."""
    if ranks() == 1:
        return network
    return DistributedDataParallel(network, broadcast_buffers=False)


def from_first(value: T) -> T:
    """What the first process says, in all of them: for decisions that depend on a clock."""
    if ranks() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def agreed(elapsed_s: float, stop: bool, device: torch.device) -> tuple[float, bool]:
    """The first process's clock, and whether any process was asked to stop."""
    if ranks() == 1:
        return elapsed_s, stop
    votes = torch.tensor([elapsed_s if rank() == 0 else 0.0, float(stop)], dtype=torch.float64, device=device)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return votes[0].item(), bool(votes[1])


def averaged(scalars: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over all processes."""
    if ranks() == 1 or not scalars:
        return scalars
    values = torch.stack([value.detach().float() for value in scalars.values()])
    dist.all_reduce(values)
    return dict(zip(scalars, values / ranks(), strict=True))
