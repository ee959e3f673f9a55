"""fewstep export --model DIR --out DIR [--dtype D] [--backend B ...]   export a checkpoint, with proof
fewstep export verify DIR [--backend B] [--record]                     repeat the proof on an existing engine
fewstep export plan DIR --backend tensorrt|tensorrt-rtx                build the plan that TensorRT runs
fewstep export adapter DIR --add DIR | --remove NAME                   an adapter of an engine's network
fewstep export diffusers --model DIR --out DIR                         a student as a folder of diffusers

`python -m export` is the same in a checkout.

Exit code 0: done. 2: refused, the reason is on stderr. 130, 143: interrupted. Unless 0, nothing was written.
"""

import importlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.manifest import Manifest
from fewstep import extras
from fewstep.card import CheckpointError
from fewstep.subcommands import REFUSED

if TYPE_CHECKING:
    from export.build import Proof
    from export.options import (
        AdapterCommand,
        DiffusersCommand,
        ExportCommand,
        PlanCommand,
        ProofOptions,
        VerifyCommand,
    )
    from export.verify import Gap

# What a command needs of torch is imported when it runs: --help is quick.

PROG = "fewstep export"
EXPORT = f"""Export a checkpoint's network as an engine directory.

{PROG} verify DIR repeats the proof of an existing engine; {PROG} plan DIR builds a plan for TensorRT;
{PROG} adapter DIR adds a posterior to the engine of its backbone;
{PROG} diffusers --model DIR --out DIR writes a student as a folder of diffusers."""
ADAPTER = """Add an adapter to an engine, or remove one. The network is not exported again: the adapter is a file beside
it, and the server offers it as MODEL:NAME. The engine must have been exported with --adapters."""
RUNNING = "; servers that run go on with the adapters of their start"
DIFFUSERS = """Write a student as a folder of diffusers: DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR,
trust_remote_code=True) loads it, and samples the images of the server. fewstep need not be installed there.
`fewstep trainer import DIR --out OUT` makes a checkpoint of such a folder again."""


def main(argv: Sequence[str] | None = None) -> int:
    return run(read(list(sys.argv[1:] if argv is None else argv)))


def read(arguments: Sequence[str]) -> "ExportCommand | VerifyCommand | PlanCommand | DiffusersCommand | AdapterCommand":
    """What is asked. --help ends the process with status 0, and what cannot be read with 2."""
    from export.options import AdapterCommand, DiffusersCommand, ExportCommand, PlanCommand, VerifyCommand
    from fewstep.command_line import parse

    match arguments:
        case ["verify", *rest]:
            return parse(VerifyCommand, rest, f"{PROG} verify", "Compare an engine with its checkpoint again.")
        case ["plan", *rest]:
            return parse(PlanCommand, rest, f"{PROG} plan", "Build a TensorRT plan of an engine.")
        case ["adapter", *rest]:
            return parse(AdapterCommand, rest, f"{PROG} adapter", ADAPTER)
        case ["diffusers", *rest]:
            return parse(DiffusersCommand, rest, f"{PROG} diffusers", DIFFUSERS)
    return parse(ExportCommand, arguments, PROG, EXPORT)


def run(asked: "ExportCommand | VerifyCommand | PlanCommand | DiffusersCommand | AdapterCommand") -> int:
    """Returns the exit code."""
    from export.options import AdapterCommand, DiffusersCommand, ExportCommand, VerifyCommand

    try:
        with extras.named():
            if isinstance(asked, DiffusersCommand):
                return _diffusers(asked)
            if isinstance(asked, AdapterCommand):
                return _adapter(asked)
            _use_threads(asked.proof)
            if isinstance(asked, ExportCommand):
                return _export(asked)
            return _verify(asked) if isinstance(asked, VerifyCommand) else _plan(asked)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT


def _export(asked: "ExportCommand") -> int:
    from export.build import backends_here, export_checkpoint
    from export.verify import Gap

    start = time.perf_counter()
    manifest = export_checkpoint(
        asked.model, asked.out, asked.name, backends=asked.backend or backends_here(), dtype=asked.dtype,
        buckets=asked.proof.buckets, threads=asked.proof.threads, adapters=asked.adapters, told_classes=asked.told,
        resolution=asked.resolution,
    )  # fmt: skip
    proofs = {manifest.backend: manifest.parity} | {name: proof["parity"] for name, proof in manifest.proofs.items()}
    for backend, parity in proofs.items():
        print(f"{backend}:\n{gap_table({steps: Gap(**fields) for steps, fields in parity.items()})}")
    print(_summary(manifest, asked.out, time.perf_counter() - start))
    return 0


def _verify(asked: "VerifyCommand") -> int:
    from export.build import verify_engine

    model = asked.model or asked.engine.resolve().parent
    proof = verify_engine(
        asked.engine, model, asked.backend,
        buckets=asked.proof.buckets, threads=asked.proof.threads, record=asked.record,
    )  # fmt: skip
    print(gap_table(proof.parity))
    print(f"{asked.engine} is within {_bounds(proof)} of eager PyTorch: {_facts(proof.facts)}")
    return 0


def _diffusers(asked: "DiffusersCommand") -> int:
    from export.diffusers.folder import write_folder

    write_folder(asked.model, asked.out)
    print(f"{asked.out}: DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True) loads it")
    return 0


def _adapter(asked: "AdapterCommand") -> int:
    from export.adapters import add_adapter, remove_adapter
    from export.verify import Gap

    if asked.remove is not None:
        remove_adapter(asked.engine, asked.remove)
        print(f"{asked.engine}: the adapter {asked.remove} is gone{RUNNING}")
        return 0
    assert asked.add is not None
    entry = add_adapter(asked.engine, asked.add, asked.name, model=asked.model, threads=asked.threads)
    print(gap_table({steps: Gap(**fields) for steps, fields in entry.parity.items()}))
    size, steps = (asked.engine / entry.file).stat().st_size / 1e6, ", ".join(map(str, entry.levels))
    print(f"{asked.engine}: adapter {entry.name}, {size:.2f} MB, steps {steps}, verified{RUNNING}")
    return 0


def _plan(asked: "PlanCommand") -> int:
    from export.plans import make_plan

    start = time.perf_counter()
    print(f"building the plan for {asked.backend} ...", flush=True)
    path = make_plan(asked.engine, asked.backend, asked.proof.buckets, asked.refit_from)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; took {time.perf_counter() - start:.0f} s")
    return 0


def _use_threads(proof: "ProofOptions") -> None:
    if proof.threads > 0:
        import torch

        torch.set_num_threads(proof.threads)


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
    asked = read(sys.argv[1:])
    # Loaded before the handler is set: what a handler raises while a C extension is imported becomes its ImportError.
    with extras.named():
        for module in ("export.build", "export.backends.onnxruntime_cpu"):
            importlib.import_module(module)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the staging directory must go
    sys.exit(run(asked))
