"""fewstep export --model DIR --out DIR [--dtype D] [--backend B ...]   export a checkpoint, with proof
fewstep export verify DIR [--backend B] [--record]                     repeat the proof on an existing engine
fewstep export plan DIR --backend tensorrt|tensorrt-rtx                build the plan that TensorRT runs

`python -m export` is the same in a checkout.

Exit code 0: done. 2: refused, the reason is on stderr. 130, 143: interrupted. Unless 0, nothing was written.
"""

import argparse
import importlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.manifest import BACKEND_TENSORRT, BACKEND_TENSORRT_RTX, BACKENDS, DTYPE_NAMES, Manifest
from fewstep import extras
from fewstep.card import CheckpointError
from fewstep.ranges import whole

if TYPE_CHECKING:
    from export.build import Proof
    from export.verify import Gap

# What a command needs of torch is imported when it runs: --help is quick and works without it.

REFUSED = 2


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"verify": _verify, "plan": _plan}
    try:
        command = commands.get(arguments[0]) if arguments else None
        with extras.named():
            return command(arguments[1:]) if command else _export(arguments)
    except (CheckpointError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("export: interrupted; nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT


def _export(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fewstep export", description="Export a checkpoint's network as an engine directory.",
        epilog="fewstep export verify DIR repeats the proof of an existing engine; "
        "fewstep export plan DIR builds a plan for TensorRT.",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, required=True, help="folder with model.safetensors and card.json")
    parser.add_argument("--out", type=Path, required=True, help="engine directory to write or to replace")
    parser.add_argument("--name", help="what the engine is called (default: the model folder's name)")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="float32", help="what the network computes in")
    parser.add_argument(
        "--backend", nargs="+", choices=BACKENDS, metavar="B",
        help=f"backends to prove, the one that is served first: {', '.join(BACKENDS)} "
        "(default: onnxruntime-cpu; where there is a GPU, torch before it)",
    )  # fmt: skip
    options = _parse(parser, arguments)
    from export.build import backends_here, export_checkpoint
    from export.verify import Gap

    start = time.perf_counter()
    manifest = export_checkpoint(
        options.model, options.out, options.name,
        backends=options.backend or backends_here(), dtype=options.dtype, buckets=options.buckets,
        threads=options.threads,
    )  # fmt: skip
    proofs = {manifest.backend: manifest.parity} | {name: proof["parity"] for name, proof in manifest.proofs.items()}
    for backend, parity in proofs.items():
        print(f"{backend}:\n{gap_table({steps: Gap(**fields) for steps, fields in parity.items()})}")
    print(_summary(manifest, options.out, time.perf_counter() - start))
    return 0


def _verify(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fewstep export verify", description="Compare an engine with its checkpoint again."
    )
    parser.add_argument("engine", type=Path, help="engine directory")
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: the engine's parent folder)")
    parser.add_argument("--backend", choices=BACKENDS, metavar="B", help="default: the manifest's")
    parser.add_argument("--record", action="store_true", help="write what was measured into engine.json")
    options = _parse(parser, arguments)
    from export.build import verify_engine

    model = options.model or options.engine.resolve().parent
    proof = verify_engine(
        options.engine, model, options.backend,
        buckets=options.buckets, threads=options.threads, record=options.record,
    )  # fmt: skip
    print(gap_table(proof.parity))
    print(f"{options.engine} is within {_bounds(proof)} of eager PyTorch: {_facts(proof.facts)}")
    return 0


def _plan(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="fewstep export plan", description="Build a TensorRT plan of an engine.")
    parser.add_argument("engine", type=Path, help="engine directory; the plan goes into its folder `plans`")
    parser.add_argument("--backend", choices=(BACKEND_TENSORRT, BACKEND_TENSORRT_RTX), required=True)
    parser.add_argument(
        "--refit-from", type=Path, metavar="DIR", help="an engine of the same architecture whose plan takes the weights"
    )
    options = _parse(parser, arguments)
    from export.plans import make_plan

    start = time.perf_counter()
    print(f"building the plan for {options.backend} ...", flush=True)
    path = make_plan(options.engine, options.backend, options.buckets, options.refit_from)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; took {time.perf_counter() - start:.0f} s")
    return 0


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    parser.add_argument(
        "--threads",
        type=whole(0, 1024),
        default=0,
        help="cores for the proof (default: all; 1 is faster on a busy machine)",
    )
    parser.add_argument(
        "--buckets", type=_integers, metavar="N,N,...", help="batch sizes that backends of fixed shapes prepare"
    )
    options = parser.parse_args(arguments)
    if options.threads > 0:
        import torch

        torch.set_num_threads(options.threads)
    return options


def _integers(text: str) -> tuple[int, ...]:
    """argparse's type for a list."""
    try:
        return tuple(whole(1, 2**16)(part) for part in text.split(","))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,2,4,8") from error


def gap_table(gaps: "Mapping[str, Gap]") -> str:
    """One line per step count; gaps in pixel units, 1/255 of the range from black to white."""
    from export.verify import SOLVER

    lines = ["steps    NFE  mean gap   max gap  bytes that differ    (gaps in 1/255)"]
    for steps, gap in gaps.items():
        label = "heun" if steps == SOLVER else steps
        lines.append(f"{label:>5}  {gap.nfe:5d}  {gap.mean:8.2g}  {gap.max:8.2g}  {gap.differing:17.4%}")
    return "\n".join(lines)


def _bounds(proof: "Proof") -> str:
    return f"{proof.bounds['mean']:g}/255 mean, {proof.bounds['max']:g}/255 max"


def _facts(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _summary(manifest: Manifest, out: Path, seconds: float) -> str:
    size = (out / manifest.network).stat().st_size / 1e6
    return (
        f"{out}: engine {manifest.name}, {size:.1f} MB, opset {manifest.opset}, "
        f"weights {manifest.weights_dtype}, arithmetic {manifest.dtype}, verified; took {seconds:.0f} s"
    )


if __name__ == "__main__":
    # Loaded before the handler is set: what a handler raises while a C extension is imported becomes its ImportError.
    if not {"-h", "--help"} & set(sys.argv):
        with extras.named():
            for module in ("export.build", "export.backends.onnxruntime_cpu"):
                importlib.import_module(module)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the staging directory must go
    sys.exit(main())
