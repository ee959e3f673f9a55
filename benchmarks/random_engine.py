"""An engine of random weights, to measure a server or a network at a size of images that no shipped model has.

    python benchmarks/random_engine.py 256px --out build/256px
    fewstep serve --engine build/256px/engine

Its images are noise; times and memory do not depend on weights.
"""

from fewstep import extras

extras.name_missing()

import argparse
from pathlib import Path

from benchmarks.engine_variants import RANDOM, make_random


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=RANDOM, help="the size: 32 pixels (colour), 64 or 256")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the checkpoint, engine/ in it"
    )
    args = parser.parse_args()
    print(f"the engine is in {make_random(args.network, args.out) / 'engine'}")


if __name__ == "__main__":
    main()
