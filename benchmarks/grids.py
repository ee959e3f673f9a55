"""Draw the README's pictures: the same seeds with 1, 2, 4 and 8 calls, and the teacher's solvers below. No picking.

    python benchmarks/grids.py --out docs/images/fashion.png
    python benchmarks/grids.py --model models/earth --columns 16 --lines 4 --solver sa:35 --out docs/images/earth.webp

Seeds 0, 1, 2 and so on, classes in turn; a pixel of an image is a pixel of the picture.
"""

from fewstep import extras

extras.name_missing()

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.generators import Generator, load_sampled
from benchmarks.harness import ROOT
from benchmarks.methods import SOLVERS, Method, dpdm_method
from benchmarks.panel import teacher_folder
from fewstep.card import CheckpointError
from fewstep.outputs import check_file
from fewstep.pixels import grid
from fewstep.ranges import whole

CALLS = (1, 2, 4, 8)
PUBLISHED = ("euler:4", "heun:9", "heun:35")
MARGIN, GAP, FONT_PX, QUALITY = 96, 10, 13, 88  # pixels left of the images and between rows; quality of WebP
FORMATS = (".png", ".webp")

Row = tuple[str, Generator, Method, int]  # (name, network, method, calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add(
        "--model", type=Path, default=ROOT / "models" / "fashion", metavar="DIR", help="a student (default %(default)s)"
    )
    add("--teacher", type=Path, metavar="DIR", help="what it was distilled from (default: found beside it)")
    add("--solver", nargs="*", default=PUBLISHED, metavar="NAME:CALLS", help=f"default {' '.join(PUBLISHED)}")
    add("--columns", type=whole(1), default=20, help="images in a line (default %(default)s)")
    add("--lines", type=whole(1), default=2, help="lines of a row (default %(default)s)")
    add("--threads", type=whole(0), default=0, help="0: as many as there are cores")
    add("--out", type=picture_file, required=True, metavar="FILE", help="the picture to write, PNG or WebP")
    args = parser.parse_args()
    try:
        named = rows(args)
    except (CheckpointError, ValueError) as error:
        parser.error(str(error))
    count = args.columns * args.lines
    strips = [
        (name, grid(pixels(network, method, calls, count), args.columns)) for name, network, method, calls in named
    ]
    picture = draw(strips)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.out, quality=QUALITY)
    print(f"wrote {args.out}")


def picture_file(text: str) -> Path:
    """A path that can be written. Raises argparse.ArgumentTypeError otherwise."""
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(FORMATS)}")
    try:
        check_file(path, path.suffix)
    except CheckpointError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def rows(args: argparse.Namespace) -> list[Row]:
    """The rows of the picture, from the top. Raises CheckpointError or ValueError."""
    student = load_sampled(args.model, args.threads)
    if not student.levels:
        raise ValueError(f"{args.model} has no levels in its card: it is not a student")
    own = dpdm_method(student.levels)
    found: list[Row] = [(_name("student", k), student, own, k) for k in CALLS if k in student.levels]
    if args.solver:
        teacher = load_sampled(teacher_folder(args.model, args.teacher), args.threads)
        found += [(_name(f"teacher\n{method.label}", k), teacher, method, k) for method, k in map(solver, args.solver)]
    return found


def solver(text: str) -> tuple[Method, int]:
    """NAME:CALLS. Raises ValueError."""
    name, _, calls = text.partition(":")
    method = next((each for each in SOLVERS if each.name == name), None)
    if method is None or not calls.isdecimal() or method.sigmas(int(calls)) is None:
        names = ", ".join(each.name for each in SOLVERS)
        raise ValueError(f"--solver {text} is none; write NAME:CALLS, sa:35 say, with a name of {names}")
    return method, int(calls)


def _name(what: str, calls: int) -> str:
    return f"{what}\n{calls} call{'s' * (calls > 1)}"


def pixels(network: Generator, method: Method, calls: int, count: int) -> NDArray[np.uint8]:
    """Images of the seeds 0 to count - 1, uint8 [count, H, W, C]."""
    sigmas = method.sigmas(calls)
    assert sigmas is not None, "only possible counts are listed"
    batches = list(network.sample(method.sampler, sigmas, range(count), count))
    assert all(batch.nfe == calls for batch in batches), f"{method.name} made {batches[0].nfe} calls"
    return np.concatenate([batch.pixels for batch in batches])


def draw(named: list[tuple[str, NDArray[np.uint8]]]) -> Image.Image:
    """The rows below each other, uint8 [H, W, C] each, and their names on the left."""
    height = sum(strip.shape[0] + GAP for _, strip in named) - GAP
    picture = Image.new("RGB", (MARGIN + named[0][1].shape[1], height), "white")
    pen, font, top = ImageDraw.Draw(picture), ImageFont.load_default(FONT_PX), 0
    for name, strip in named:
        image = Image.fromarray(strip.squeeze())  # one channel is gray, three are RGB
        picture.paste(image, (MARGIN, top))
        place = (MARGIN - 6, top + image.height / 2)
        pen.multiline_text(place, name, fill="black", font=font, anchor="rm", align="right")
        top += image.height + GAP
    return picture


if __name__ == "__main__":
    main()
