"""What the panel says of a student, of its teacher's samplers and of its rivals: every metric in one table.

    python benchmarks/panel.py runs/student                        # N = 10,000, three ranges of seeds: hours
    python benchmarks/panel.py runs/student --images 1000          # 40 minutes
    python benchmarks/panel.py --schedules schedules.json --rival consistency=models/fashion/rivals/consistency
    python benchmarks/panel.py --schedules schedules.json --tuned 4 best:35     # every solver at 4 calls, one at 35
    python benchmarks/panel.py --made student.npz                  # images of fewstep generate, not sampled again
    python benchmarks/panel.py --smoke                             # seconds; proves that it runs

MODEL is a student's folder (default: the shipped one); its teacher is MODEL/teacher or the folder `teacher` beside it.
Networks run in float32: through their engine where there is one, else through PyTorch. The student makes 1, 2, 4 and 8
calls, the teacher SA-Solver's 35 and DPM-Solver++ 2M's 4 as published, and what --tuned names of --schedules
(benchmarks/solver_search.py). What the metrics are, and what they may not be used for, is in fewstep/metrics/panel.py.

Samples and figures are kept (--cache): the same command goes on where the last one stopped. All columns grow together,
500 images at a time, so that a stopped run of 10,000 images holds a run of fewer: the same command with --images 1000,
for example, samples no more.
"""

from fewstep import extras

extras.name_missing()

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cells import Task
from benchmarks.generators import Generator, load_sampled
from benchmarks.harness import WORK, cell_text, need, result_file, table, write_result
from benchmarks.inputs import MODELS, NamedFolders, add_data_options, load_data, run_cached
from benchmarks.methods import SOLVERS, TUNED, Method, best_tuned, dpdm_method, tuned_methods
from benchmarks.panel_made import Wanted, take_made
from benchmarks.panel_measures import measures
from benchmarks.quality import Series
from benchmarks.repeated_calls import remembered
from fewstep.card import CARD_FILE, Card, CheckpointError, distilled_from, read_card
from fewstep.metrics import panel as announced
from fewstep.metrics.cache import Cache, Key
from fewstep.metrics.extractors.by_name import FeatureNet, load_feature_net
from fewstep.metrics.panel import METRICS, SPACES, Labels, Panel, Pixels, compare, judge, matched, seed_ranges
from fewstep.ranges import whole
from fewstep.subcommands import Parser
from trainer.data.format import ImageSet, read_image_set
from trainer.data.named import HALVED_BY_READER
from trainer.data.sources.selection import halved

STUDENT, REAL = "student", "real"
CALLS = (1, 2, 4, 8)
PUBLISHED = ("sa:35", "dpmpp-2m:4")
BATCH = 100
PIECE = 500  # images that are kept together: an interrupt loses one piece, and more images reuse the pieces of fewer
HALF_A, ALL, HALF_B, OTHER = "half a", "all training images", "half b", "other images"
Judged = dict[str, float | None]  # by metric


@dataclass(frozen=True)
class Sampler:
    """A column of the table: a network, the way it is sampled and how many calls it makes."""

    name: str  # "student:4"
    series: Series
    calls: int
    trained_on: str

    def task(self, seeds: range) -> Task:
        task = self.series.task(self.calls, seeds, BATCH)
        assert task is not None, "only possible counts are listed"
        return task

    def labels(self, seeds: range) -> Labels:
        """The class of every image; 0 where there are none."""
        found = self.series.generator.labels(seeds)
        return np.zeros(len(seeds), np.int64) if found is None else found

    def pieces(self, seeds: range) -> list[Task]:
        """The same images in pieces."""
        return [self.task(seeds[first : first + PIECE]) for first in range(0, len(seeds), PIECE)]


def teacher_folder(model: Path, given: Path | None) -> Path:
    """The teacher of a student's folder. Raises CheckpointError when there is none, or it is another student's."""
    folders = [given] if given else [model / "teacher", model.parent / "teacher"]
    found = next((folder for folder in folders if (folder / CARD_FILE).is_file()), None)
    if found is None:
        raise CheckpointError(f"no teacher in {' or '.join(map(str, folders))}; name its folder: --teacher DIR")
    student, teacher = read_card(model), read_card(found)
    if not distilled_from(student, teacher):
        raise CheckpointError(
            f"{model} was not distilled from {found} (its card names the teacher {str(student.parent)[:12]}...); "
            "name the folder it was distilled from: --teacher DIR"
        )
    return found


class Halves(NamedTuple):
    """What networks are trained on, and what the panel's extractor was trained on."""

    a: ImageSet
    b: ImageSet | None  # None: no extractor of such images, so networks may be trained on all of them

    @staticmethod
    def of(train: ImageSet) -> "Halves":
        """Where the reader of a data set makes its halves, networks may be trained on all of `train`."""
        name = train.name.rpartition(" of ")[2]  # a smoke run's part is named "1000 of NAME"
        if name.removesuffix("-a").removesuffix("-b") in HALVED_BY_READER:
            return Halves(train, None)
        return Halves(halved(train, "a"), halved(train, "b"))


def trained_on(card: Card, folder: Path, train: ImageSet, halves: Halves) -> str:
    """Which images made a network. Raises CheckpointError for half b, on which the panel's extractor was trained."""
    if halves.b is None:
        return ALL if card.dataset.sha256 == train.sha256() else OTHER
    sets = {halves.a.sha256(): HALF_A, train.sha256(): ALL, halves.b.sha256(): HALF_B}
    where = sets.get(card.dataset.sha256, OTHER)
    if where == HALF_B:
        raise CheckpointError(
            f"{folder} was trained on half b of {train.name}, which belongs to the panel's extractor and references; "
            f"train it on half a: fewstep train {train.name} --half a --out DIR"
        )
    if where != HALF_A:
        print(
            f"warning: {folder} was trained on {where}, not on half a alone, so it is judged by an extractor of images "
            "that it has seen itself",
            file=sys.stderr,
        )
    return where


def columns(args: argparse.Namespace, train: ImageSet, halves: Halves) -> list[Sampler]:
    """All samplers that are asked for. Raises CheckpointError or ValueError."""
    if args.tuned and not args.schedules:
        raise ValueError("--tuned chooses among searched schedules; name their file: --schedules JSON")
    folder = teacher_folder(args.model, args.teacher)
    found: list[Sampler] = []
    for name, place in {STUDENT: args.model, **args.rival}.items():
        where = trained_on(read_card(place), place, train, halves)
        network = checked(remembered(load_sampled(place, args.threads)), name, train)
        if not network.levels:
            raise ValueError(f"{place} has no levels in its card: it is not a student")
        label = "DPDM student" if name == STUDENT else name
        series = Series(name, label, network, dpdm_method(network.levels))
        found += [Sampler(f"{name}:{k}", series, k, where) for k in sorted({*args.calls}) if k in network.levels]
    where = trained_on(read_card(folder), folder, train, halves)
    teacher = checked(remembered(load_sampled(folder, args.threads)), "the teacher", train)
    methods = {method.name: method for method in SOLVERS}
    tuned = (
        {method.name: method for method in tuned_methods(args.schedules, teacher.checkpoint)} if args.schedules else {}
    )
    asked = [*args.solver]
    if args.schedules:
        known = [f"{name}:{k}" for name, method in tuned.items() for k in range(1, 100) if method.sigmas(k)]
        asked += [text for word in args.tuned or ["all"] for text in named(word, known, args.schedules)]
    return found + [solver(text, {**methods, **tuned}, teacher, where) for text in dict.fromkeys(asked)]


def named(word: str, known: Sequence[str], schedules: Path) -> list[str]:
    """NAME:CALLS of the searched schedules that a word of --tuned names. Raises ValueError where it names none.

    word: `all`; a number of calls; or `best:CALLS`, the one that is nearest in the teacher's features.
    """
    best, _, calls = word.rpartition(":")
    found = [text for text in known if word == "all" or text.endswith(f":{calls}")]
    if best == "best" and found:
        return [f"{best_tuned(schedules, int(calls))}{TUNED}:{calls}"]
    if best or not found:
        raise ValueError(
            f"--tuned {word} names none of the schedules of {schedules}; write all, a number of calls, or best:CALLS. "
            f"It has {', '.join(known)}"
        )
    return found


def checked(network: Generator, name: str, train: ImageSet) -> Generator:
    height, width, channels = train.images.shape[1:]
    if network.image_shape != (channels, height, width):
        raise ValueError(f"{name} makes images of {network.image_shape}; {train.name} has {train.images.shape[1:]}")
    return network


def solver(text: str, methods: Mapping[str, Method], teacher: Generator, where: str) -> Sampler:
    """NAME:CALLS of the teacher. Raises ValueError."""
    name, _, calls = text.partition(":")
    if name not in methods or not calls.isdecimal() or methods[name].sigmas(int(calls)) is None:
        raise ValueError(f"--solver {text} is none; write NAME:CALLS, sa:35 say, with a name of {', '.join(methods)}")
    return Sampler(text, Series(name, methods[name].label, teacher, methods[name]), int(calls), where)


def load_nets(threads: int, shape: tuple[int, ...]) -> tuple[list[FeatureNet], dict[str, str]]:
    """The panel's networks, and why those that are missing are missing."""
    nets, missing = [], {}
    for name in SPACES:
        try:
            net = load_feature_net(name, threads=threads)
        except CheckpointError as error:
            missing[name] = str(error)
            continue
        if net.image_shape and net.image_shape != shape:
            missing[name] = f"{name} is of images of {net.image_shape}, and these are {shape}"
        else:
            nets.append(net)
    return nets, missing


@dataclass(frozen=True)
class CachedPanel:
    """The panel, and what its judgements depend on beside the images."""

    panel: Panel
    half_a: Pixels
    half_a_labels: Labels
    identity: Key

    @staticmethod
    def of(
        nets: Sequence[FeatureNet], held_out: ImageSet, half_a: ImageSet, classes: bool, unseen: ImageSet | None
    ) -> "CachedPanel":
        """classes: networks are asked for classes, so real images are compared class by class."""
        labels, own = (one.labels if classes else np.zeros_like(one.labels) for one in (held_out, half_a))
        others = None if unseen is None else np.asarray(unseen.images)
        return CachedPanel(
            Panel.of(nets, np.asarray(held_out.images), labels, half_a.images, others),
            half_a.images,
            own,
            {
                "announced": announced.ANNOUNCED,
                "data": [one.sha256() for one in (half_a, held_out, unseen) if one is not None],
                "nets": {net.name: net.sha256 for net in nets},
            },
        )

    def _key(self, facts: Key) -> Key:
        return {"kind": "panel", **self.identity, **facts}

    def _read(self, cache: Cache, facts: Key) -> Judged | None:
        stored = cache.read(self._key(facts))
        if stored is None:
            return None
        values = map(float, stored["values"])
        return {metric.name: None if np.isnan(value) else value for metric, value in zip(METRICS, values, strict=True)}

    def _write(self, cache: Cache, facts: Key, judged: Judged) -> Judged:
        values = [np.nan if judged[metric.name] is None else judged[metric.name] for metric in METRICS]
        cache.write(self._key(facts), values=np.array(values, float))
        return judged

    def judged(self, cache: Cache, sampler: Sampler, seeds: range, number: int) -> Judged:
        """What the panel says of a sampler's images of these seeds, from the cache or now."""
        facts = {"pixels": sampler.task(seeds).key, "number": number}
        if found := self._read(cache, facts):
            return found
        stored = [cache.read(pixels_key(piece)) for piece in sampler.pieces(seeds)]
        pixels = np.concatenate([piece["pixels"] for piece in stored if piece is not None])
        assert len(pixels) == len(seeds), "sampled before"
        return self._write(cache, facts, judge(self.panel, pixels, sampler.labels(seeds), number))

    def floor(self, cache: Cache, labels: Labels, number: int) -> Judged:
        """The same of real images of half a, with the same labels; every range has other images."""
        facts = {"real": hashlib.sha256(np.asarray(labels, np.int64).tobytes()).hexdigest(), "number": number}
        if found := self._read(cache, facts):
            return found
        real = self.half_a[matched(labels, self.half_a_labels, part=number)]
        return self._write(cache, facts, judge(self.panel, real, labels, number, real=True))


def pixels_key(task: Task) -> Key:
    return {"kind": "panel-pixels", **task.key}


def sample_missing(cache: Cache, tasks: Sequence[tuple[str, Task]]) -> None:
    missing = [(name, task) for name, task in tasks if not cache.path(pixels_key(task)).is_file()]
    from tqdm import tqdm

    with tqdm(total=sum(task.calls for _, task in missing), desc="sampling", unit="call", unit_scale=True) as bar:
        for name, task in missing:
            bar.set_postfix_str(name)
            parts = []
            for pixels, nfe in task.batches(task.seeds):
                if nfe != task.nfe:
                    raise RuntimeError(f"{name} made {nfe} network calls per image, not {task.nfe}")
                parts.append(pixels)
                bar.update(nfe * len(pixels))
            cache.write(pixels_key(task), pixels=np.concatenate(parts))


def run(args: argparse.Namespace, cache: Cache) -> None:
    print(
        f"panel {announced.ANNOUNCED}: {args.images} images of {args.ranges} ranges of seeds",
        file=sys.stderr,
        flush=True,
    )
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    train, held_out = load_data(args)
    unseen = read_image_set(args.unseen) if args.unseen else None
    halves = Halves.of(train)
    samplers = columns(args, train, halves)
    ranges = seed_ranges(args.images, args.ranges)
    cut = [(sampler.name, sampler.pieces(seeds)) for seeds in ranges for sampler in samplers]
    wanted = [
        Wanted(sampler.series.generator.checkpoint, sampler.calls, piece)
        for seeds in ranges for sampler in samplers for piece in sampler.pieces(seeds)
        if sampler.series.generator.levels
    ]  # fmt: skip
    for file in args.made:
        print(f"{file}: {take_made(cache, file, wanted, pixels_key)} images are judged", file=sys.stderr, flush=True)
    # The first piece of everything, then the second, ..: a run that is stopped has whole runs of fewer images.
    sample_missing(cache, [(name, pieces[i]) for i in range(len(cut[0][1])) for name, pieces in cut])

    nets, missing = load_nets(args.threads, train.images.shape[1:])
    for sentence in missing.values():
        print(f"without {sentence}", file=sys.stderr)
    own = "half a" if halves.b else train.name
    print(f"looking at {held_out.name} and {own} through {len(nets)} networks", file=sys.stderr, flush=True)
    known = samplers[0].task(ranges[0]).labels is not None
    cached = CachedPanel.of(nets, held_out, halves.a, known, unseen)
    judged = judge_all(cached, cache, samplers, ranges)
    rows = [
        {"sampler": REAL, "label": f"real images of {own}", "calls": None, "metrics": metrics(judged[REAL])},
        *(described(sampler, judged[sampler.name], sampler.task(ranges[0])) for sampler in samplers),
    ]
    rows = [{**row, "images": args.images} for row in rows]
    comparisons = [
        {"first": a, "second": b, "metrics": [asdict(one) for one in compare(judged[a], judged[b])]}
        for a, b in compared(samplers)
    ]
    print(shown(rows))
    print("\n" + "\n".join(map(sentence_of, comparisons)))
    print("\n" + "\n".join(map(str, measures(rows, comparisons))))
    settings = {
        "announced": announced.ANNOUNCED, "images": args.images, "ranges": [[s.start, s.stop] for s in ranges],
        "alpha": announced.ALPHA, "manifold_of": min(args.images, announced.MANIFOLD_OF),
        "close_of": min(args.images, announced.CLOSE_OF), "threads": args.threads, "precision": "float32",
    }  # fmt: skip
    write_result(
        args.out, "panel", settings, rows, comparisons=comparisons, missing=missing,
        says={metric.name: metric.says for metric in METRICS},
        extractors={net.name: {"settings": net.settings, "sha256": net.sha256} for net in nets},
        data={
            "train": train.sha256(), "half_a": halves.a.sha256(), "held_out": held_out.sha256(),
            **({"unseen": unseen.sha256()} if unseen else {}),
        },
    )  # fmt: skip
    print(f"\nwrote {args.out}")


def judge_all(
    cached: CachedPanel, cache: Cache, samplers: Sequence[Sampler], ranges: Sequence[range]
) -> dict[str, list[Judged]]:
    """What the panel says of every sampler, and of real images, by range."""
    judged: dict[str, list[Judged]] = {REAL: [], **{sampler.name: [] for sampler in samplers}}
    from tqdm import tqdm

    with tqdm(total=len(judged) * len(ranges), desc="judging", unit="set") as bar:
        for number, seeds in enumerate(ranges):
            bar.set_postfix_str(f"{REAL}, range {number}")
            judged[REAL].append(cached.floor(cache, samplers[0].labels(seeds), number))
            bar.update()
            for sampler in samplers:
                bar.set_postfix_str(f"{sampler.name}, range {number}")
                judged[sampler.name].append(cached.judged(cache, sampler, seeds, number))
                bar.update()
    return judged


def metrics(judged: Sequence[Judged]) -> dict[str, Any]:
    return {row.pop("metric"): row for row in announced.rows(judged)}


def described(sampler: Sampler, judged: Sequence[Judged], task: Task) -> dict[str, Any]:
    return {
        "sampler": sampler.name, "label": sampler.series.label, "calls": sampler.calls,
        "trained_on": sampler.trained_on, "metrics": metrics(judged), "checkpoint": task.key["checkpoint"],
        "backend": task.key["backend"], "sigmas": task.key["sigmas"], "settings": task.key.get("settings", {}),
    }  # fmt: skip


def compared(samplers: Sequence[Sampler]) -> list[tuple[str, str]]:
    """Pairs of columns: each count of the student with the next, with every column of as many calls, and with the
    teacher's most calls."""
    own = [one for one in samplers if one.series.name == STUDENT]
    others = [one for one in samplers if one.series.name != STUDENT]
    most = max((one.calls for one in others), default=0)
    pairs = [(after.name, before.name) for before, after in pairwise(own)]
    return pairs + [(one.name, other.name) for one in own for other in others if other.calls in (one.calls, most)]


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Metrics downwards, samplers across; mean and standard deviation over the ranges."""
    lines = [
        {"metric": metric.name, **{row["sampler"]: figure(row["metrics"][metric.name]) for row in rows}}
        for metric in METRICS
    ]
    return table(lines, {"metric": "metric", **{row["sampler"]: row["sampler"] for row in rows}})


def figure(found: Mapping[str, Any]) -> str | None:
    if found["mean"] is None:
        return None
    spread = "" if found["std"] is None else f" ±{found['std']:.1g}"
    return f"{cell_text(found['mean'])}{spread}"


def sentence_of(comparison: Mapping[str, Any]) -> str:
    by = {outcome: [one["metric"] for one in comparison["metrics"] if one["outcome"] == outcome] for outcome in
          ("better", "worse", "no difference")}  # fmt: skip
    parts = [f"{outcome}: {', '.join(names)}" for outcome, names in by.items() if names]
    return f"{comparison['first']} beside {comparison['second']}: {'; '.join(parts)}"


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", type=Path, nargs="?", default=MODELS, metavar="MODEL", help="a student's folder (default: shipped)")
    add("--teacher", type=Path, metavar="DIR", help="what it was distilled from (default: found beside it)")
    taken = (STUDENT, REAL, *(method.name for method in SOLVERS))
    add("--rival", action=NamedFolders, default={}, metavar="NAME=DIR", taken=taken, help="another student; repeat it")
    add("--schedules", type=Path, metavar="JSON", help="the teacher's solvers at searched schedules")
    add(
        "--tuned", nargs="+", metavar="WHICH",
        help="of --schedules: all (default), those of so many calls (4), or the one of so many calls that is nearest "
        "in the teacher's features (best:35)",
    )  # fmt: skip
    add("--solver", nargs="*", default=list(PUBLISHED), metavar="NAME:CALLS", help=f"default {' '.join(PUBLISHED)}")
    add("--made", type=Path, nargs="+", default=[], metavar="FILE.npz", help="students' images, of fewstep generate")
    add("--calls", type=whole(1), nargs="+", default=list(CALLS), help="of the students (default 1 2 4 8)")
    add("--images", type=whole(4, announced.IMAGES), default=announced.IMAGES, help="N per range (default 10000)")
    add("--ranges", type=whole(1, 100), default=announced.RANGES, help=f"of seeds (default {announced.RANGES})")
    add(
        "--unseen", type=Path, metavar="ZIP",
        help="images whose nearness to the training images is no copying, where "
        "those of --held-out are other crops of the same pictures (default: those of --held-out)",
    )  # fmt: skip
    add(
        "--out",
        type=result_file,
        default=WORK / "build/panel.json",
        metavar="JSON",
        help="the JSON with the result (default %(default)s)",
    )
    add("--smoke", action="store_true", help="12 images, two ranges, one and two calls, part of the data")
    add_data_options(parser)
    args = parser.parse_args()
    need("scipy", "torch", "tqdm")
    if args.smoke:
        if args.out == parser.get_default("out"):
            args.out = WORK / "build/panel-smoke.json"
        args.images, args.ranges, args.calls, args.solver = 12, 2, [1, 2], ["euler:2"]
    run_cached(run, args)


if __name__ == "__main__":
    main()
