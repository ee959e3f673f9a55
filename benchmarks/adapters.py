"""Ten adapters of one backbone in one network call, beside the backbone alone: CPU time of a call, and memory.

    python benchmarks/adapters.py            # two minutes
    python benchmarks/adapters.py --quick    # one

Prints tables and writes JSON. The backbone is exported with --adapters, and gets adapters of random weights: time and
memory are those of trained ones. Calls are timed in CPU seconds of this process, one thread, and interleaved. Memory is
that of a process of its own which has loaded an engine and called it.

The second table shows why a convolution's low rank is computed by taps: one layer alone, with its adapter by row, as
products of every pixel with each tap that are shifted and summed ("taps"), and as products of the unfolded map.
"""

from fewstep import extras

extras.name_missing()

import argparse
import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness import ROOT, WORK, result_file, table, write_result
from export.adapter_factors import stacked_adapters
from export.adapters import engine_factors
from export.backends.onnxruntime_cpu import open_session
from export.build import export_checkpoint
from export.engine import load_engine
from export.grouped import shifted_sum
from export.manifest import AdapterEntry, adapter_files, read_manifest, write_manifest
from export.to_onnx import OPSET, quiet
from fewstep.adapters import Adapter
from fewstep.checkpoint import NetworkModule, load_denoiser
from fewstep.ranges import whole

LAYERS = ((48, 16), (96, 8), (128, 16), (64, 32))  # channels in and out, and side of the map
COLUMNS = {"variant": "variant", "batch": "batch", "ms": "CPU ms", "ratio": "of one model"}
LAYER_COLUMNS = {"channels": "channels", "side": "side", "plain": "no adapter", "taps": "taps", "unfolded": "unfolded"}
RESIDENT = """
import sys
import numpy as np
import onnxruntime
from export.engine import load_engine

def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 1024

before, batch = resident(), int(sys.argv[2])
engine = load_engine(sys.argv[1], backend="onnxruntime-cpu", threads=1)
manifest = engine.manifest
x = np.zeros((batch, *manifest.input_shape), np.float32)
arrays = [x, np.zeros(batch, np.float32), np.zeros((batch, manifest.columns), np.float32)]
if manifest.adapted:
    arrays.append(1 + np.arange(batch) % len(manifest.adapters))
for _ in range(3):
    engine.network(*arrays)
print(before, resident())
"""
MEMORY_COLUMNS = {"variant": "variant", "mb": "MB resident", "ratio": "of one model", "engine_mb": "of it the engine"}


def cpu_ms(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each call, one of each a round in a fresh order."""
    order, names = np.random.default_rng(0), list(calls)
    spent: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 2):
        for index in order.permutation(len(names)):
            before = time.process_time()
            calls[names[index]]()
            if number >= 2:  # the first calls grow memory
                spent[names[index]].append(time.process_time() - before)
    return {name: 1e3 * float(np.median(each)) for name, each in spent.items()}


def with_adapters(model: Path, folder: Path, count: int, rank: int) -> Path:
    """An engine of the checkpoint in a new folder, with adapters of random weights."""
    export_checkpoint(model, folder, threads=1, adapters=True)
    manifest = read_manifest(folder)
    network = cast(NetworkModule, load_denoiser(model)[0].network)
    entries = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        adapter = Adapter(network, rank, 0, generator).requires_grad_(False)
        for up in adapter.up.values():
            up.normal_(0, 0.02, generator=generator)
        content = save_tensors(engine_factors(adapter, network, manifest))
        entry = AdapterEntry(
            name=f"random-{number}", sha256=hashlib.sha256(content).hexdigest(), levels=manifest.levels,
            classes=manifest.classes, class_names=manifest.class_names, parity={}, bounds={},
        )  # fmt: skip
        (folder / entry.file).parent.mkdir(exist_ok=True)
        (folder / entry.file).write_bytes(content)
        entries.append(entry)
    write_manifest(folder, dataclasses.replace(manifest, adapters=tuple(entries)))
    return folder


def rows_of(engine: Path, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    manifest, random = read_manifest(engine), np.random.default_rng(batch)
    x = random.standard_normal((batch, *manifest.input_shape), dtype=np.float32)
    onehot = np.zeros((batch, manifest.columns), np.float32)
    onehot[np.arange(batch), np.arange(batch) % manifest.columns] = 1
    return x, np.linspace(-0.7, 1.1, batch, dtype=np.float32), onehot


def call_times(one: Path, many: Path, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    plain, grouped = load_engine(one, backend="onnxruntime-cpu", threads=1), load_engine(many, threads=1)
    count = len(grouped.manifest.adapters)
    found = []
    for batch in batches:
        rows = rows_of(one, batch)
        mixed, none = 1 + np.arange(batch) % count, np.zeros(batch, np.int64)
        assert grouped.network(*rows, none).tobytes() == plain.network(*rows).tobytes(), "a row of no adapter differs"
        spent = cpu_ms(
            {
                "one model": lambda rows=rows: plain.network(*rows),
                "no row with an adapter": lambda rows=rows, none=none: grouped.network(*rows, none),
                f"{min(batch, count)} adapters": lambda rows=rows, mixed=mixed: grouped.network(*rows, mixed),
            },
            rounds,
        )
        found += [
            {"variant": name, "batch": batch, "ms": ms, "ratio": ms / spent["one model"]} for name, ms in spent.items()
        ]
    return found


def resident_mb(engine: Path, batch: int) -> tuple[float, float]:
    """MB of a process without torch that has loaded an engine and called it, and what of it came with the engine."""
    run = [sys.executable, "-c", RESIDENT, str(engine), str(batch)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before, after = subprocess.run(run, check=True, capture_output=True, text=True, env=environment).stdout.split()
    return float(after), float(after) - float(before)


def layer_times(channels: int, side: int, batch: int, count: int, rank: int, rounds: int) -> dict[str, Any]:
    """CPU milliseconds of a 3x3 convolution, alone and with adapters by row, each way."""
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "x": (batch, channels, side, side), "down": (count + 1, rank, 9, channels), "up": (count + 1, channels, rank),
    }  # fmt: skip
    values = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in values.items()}
    values["adapter"] = 1 + np.arange(batch) % count
    ways = {name: _session(_Layer(channels, name), values) for name in ("plain", "taps", "unfolded")}
    calls = {name: lambda session=session: _run(session, values) for name, session in ways.items()}
    return {"channels": channels, "side": side, **cpu_ms(calls, rounds)}


class _Layer(nn.Module):
    def __init__(self, channels: int, way: str) -> None:
        super().__init__()
        self.conv, self.way = nn.Conv2d(channels, channels, 3, padding=1), way

    def forward(self, x: Tensor, adapter: Tensor, down: Tensor, up: Tensor) -> Tensor:
        out = self.conv(x)
        if self.way == "plain":
            return out
        down, up = down[adapter], up[adapter]
        if self.way == "taps":
            products = (down.flatten(1, 2) @ x.flatten(2)).unflatten(2, x.shape[2:])
            low = shifted_sum(products, kernel=3, padding=1).flatten(2)
        else:
            low = down.transpose(2, 3).flatten(2) @ functional.unfold(x, 3, padding=1)
        return out + (up @ low).reshape(out.shape)


def _session(layer: nn.Module, values: dict[str, np.ndarray]) -> ort.InferenceSession:
    names = ["x", "adapter", "down", "up"]
    arguments = tuple(torch.from_numpy(values[name]) for name in names)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            layer.eval(), arguments, dynamo=True, opset_version=OPSET, verbose=False, input_names=names,
        )  # fmt: skip
    assert program is not None
    return open_session(program.model_proto.SerializeToString(), Path("layer"), threads=1)


def _run(session: ort.InferenceSession, values: dict[str, np.ndarray]) -> None:
    session.run(None, {each.name: values[each.name] for each in session.get_inputs()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=ROOT / "models" / "fashion", metavar="DIR",
        help="checkpoint of the backbone, with its engine in DIR/engine (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--adapters", type=whole(1, 256), default=10, metavar="N", help="how many (default 10)")
    parser.add_argument("--rank", type=whole(1, 256), default=4, metavar="N", help="of each (default 4)")
    parser.add_argument("--batch", type=whole(1, 1024), default=10, metavar="N", help="rows of a call (default 10)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and one layer")
    parser.add_argument("--out", type=result_file, metavar="JSON", help="where the result goes (default: a new file)")
    args = parser.parse_args()
    rounds = 10 if args.quick else 40
    one = args.model / "engine"
    with tempfile.TemporaryDirectory() as folder:
        many = with_adapters(args.model, Path(folder) / "engine", args.adapters, args.rank)
        manifest = read_manifest(many)
        factors = stacked_adapters(many, manifest, adapter_files(many, manifest.adapters)).bytes
        rows = call_times(one, many, sorted({1, args.batch}), rounds)
        memory = []
        for name, engine in (("one model", one), (f"{args.adapters} adapters", many)):
            whole_mb, engine_mb = resident_mb(engine, args.batch)
            memory.append({"variant": name, "mb": whole_mb, "engine_mb": engine_mb})
    memory = [{**row, "ratio": row["mb"] / memory[0]["mb"]} for row in memory]
    kinds = LAYERS[:1] if args.quick else LAYERS
    layers = [layer_times(*kind, args.batch, args.adapters, args.rank, rounds) for kind in kinds]
    print(table(rows, COLUMNS), table(memory, MEMORY_COLUMNS), table(layers, LAYER_COLUMNS), sep="\n\n")
    out = args.out or WORK / "runs" / "benchmarks" / "adapters.json"
    settings = {name: getattr(args, name) for name in ("adapters", "rank", "batch", "quick")} | {
        "model": args.model.name
    }
    sizes = {"factors_mb": factors / 1e6, "weights_mb": sum(_floats(args.model)) * 4 / 1e6}
    write_result(out, "adapters", settings, rows, memory=memory, layers=layers, sizes=sizes)
    print(f"\nwrote {out}")


def _floats(model: Path) -> list[int]:
    network = cast(nn.Module, load_denoiser(model)[0].network)
    return [parameter.numel() for parameter in network.parameters()]


if __name__ == "__main__":
    main()
