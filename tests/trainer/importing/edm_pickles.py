"""Network pickles in EDM's persistence format, as EDM would write them, and files that only look like some.

The module they name, torch_utils.persistence, exists only while a pickle is written.
"""

import contextlib
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.trainer.importing.edm_reference import Reference


class Persistent:
    """An object that pickles as one decorated with EDM's persistent_class: source, class name and state."""

    def __init__(self, class_name: str, source: str = "", **state: Any) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@contextlib.contextmanager
def persistence() -> Iterator[None]:
    """The module torch_utils.persistence, whose function runs the source it is given, as the true one does."""

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> dict[str, Any]:
        exec(meta["module_src"], {})
        return meta

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    try:
        yield
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


def module_state(tensors: dict[str, Tensor], source: str) -> dict[str, Any]:
    """The attributes of a torch module that holds these tensors, by dotted names, in modules of its own."""
    here = {name: tensor for name, tensor in tensors.items() if "." not in name}
    buffers = {name for name in here if name in ("resample_filter", "freqs", "phases")}
    children: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if "." in name:
            children.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = tensor
    modules: OrderedDict[str, Any] = OrderedDict()
    for name, inside in children.items():
        state = module_state(inside, source)
        if name in ("enc", "dec"):
            modules[name] = torch.nn.ModuleDict()
            modules[name]._modules = state["_modules"]
        else:
            modules[name] = Persistent("Conv2d", source, **state)
    return {
        "training": False,
        "_parameters": OrderedDict((k, torch.nn.Parameter(v)) for k, v in here.items() if k not in buffers)
        | {"absent": None},
        "_buffers": OrderedDict((name, here[name]) for name in buffers),
        "_non_persistent_buffers_set": set(),
        "_forward_hooks": OrderedDict(),
        "_modules": modules,
        "_init_args": (),
        "_init_kwargs": {"init": {"init_weight": np.sqrt(0.2)}},
        "skip_scale": np.sqrt(0.5),
        "table": np.arange(3.0),
    }


def snapshot(
    network: Reference, class_name: str, kwargs: dict[str, Any], source: str = "", precond: str = "EDMPrecond"
) -> dict[str, Any]:
    """The dictionary that EDM pickles. source: the Python that every object carries."""
    model = Persistent(class_name, source, **module_state(network.t, source) | {"_init_kwargs": kwargs})
    ema = Persistent(
        precond, source, _modules=OrderedDict(model=model), _parameters=OrderedDict(), _buffers=OrderedDict(),
        _init_args=(), _init_kwargs={"model_type": class_name}, sigma_data=0.5, sigma_max=float("inf"), use_fp16=False,
    )  # fmt: skip
    return {
        "ema": ema,
        "loss_fn": Persistent("EDMLoss", source, P_mean=-1.2, P_std=1.2),
        "augment_pipe": Persistent("AugmentPipe", source, multipliers=np.ones(2, np.float32)),
        "dataset_kwargs": {"path": "/data/cifar10-32x32.zip", "max_size": 50000, "use_labels": True},
    }


def write(path: Path, content: Any) -> Path:
    with persistence():
        path.write_bytes(pickle.dumps(content))
    return path
