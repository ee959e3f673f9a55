"""How networks run during training: device, precision, compilation."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from fewstep.checkpoint import NetworkModule
from fewstep.precond import Network

Precision = Literal["fp32", "bf16"]
Placed = TypeVar("Placed", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    device: str = "cpu"
    precision: Precision = "fp32"  # of F alone; preconditioning, losses and averages are fp32 always
    compile: bool = False


def runner(network: nn.Module, compute: Compute) -> Network:
    """The network as the trainer calls it: channels-last, autocast if asked, fp32 out."""
    run = called(network, compute)
    return lambda x, c_noise, onehot: run(x, c_noise, onehot).float()


def called(function: Callable[..., Any], compute: Compute) -> Callable[..., Any]:
    """A module, or a method of one, that takes images and other tensors: compiled and autocast if asked, the images
    channels-last; what it returns stays as it is."""
    if compute.compile:
        # One graph per network, shape and gradient mode; past the default of 8 the rest would run uncompiled, unsaid.
        torch._dynamo.config.recompile_limit = 64
    forward = torch.compile(function, dynamic=False) if compute.compile else function
    autocast = compute.precision == "bf16"

    def run(x: Tensor, *others: Tensor) -> Any:
        with torch.autocast(torch.device(compute.device).type, torch.bfloat16, enabled=autocast):
            return forward(x.contiguous(memory_format=torch.channels_last), *others)

    return run


def placed(network: Placed, device: str) -> Placed:
    """The network on its device, channels-last: the layout convolutions are fastest in."""
    return network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def faster_precision(network: NetworkModule, device: str, batch: int) -> Precision:
    """Time one training step in fp32 and in bf16 autocast; bf16 has to win by a tenth to be worth its rounding."""
    config = network.config
    placed(network, device)
    x = torch.randn(batch, config.channels, config.resolution, config.resolution, device=device)
    c_noise, onehot = torch.zeros(batch, device=device), torch.zeros(batch, config.classes, device=device)
    seconds: dict[Precision, float] = {}
    for precision in ("fp32", "bf16"):
        run = runner(network, Compute(device, precision))
        durations = []
        for _ in range(3):
            start = time.perf_counter()
            run(x, c_noise, onehot).square().mean().backward()
            if device == "cuda":
                torch.cuda.synchronize()
            durations.append(time.perf_counter() - start)
        seconds[precision] = min(durations)
    network.zero_grad(set_to_none=True)
    return "bf16" if seconds["bf16"] < 0.9 * seconds["fp32"] else "fp32"


def worth_compiling(device: str, budget_s: float | None) -> bool:
    """Compiling takes about a minute a network and then trains 1.7x faster on a CPU (docs/adr/0005)."""
    able = device == "cuda" or shutil.which("g++") is not None
    return able and budget_s is not None and budget_s >= 900
