"""The fields of a request that begin at an image: `image`, `strength`, `mask`. From JSON values to checked bytes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.manifest import Manifest
from fewstep.editing import calls_for
from fewstep.pixels import from_pixels
from server.http.errors import invalid, shown
from server.http.pictures import MODES, PngError, decode, max_base64
from server.scheduler.slots import Start

VARY_STRENGTH, REPAINT_STRENGTH = 0.5, 1.0  # defaults, without and with a mask
REPAINTED_FROM = 128  # gray values of a mask from here on are made again; below, the image is kept (as in diffusers)
OTHER_FIELDS_BYTES = 4_096


@dataclass(frozen=True)
class Edit:
    """What the images of a request begin at. Bytes, because it crosses a pipe and may cross it twice."""

    shape: tuple[int, int, int]  # C, H, W
    image: bytes  # uint8 [H, W, C]
    known: bytes | None  # bool [H, W], True where the image is kept; None: nowhere
    strength: float  # in (0, 1]

    def calls(self, steps: int) -> int:
        """Network calls of an image, the last ones of `steps`."""
        return calls_for(self.strength, steps)

    def start(self) -> Start:
        """As arrays, for a slot."""
        channels, height, width = self.shape
        pixels = np.frombuffer(self.image, np.uint8).reshape(1, height, width, channels)
        image = from_pixels(pixels)[0]
        if self.known is None:
            return Start(image)
        return Start(image, np.frombuffer(self.known, np.bool_).reshape(1, height, width).copy())  # else read-only


def edits_served(model: Manifest, max_body_bytes: int) -> bool:
    """Whether a body has room for an image and a mask of this model, however badly they compress."""
    return model.channels in MODES and body_bytes(model) <= max_body_bytes


def body_bytes(model: Manifest) -> int:
    """The largest body that an edit of this model's images needs."""
    return 2 * max_base64(model.resolution) + OTHER_FIELDS_BYTES


@dataclass(frozen=True)
class EditFields:
    """An edit whose pictures are not decoded yet: its fields are right, what the texts hold is unknown."""

    image: str
    mask: str | None
    strength: float  # in (0, 1]


def edit_fields(data: dict[str, Any], model: Manifest) -> EditFields | None:
    """The edit that a request asks for, not decoded; None: images are made from noise alone. Raises ApiError 400."""
    image, mask, strength = (data.get(name) for name in ("image", "mask", "strength"))
    if image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                message = f"{name} needs image: the PNG to begin at, as base64"
                raise invalid(message, code="missing_image", param=name)
        return None
    if model.channels not in MODES:
        message = f"{model.name} makes images of {model.channels} channels, which no PNG has; leave image out"
        raise invalid(message, code="invalid_image", param="image")
    for name, value in (("image", image), ("mask", mask)):
        if not isinstance(value, str) and value is not None:
            raise invalid(f"{name} must be a PNG as base64, not {shown(value)}", code="wrong_type", param=name)
    return EditFields(image, mask, _strength(strength, VARY_STRENGTH if mask is None else REPAINT_STRENGTH))


def decode_edit(fields: EditFields, model: Manifest) -> Edit:
    """Decode the pictures: tens of milliseconds for 512x512. Raises ApiError 400."""
    pixels = _decoded("image", fields.image, model.resolution, model.channels)
    known = None if fields.mask is None else _decoded("mask", fields.mask, model.resolution, 1) < REPAINTED_FROM
    return Edit(model.image_shape, pixels.tobytes(), None if known is None else known.tobytes(), fields.strength)


def _decoded(name: str, text: str, resolution: int, channels: int) -> NDArray[np.uint8]:
    try:
        return decode(text, resolution, channels)
    except PngError as error:
        raise invalid(f"{name} {error}", code="invalid_image", param=name) from error


def _strength(value: Any, default: float) -> float:
    if value is None:
        return default
    if type(value) not in (int, float):
        raise invalid(f"strength must be a number, not {shown(value)}", code="wrong_type", param="strength")
    if not 0 < value <= 1:  # NaN is not
        message = f"strength must be above 0 and at most 1, not {shown(value)}"
        raise invalid(message, code="out_of_range", param="strength")
    return float(value)
