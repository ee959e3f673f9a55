"""What an EDM or EDM2 pickle says beside its tensors: arguments, sigma_data, the training images."""

import math
from pathlib import Path, PurePosixPath
from typing import Any

from fewstep.card import CheckpointError
from trainer.importing.edm_pickle import SavedObject
from trainer.importing.imported import UNKNOWN


def check_argument(model: str, name: str, value: Any, default: Any) -> None:
    """An argument has the kind of its default: a number, a string, or a list of whole numbers."""
    if isinstance(default, list):
        good = isinstance(value, list | tuple) and all(type(item) is int and item > 0 for item in value)
    elif isinstance(default, float):
        good = isinstance(value, int | float) and 0 <= value < 1
    elif isinstance(default, str):
        good = isinstance(value, str)
    else:
        good = type(value) is int and value >= (1 if default is None else 0)
    if not good:
        raise CheckpointError(f"{model} has the argument {name} = {value!r}, which makes no sense")


def sigma_data_of(precond: SavedObject, path: Path) -> float:
    value = precond.state.get("sigma_data", 0.5)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{path} has sigma_data {value!r}, which is no positive number")
    return float(value)


def dataset_of(kwargs: Any) -> tuple[str, int]:
    """Name and number of the training images, as far as the file says."""
    path, count = (kwargs.get("path"), kwargs.get("max_size")) if isinstance(kwargs, dict) else (None, None)
    name = PurePosixPath(path).stem if isinstance(path, str) else ""
    return name or UNKNOWN, count if type(count) is int else 0
