"""Networks divided among the processes of torchrun: each holds a part of every parameter (PyTorch's FSDP2).

A call gathers the parameters of one block at a time and frees them afterwards. Gradients, moments and averages exist
in parts only. The alternative, DistributedDataParallel, keeps all of them in every process (trainer.run.distributed).
PyTorch's modules for it are loaded where something is divided: they take two thirds of a second.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.run.distributed import ranks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

Module = TypeVar("Module", bound=nn.Module)
LISTS = (nn.ModuleList, nn.ModuleDict)


def divide(
    networks: Mapping[str, nn.Module],
    optimizers: Iterable[Optimizer],
    averages: Iterable[nn.Module],
    served: str,
    device: torch.device,
) -> None:
    """Divide networks in place, with the averages of the one called `served`. Every process takes part.

    Optimisers must not have made a step; their parameters become the divided ones.
    """
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (ranks(),))
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for network in networks.values():
        whole_ones = dict(network.named_parameters())
        if whole_ones:
            _divide_network(network, mesh)
            replaced |= {whole_ones[name]: parameter for name, parameter in network.named_parameters()}
    for optimizer in optimizers:
        assert not optimizer.state, "moments are made after the division"
        for group in optimizer.param_groups:
            group["params"] = [replaced[parameter] for parameter in group["params"]]
    for average in averages:
        _divide_average(average, networks[served])


def _divide_network(network: nn.Module, mesh: "DeviceMesh") -> None:
    from torch.distributed.fsdp import fully_shard

    for parameter in network.parameters():
        if not parameter.is_contiguous():  # channels-last, which FSDP2 does not take
            parameter.data = parameter.data.contiguous()
    # From the leaves up, as FSDP2 asks. Also the outermost parameters are freed after each call: else a call without a
    # gradient would leave them gathered, and the averages would read them.
    for module in reversed(list(network.modules())):
        if isinstance(module, LISTS):
            for block in module.children():
                if not isinstance(block, LISTS) and any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def _divide_average(average: nn.Module, network: nn.Module) -> None:
    like = dict(network.named_parameters())
    for prefix, module in average.named_modules():
        for name, parameter in list(module.named_parameters(prefix, recurse=False)):
            part = fitted(parameter.detach(), like[name])
            setattr(module, name.rpartition(".")[2], nn.Parameter(part, requires_grad=False))


def is_divided(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this process holds a part of the tensor."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def fitted(value: Tensor, like: Tensor) -> Tensor:
    """A tensor, the same in every process, divided as `like` is. Itself where `like` is whole or it is divided."""
    if not is_divided(like) or is_divided(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    on_device = value.to(like.device).contiguous()
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def undivided(tensor: Tensor) -> Tensor:
    """The whole tensor. Every process takes part where it is divided."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def whole(network: Module) -> Module:
    """A copy of a frozen network with whole parameters, those of `network` itself if they are not divided.

    Every process takes part where they are divided. The network must not be one that FSDP2 runs.
    """
    with_whole = {
        id(parameter): nn.Parameter(undivided(parameter.detach()), requires_grad=False)
        for parameter in network.parameters()
    }
    return copy.deepcopy(network, with_whole)
