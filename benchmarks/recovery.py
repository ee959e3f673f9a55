"""Recovery of the data distribution from one call (DPDM, section 5.1): tested at every level.

    python benchmarks/recovery.py --images 2000
    python benchmarks/recovery.py --student consistency=runs/cd
    python benchmarks/recovery.py --smoke                           # seconds; proves that it runs

Real held-out images are noised to a level sigma and denoised by one network call. A teacher returns conditional means,
blurred where sigma is high; a student's output should have the distribution of the data at every level it was trained
at. Measured by the Fréchet distance of the recovered images to the training images, beside that of the images before
they were noised. Every network sees the same images and the same noise. A student knows no level above its top one
(2.5 in the shipped card): read its curve up to there. Prints tables, writes JSON, a plot, a picture.
"""

from fewstep import extras

extras.name_missing()

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.cells import Task, fill, read_cell
from benchmarks.generators import Batch, Generator
from benchmarks.harness import ROOT, need, result_file, table, write_result
from benchmarks.inputs import add_common_options, load_data, load_generators, load_references, run_cached
from benchmarks.plots import draw_recovered, draw_recovery
from fewstep.metrics.cache import Cache
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.reference import Reference, shuffled
from fewstep.noise import noise_for
from fewstep.pixels import from_pixels, to_pixels
from fewstep.ranges import POSITIVE, number, whole
from fewstep.schedule import SIGMA_MAX
from trainer.data.format import ImageSet

SIGMAS = tuple(float(f"{sigma:.3g}") for sigma in np.geomspace(0.05, SIGMA_MAX, 12))
SHOWN = 8  # images of the picture
TEACHER = "teacher"
Plan = dict[tuple[str, float, int], Task]  # (network, sigma, repeat) -> its recovered images


def noised(images: ImageSet, sigma: float, seeds: Sequence[int], count: int) -> NDArray[np.float32]:
    """x0 + sigma * eps [n, C, H, W]: image seed % count of the set's random order under the noise of that seed."""
    clean = from_pixels(images.images[_rows(images, seeds, count)])
    return np.asarray(clean + sigma * noise_for(seeds, clean.shape[1:])(0), np.float32)


def _rows(images: ImageSet, seeds: Sequence[int], count: int) -> NDArray[np.int64]:
    return shuffled(images)[np.array(seeds) % count]


def recovered(
    generator: Generator, images: ImageSet, sigma: float, count: int, batch: int, seeds: Sequence[int]
) -> Iterator[Batch]:
    """What one call makes of the noised images of these seeds, in batches. Classes are the true ones."""
    for first in range(0, len(seeds), batch):
        part = seeds[first : first + batch]
        labels = images.labels[_rows(images, part, count)].astype(np.int64) if generator.class_names else None
        yield Batch(to_pixels(generator.denoise(noised(images, sigma, part, count), sigma, labels, part)), 1)


def make_plan(generators: dict[str, Generator], held_out: ImageSet, args: argparse.Namespace) -> Plan:
    """Repeat r sees the same images under the noise of seeds r * N and on."""
    plan: Plan = {}
    for repeat in range(args.repeats):
        seeds = range(repeat * args.images, (repeat + 1) * args.images)
        labels = held_out.labels[_rows(held_out, seeds, args.images)].astype(np.int64)
        for sigma in args.sigmas:
            for name, generator in generators.items():
                key = {
                    "checkpoint": generator.checkpoint, "backend": generator.backend, "method": "recovery",
                    "sigmas": [sigma], "seeds": [seeds.start, seeds.stop], "images": held_out.sha256(),
                }  # fmt: skip
                batches = partial(recovered, generator, held_out, sigma, args.images, args.batch)
                plan[name, sigma, repeat] = Task(key, batches, seeds, 1, labels)
    return plan


def compose(cache: Cache, plan: Plan, references: Sequence[Reference]) -> list[dict[str, Any]]:
    """One row per network, sigma and extractor, over the repeats."""
    rows = []
    for name, sigma in dict.fromkeys((name, sigma) for name, sigma, _ in plan):
        tasks = [task for (other, level, _), task in plan.items() if (other, level) == (name, sigma)]
        for reference in references:
            cells = [cell for task in tasks if (cell := read_cell(cache, task, reference, SHOWN))]
            distances = [frechet_distance(cell.moments, reference.moments) for cell in cells]
            accuracies = [cell.accuracy for cell in cells if cell.accuracy is not None]
            rows.append({
                "network": name,
                "sigma": sigma,
                "extractor": reference.net.name,
                "distances": distances,
                "distance": float(np.mean(distances)),
                "distance_std": float(np.std(distances, ddof=1)) if len(distances) > 1 else None,
                "accuracy": float(np.mean(accuracies)) if accuracies else None,
            })  # fmt: skip
    return rows


def tables(rows: list[dict[str, Any]], floors: dict[str, float], images: int) -> str:
    """One table per extractor: sigma down, networks across."""
    parts = []
    names = list(dict.fromkeys(row["network"] for row in rows))
    for extractor, floor in floors.items():
        lines: dict[float, dict[str, Any]] = {}
        for row in rows:
            if row["extractor"] == extractor:
                line = lines.setdefault(row["sigma"], {"sigma": row["sigma"]})
                line |= {row["network"]: row["distance"], f"{row['network']} accuracy": row["accuracy"]}
        columns = {"sigma": "sigma", **{n: n for n in names}, **{f"{n} accuracy": f"{n}, accuracy" for n in names}}
        title = f"Fréchet distance after one call, {extractor}, N = {images}; before the noise {floor:.3g}"
        parts.append(f"{title}\n\n{table(list(lines.values()), columns)}")
    return "\n\n".join(parts)


def picture(cache: Cache, plan: Plan, held_out: ImageSet, reference: Reference, args: argparse.Namespace) -> None:
    """The first images of the first repeat: noised, and what every network makes of them, one row per sigma."""
    seeds = range(min(SHOWN, args.images))
    panels = {"noised": [to_pixels(noised(held_out, sigma, seeds, args.images)) for sigma in args.sigmas]}
    for name in dict.fromkeys(name for name, _, _ in plan):
        cells = [read_cell(cache, plan[name, sigma, 0], reference, SHOWN) for sigma in args.sigmas]
        panels[name] = [cell.pixels for cell in cells if cell]
    clean = held_out.images[_rows(held_out, seeds, args.images)]
    draw_recovered(panels, clean, args.sigmas, args.out.with_name(f"{args.out.stem}-images.png"))


def run(args: argparse.Namespace, cache: Cache) -> None:
    train, held_out = load_data(args)
    if args.images > len(held_out.images):
        raise ValueError(f"--images {args.images}: {held_out.name} has {len(held_out.images)} images only")
    students, teacher = load_generators(args, train)
    references = load_references(args, train, held_out, cache)
    generators = {TEACHER: teacher, **students}
    plan = make_plan(generators, held_out, args)
    missing = [task for task in plan.values() if any(read_cell(cache, task, one, SHOWN) is None for one in references)]
    with tqdm(total=sum(task.calls for task in missing), desc="recovering", unit="call", unit_scale=True) as bar:
        for task in missing:
            fill(cache, task, references, SHOWN, bar.update)

    rows = compose(cache, plan, references)
    floors = {
        one.net.name: frechet_distance(Moments.of(one.held_out[: args.images]), one.moments) for one in references
    }
    print(tables(rows, floors, args.images))
    settings = {"images": args.images, "repeats": args.repeats, "sigmas": args.sigmas, "backend": args.backend}
    write_result(
        args.out, "recovery", settings, rows,
        floors=floors,
        checkpoints={name: generator.checkpoint for name, generator in generators.items()},
        levels={name: generator.levels for name, generator in students.items()},
        extractors={one.net.name: {"settings": one.net.settings, "sha256": one.identity} for one in references},
        data={"train": train.sha256(), "held_out": held_out.sha256()},
    )  # fmt: skip
    draw_recovery(rows, floors, args.images, args.out.with_suffix(".png"))
    picture(cache, plan, held_out, references[0], args)
    print(f"\nwrote {args.out}, the plot and the picture beside it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, taken=(TEACHER,))
    add = parser.add_argument
    add("--images", type=whole(1), default=10_000, help="held-out images, N (default 10000)")
    add("--repeats", type=whole(1), default=1, help="times that all images are noised afresh (default 1)")
    add("--sigmas", type=number(POSITIVE), nargs="+", default=list(SIGMAS), help="levels (default: 12 from 0.05 to 80)")
    add("--out", type=result_file, default=ROOT / "build/recovery.json", help="JSON; the pictures lie beside it")
    add("--smoke", action="store_true", help="50 images, three levels, part of the data, a cache of its own")
    args = parser.parse_args()
    need("matplotlib")
    if args.smoke:
        args.images, args.repeats, args.sigmas = 50, 1, [0.5, 5.0, 80.0]
    if args.images < 2 or args.repeats < 1 or min(args.sigmas) <= 0:
        parser.error("--images is 2 or more, --repeats 1 or more, and --sigmas are positive")
    run_cached(run, args)


if __name__ == "__main__":
    main()
