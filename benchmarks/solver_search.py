"""The schedule at which each solver is best with a few calls: found as the student's levels are.

    python benchmarks/solver_search.py --calls 4 --out schedules.json
    python benchmarks/solver_search.py --teacher runs/teacher --data runs/data/fashion-a.zip --calls 2 4 8
    python benchmarks/solver_search.py --calls 4 35 --images 200 50     # 200 images a schedule of 4 calls, 50 of 35
    python benchmarks/solver_search.py --smoke                     # seconds; proves that it runs

A schedule is sigma_max, sigma_min and rho (Karras et al. 2022, Eq. 5; 1 / rho = 0 is uniform in log SNR), and with
some solvers an order or SA-Solver's tau. The start is the published schedule and two more; then one number at a time is
moved by golden-section search, in a wide window and in a narrower one, as `trainer calibrate` moves a student's levels.
Closeness is the Fréchet distance in the teacher's own features to the training images, so that no metric of the panel
chooses. No published figure uses these seeds. A schedule is kept if it is better on four ranges of seeds
that the search has not seen. latency.py, quality.py and panel.py take the file: --schedules FILE.

Every distance is kept (--cache): the same command goes on where the last one stopped.
"""

from fewstep import extras

extras.name_missing()

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.generators import BACKENDS, Generator, load_generator, load_sampled
from benchmarks.harness import ROOT, WORK, result_file, table, write_result
from benchmarks.inputs import MODELS, fixture, run_cached
from benchmarks.methods import FAMILIES, Family
from benchmarks.repeated_calls import remembered
from fewstep.checkpoint import load_denoiser
from fewstep.metrics.cache import Cache, Key
from fewstep.metrics.extractors.teacher import TeacherSpace
from fewstep.ranges import Range, check_ranges, whole
from fewstep.schedule import SIGMA_MAX, SIGMA_MIN, logsnr_sigmas, solver_sigmas
from trainer.data.format import DataError, ImageSet, read_image_set
from trainer.data.matching import check_match
from trainer.levels import search as levels_search
from trainer.levels.search import SearchConfig, golden_section, is_better

# Seeds far from those of evaluations (0 ..), of the search for levels (2^33 ..) and of the panel (2^35 ..).
FIRST_SEED = 2**34
HELD_OUT = 4  # ranges of seeds that the search does not see
HIGHEST_TAU = 2.0
BATCH = 100
COLUMNS = {
    "label": "solver", "calls": "calls", "before": "published", "after": "found", "unseen": "unseen: published, found",
    "sigma_max": "sigma_max", "sigma_min": "sigma_min", "rho": "rho", "setting": "setting", "kept": "kept",
}  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """What is searched. A solver without an option has `setting` None."""

    sigma_max: float = SIGMA_MAX
    sigma_min: float = SIGMA_MIN
    inverse_rho: float = 1 / 7  # 0: uniform in log SNR
    setting: float | None = None  # the order, or tau

    def __post_init__(self) -> None:
        check_ranges(self, sigma_max=Range(0, above=True), sigma_min=Range(0, above=True), inverse_rho=Range(0, 1))

    def sigmas(self, levels: int) -> tuple[float, ...]:
        """`levels` sigmas from sigma_max to sigma_min, then an exact 0."""
        if self.inverse_rho == 0:
            return logsnr_sigmas(levels, self.sigma_min, self.sigma_max)
        return solver_sigmas(levels, self.sigma_min, self.sigma_max, 1 / self.inverse_rho)


Objective = Callable[[Schedule], float]  # lower is better
# Where the search begins beside the published schedule: EDM's spacing down to where a call is still seen; a short one.
STARTS = (Schedule(sigma_min=0.05), Schedule(20.0, 0.1))


@dataclass(frozen=True)
class Trial(levels_search.Trial[Schedule]):
    """What the search found for one solver and count of calls."""

    evaluations: int  # schedules measured on the seeds of the search

    @property
    def kept(self) -> Schedule:
        return self.found if self.accepted else self.start


def published(family: Family) -> Schedule:
    """The solver as its paper recommends it."""
    log_snr = family.published.schedule == "uniform in log SNR"
    return Schedule(inverse_rho=0.0 if log_snr else 1 / 7, setting=family.choices[0] if family.choices else None)


def search(objective: Objective, family: Family, levels: int, config: SearchConfig = SearchConfig()) -> Schedule:
    """The best schedule found. It is never worse than the published one, and with equal values that one stays."""
    asked = functools.cache(objective)
    settings: tuple[float | None, ...] = family.choices or (None,)
    starts = [replace(one, setting=setting) for one in (published(family), *STARTS) for setting in settings]
    best = min(dict.fromkeys(starts), key=asked)
    for narrowing, window in enumerate(config.windows):
        for name in _moved(family, levels):
            best = _move(asked, best, name, window, 2.0**-narrowing, config)
    if family.option == "order":  # another order may suit the schedule that was found
        best = min((replace(best, setting=setting) for setting in (best.setting, *family.choices)), key=asked)
    return best


def _moved(family: Family, levels: int) -> Sequence[str]:
    """The numbers that are moved. A single level is sigma_max alone."""
    spacing = ("sigma_max", "sigma_min", "inverse_rho") if levels > 1 else ("sigma_max",)
    return (*spacing, "setting") if family.option == "tau" and levels > 1 else spacing


def _move(
    objective: Objective, best: Schedule, name: str, window: float, width: float, config: SearchConfig
) -> Schedule:
    """`best`, or a better schedule that differs in one number.

    window: the factor by which a sigma may move. width: of the other numbers' windows, 1 at first.
    """
    low, high = {
        "sigma_max": (max(best.sigma_max / window, best.sigma_min * config.ratio), best.sigma_max * window),
        "sigma_min": (best.sigma_min / window, min(best.sigma_min * window, best.sigma_max / config.ratio)),
        "inverse_rho": (best.inverse_rho - 0.25 * width, best.inverse_rho + 0.25 * width),
        "setting": ((best.setting or 0.0) - 0.5 * width, (best.setting or 0.0) + 0.5 * width),
    }[name]
    lowest, highest = {
        "sigma_max": (SIGMA_MIN, SIGMA_MAX),
        "sigma_min": (SIGMA_MIN, SIGMA_MAX),
        "inverse_rho": (0.0, 1.0),
        "setting": (0.0, HIGHEST_TAU),
    }[name]
    low, high = max(low, lowest), min(high, highest)
    if low >= high:
        return best
    sigma = name.startswith("sigma")
    scale, back = (math.log, math.exp) if sigma else (float, float)
    at = lambda value: replace(best, **{name: back(value)})  # noqa: E731
    value, found = golden_section(lambda value: objective(at(value)), scale(low), scale(high), config.tries)
    return at(value) if found < objective(best) else best


def evaluations(family: Family, levels: int, config: SearchConfig = SearchConfig()) -> int:
    """How many schedules `search` measures, at most."""
    starts = (1 + len(STARTS)) * max(len(family.choices), 1)
    again = len(family.choices) if family.option == "order" else 0
    return starts + len(config.windows) * len(_moved(family, levels)) * (config.tries + 1) + again


def tried(objectives: Sequence[Objective], family: Family, levels: int, config: SearchConfig = SearchConfig()) -> Trial:
    """Search on objectives[0], check on the others."""
    counted: dict[Schedule, float] = {}

    def first(schedule: Schedule) -> float:
        if schedule not in counted:
            counted[schedule] = objectives[0](schedule)
        return counted[schedule]

    start, found = published(family), search(first, family, levels, config)
    before, after = (tuple(check(one) for check in objectives[1:]) for one in (start, found))
    return Trial(start, found, is_better(before, after), first(start), first(found), before, after, len(counted))


@dataclass(frozen=True)
class Search:
    """What all distances of a search have in common."""

    teacher: Generator
    space: TeacherSpace
    reference: str  # sha256 of the images that the distance is to
    cache: Cache

    def objective(self, family: Family, levels: int, seeds: range, tick: Callable[[float], Any]) -> Objective:
        """The distance of the images of these seeds, as a function of the schedule. tick: told every distance."""
        labels = self.teacher.labels(seeds)
        asked = np.full(len(seeds), -1, np.int64) if labels is None else labels

        def distance(schedule: Schedule) -> float:
            place = self._key(family, schedule, levels, seeds)
            if (stored := self.cache.read(place)) is None:
                sampler = functools.partial(family.sampler, **setting(family, schedule))
                batches = self.teacher.sample(sampler, schedule.sigmas(levels), seeds, BATCH)
                value = self.space.distance(np.concatenate([batch.pixels for batch in batches]), asked, seeds)
                stored = {"distance": np.array(value if math.isfinite(value) else math.inf)}
                self.cache.write(place, **stored)
            tick(float(stored["distance"]))
            return float(stored["distance"])

        return distance

    def _key(self, family: Family, schedule: Schedule, levels: int, seeds: range) -> Key:
        return {
            "kind": "solver-search", "checkpoint": self.teacher.checkpoint, "backend": self.teacher.backend,
            "solver": family.name, "sigmas": list(schedule.sigmas(levels)), "settings": setting(family, schedule),
            "seeds": [seeds.start, seeds.stop], "space": self.space.description, "reference": self.reference,
        }  # fmt: skip


def setting(family: Family, schedule: Schedule) -> dict[str, float]:
    """The keyword of the solver, as it is called and stored. Orders are whole."""
    if family.option is None or schedule.setting is None:
        return {}
    return {family.option: int(schedule.setting) if family.option == "order" else schedule.setting}


def row(family: Family, calls: int, trial: Trial, images: int) -> dict[str, Any]:
    """What the file says of one search, for people and for `benchmarks.methods.tuned_methods`."""
    kept, levels = trial.kept, family.levels(calls)
    assert levels is not None, "only possible counts are searched"
    return {
        "solver": family.name, "label": family.label, "calls": calls, "images": images,
        "sigmas": list(kept.sigmas(levels)), "settings": setting(family, kept), "sigma_max": kept.sigma_max,
        "sigma_min": kept.sigma_min, "inverse_rho": kept.inverse_rho,
        **{name: asdict(trial)[name] for name in asdict(trial)},
    }  # fmt: skip


def shown(one: dict[str, Any]) -> dict[str, Any]:
    """A row as the table has it."""
    unseen = " ".join(f"{np.mean(one[name]):.3g}" for name in ("held_out_before", "held_out_after"))
    rho = f"{1 / one['inverse_rho']:.3g}" if one["inverse_rho"] else "log SNR"
    option = ", ".join(f"{name} {value:.3g}" for name, value in one["settings"].items()) or "-"
    return {**one, "unseen": unseen, "rho": rho, "setting": option, "kept": "yes" if one["accepted"] else "published"}


def places(solvers: Sequence[str], calls: Sequence[int]) -> Iterator[tuple[Family, int, int]]:
    """(solver, calls, levels) of every search, count by count; counts that a solver cannot make are left out."""
    families = {family.name: family for family in FAMILIES}
    for count in dict.fromkeys(calls):
        for family in (families[name] for name in dict.fromkeys(solvers)):
            if levels := family.levels(count):
                yield family, count, levels


def images_by_calls(calls: Sequence[int], images: Sequence[int]) -> dict[int, int]:
    """How many images a schedule of so many calls is measured on. Raises ValueError for another number of numbers."""
    if len(images) not in (1, len(calls)):
        raise ValueError(
            f"--images has {len(images)} numbers and --calls {len(calls)}; give one for all counts, or one for each"
        )
    return dict(zip(calls, list(images) * (len(calls) // len(images)), strict=True))


def seed_ranges(images: int) -> list[range]:
    """The seeds of the search, and those of the checks of what it finds."""
    return [range(FIRST_SEED + i * images, FIRST_SEED + (i + 1) * images) for i in range(1 + HELD_OUT)]


def load_images(args: argparse.Namespace) -> ImageSet:
    if args.smoke:
        images = fixture()
        return replace(images, images=images.images[::20], labels=images.labels[::20])
    if not args.data.exists():
        raise DataError(
            f"{args.data} does not exist; for Fashion-MNIST: fewstep trainer data fashion --half a --out {args.data}"
        )
    return read_image_set(args.data)


def run(args: argparse.Namespace, cache: Cache) -> None:
    images = images_by_calls(args.calls, args.images)
    data = load_images(args)
    denoiser, card = load_denoiser(args.teacher)
    check_match(card, data, args.teacher)
    teacher = (
        load_generator(args.teacher, args.backend, args.threads)
        if args.backend
        else load_sampled(args.teacher, args.threads)
    )
    print(f"looking at {data.name} through the teacher's features", file=sys.stderr, flush=True)
    space = TeacherSpace.of(denoiser, data.images, data.labels)
    searching = Search(remembered(teacher), space, data.sha256(), cache)
    config = SearchConfig(windows=(4.0,), tries=2) if args.smoke else SearchConfig()
    wanted = list(places(args.solver, args.calls))
    if not wanted:
        raise ValueError(f"no solver of {', '.join(args.solver)} makes {', '.join(map(str, args.calls))} calls")
    settings = {
        "images": images, "windows": config.windows,
        "seeds": {calls: [[s.start, s.stop] for s in seed_ranges(count)] for calls, count in images.items()},
        "tries": config.tries, "threads": args.threads, "backend": teacher.backend, "space": space.description,
        "reference": data.name,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    total = sum(evaluations(family, levels, config) + 2 * HELD_OUT for family, _, levels in wanted)
    with tqdm(total=total, unit="schedule", smoothing=0.1) as bar:
        for family, calls, levels in wanted:

            def tick(value: float, name: str = family.name, calls: int = calls) -> None:
                bar.update()
                bar.set_postfix_str(f"{name}, {calls} calls: {value:.4g}", refresh=False)

            ranges = seed_ranges(images[calls])
            objectives = [searching.objective(family, levels, seeds, tick) for seeds in ranges]
            rows.append(row(family, calls, tried(objectives, family, levels, config), images[calls]))
            # After every search: an interrupt loses only the one that is under way.
            write_result(
                args.out, "solver_search", settings, rows,
                checkpoints={"teacher": teacher.checkpoint}, data={"train": data.sha256()},
            )  # fmt: skip
    print(table([shown(one) for one in rows], COLUMNS))
    print(f"\nwrote {args.out}; latency.py, quality.py and panel.py take it: --schedules {args.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = [family.name for family in FAMILIES]
    add(
        "--teacher",
        type=Path,
        default=MODELS / "teacher",
        metavar="DIR",
        help="checkpoint of the teacher (default %(default)s)",
    )
    add("--data", type=Path, default=ROOT / "runs/data/fashion-a.zip", metavar="ZIP", help="real images to be near to")
    add("--calls", type=whole(1), nargs="+", default=[4], metavar="N", help="network calls per image (default 4)")
    add("--solver", nargs="+", choices=names, default=names, metavar="NAME", help=f"default all: {', '.join(names)}")
    add(
        "--images", type=whole(2), nargs="+", default=[1000], metavar="N",
        help="per schedule and range of seeds: one number, or one for each of --calls (default 1000)",
    )  # fmt: skip
    add("--backend", choices=BACKENDS, help="default: float32, the engine where there is one, else the checkpoint")
    add("--threads", type=whole(0), default=0, help="0: as many as there are cores")
    add(
        "--out",
        type=result_file,
        default=ROOT / "build/solver_search.json",
        metavar="JSON",
        help="the JSON with the result (default %(default)s)",
    )
    add(
        "--cache", type=Path, default=WORK / "runs/solver-search", metavar="DIR",
        help="measured schedules (default runs/solver-search)",
    )  # fmt: skip
    add("--smoke", action="store_true", help="Euler and SA-Solver, 20 images, few tries, images of the test fixture")
    args = parser.parse_args()
    if args.smoke:
        args.images, args.solver, args.calls = [20], ["euler", "sa"], [2]
    run_cached(run, args)


if __name__ == "__main__":
    main()
