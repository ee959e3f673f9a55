"""A student's levels for each number of calls, searched where the quality table measures: in an extractor's features.

    python benchmarks/calibrate.py --model models/fashion --steps 1,2,3,4 --images 3000 --precision bf16 --compile
    python benchmarks/calibrate.py --model models/fashion --extractor fashion128 effl0-pca64

`python -m trainer calibrate` needs no extractor: it judges in the teacher's features, and what is best depends on who
looks (docs/log.md#more-than-four-calls). This is the same search with another judge, and a second one may object: a
list that is worse in its features is not kept. The seeds, from 2^33 on, are none that a published figure uses.
"""

from fewstep import extras

extras.name_missing()

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.inputs import add_data_options, load_data, load_references, run_cached
from fewstep.card import read_card
from fewstep.metrics.cache import Cache
from fewstep.metrics.extractors.by_name import EFFL0, FASHION128, INCEPTION, Pixels
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.reference import Reference
from trainer.calibrate import add_options, computing, report, searching
from trainer.levels.calibration import calibrate, searchable

BATCH = 250


@dataclass(frozen=True)
class ExtractorSpace:
    """trainer.levels.trajectories.Space: Fréchet distances to the training images in the features of one net."""

    reference: Reference

    def distance(self, pixels: Pixels, labels: NDArray[np.integer], seeds: Sequence[int]) -> float:
        parts = np.array_split(pixels, -(-len(pixels) // BATCH))
        features = np.concatenate([self.reference.features(part)[0] for part in parts])
        return frechet_distance(Moments.of(features), self.reference.moments)


def run(args: argparse.Namespace, cache: Cache) -> None:
    """Ends with the command's exit status."""
    steps, config = searchable(read_card(args.model), args.steps, args.model), searching(args)
    train, held_out = load_data(args)
    references = load_references(args, train, held_out, cache)
    if args.threads:
        torch.set_num_threads(args.threads)
    space, second = [*map(ExtractorSpace, references), None][:2]
    facts = {
        role: f"{one.net.name} {one.net.sha256}" for role, one in zip(("space", "second"), references, strict=False)
    }
    trials = calibrate(args.model, space, facts, train, steps, config, computing(args), second)
    sys.exit(report(trials, steps, args.model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    add = parser.add_argument
    names = (FASHION128, EFFL0, INCEPTION)
    add("--extractor", nargs="+", default=[FASHION128], choices=names, help=f"of one or two (default {FASHION128})")
    add("--inception", type=Path, metavar="FILE", help=f"weights of InceptionV3 (2015-12-05), for {INCEPTION}")
    add_data_options(parser)
    parser.set_defaults(smoke=False)
    args = parser.parse_args()
    if args.inception and INCEPTION not in args.extractor:
        parser.error(f"--inception is for --extractor {INCEPTION}")
    if len(args.extractor) > 2:
        parser.error("--extractor takes one judge and one that may object")
    run_cached(run, args)


if __name__ == "__main__":
    main()
