"""A picture as a request sends it, base64 or a file's bytes: how large it may be, and what it is for.

Without Pillow, which decodes pictures (server.http.pictures) and which a server loads at the first one.
"""

import base64
import re

REPAINTED_FROM = 128  # gray values of a mask from here on are made again; below, the image is kept (as in diffusers)
MODES = {1: "L", 3: "RGB"}  # Pillow's name by channels
PREFIX = re.compile("data:image/(?:png|jpeg|webp);base64,", re.IGNORECASE | re.ASCII)
MAX_FILE_BYTES = 3 * 2**20  # of a file, or more where a picture of the model's own size may need more
OTHER_BYTES = 65_536  # room for what is no pixel: EXIF with its thumbnail, a colour profile, texts


class PictureError(ValueError):
    """Why a picture is refused: the end of a sentence that begins with the field's name."""


def own_bytes(resolution: int) -> int:
    """The largest file of the model's own size: a PNG (RGBA of 16 bits that does not shrink) and OTHER_BYTES."""
    filtered = resolution * (8 * resolution + 2)  # 2: an interlaced PNG has up to twice as many rows
    return filtered + filtered // 1_000 + OTHER_BYTES


def base64_length(size: int) -> int:
    """The longest text of a file of so many bytes."""
    return len("data:image/jpeg;base64,") + 4 * -(-size // 3)


def from_base64(text: str, resolution: int) -> bytes:
    """A file from base64 without line breaks, alone or after data:image/png;base64, (or jpeg, or webp)."""
    most = max(MAX_FILE_BYTES, own_bytes(resolution))
    if len(text) > base64_length(most):
        raise PictureError(too_long(most))
    prefix = PREFIX.match(text)
    try:
        return base64.b64decode(text[prefix.end() :] if prefix else text, validate=True)
    except ValueError as error:
        raise PictureError("is not base64 of a picture; send a file's bytes as base64 without line breaks") from error


def too_long(most: int) -> str:
    return f"has more than {most} bytes; save it smaller: it is resized to the size of the model's images anyway"
