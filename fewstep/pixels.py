"""Images in [-1, 1] <-> uint8 pixels <-> encoded bytes, and grids of images. Numpy only."""

import io
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # [..., H, W, C] with C = 1 (gray), 3 (RGB)
Format = Literal["png", "webp", "npy"]
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: dict[Format, str] = {"png": "image/png", "webp": "image/webp", "npy": "application/x-npy"}


def to_pixels(images: NDArray[np.floating]) -> Pixels:
    """[B, C, H, W] nominally in [-1, 1] -> uint8 [B, H, W, C]; values outside are clipped."""
    scaled = np.clip(np.floor(images * 127.5 + 128.0), 0, 255)  # EDM's rounding: 127.5 x + 128, truncated
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))


def from_pixels(pixels: Pixels) -> NDArray[np.float32]:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [-1, 1]."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(127.5) - 1


def encode(pixels: Pixels, format: Format) -> bytes:
    """One image uint8 [H, W, C] as PNG, lossless WebP, or an .npy file."""
    buffer = io.BytesIO()
    if format == "npy":
        np.save(buffer, pixels, allow_pickle=False)
    elif format == "png":
        # Level 1 is several times faster than Pillow's default 6 and a little larger.
        _to_pil(pixels).save(buffer, "PNG", compress_level=1)
    else:
        _to_pil(pixels).save(buffer, "WEBP", lossless=True, method=0)
    return buffer.getvalue()


def grid(pixels: Pixels, columns: int, gap: int = 0, background: int = 255) -> Pixels:
    """Tile [B, H, W, C] row by row into one image, with `gap` background pixels between tiles."""
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), background, dtype=np.uint8)
    for index, tile in enumerate(pixels):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def _to_pil(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
