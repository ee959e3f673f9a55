"""Which classes a student's distance comes from: what it would be if the mean of a class were the data's.

    python benchmarks/class_shares.py --images 5000
    python benchmarks/class_shares.py --student consistency=runs/cd --nfe 4
    python benchmarks/class_shares.py --smoke                       # seconds; proves that it runs

A Fréchet distance is of all classes together and does not say which are wrong. Here the features of one class are moved
so that their mean is that of the class's training images, all others stay, and the distance is taken again; then the
classes are moved one after another, those first that gain most alone. What is left when all are moved is in the spread
within the classes. Prints tables, writes JSON.
"""

from fewstep import extras

extras.name_missing()

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.generators import Generator
from benchmarks.harness import ROOT, result_file, table, write_result
from benchmarks.inputs import add_common_options, load_data, load_generators, load_references, run_cached
from benchmarks.methods import dpdm_method
from fewstep.metrics.cache import Cache
from fewstep.metrics.class_shares import Labels, class_means, shares
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.reference import Reference, shuffled
from fewstep.ranges import whole


def outputs(generator: Generator, nfe: int, images: int, batch: int) -> NDArray[np.uint8]:
    """uint8 [N, H, W, C]: the student's images of seeds 0 .. N - 1, classes in turn."""
    method = dpdm_method(generator.levels)
    sigmas = method.sigmas(nfe)
    if sigmas is None:
        raise ValueError(f"the student serves no {nfe} calls; its card has {', '.join(map(str, generator.levels))}")
    batches = generator.sample(method.sampler, sigmas, range(images), batch)
    return np.concatenate([made.pixels for made in tqdm(batches, desc=f"{nfe} calls", total=-(-images // batch))])


def compose(
    name: str, nfe: int, pixels: NDArray[np.uint8], labels: Labels, train_labels: Labels, reference: Reference,
    names: tuple[str, ...],
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of one student and count of calls in the features of one net."""
    features = reference.features(pixels)[0].astype(np.float64)
    means = class_means(reference.train, train_labels, len(names))
    facts = {"method": name, "nfe": nfe, "extractor": reference.net.name}
    facts["distance"] = frechet_distance(Moments.of(features), reference.moments)
    rows = shares(features, labels, means, reference.moments)
    return [{**facts, **row, "class": names[row["class"]]} for row in rows]


def run(args: argparse.Namespace, cache: Cache) -> None:
    train, held_out = load_data(args)
    students, _ = load_generators(args, train)
    references = load_references(args, train, held_out, cache)
    train_labels = train.labels[shuffled(train)]
    rows: list[dict[str, Any]] = []
    for name, generator in students.items():
        labels = generator.labels(range(args.images))
        if labels is None:
            raise ValueError(f"{name} knows no classes")
        for nfe in args.nfe:
            pixels = outputs(generator, nfe, args.images, args.batch)
            for reference in references:
                found = compose(name, nfe, pixels, labels, train_labels, reference, generator.class_names)
                title = f"{name}, {nfe} calls, {reference.net.name}, N = {args.images}: {found[0]['distance']:.3g}"
                columns = {"class": "class", "off": "off", "alone": "moved alone", "together": "with those above"}
                print(f"\n{title}\n\n{table(found, columns)}")
                rows += found
    write_result(
        args.out, "class_shares", {"images": args.images, "nfe": args.nfe, "backend": args.backend}, rows,
        floors={
            one.net.name: frechet_distance(Moments.of(one.held_out[: args.images]), one.moments) for one in references
        },
        checkpoints={name: generator.checkpoint for name, generator in students.items()},
        extractors={one.net.name: {"settings": one.net.settings, "sha256": one.identity} for one in references},
        data={"train": train.sha256(), "held_out": held_out.sha256()},
    )  # fmt: skip
    print(f"\nwrote {args.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser)
    add = parser.add_argument
    add("--images", type=whole(1), default=10_000, help="images, N (default 10000)")
    add("--nfe", type=whole(1), nargs="+", default=[1, 4], help="network calls per image (default 1 4)")
    add("--out", type=result_file, default=ROOT / "build/class_shares.json", help="JSON")
    add("--smoke", action="store_true", help="20 images, one call, part of the data, a cache of its own")
    args = parser.parse_args()
    if args.smoke:
        args.images, args.nfe = 20, [1]
    if args.images < 20:
        parser.error("--images is 20 or more: every class needs some")
    run_cached(run, args)


if __name__ == "__main__":
    main()
