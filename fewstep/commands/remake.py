"""`fewstep remake`: make an image of the server again, from its PNG alone."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fewstep.subcommands import REFUSED, Parser


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 the image was made again, 2 refused with a sentence on stderr."""
    parser = Parser(
        prog="fewstep remake",
        description="Makes an image again from the seed, step count, class and model that its PNG names, and compares.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE.png", help="a PNG that fewstep made")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: IMAGE.remade.png beside it")
    parser.add_argument("--engine", type=Path, metavar="DIR", help="default: the checkout's model of that name")
    return _remake(parser.parse_args(arguments))


def _remake(args: argparse.Namespace) -> int:
    from server.remake import RemakeError, remake

    try:
        print(remake(args.image, args.out or args.image.with_suffix(".remade.png"), args.engine))
    except (RemakeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    return 0
