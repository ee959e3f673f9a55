"""Training in several processes of torchrun, on one machine or several. One process needs none of it."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.settings import MachineError

T = TypeVar("T")


@contextmanager
def join_processes(device: str) -> Iterator[None]:
    """Join the group torchrun describes in the environment, and leave it at the end: gloo on CPUs, nccl on GPUs."""
    if process_count() == 1:
        yield
        return
    if device == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise MachineError(f"torchrun started {local + 1} processes or more, and this machine has {gpus} GPUs")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Tensors of the host go by gloo also between GPUs: a vote on the clock must not wait for a device.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


def process_count() -> int:
    """How many processes torchrun started; 1 without it."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise MachineError(f"WORLD_SIZE is {size!r} in the environment, which is no number of processes; unset it")
    missing = [name for name in TORCHRUN_VARIABLES if name not in os.environ]
    if int(size) > 1 and missing:
        raise MachineError(
            f"WORLD_SIZE is {size} in the environment, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: it is left over from something else. Unset it for one "
            f"process, or start {size} with torchrun --standalone --nproc-per-node {size} -m trainer ..."
        )
    return int(size)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def replicate(network: nn.Module, *, divided: bool) -> nn.Module:
    """The network with gradients averaged over all processes by DistributedDataParallel.

    The network itself with only one process, or if it is divided (trainer.run.sharding): FSDP2 averages them.
    """
    if ranks() == 1 or divided:
        return network
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # torch 2.11 knows no other name
        return DistributedDataParallel(network, broadcast_buffers=False)


def from_first(value: T) -> T:
    """The value of the first process, in all processes: for decisions that depend on a clock."""
    if ranks() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def synchronise_clock(elapsed_s: float, stop: bool) -> tuple[float, bool]:
    """The first process's clock, and whether any process was asked to stop. The hosts agree, no device waits."""
    if ranks() == 1:
        return elapsed_s, stop
    votes = torch.tensor([elapsed_s if rank() == 0 else 0.0, float(stop)], dtype=torch.float64)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return votes[0].item(), bool(votes[1])


def average_over_processes(scalars: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over all processes."""
    if ranks() == 1 or not scalars:
        return scalars
    values = torch.stack([value.detach().float() for value in scalars.values()])
    dist.all_reduce(values)
    return dict(zip(scalars, values / ranks(), strict=True))
