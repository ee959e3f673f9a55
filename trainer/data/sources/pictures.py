"""Encoded image -> uint8 pixels, the same way for every source."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.data.format import DataError

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
# What Pillow opens by itself: no film, no page description, no container of measurements.
SUFFIXES = frozenset((
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".flc", ".fli",
    ".ftc", ".ftu", ".gbr", ".gif", ".icb", ".icns", ".ico", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe",
    ".jpeg", ".jpf", ".jpg", ".jpx", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".psd",
    ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm",
))  # fmt: skip

# Everything Pillow's decoders raise on damaged bytes; its documentation promises only OSError.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, RuntimeError,
    struct.error, zlib.error,
)  # fmt: skip


def decode(content: bytes, where: str) -> Image.Image:
    """The first frame of an encoded image, turned upright. `where` is how messages name it. Raises DataError."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its pixel limit; both are refused here.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{where} is too large to be a training image ({error}); shrink or remove it") from error
    except UnidentifiedImageError as error:  # its own text names an object in memory
        raise DataError(f"{where} is not a readable image (of no known format); replace or remove it") from error
    except _DECODE_ERRORS as error:
        raise DataError(f"{where} is not a readable image ({error}); replace or remove it") from error


def flatten(image: Image.Image, where: str, *, gray: bool, background: Colour = WHITE) -> Image.Image:
    """Any mode -> "L" or "RGB", transparent parts composited on `background`. Raises DataError.

    Composite before resizing: a resize of straight (not premultiplied) alpha mixes in the colours that hide under
    transparent pixels, which shows as a dark or bright fringe.
    """
    if image.mode.startswith("I;16"):
        eight = np.rint(np.asarray(image, dtype=np.float64) / 257).astype(np.uint8)  # 65535 / 257 = 255
        image = Image.fromarray(eight)
    elif image.mode in ("I", "F"):
        raise DataError(f"{where} has 32-bit pixels of unknown range; convert it to 8 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), rgba)
    if image.mode == "LAB":
        image = image.convert("RGB")  # there is no way from it to "L"
    return image.convert("L" if gray else "RGB")


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """The largest centred square, resized to side x side with an antialiased Lanczos filter."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge))
    return image if edge == side else image.resize((side, side), Image.Resampling.LANCZOS)


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Mode "L" or "RGB" -> uint8 [H, W, C]."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def read_pictures(
    names: Sequence[str], read: Callable[[str], bytes], *, resolution: int | None, gray: bool | None
) -> NDArray[np.uint8]:
    """Decode `names` in order -> uint8 [N, resolution, resolution, C].

    read: name -> encoded bytes; a name is also how messages call the image.
    resolution: None takes the size of the first image and refuses any other size.
    gray: None is as the first image. Raises DataError, which names every picture that cannot be read.
    """
    from tqdm import tqdm  # of [train]: `data --help` works without it

    if resolution is not None and resolution < 1:
        raise DataError(f"--resolution must be positive, not {resolution}")
    stack: NDArray[np.uint8] | None = None
    broken: list[str] = []
    for index, name in enumerate(tqdm(names, unit="image", delay=1, disable=None)):
        try:
            image = decode(read(name), name)
            if gray is None:
                gray = image.mode in ("1", "L", "LA", "I;16")
            flat = flatten(image, name, gray=gray)
        except DataError as error:
            broken.append(str(error))
            continue
        except OSError as error:  # of `read`: no permission, a link to nothing
            broken.append(f"{name} cannot be read ({error.strerror or error}); replace or remove it")
            continue
        if stack is None:
            side = resolution or image.width
            stack = np.empty((len(names), side, side, 1 if gray else 3), dtype=np.uint8)
        side = stack.shape[1]
        if resolution is None and image.size != (side, side):
            raise DataError(
                f"{name} is {image.width}x{image.height}, not {side}x{side}; "
                "give --resolution N to crop and resize every image"
            )
        stack[index] = to_array(centre_square(flat, side))
    if broken:
        heading = f"{len(broken)} of {len(names)} pictures cannot be read:\n  " if len(broken) > 1 else ""
        raise DataError(heading + "\n  ".join(broken))
    if stack is None:
        raise DataError("there are no images to read")
    return stack
