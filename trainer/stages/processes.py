"""How many processes train: what this machine and its environment allow."""

import sys

import torch

from trainer.options import Order
from trainer.run.distributed import process_count
from trainer.settings import MachineError


def check_processes(order: Order) -> None:
    """Raise MachineError where this machine or its environment cannot have the processes that are asked for. Says so
    where it could have more."""
    if (started := process_count()) > 1:
        raise MachineError(
            f"torchrun has started {started} processes, and fewstep train starts its own: run it without torchrun, "
            f"with --processes {started}; on several machines, run its stages one by one (docs/training.md)"
        )
    gpus = torch.cuda.device_count() if order.where == "cuda" else None
    if gpus is not None and (order.processes or 1) > gpus:
        raise MachineError(f"--processes {order.processes}: each needs a GPU of its own, and this machine has {gpus}")
    if gpus is not None and gpus > 1 and order.processes is None:
        print(f"one of {gpus} GPUs is used; --processes {gpus} uses all of them", file=sys.stderr, flush=True)
