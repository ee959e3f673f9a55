"""The body of the Open Inference Protocol's infer request, and the tensors of our models, in words of JSON Schema."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from export.manifest import Manifest
from fewstep.conditions import GUIDANCE, LOW, find
from server.http.openapi import JSON, Schema, answers, described, headers, record, reference
from server.http.routes import IMAGE_HEADERS, MODEL_VERSION, TENSOR_HEADERS

BINARY = "application/octet-stream"
# Datatypes that inputs may have, and numpy's: little-endian, as in the binary tensor extension.
INTEGERS: Mapping[str, str] = {
    "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
}  # fmt: skip
FLOATS: Mapping[str, str] = {"FP32": "<f4", "FP64": "<f8"}
BYTES: Mapping[str, str] = {"UINT8": "<u1"}
UPSCALE = "upscale"  # as in /v1/generate
INPUTS = {
    "seed": "One for each image, from 0 to 2^63 - 1; its length is the number of images.",
    "label": "One class index for each image, or one for all; -1 draws one; absent: drawn.",
    "steps": "One step count for each image, or one for all; absent: 4.",
}
CONDITION_INPUTS = {
    GUIDANCE: "One guidance weight for each image, or one for all, of models that take one; absent: 1.",
    UPSCALE: "The pixels that a model for it enlarges, [n, height, width, channels] or one for all.",
}


@dataclass(frozen=True)
class Input:
    """A tensor that a model takes: a row for each image or, but for seeds, one for all."""

    datatype: str  # that the metadata names
    taken: Mapping[str, str]  # the datatypes that are read, and numpy's
    row: tuple[int, ...] = ()  # shape of a row

    @property
    def size(self) -> int:
        """Values of a row."""
        return math.prod(self.row)

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return self.taken is not FLOATS


def inputs_of(manifest: Manifest) -> dict[str, Input]:
    """The inputs of a model by name."""
    inputs = {name: Input("INT64", INTEGERS) for name in INPUTS}
    if find(manifest.conditions, GUIDANCE):
        inputs[GUIDANCE] = Input("FP32", FLOATS)
    if low := find(manifest.conditions, LOW):
        channels, height, width = low.shape
        inputs[UPSCALE] = Input("UINT8", BYTES, (height, width, channels))
    return inputs


class InferBody(BaseModel):
    """The fields of POST /v2/models/NAME/infer. What tensors may hold is checked in server.http.dialects.inference."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str | None = Field(default=None, description="Comes back in the answer.")
    parameters: dict[str, Any] | None = Field(
        default=None,
        description="binary_data_output: outputs come as binary data; timeout: microseconds; priority: interactive, "
        "batch, or a whole number (0 and 1: interactive, more: batch).",
    )
    inputs: list[dict[str, Any]] | None = Field(
        default=None,
        description=" ".join(f"{name}: {text}" for name, text in (INPUTS | CONDITION_INPUTS).items()),
    )
    outputs: list[dict[str, Any]] | None = Field(
        default=None,
        description="Which outputs are wanted, and by parameters.binary_data in which form; absent: all.",
    )


def schemas() -> Schema:
    """For the document."""
    return {"InferRequest": described(InferBody), "ModelMetadata": _metadata()}


def infer_operation(name: str) -> Schema:
    """Of POST /v2/models/NAME/infer. name: of the operation."""
    seed = {"name": "seed", "datatype": "INT64", "shape": [2], "data": [7, 8]}
    content = {
        JSON: {"schema": reference("schemas", "InferRequest"), "example": {"inputs": [seed]}},
        BINARY: {"schema": {"type": "string", "format": "binary"}},
    }
    answered = {JSON: {"schema": {"type": "object"}}, BINARY: {"schema": {"type": "string", "format": "binary"}}}
    return {
        "operationId": f"infer_{name}",
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {
                "description": "The images as tensors.",
                "headers": headers({**IMAGE_HEADERS, **TENSOR_HEADERS}),
                "content": answered,
            }
        },
    }


def metadata_operation(name: str) -> Schema:
    """Of GET /v2/models/NAME. name: of the operation."""
    return {"operationId": f"metadata_{name}", **answers(JSON, reference("schemas", "ModelMetadata"), "The tensors.")}


def metadata_body(name: str, manifest: Manifest, backend: str) -> dict[str, Any]:
    """GET /v2/models/NAME."""
    size = [manifest.resolution, manifest.resolution, manifest.channels]
    return {
        "name": name,
        "versions": [MODEL_VERSION],
        "platform": f"fewstep_{backend}",
        "inputs": [
            {"name": each, "datatype": spec.datatype, "shape": [-1, *spec.row]}
            for each, spec in inputs_of(manifest).items()
        ],
        "outputs": [
            {"name": "image", "datatype": "UINT8", "shape": [-1, *size]},
            {"name": "seed", "datatype": "INT64", "shape": [-1]},
            {"name": "label", "datatype": "INT64", "shape": [-1]},
        ],
    }


def _metadata() -> Schema:
    text: Schema = {"type": "string"}
    shape: Schema = {"type": "array", "items": {"type": "integer"}}
    tensors: Schema = {"type": "array", "items": record({"name": text, "datatype": text, "shape": shape})}
    versions: Schema = {"type": "array", "items": text}
    return record({"name": text, "versions": versions, "platform": text, "inputs": tensors, "outputs": tensors})
