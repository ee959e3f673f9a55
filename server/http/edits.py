"""From the pictures of a request to what its images begin at."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from export.manifest import Manifest
from fewstep.conditions import LOW, find
from fewstep.pixels import Pixels, from_pixels
from server.http.pictures import MODES, PictureError, base64_length, own_bytes
from server.scheduler.refusal import invalid
from server.scheduler.request import Edit, Given
from server.settings.settings import Settings

MIN_BODY_LIMIT = 5 * 2**20  # bytes, of a server whose settings name no other: a photograph as base64, and a mask
OTHER_FIELDS_BYTES = 4_096  # of a body, beside its pictures
VARY_STRENGTH, REPAINT_STRENGTH = 0.5, 1.0  # defaults, without and with a mask

Decoded = TypeVar("Decoded")


def decode_picture(name: str, decode: Callable[[], Decoded]) -> Decoded:
    """What `decode` returns. Raises Refusal, with the field's name, where it raises PictureError."""
    try:
        return decode()
    except PictureError as error:
        raise invalid(f"{name} {error}", code="invalid_image", param=name) from error


def check_edits(manifest: Manifest) -> None:
    """Raises Refusal where no picture has the channels of this model's images."""
    if manifest.channels not in MODES:
        message = f"{manifest.name} makes images of {manifest.channels} channels, which no picture has; leave image out"
        raise invalid(message, code="invalid_image", param="image")


def edit_of(manifest: Manifest, image: Pixels, known: NDArray[np.bool_] | None) -> Edit:
    """image: uint8 [H, W, C]. known: [H, W], True where a pixel is kept; None: no pixel is kept."""
    return Edit(manifest.image_shape, image.tobytes(), None if known is None else known.tobytes())


def low_of(manifest: Manifest, decode: Callable[[int, int], Pixels]) -> Given:
    """The image that a model enlarges, from a picture. decode: (side, channels) -> uint8 [side, side, C]; it may raise
    PictureError. Raises Refusal."""
    condition = find(manifest.conditions, LOW)
    assert condition is not None, "choose_conditions saw to it"
    channels, side, _ = condition.shape
    pixels = decode_picture("upscale", lambda: decode(side, channels))
    return Given.of(LOW, from_pixels(pixels[None]))


def enlarges(manifest: Manifest) -> bool:
    """Whether the model makes its images of smaller ones."""
    return find(manifest.conditions, LOW) is not None


def body_limit(settings: Settings, models: Mapping[str, Manifest]) -> int:
    """The largest body in bytes: as set, or for 0 what an edit of the largest model needs, at least MIN_BODY_LIMIT."""
    return settings.max_body_bytes or max(MIN_BODY_LIMIT, *map(edit_bytes, models.values()))


def edit_bytes(manifest: Manifest) -> int:
    """The largest body that an edit needs whose pictures have the size of this model's images."""
    return 2 * base64_length(own_bytes(manifest.resolution)) + OTHER_FIELDS_BYTES
