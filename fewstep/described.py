"""Dataclasses from JSON files that describe weights: every value is checked against its annotation. No torch."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from fewstep.schedule import check_levels

T = TypeVar("T")


def from_json(kind: type[T], data: object) -> T:
    """A dataclass from what `json.loads` gave: lists become tuples, and keys that are whole numbers such ones.

    Raises ValueError for a value of another type, a field that is missing, and one that this version does not know.
    """
    import msgspec  # only here: --help is quick

    try:
        found = msgspec.convert(data, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    _check_known(found, data)
    return found


def _check_known(found: object, data: Any) -> None:
    """Raise ValueError for a field in `data`, from which `found` was made, that is none of its dataclass."""
    if isinstance(found, tuple):
        for one, entry in zip(found, data, strict=True):
            _check_known(one, entry)
    elif is_dataclass(found):
        known = {field.name: getattr(found, field.name) for field in fields(found)}
        if unknown := sorted(set(data) - set(known)):
            raise ValueError(f"it has a field {unknown[0]!r}, which this version does not know")
        for name, value in known.items():
            if name in data:
                _check_known(value, data[name])


def check_counts(levels: Mapping[int, tuple[float, ...]]) -> None:
    """Raise ValueError unless each step count has as many levels, and these descend."""
    for steps, sigmas in levels.items():
        if len(sigmas) != steps:
            raise ValueError(f"the levels of {steps} steps are {len(sigmas)}")
        check_levels(sigmas)


def check_names(names: tuple[str, ...], classes: int) -> None:
    """Raise ValueError unless there are no classes, no class names, or one name for each class."""
    if names and classes and len(names) != classes:
        raise ValueError(f"it names {len(names)} classes, and has {classes}")


def check_deviation(sigma_data: float) -> None:
    """Raise ValueError unless this can be the standard deviation of images."""
    if not 0 < sigma_data < math.inf:  # nan fails both
        raise ValueError(f"its sigma_data is {sigma_data}; a number above 0 is needed")
