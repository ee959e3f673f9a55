"""python -m export --model DIR --out DIR [--name NAME]     export a checkpoint, with proof
python -m export verify DIR [--model DIR]                   repeat the proof on an existing engine

Exit code 0: done. 2: refused, the reason is on stderr. 130, 143: interrupted. Unless 0, nothing was written.
"""

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from export.build import export_checkpoint, verify_engine
from export.manifest import Manifest
from export.verify import BOUNDS, SOLVER, Gap
from fewstep.card import CheckpointError

REFUSED = 2


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _verify(arguments[1:]) if arguments[:1] == ["verify"] else _export(arguments)
    except (CheckpointError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("export: interrupted; nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT


def _export(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export", description="Export a checkpoint's network as an engine directory.",
        epilog="python -m export verify DIR repeats the proof of an existing engine.",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, required=True, help="folder with model.safetensors and card.json")
    parser.add_argument("--out", type=Path, required=True, help="engine directory to write or to replace")
    parser.add_argument("--name", help="what the engine is called (default: the model folder's name)")
    options = _parse(parser, arguments)
    start = time.perf_counter()
    manifest = export_checkpoint(options.model, options.out, options.name, threads=options.threads)
    gaps = {steps: Gap(**fields) for steps, fields in manifest.parity.items()}
    print(gap_table(gaps))
    print(_summary(manifest, options.out, time.perf_counter() - start))
    return 0


def _verify(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export verify", description="Compare an engine with its checkpoint again."
    )
    parser.add_argument("engine", type=Path, help="engine directory")
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: the engine's parent folder)")
    options = _parse(parser, arguments)
    model = options.model or options.engine.resolve().parent
    gaps = verify_engine(options.engine, model, threads=options.threads)
    print(gap_table(gaps))
    print(f"{options.engine} is within {BOUNDS['mean']:g}/255 mean, {BOUNDS['max']:g}/255 max of eager PyTorch")
    return 0


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    parser.add_argument(
        "--threads", type=int, default=0, help="cores for the proof (default: all; 1 is faster on a busy machine)"
    )
    options = parser.parse_args(arguments)
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    return options


def gap_table(gaps: Mapping[str, Gap]) -> str:
    """One line per step count; gaps in pixel units, 1/255 of the range from black to white."""
    lines = ["steps    NFE  mean gap   max gap  bytes that differ    (gaps in 1/255)"]
    for steps, gap in gaps.items():
        label = "heun" if steps == SOLVER else steps
        lines.append(f"{label:>5}  {gap.nfe:5d}  {gap.mean:8.2g}  {gap.max:8.2g}  {gap.differing:17.4%}")
    return "\n".join(lines)


def _summary(manifest: Manifest, out: Path, seconds: float) -> str:
    size = (out / manifest.network).stat().st_size / 1e6
    return (
        f"{out}: engine {manifest.name}, {size:.1f} MB, opset {manifest.opset}, "
        f"weights {manifest.weights_dtype}, arithmetic {manifest.dtype}, verified; took {seconds:.0f} s"
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the staging directory must go
    sys.exit(main())
