"""How networks run during training: device, precision, compilation."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.checkpoint import NetworkModule
from fewstep.precond import Network
from trainer.run.compiled_files import clean_cache
from trainer.run.distributed import replicate
from trainer.settings import MachineError

Precision = Literal["fp32", "bf16"]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """Where networks run and in which numbers.

    Weights, gradients, moments and averages are float32 always, and so are preconditioning and losses. bf16: layers of
    the network that multiply get bfloat16 inputs (autocast). TF32 (`use_tf32`) is about what is left in float32 on a
    GPU. Both are in the card.
    """

    device: str = "cpu"
    precision: Precision = "fp32"  # of the network F; preconditioning, losses and averages are always fp32
    compile: bool = False
    rows: int | None = None  # of a call of the network; more are computed in parts (InParts). None: no limit
    tf32: bool = False  # whether float32 is multiplied in TensorFloat-32
    shard: bool = False  # networks are divided among the processes (trainer.run.sharding), not copied to each
    cuda_graphs: bool = False  # whole updates are recorded as CUDA graphs and replayed (trainer.run.recorded)


class InParts(nn.Module):
    """The same network, with the activations of at most `rows` images in memory.

    A call of more rows is made in parts, and only their inputs are kept: the backward pass computes each part again
    (Chen et al. 2016, "Training deep nets with sublinear memory cost"), which takes a third more time. The gradient is
    that of one call, for a row does not depend on the others; dropout draws other units.
    """

    def __init__(self, network: Callable[..., Tensor], rows: int) -> None:
        super().__init__()
        self.network, self.rows = network, rows

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        if len(x) <= self.rows or not torch.is_grad_enabled():
            return self.network(x, *others)
        parts = zip(*(tensor.split(self.rows) for tensor in (x, *others)), strict=True)
        return torch.cat([checkpoint(self.network, *part, use_reentrant=False) for part in parts])


def runner(network: nn.Module, compute: Compute, *, trained: bool = False) -> Network:
    """The network as the trainer calls it: channels-last input, autocast and compiled as in `compute`, fp32 output.

    trained: by these calls. Its gradients are then averaged over the processes of torchrun.
    """
    if compute.rows is None:
        function = _compiled(replicate(network, divided=compute.shard) if trained else network, compute)
    else:  # the parts are compiled, not the loop over them
        in_parts = InParts(_compiled(network, compute), compute.rows)
        function = replicate(in_parts, divided=compute.shard) if trained else in_parts
    run = _with_layout(function, compute)
    return lambda x, c_noise, onehot, *conditions: run(x, c_noise, onehot, *conditions).float()


def wrap_for_compute(function: Callable[..., Any], compute: Compute) -> Callable[..., Any]:
    """The same function of images and other tensors, compiled and autocast as in `compute`, with channels-last images.

    function: a module or a method of one that returns one tensor or several. They are not converted.
    """
    return _with_layout(_compiled(function, compute), compute)


def _compiled(function: Callable[..., Any], compute: Compute) -> Callable[..., Any]:
    if not compute.compile:
        return function
    clean_cache()
    # One graph per network, shape and gradient mode; torch runs more than its default of 8 uncompiled, silently.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function, dynamic=False)


def _with_layout(function: Callable[..., Any], compute: Compute) -> Callable[..., Any]:
    """Called with channels-last images, and in bfloat16 where `compute` says so."""
    autocast = compute.precision == "bf16"

    def run(x: Tensor, *others: Tensor) -> Any:
        with torch.autocast(torch.device(compute.device).type, torch.bfloat16, enabled=autocast):
            return function(x.contiguous(memory_format=torch.channels_last), *others)

    return run


def move_to_device(network: AnyModule, device: str) -> AnyModule:
    """The network on the device, channels-last, the layout in which convolutions are fastest."""
    return network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(asked: str | None) -> str:
    """The device asked for, or the default one. Raises MachineError when this machine does not have it."""
    if asked is None:
        return default_device()
    if asked not in ("cpu", "cuda"):
        raise MachineError(f"--device {asked} is unknown; choose cpu or cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        built = "torch sees no GPU here" if torch.version.cuda else "this torch was built without CUDA"
        raise MachineError(f"--device cuda: {built} (torch {torch.__version__}); say --device cpu")
    return asked


def use_tf32(device: str, asked: bool) -> bool:
    """Set, for this process, whether a GPU multiplies float32 in TensorFloat-32, in matrices and convolutions alike.

    PyTorch itself starts with convolutions in TensorFloat-32 and matrices in float32. Returns whether it is used: never
    on a CPU, whose settings stay as they are.
    """
    if device != "cuda":
        return False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = asked
    return asked


def faster_precision(network: NetworkModule, device: str, batch: int) -> Precision:
    """Time a training step in fp32 and in bf16 autocast. bf16, which rounds more, is chosen if it is a tenth faster."""
    fp32, bf16 = (step_seconds(network, device, batch, precision) for precision in ("fp32", "bf16"))
    return "bf16" if bf16 < 0.9 * fp32 else "fp32"


def step_seconds(network: NetworkModule, device: str, batch: int, precision: Precision) -> float:
    """The shortest of three calls of the network with their gradients."""
    config = network.config
    move_to_device(network, device)
    x = torch.randn(batch, config.channels, config.resolution, config.resolution, device=device)
    c_noise, onehot = torch.zeros(batch, device=device), torch.zeros(batch, config.classes, device=device)
    given = [torch.full((batch, *each.shape), each.fill, device=device) for each in config.conditions]
    run = runner(network, Compute(device, precision))
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        run(x, c_noise, onehot, *given).square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    network.zero_grad(set_to_none=True)
    return min(durations)


def worth_compiling(device: str, seconds: float | None) -> bool:
    """Whether compiling saves time in a run that would take so many seconds uncompiled.

    It takes about a minute per network, after which training is 1.7 times as fast on a CPU (docs/adr/0005).
    """
    able = device == "cuda" or shutil.which("g++") is not None
    return able and seconds is not None and seconds >= 900
