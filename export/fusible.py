"""Layers in the form that inference runtimes run as few kernels: the same function, other operators.

A group norm becomes an instance norm over groups and a batch norm with fixed statistics that scales and shifts each
channel. ONNX Runtime runs these two in two passes over the map. torch's own decomposition takes three (a product and a
sum behind the norm) and asks for shapes at run time; a LayerNormalization, though a single node, is three times
slower; opset 21's GroupNormalization is taken apart. TensorRT makes one normalisation and one scale layer of it, and
OpenVINO the same program from any of these forms.

Attention becomes two products with a softmax between them, and a reshape on either side. torch's export of
scaled_dot_product_attention asks for shapes at run time and takes queries, keys and values apart by slices: 25 nodes
for what ONNX Runtime then runs as six.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.network import Attention

Module = TypeVar("Module", bound=nn.Module)


def fusible(network: Module) -> Module:
    """A copy of the network with group norms and attention in this form. It is for tracing: the image size is fixed."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, FusibleGroupNorm(child))
    for module in list(network.modules()):  # afterwards: attention takes over its norm
        for name, child in module.named_children():
            if isinstance(child, Attention):
                setattr(module, name, FusibleAttention(child))
    return network


class FusibleGroupNorm(nn.Module):
    """Group norm (Wu & He 2018) of x [B, C, H, W], without operators that depend on the batch size."""

    zeros: Tensor  # [C]
    ones: Tensor  # [C]

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("zeros", torch.zeros(norm.num_channels), persistent=False)
        self.register_buffer("ones", torch.ones(norm.num_channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        groups = x.reshape(-1, norm.num_groups, x[0].numel() // norm.num_groups)
        normed = functional.instance_norm(groups, eps=norm.eps).reshape(-1, *x.shape[1:])
        nothing = torch.finfo(x.dtype).tiny  # added to a variance of one; some releases of torch (2.11) refuse zero
        return functional.batch_norm(normed, self.zeros, self.ones, norm.weight, norm.bias, eps=nothing)


class FusibleAttention(nn.Module):
    """`fewstep.network.Attention` of x [B, C, H, W], without operators that depend on the batch size."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads, self.norm, self.qkv, self.proj = attention.heads, attention.norm, attention.qkv, attention.proj

    def forward(self, x: Tensor) -> Tensor:
        width, height, breadth = x.shape[1:]
        depth = width // self.heads
        qkv = self.qkv(self.norm(x)).reshape(-1, 3 * self.heads, depth, height * breadth)
        q, k, v = qkv.split(self.heads, dim=1)  # each [B, heads, depth, positions]
        weights = (q.transpose(2, 3) @ k * depth**-0.5).softmax(dim=3)
        return self.proj((v @ weights.transpose(2, 3)).reshape(-1, width, height, breadth))
