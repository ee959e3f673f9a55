"""The tensors of an infer request: from JSON, or from the binary data behind it, to arrays in the shape that a model
takes."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.http.dialects.inference_schema import Input
from server.scheduler.refusal import invalid, shown

INPUT_FIELDS = ("name", "datatype", "shape", "data", "parameters")
Tensor = NDArray[Any]


def read_inputs(inputs: Sequence[Mapping[str, Any]], binary: bytes, taken: Mapping[str, Input]) -> dict[str, Tensor]:
    """The input tensors by name, [n, *row] each. binary: data of those that name its size. taken: what the model takes.
    Raises Refusal."""
    tensors: dict[str, Tensor] = {}
    at = 0
    for tensor in inputs:
        name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
        if not isinstance(name, str) or name not in taken or name in tensors:
            message = f"an input is one of {', '.join(taken)}, each once, not {shown(name)}"
            raise invalid(message, code="unknown_input", param="inputs")
        spec = taken[name]
        if not isinstance(datatype, str) or datatype not in spec.taken:
            message = f"the datatype of {name} must be one of {', '.join(spec.taken)}, not {shown(datatype)}"
            raise invalid(message, code="wrong_type", param="inputs")
        check_names(f"the input {name}", tensor, INPUT_FIELDS, "inputs")
        size = parameter_of(f"the input {name}", tensor, "binary_data_size", "inputs")
        if size is not None and tensor.get("data") is not None:
            message = f"the input {name} has both data and binary_data_size; give one of them"
            raise invalid(message, code="conflict", param="inputs")
        if size is None:
            values = _from_json(name, tensor.get("data"), spec, spec.taken[datatype])
        else:
            values = _from_binary(name, binary[at:], size, spec.taken[datatype])
            at += size
        tensors[name] = _shaped(name, values, shape, spec)
    if at != len(binary):
        message = f"the inputs name {at} bytes of binary data, and the body has {len(binary)}"
        raise invalid(message, code="out_of_range", param="inputs")
    return tensors


def check_names(where: str, given: Mapping[str, Any], known: Sequence[str], param: str) -> None:
    """Raises Refusal for a name that would have no effect. where: in words, what holds the names."""
    if other := [name for name in given if name not in known]:
        message = f"{where} cannot have {shown(other[0])}; this server knows {', '.join(known)}"
        raise invalid(message, code="unknown_field", param=param)


def parameter_of(where: str, tensor: Mapping[str, Any], name: str, param: str) -> Any:
    """The one parameter that an input or an output may have; None if it is absent. Raises Refusal."""
    parameters = tensor.get("parameters")
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        message = f"parameters must be an object, not {shown(parameters)}"
        raise invalid(message, code="wrong_type", param=param)
    check_names(f"parameters of {where}", parameters, (name,), param)
    return parameters.get(name)


def _shaped(name: str, values: Tensor, shape: Any, spec: Input) -> Tensor:
    """[n, *row]. Raises Refusal where the shape that an input names is not that of its values."""
    rows, more = divmod(len(values), spec.size)
    whole = isinstance(shape, list) and all(type(each) is int for each in shape)  # true is 1
    if not more and whole and shape in ([rows, *spec.row], [rows, *(spec.row or (1,))]):
        return values.reshape(rows, *spec.row)
    if spec.row:
        row = ", ".join(map(str, spec.row))
        message = f"{name} must have the shape [n, {row}] and as many values, not {shown(shape)} and {len(values)}"
    else:
        message = f"{name} has {len(values)} values, and its shape must be [{len(values)}], not {shown(shape)}"
    raise invalid(message, code="out_of_range", param="inputs")


def _from_json(name: str, data: Any, spec: Input, kind: str) -> Tensor:
    """A list of numbers, or of lists of them that are nested as the tensor's dimensions are. Raises Refusal."""
    values: list[Any] = data if isinstance(data, list) else [None]
    for _ in spec.row or (1,):
        if values and all(isinstance(each, list) and len(each) == len(values[0]) for each in values):
            values = [*chain.from_iterable(values)]
    numbers, bounds = ("whole numbers", np.iinfo(kind)) if spec.whole else ("numbers", np.finfo(kind))
    kinds = (int,) if spec.whole else (int, float)
    low, high = int(bounds.min), int(bounds.max)  # numpy's own cannot be compared with every integer
    if not all(type(each) in kinds and low <= each <= high for each in values):  # NaN is not
        message = f"the data of {name} must be a list of {numbers} of its datatype, not {shown(data)}"
        raise invalid(message, code="wrong_type", param="inputs")
    return np.array(values, kind)


def _from_binary(name: str, data: bytes, size: Any, kind: str) -> Tensor:
    """Little-endian numbers. Raises Refusal."""
    item = np.dtype(kind).itemsize
    if type(size) is not int or not 0 <= size <= len(data) or size % item:
        message = f"binary_data_size of {name} must be a multiple of {item} up to {len(data)}, not {shown(size)}"
        raise invalid(message, code="out_of_range", param="inputs")
    return np.frombuffer(data[:size], kind)
