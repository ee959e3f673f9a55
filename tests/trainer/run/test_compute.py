"""A network call in parts: the gradient of one call, with the activations of one part."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.tiny import TINY, lively, run_options
from trainer.run.compute import Compute, runner, use_tf32
from trainer.runs import divides
from trainer.settings import MachineError

BATCH = 7


def inputs(batch: int = BATCH) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    side, channels, classes = TINY.resolution, TINY.channels, TINY.classes
    x = torch.randn(batch, channels, side, side, generator=generator)
    return x, torch.randn(batch, generator=generator), torch.eye(classes)[torch.arange(batch) % classes]


def gradients(network: nn.Module, compute: Compute, batch: int = BATCH) -> tuple[Tensor, list[Tensor]]:
    x, c_noise, onehot = inputs(batch)
    network.zero_grad()
    out = runner(network, compute)(x.requires_grad_(), c_noise, onehot)
    (out.square().mean() + out[0].sum()).backward()
    assert x.grad is not None
    return out.detach(), [x.grad, *(weight.grad.clone() for weight in network.parameters() if weight.grad is not None)]


class Small(nn.Module):
    """Quick to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(TINY.classes, 1)

    def forward(self, x: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        return torch.sin(x * self.layer(onehot)[:, :, None, None] + c_noise[:, None, None, None])


def saved_bytes(network: nn.Module, rows: int | None, batch: int) -> int:
    """Of the tensors that a call keeps for its gradient, without the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = runner(network, Compute(rows=rows))(*inputs(batch))
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("rows", [1, 3, BATCH, 100])
def test_the_gradient_in_parts_is_that_of_one_call(rows: int):
    network = lively(std=0.1)
    whole, in_parts = gradients(network, Compute()), gradients(network, Compute(rows=rows))
    torch.testing.assert_close(in_parts[0], whole[0], rtol=0, atol=1e-6)
    for part, one in zip(in_parts[1], whole[1], strict=True):
        torch.testing.assert_close(part, one, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_compiled_parts_have_the_same_gradient():
    network = Small()
    compiled = Compute(compile=True, rows=3)  # two parts of one size: another size would be compiled, too
    whole, in_parts = gradients(network, Compute(), 6), gradients(network, compiled, 6)
    for part, one in zip(in_parts[1], whole[1], strict=True):
        torch.testing.assert_close(part, one, rtol=1e-3, atol=1e-5)


def test_more_rows_keep_no_more_activations():
    network = lively(std=0.1)
    assert saved_bytes(network, None, 16) > 3 * saved_bytes(network, None, 4)
    assert saved_bytes(network, 4, 16) < saved_bytes(network, None, 4)  # inputs alone


def test_a_call_without_gradients_is_one_call():
    calls = []
    network = lively(std=0.1)
    network.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        runner(network, Compute(rows=2))(*inputs())
    assert len(calls) == 1


def test_dropout_is_that_of_the_part_in_both_of_its_calls():
    network = lively(replace(TINY, dropout=0.5), std=0.1).train()
    x, c_noise, onehot = inputs()
    torch.manual_seed(3)
    out = runner(network, Compute(rows=2))(x, c_noise, onehot)
    out.sum().backward()  # another mask in the second call would be another network
    found = [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]
    network.zero_grad()
    torch.manual_seed(3)
    parts = zip(*(tensor.split(2) for tensor in (x, c_noise, onehot)), strict=True)
    torch.cat([network(*part) for part in parts]).sum().backward()
    again = [weight.grad for weight in network.parameters() if weight.grad is not None]
    for one, other in zip(found, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_tf32_is_set_for_matrices_and_convolutions_of_a_gpu_alone():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for asked in (True, False):
            assert use_tf32("cuda", asked) is asked
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is asked
            assert not use_tf32("cpu", not asked)
            assert torch.backends.cuda.matmul.allow_tf32 is asked
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_one_process_has_nobody_to_divide_networks_with(tmp_path: Path):
    assert not divides(run_options(tmp_path))
    with pytest.raises(MachineError, match="start several with torchrun, or leave it out"):
        divides(run_options(tmp_path, shard=True))
