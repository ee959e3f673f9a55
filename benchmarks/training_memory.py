"""Memory of a training update: of one process alone, and where networks are divided among 2 and 16 processes.

    python benchmarks/training_memory.py            # 5 minutes on a core
    python benchmarks/training_memory.py --smoke    # seconds; proves that it runs

Counted and not measured: the bytes of all tensors that are alive at the same time, at their most in an update, with
moments as after a first one. The tensors have shapes and no values, so that a network of 300 million parameters takes
no memory and the figures are those of every machine. Weights, gradients, moments, both averages, the batch and
activations are in it, float32 throughout; workspaces of libraries and an allocator's gaps are not. Of several processes
one is run, with communication that does nothing.
"""

from fewstep import extras

extras.name_missing()

import argparse
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness import ROOT, result_file, table, write_result
from fewstep.network import UNet
from fewstep.ranges import whole
from fewstep.unet_config import UNetConfig, adm
from trainer.methods.dpdm import Student
from trainer.methods.edm import Teacher
from trainer.recipes.fashion import FASHION
from trainer.recipes.photos import PHOTOS
from trainer.run.compute import Compute
from trainer.run.draws import Draws
from trainer.run.ema import Averages
from trainer.run.loop import Method
from trainer.run.sharding import divide
from trainer.settings import StudentConfig, TeacherConfig

ROWS = 16  # images of a process in an update
AT_ONCE = 4  # --rows-at-once
NETWORKS = {
    "fashion, small": FASHION.network,
    "photos, large (DDPM++)": replace(PHOTOS.network_of("large"), channels=3),
    "ImageNet-64 (ADM)": adm(64),
}
SMOKE = {"tiny": UNetConfig(8, width=16, mult=(1,), blocks=1)}
METHODS = ("teacher", "dpdm")
PROCESSES = (1, 2, 16)
COLUMNS = {
    "network": "network", "parameters_m": "M parameters", "method": "method", "processes": "processes",
    "rows_at_once": "rows at once", "kept_mb": "MB between updates", "peak_mb": "peak MB",
}  # fmt: skip


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive. Of a divided tensor it counts this process's part.

    FSDP2 keeps the tensors of gathered parameters and gives their memory back by setting its size to 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self) -> Self:
        alive = self

        def resize_(self: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            return alive._resized(self, size)

        torch.UntypedStorage.resize_ = resize_
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._add(leaf._local_tensor if isinstance(leaf, DTensor) else leaf)
        return made

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = 0
            self._set(storage._cdata, storage.nbytes())
            weakref.finalize(storage, self._drop, storage._cdata)

    def _resized(self, storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        if storage._cdata in self._sizes:
            self._set(storage._cdata, size)
        return self._resize(storage, size)

    def _set(self, key: int, size: int) -> None:
        self.bytes += size - self._sizes[key]
        self._sizes[key] = size
        self.peak = max(self.peak, self.bytes)

    def _drop(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


class ShapesOnly(FakeTensorMode):
    """Tensors without values. A copy of a network stays in the mode of the network."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "ShapesOnly":
        return self


class AnyDraws(Draws):
    """Draws of the right shapes: those of training are made by numpy, which needs values."""

    def normal_like(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)

    def uniform(self, count: int) -> Tensor:
        return torch.rand(count)

    def integers(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,))

    def _uniform(self) -> float:
        return 0.5


def cases(methods: Sequence[str], processes: Sequence[int]) -> Iterator[tuple[str, int, int | None]]:
    """Method, processes and rows at once. Parts of a batch are counted for one process alone."""
    for method in methods:
        for count in processes:
            yield method, count, None
            if count == 1:
                yield method, count, AT_ONCE


class Memory(NamedTuple):
    kept: int  # bytes between two updates
    peak: int  # bytes in an update


def memory(config: UNetConfig, name: str, processes: int, at_once: int | None, rows: int) -> Memory:
    """Of one of the processes, each with so many images of a batch."""
    with _process_group(processes), ShapesOnly(), Alive() as alive:
        compute = Compute(rows=at_once, shard=processes > 1)
        method = _method(UNet(config), name, compute)
        averages = Averages(method.networks[method.served])
        if compute.shard:
            with unset_fake_temporarily():  # the mesh of processes needs values
                divide(
                    method.networks, method.optimizers.values(), averages.kept.values(), method.served,
                    torch.device("cpu"),
                )  # fmt: skip
        images = torch.randn(rows, config.channels, config.resolution, config.resolution)
        labels, rng = torch.zeros(rows, dtype=torch.long), AnyDraws(torch.Generator(), ranks=processes)
        for optimizer in method.optimizers.values():
            _make_moments(optimizer)
        alive.peak = alive.bytes
        method.update(images, labels, 0.5, rng)
        averages.update(rows, 2 * rows)
        return Memory(alive.bytes, alive.peak)


def _make_moments(optimizer: torch.optim.Optimizer) -> None:
    """As a first step does."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _method(network: UNet, name: str, compute: Compute) -> Method:
    if name == "teacher":
        return Teacher(network, 0.5, TeacherConfig(), compute)
    # A network that sees levels is moved after it is made, which tensors without values are not able to.
    return Student(network, 0.5, StudentConfig(auxiliary_sees_level=False), compute)


@contextmanager
def _process_group(processes: int) -> Iterator[None]:
    if processes == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny network; proves that it runs")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS, help="what is trained (default: both)")
    parser.add_argument(
        "--processes", nargs="+", type=whole(1, 4096), default=PROCESSES, help="how many (default: 1 2 16)"
    )
    parser.add_argument(
        "--out", type=result_file, default=ROOT / "runs" / "training-memory.json", metavar="FILE.json",
        help="where the JSON goes (default: %(default)s)",
    )  # fmt: skip
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for network, config in (SMOKE if args.smoke else NETWORKS).items():
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in UNet(config).parameters())
        for name, processes, at_once in cases(args.method, args.processes):
            found = memory(config, name, processes, at_once, ROWS)
            rows.append({
                "network": network, "parameters_m": round(parameters / 1e6, 1), "method": name,
                "processes": processes, "rows_at_once": at_once, "kept_mb": round(found.kept / 1e6),
                "peak_mb": round(found.peak / 1e6),
            })  # fmt: skip
            print(table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
    print(table(rows, COLUMNS))
    settings = {"rows": ROWS, "smoke": args.smoke, "method": args.method, "processes": args.processes}
    write_result(args.out, "training_memory", settings, rows)


if __name__ == "__main__":
    main()
