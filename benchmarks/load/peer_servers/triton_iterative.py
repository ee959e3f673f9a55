"""A peer: Triton Inference Server with iterative sequences, which batch requests call by call, as ours does.

python benchmarks/load/peer_servers/triton_iterative.py --engine models/fashion/engine --port 8001

The server is the one in the package nvidia-pytriton; its Python backend runs triton_model.py. A request is one
sequence: after each network call the model gives unfinished requests back to Triton, which puts new ones beside them
into the next call. Clients speak the Open Inference Protocol and get the bytes of a PNG.
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.load.trajectories import parser

NAME = "denoise"
CONFIG = """
backend: "python"
max_batch_size: {capacity}
input [
  {{ name: "SEED" data_type: TYPE_INT64 dims: [ 1 ] }},
  {{ name: "STEPS" data_type: TYPE_INT32 dims: [ 1 ] }}
]
output [ {{ name: "PNG" data_type: TYPE_UINT8 dims: [ -1 ] }} ]
sequence_batching {{
  iterative_sequence: true
  max_sequence_idle_microseconds: 60000000
  oldest {{ max_candidate_sequences: {capacity} }}
}}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters {{ key: "peer" value: {{ string_value: "{peer}" }} }}
"""


def prepared(folder: Path, package: Path, args: argparse.Namespace) -> None:
    """A repository with the one model, and the Python backend with the program that runs it. package: its folder."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise SystemExit(f"error: nvidia-pytriton has no Python backend for Python {version}")
    shutil.copytree(package / "tritonserver" / "backends" / "python", folder / "backends" / "python")
    shutil.copy(stub, folder / "backends" / "python")
    (folder / "backends" / "python" / stub.name).chmod(0o755)
    model = folder / "models" / NAME
    (model / "1").mkdir(parents=True)
    shutil.copy2(Path(__file__).with_name("triton_model.py"), model / "1" / "model.py")
    told = {
        "engine": str(args.engine.resolve()), "capacity": args.capacity, "backend": args.backend,
        "threads": args.threads, "cost": str(args.cost) if args.cost else None, "cores": args.engine_cores,
    }  # fmt: skip
    quoted = json.dumps(told).replace('"', '\\"')
    (model / "config.pbtxt").write_text(CONFIG.format(capacity=args.capacity, peer=quoted))


def main() -> None:
    args = parser(__doc__).parse_args()
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("error: this needs the package nvidia-pytriton: pip install nvidia-pytriton")
    package = Path(spec.submodule_search_locations[0])
    folder = Path(tempfile.mkdtemp(prefix="triton-"))
    prepared(folder, package, args)
    site = [entry for entry in sys.path if entry.endswith("site-packages")]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *site]),
        "LD_LIBRARY_PATH": str(package.parent / "nvidia_pytriton.libs"),
    }  # fmt: skip
    command = [
        str(package / "tritonserver" / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}", "--http-address=127.0.0.1",
        f"--http-port={args.port}", "--allow-grpc=false", "--allow-metrics=false", "--log-info=false",
        "--disable-auto-complete-config",
    ]  # fmt: skip
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main()
