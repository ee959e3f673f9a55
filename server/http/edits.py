"""From the pictures of a request to what its images begin at."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from export.manifest import Manifest
from fewstep.conditions import LOW, find
from fewstep.pixels import from_pixels
from server.http.picture_files import MODES, PictureError, base64_length, from_base64, own_bytes
from server.scheduler.refusal import invalid
from server.scheduler.request import Edit, Given
from server.settings.settings import Settings

MIN_BODY_LIMIT = 5 * 2**20  # bytes, of a server whose settings name no other: a photograph as base64, and a mask
OTHER_FIELDS_BYTES = 4_096  # of a body, beside its pictures
VARY_STRENGTH, REPAINT_STRENGTH = 0.5, 1.0  # defaults, without and with a mask

Picture = str | bytes  # base64, or a file
Decoded = TypeVar("Decoded")


def decode_picture(name: str, decode: Callable[[], Decoded]) -> Decoded:
    """What `decode` returns. Raises Refusal, with the field's name, where it raises PictureError."""
    try:
        return decode()
    except PictureError as error:
        raise invalid(f"{name} {error}", code="invalid_image", param=name) from error


def decode_edit(image: Picture, mask: Picture | None, manifest: Manifest) -> Edit:
    """Pictures -> what the images begin at. Raises Refusal, also where no picture has the channels of the images."""
    if manifest.channels not in MODES:
        message = f"{manifest.name} makes images of {manifest.channels} channels, which no picture has; leave image out"
        raise invalid(message, code="invalid_image", param="image")
    from server.http.pictures import decode, decode_mask  # Pillow takes a tenth of the time of a start

    side, known = manifest.resolution, None
    pixels = decode_picture("image", lambda: decode(file_of(image, side), side, manifest.channels))
    if mask is not None:
        known = ~decode_picture("mask", lambda: decode_mask(file_of(mask, side), side))
    return Edit(manifest.image_shape, pixels.tobytes(), None if known is None else known.tobytes())


def low_of(manifest: Manifest, picture: Picture) -> Given:
    """The image that a model enlarges, from a picture. Raises Refusal."""
    from server.http.pictures import decode

    condition = find(manifest.conditions, LOW)
    assert condition is not None, "choose_conditions saw to it"
    channels, side, _ = condition.shape
    pixels = decode_picture("upscale", lambda: decode(file_of(picture, side), side, channels))
    return Given.of(LOW, from_pixels(pixels[None]))


def file_of(picture: Picture, side: int) -> bytes:
    """A file, or what base64 holds. Raises PictureError."""
    return picture if isinstance(picture, bytes) else from_base64(picture, side)


def enlarges(manifest: Manifest) -> bool:
    """Whether the model makes its images of smaller ones."""
    return find(manifest.conditions, LOW) is not None


def body_limit(settings: Settings, models: Mapping[str, Manifest]) -> int:
    """The largest body in bytes: as set, or for 0 what an edit of the largest model needs, at least MIN_BODY_LIMIT."""
    return settings.max_body_bytes or max(MIN_BODY_LIMIT, *map(edit_bytes, models.values()))


def edit_bytes(manifest: Manifest) -> int:
    """The largest body that an edit needs whose pictures have the size of this model's images."""
    return 2 * base64_length(own_bytes(manifest.resolution)) + OTHER_FIELDS_BYTES
