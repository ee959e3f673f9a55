"""Quality against network calls: students, and a teacher under every solver, on the same seeds, in one table.

    python benchmarks/quality.py --images 1000                     # one extractor, three seed ranges
    python benchmarks/quality.py --student consistency=runs/cd     # a rival beside the shipped student; repeat at will
    python benchmarks/quality.py --schedules schedules.json        # also the solvers at searched schedules
    python benchmarks/quality.py --extractor fashion128 effl0-pca64 --inception FILE
    python benchmarks/quality.py --only student heun:35            # sample these now; the table shows all that is there
    python benchmarks/quality.py --only student --beside old.json  # a new student beside what an earlier run measured
    python benchmarks/quality.py --smoke                           # seconds; proves that it runs

Fréchet distance to all training images, precision and recall, class accuracy, and nearest training images, each beside
the same figure for real held-out images. A run is cut into cells (method, calls, seed range), kept on disk as they are
finished: the same command goes on where the last one stopped. Prints tables, writes JSON, a plot, the closest pairs.
"""

from fewstep import extras

extras.name_missing()

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cells import Task, fill, read_cell, verify
from benchmarks.earlier import with_earlier
from benchmarks.generators import Generator
from benchmarks.harness import WORK, need, result_file, write_result
from benchmarks.inputs import add_common_options, load_data, load_generators, load_references, run_cached
from benchmarks.methods import NFE, SOLVERS, Method, dpdm_method, family_names, tuned_methods
from benchmarks.plots import draw_quality_against_nfe
from benchmarks.quality_table import caption, compose, draw_closest_pairs, draw_grids, held_out_rows, tables
from benchmarks.scores import Neighbours
from fewstep.metrics.cache import Cache
from fewstep.metrics.precision_recall import NEIGHBOURS
from fewstep.metrics.reference import Reference
from fewstep.ranges import whole
from fewstep.subcommands import Parser

TEACHER_AS_STUDENT = "teacher-dpdm"


@dataclass(frozen=True)
class Series:
    """One line of the plot: a network and the way it is sampled."""

    name: str
    label: str
    generator: Generator
    method: Method

    def task(self, nfe: int, seeds: range, batch: int) -> Task | None:
        """The images of these seeds with exactly `nfe` calls each, or None where the method cannot make them."""
        sigmas = self.method.sigmas(nfe)
        if sigmas is None:
            return None
        key = {
            "checkpoint": self.generator.checkpoint,
            "backend": self.generator.backend,
            "method": self.method.name,
            "sigmas": list(sigmas),
            "seeds": [seeds.start, seeds.stop],
        }
        if settings := self.method.settings(nfe):
            key["settings"] = dict(settings)
        sample = self.generator.sample
        labels = self.generator.labels(seeds)
        return Task(key, lambda some: sample(self.method.sampler, sigmas, some, batch), seeds, nfe, labels)


Plan = dict[tuple[str, int, int], Task]  # (series, calls, repeat) -> its images


def make_series(
    students: dict[str, Generator], teacher: Generator, solvers: Sequence[Method] = SOLVERS
) -> list[Series]:
    """The students, the teacher under each solver, and the teacher sampled as if it were the first student."""
    labels = {"student": "DPDM student"}
    levels = next(iter(students.values())).levels
    return [
        *(Series(name, labels.get(name, name), one, dpdm_method(one.levels)) for name, one in students.items()),
        *(Series(method.name, method.label, teacher, method) for method in solvers),
        Series(TEACHER_AS_STUDENT, "teacher, DPDM sampler", teacher, dpdm_method(levels)),
    ]


def make_plan(series: Sequence[Series], nfe: Sequence[int], images: int, repeats: int, batch: int) -> Plan:
    """Repeat r takes the seeds from r * images on. All of the first repeat comes first: a table is there early."""
    tasks = {
        (line.name, calls, repeat): line.task(calls, range(repeat * images, (repeat + 1) * images), batch)
        for repeat in range(repeats)
        for calls in nfe
        for line in series
    }
    return {place: task for place, task in tasks.items() if task}


def chosen(plan: Plan, only: Sequence[str] | None) -> Plan:
    """The part of a plan that NAME or NAME:NFE filters let through. Raises ValueError for one that fits nothing."""
    if not only:
        return plan
    fits = {word: [place for place in plan if word in (place[0], f"{place[0]}:{place[1]}")] for word in only}
    for word, places in fits.items():
        if not places:
            raise ValueError(f"--only {word} fits nothing; there are {', '.join(dict.fromkeys(p[0] for p in plan))}")
    wanted = {place for places in fits.values() for place in places}
    return {place: task for place, task in plan.items() if place in wanted}


def sample_missing(cache: Cache, plan: Plan, references: Sequence[Reference], stored: int) -> None:
    missing = {
        place: task
        for place, task in plan.items()
        if any(read_cell(cache, task, reference, stored) is None for reference in references)
    }
    total = sum(task.calls for task in missing.values())
    from tqdm import tqdm

    with tqdm(total=total, desc="sampling", unit="call", unit_scale=True, smoothing=0.05) as bar:
        for (name, calls, repeat), task in missing.items():
            bar.set_postfix_str(f"{name}, {calls} calls, range {repeat}")
            fill(cache, task, references, stored, bar.update)


def run(args: argparse.Namespace, cache: Cache) -> None:
    train, held_out = load_data(args)
    students, teacher = load_generators(args, train)
    references = load_references(args, train, held_out, cache)
    solvers = [*SOLVERS, *(tuned_methods(args.schedules, teacher.checkpoint) if args.schedules else [])]
    series = make_series(students, teacher, solvers)
    plan = make_plan(series, args.nfe, args.images, args.repeats, args.batch)
    if args.verify:
        from tqdm import tqdm

        for task in tqdm(plan.values(), desc="verifying", unit="cell"):
            verify(cache, task)
    if not args.compose:
        sample_missing(cache, chosen(plan, args.only), references, args.stored)

    neighbours = Neighbours(cache, train, held_out, references[0])
    real = held_out_rows(references, args.images, args.stored)
    rows, pairs = compose(cache, plan, {line.name: line.label for line in series}, references, neighbours, args.stored)
    settings = {
        "images": args.images, "repeats": args.repeats, "nfe": args.nfe, "stored": args.stored, "batch": args.batch,
        "threads": args.threads, "backend": args.backend, "neighbours": NEIGHBOURS,
    }  # fmt: skip
    facts = {
        "extractors": {one.net.name: {"settings": one.net.settings, "sha256": one.identity} for one in references},
        "data": {"train": train.sha256(), "held_out": held_out.sha256()},
    }
    if args.beside:
        places = [(line.name, nfe) for line in series for nfe in sorted(args.nfe) if (line.name, nfe, 0) in plan]
        asked = {place: plan[*place, 0].key for place in places}
        cells = {place: (key["checkpoint"], key["sigmas"]) for place, key in asked.items()}
        rows = with_earlier(rows, args.beside, settings, facts, cells)
    print(tables(rows, real, args.nfe))
    write_result(
        args.out, "quality", settings, rows,
        note=caption(args.images),
        held_out=real,
        checkpoints={name: one.checkpoint for name, one in {**students, "teacher": teacher}.items()},
        schedules={method.name: method.schedule for method in solvers},
        **facts,
    )  # fmt: skip
    draw_quality_against_nfe(rows, real, args.out.with_suffix(".png"))
    draw_closest_pairs(pairs, train, args.out.with_name(f"{args.out.stem}-closest.png"))
    if args.grids:
        draw_grids(cache, plan, references[0], args.grids)
    print(f"\nwrote {args.out}, the plot and the closest pairs beside it")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, taken=(*(method.name for method in SOLVERS), *family_names(), TEACHER_AS_STUDENT))
    add = parser.add_argument
    add("--schedules", type=Path, metavar="JSON", help="also the solvers as solver_search.py found them best")
    add("--images", type=whole(1), default=10_000, help="images per cell, N (default 10000)")
    add("--repeats", type=whole(1), default=3, help="disjoint seed ranges (default 3)")
    add(
        "--nfe", type=whole(1), nargs="+", default=list(NFE), help="network calls per image; a method leaves out others"
    )
    add("--only", nargs="+", metavar="NAME[:NFE]", help="sample these now; the rest comes from the cache")
    add("--compose", action="store_true", help="sample nothing; write what the cache holds")
    add(
        "--beside",
        type=Path,
        metavar="JSON",
        help="an earlier result: its rows stand in for cells, and join ranges, that this cache lacks",
    )
    add("--verify", action="store_true", help="first sample a few images of every kept cell again and compare")
    add(
        "--stored",
        type=whole(1),
        default=2000,
        help="images per cell kept for precision, recall, neighbours (default 2000)",
    )
    add("--out", type=result_file, default=WORK / "build/quality.json", help="JSON; the pictures lie beside it")
    add("--grids", type=Path, metavar="DIR", help="also draw the first 64 images of every cell of the first seed range")
    add("--smoke", action="store_true", help="12 images, two ranges, few calls, part of the data, a cache of its own")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    need("matplotlib", "tqdm")
    if args.smoke:
        args.images, args.repeats, args.nfe = 12, 2, [1, 3]
    if min(args.images, args.stored) <= NEIGHBOURS or args.repeats < 1:
        parser.error(f"--images and --stored are more than {NEIGHBOURS}, --repeats is 1 or more")
    run_cached(run, args)


if __name__ == "__main__":
    main()
