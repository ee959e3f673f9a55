"""Bodies that a server of 32x32 images must refuse, by the field at fault."""

import base64
import json
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from tests.server.fakes import png


def square(side: int = 32) -> str:
    """A black picture as a request carries it."""
    return png(np.zeros((side, side, 1), np.uint8))


def huge_png(width: int, height: int) -> str:
    """A whole PNG of that size, one bit a pixel, compressed so far that it fits into a body."""
    packer = zlib.compressobj(9)
    row = bytes(1 + width // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = b""
    for name, content in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
        chunks += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode()


def bodies(name: str, values: Sequence[str], before: str = "") -> list[str]:
    """A body with each of these values, JSON texts, under a name. before: the fields that stand before it."""
    return [f"{{{before}{json.dumps(name)}: {value}}}" for value in values]


EDIT = f'"image": "{square()}", '
FIELDS = {
    "steps": ["0", "-1", "9", "4.5", '"4"', "true", "[]", "{}", "1e400", "NaN", "1" * 400],
    "n": ["0", "-1", "65", "1.5", '"2"', "true", "[1]", "1e30", "Infinity"],
    "seed": ["-1", "9223372036854775808", "0.5", '"7"', "false", "[7]", "-Infinity", "1e400"],
    "label": ["-1", "10", '"Toaster"', '""', "1.5", "true", "[1]", '{"a": 1}', "NaN"],
    "format": ['"bmp"', '"PNG "', '""', "1", "true", "[]"],
    "timeout_s": ["0", "-1", "1e9", '"5"', "true", "[]", "NaN", "Infinity"],
    "image": ['""', '"x"', '"////"', "1", "true", "[]", '"data:image/png;base64,"', f'"{huge_png(4_097, 4_096)}"'],
}
FIELDS_OF_EDITS = {
    "strength": ["0", "-1", "1.01", '"1"', "true", "[]", "NaN"],
    "mask": ['""', '"x"', "1", "false", "{}", f'"{huge_png(4_097, 4_096)}"'],
}
UNKNOWN = ("size", "width", "prompt", "num_inference_steps", "Steps", "", "\n", "__class__")
INVALID = (
    {name: bodies(name, values) for name, values in FIELDS.items()}
    | {name: bodies(name, ["0.5", '"x"']) + bodies(name, values, EDIT) for name, values in FIELDS_OF_EDITS.items()}
    | {name: bodies(name, ["1", "null", '"512x512"']) for name in UNKNOWN}
)
