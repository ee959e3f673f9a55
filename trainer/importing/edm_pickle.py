"""Read EDM's pickles without running the code in them.

EDM saves a network as a call of `torch_utils.persistence._reconstruct_persistent_obj` with its Python source and its
state; ordinary unpickling executes that source. Here every name that a pickle may contain is replaced by a stub: a
persistent object becomes its class name and its state, tensors are rebuilt by torch under `weights_only`, and values of
numpy, on which no weight depends, become `Opaque`. Any other name is an error.
"""

import io
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.card import CheckpointError

PERSISTENCE_VERSION = 6
MAX_DEPTH = 8  # EDM's networks nest four modules; a damaged file may contain itself


@dataclass(eq=False)
class SavedObject:
    """A persistent object, or a torch container, as saved: its class and its attributes. Nothing of it ever runs."""

    class_name: str = ""
    state: dict[str, Any] = field(default_factory=dict)

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class Opaque:
    """A value that was not rebuilt."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Dict(dict[Any, Any]):
    def __setstate__(self, state: Any) -> None:
        pass


class _RefusedError(Exception):
    """The reason ends a sentence that begins with the file's name."""


class _Function:
    """A function a pickle may call. Unlike a plain one, it has no attributes that the pickle could set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("is not safe to read: it tries to change a function")


def read_edm_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in an EDM pickle: network snapshots hold "ema", "loss_fn", "augment_pipe", "dataset_kwargs".

    Raises CheckpointError when the file is none, is damaged, or mentions a name outside the list below.
    """
    with path.open("rb") as file:
        start = file.read(24)
        if start[:2] == b"PK":
            raise CheckpointError(
                f"{path} is a zip archive, as torch.save writes it, and not an EDM network pickle; of a training run, "
                "import network-snapshot-*.pkl and not training-state-*.pt"
            )
        if start[:1] != b"\x80":
            raise CheckpointError(f"{path} is not a pickle: it begins with {start!r}")
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
                data = _Unpickler(file).load()
        except _RefusedError as refusal:
            raise CheckpointError(f"{path} {refusal}") from refusal
        except Exception as error:  # bytes that are no pickle can raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CheckpointError(f"{path} is damaged or truncated ({reason})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not the dictionary of an EDM network pickle")
    return data


def module_tensors(module: SavedObject, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers of a saved torch module and of all modules below it, named as in its state dict."""
    if prefix.count(".") > MAX_DEPTH:
        raise CheckpointError(f"the saved network nests deeper than {MAX_DEPTH} modules: it is no EDM network")
    found: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        found |= {f"{prefix}{k}": v for k, v in _entries(module, kind).items() if isinstance(v, Tensor)}
    for name, child in _entries(module, "_modules").items():
        if isinstance(child, SavedObject):
            found |= module_tensors(child, f"{prefix}{name}.")
    return found


def submodule(module: SavedObject, name: str) -> SavedObject | None:
    child = _entries(module, "_modules").get(name)
    return child if isinstance(child, SavedObject) else None


def _entries(module: SavedObject, kind: str) -> dict[Any, Any]:
    entries = module.state.get(kind, {})
    return entries if isinstance(entries, dict) else {}


def _persistent(meta: Any) -> SavedObject:
    if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != PERSISTENCE_VERSION:
        kind, version = (meta.get("type"), meta.get("version")) if isinstance(meta, dict) else (type(meta), None)
        raise _RefusedError(
            f"holds a persistent {kind} of version {version}, not a class of version {PERSISTENCE_VERSION}"
        )
    saved = SavedObject(str(meta.get("class_name")))
    saved.__setstate__(meta.get("state"))
    return saved


def _storage(content: Any) -> torch.TypedStorage:
    """The bytes of one tensor, themselves a small torch.save file."""
    try:
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        if name := re.search(r"GLOBAL (\S+)", str(error)):
            raise _RefusedError(f"is not safe to read: the bytes of a tensor name {name[1]}") from error
        raise _RefusedError(f"is damaged: the bytes of a tensor cannot be read ({type(error).__name__})") from error
    if not isinstance(storage, torch.TypedStorage):
        raise _RefusedError(f"is damaged: the bytes of a tensor hold a {type(storage).__name__}")
    return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, torch.TypedStorage):
        raise _RefusedError(f"is damaged: a tensor is made of a {type(storage).__name__}")
    flat = torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
    return flat.as_strided(size, stride, offset)  # checks the bounds, where set_ would make room


# Every name that a pickle may contain, and its replacement.
_NAMES: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Function(_persistent),
    ("torch.nn.modules.container", "ModuleDict"): SavedObject,
    ("torch.nn.modules.container", "ModuleList"): SavedObject,
    ("torch._utils", "_rebuild_parameter"): _Function(lambda tensor, *_: tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch.storage", "_load_from_bytes"): _Function(_storage),
    ("collections", "OrderedDict"): _Dict,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("builtins", "set"): _Function(set),
    ("numpy", "dtype"): Opaque,
    ("numpy", "ndarray"): Opaque,
    ("numpy.core.multiarray", "_reconstruct"): Opaque,
    ("numpy.core.multiarray", "scalar"): Opaque,
    ("numpy.core.numeric", "_frombuffer"): Opaque,
    ("numpy._core.multiarray", "_reconstruct"): Opaque,  # numpy 2
    ("numpy._core.multiarray", "scalar"): Opaque,
    ("numpy._core.numeric", "_frombuffer"): Opaque,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _RefusedError(
                f"is not safe to read: it names {module}.{name}, which no EDM network needs; nothing was run"
            ) from None
