"""How approximate edits are: does the truth lie where the answers say, pixel by pixel?

    fewstep trainer data fashion --split test --out runs/data/fashion-test.zip
    python benchmarks/edit_coverage.py             # two minutes of one core
    python benchmarks/edit_coverage.py --smoke     # seconds

Held-out pictures lose the pixels outside of a mask, and the shipped student answers `ANSWERS` times with what is known
(fewstep.editing.repaint, as a server does for image, mask and strength 1; the class is told, and what is not known is
gray). If the answers were draws of the exact posterior, truth and answers would be alike, and the truth would lie
between the smallest and the largest of 19 answers in (19 - 1) / (19 + 1) = 90 % of the cases. A lower share says that
the answers are too narrow.

Columns: coverage of all unknown pixels, and of the places that vary most over the training images ("varied", chosen
without these pictures); below, above: on which side the truth is where it is outside; width: mean of the interval, in
levels of 255; error: a standard error over pictures. Coverage says nothing of answers that could be nearer: off is the
root mean square of truth less the mean of the answers, crps the continuous ranked probability score (Gneiting and
Raftery 2007, Eq. 21), lowest for the exact posterior; both of the varied places. "Nothing known" says how far the
student itself, without an edit, is from the pictures. Equal levels, as of the black ground, are told apart by a
uniform draw within each level.
"""

from fewstep import extras

extras.name_missing()

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ROOT, WORK, result_file, table, write_result
from benchmarks.inputs import DATA, MODELS
from export.engine import Engine, load_engine
from fewstep.editing import repaint
from fewstep.latent import with_latent
from fewstep.noise import latent_for, noise_for
from fewstep.pixels import Pixels, from_pixels, to_pixels
from fewstep.ranges import whole
from trainer.data.format import read_image_set

ANSWERS = 19
NOMINAL = (ANSWERS - 1) / (ANSWERS + 1)
STEPS = (1, 2, 4)
VARIED = 0.5  # of the places of an image: those with the larger standard deviation over the training images
GRAY = 128  # what is not known, as the page sends it
COLUMNS = {
    "known": "known", "steps": "steps", "coverage": "coverage", "error": "error", "varied": "varied",
    "varied_error": "error", "below": "below", "above": "above", "width": "width", "off": "off", "crps": "crps",
}  # fmt: skip


def masks(side: int) -> dict[str, NDArray[np.bool_]]:
    """What is known, [side, side], by name."""
    rows, columns = np.mgrid[:side, :side]
    middle = slice(side // 2 - side // 5, side // 2 + side // 5)
    square = np.ones((side, side), bool)
    square[middle, middle] = False
    nothing = np.zeros((side, side), bool)
    return {"nothing": nothing, "upper half": rows < side // 2, "left half": columns < side // 2,
            "all but a square": square}  # fmt: skip


class Outside(NamedTuple):
    """Where the truth is not among the answers. [N, H, W] bool each."""

    below: NDArray[np.bool_]
    above: NDArray[np.bool_]


def outside(truth: Pixels, answers: Pixels, rng: np.random.Generator) -> Outside:
    """truth uint8 [N, H, W], answers uint8 [N, m, H, W]. A value is uniform within its level, so that none are equal:
    what has the law of the answers is below all of them with the probability 1 / (m + 1), and above likewise."""
    exact = truth + rng.random(truth.shape)
    others = answers + rng.random(answers.shape)
    return Outside(exact < others.min(axis=1), exact > others.max(axis=1))


def answers_to(
    engine: Engine, truth: Pixels, labels: NDArray[np.int64], known: NDArray[np.bool_], steps: int
) -> Pixels:
    """uint8 [N, ANSWERS, H, W] to truth uint8 [N, H, W, 1]; seeds from 0 on, one each."""
    manifest, made = engine.manifest, []
    asked = np.where(known[None, :, :, None], truth, np.uint8(GRAY))
    for i, (picture, label) in enumerate(zip(asked, labels, strict=True)):
        seeds = range(i * ANSWERS, (i + 1) * ANSWERS)
        denoiser = with_latent(engine.denoiser, latent_for(seeds, manifest.latent_shape), np.full(ANSWERS, label))
        image = np.repeat(from_pixels(picture[None]), ANSWERS, axis=0)
        noise = noise_for(seeds, manifest.image_shape)
        made.append(to_pixels(repaint(denoiser, image, known[None, None], noise, manifest.levels[steps]).images))
    return np.stack(made)[..., 0]


def crps(truth: NDArray[np.float64], answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """E|X - x| - E|X - X'| / 2 over the answers X [N, m, P] to truth x [N, P]: [N, P], without bias in m."""
    m, ordered = answers.shape[1], np.sort(answers, axis=1)
    ranks = 2 * np.arange(m) - m + 1
    apart = 2 * (ranks[None, :, None] * ordered).sum(axis=1) / (m * (m - 1))
    return np.abs(answers - truth[:, None]).mean(axis=1) - apart / 2


def row(truth: Pixels, answers: Pixels, known: NDArray[np.bool_], varied: NDArray[np.bool_]) -> dict[str, float]:
    """truth uint8 [N, H, W], answers [N, ANSWERS, H, W]."""
    found = outside(truth, answers, np.random.default_rng(0))
    inside = ~(found.below | found.above)
    widths = answers.max(axis=1).astype(float) - answers.min(axis=1)
    places = varied & ~known
    every, chosen = inside[:, ~known].mean(axis=1), inside[:, places].mean(axis=1)
    seen, made = truth[:, places].astype(float), answers[:, :, places].astype(float)
    return {
        "coverage": float(every.mean()), "error": _error(every), "varied": float(chosen.mean()),
        "varied_error": _error(chosen), "below": float(found.below[:, places].mean()),
        "above": float(found.above[:, places].mean()), "width": float(widths[:, places].mean()),
        "off": float(((seen - made.mean(axis=1)) ** 2).mean() ** 0.5), "crps": float(crps(seen, made).mean()),
    }  # fmt: skip


def _error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def main() -> None:
    args = _arguments()
    for path in (args.data, args.held_out):
        if not path.exists():
            sys.exit(f"error: {path} does not exist; make it with: fewstep trainer data fashion --out ZIP")
    engine = load_engine(MODELS / "engine", threads=1)
    deviations = read_image_set(args.data).images[..., 0].std(axis=0)
    varied = deviations >= np.quantile(deviations, 1 - VARIED)
    held_out = read_image_set(args.held_out)
    truth, labels = held_out.images[: args.pictures], held_out.labels[: args.pictures].astype(np.int64)
    rows: list[dict[str, Any]] = []
    for name, known in masks(engine.manifest.resolution).items():
        for steps in STEPS if name != "nothing" else STEPS[-1:]:
            answers = answers_to(engine, truth, labels, known, steps)
            rows.append({"known": name, "steps": steps, **row(truth[..., 0], answers, known, varied)})
            print(rows[-1], flush=True)
    write_result(args.out, "edit_coverage", {"pictures": args.pictures, "answers": ANSWERS}, rows, nominal=NOMINAL)
    print("\n" + table(rows, COLUMNS) + f"\n\nexact: {NOMINAL:.2f}; wrote {args.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=DATA, metavar="ZIP", help="the training images (default %(default)s)")
    add("--held-out", type=Path, default=WORK / "runs/data/fashion-test.zip", metavar="ZIP",
        help="pictures that nothing was trained on (default %(default)s)")  # fmt: skip
    add("--pictures", type=whole(2), default=40, help="of them, the first (default %(default)s)")
    add("--out", type=result_file, default=ROOT / "build" / "edit-coverage.json", metavar="FILE.json",
        help="the JSON with the result (default %(default)s)")  # fmt: skip
    add("--smoke", action="store_true", help="two pictures")
    args = parser.parse_args()
    if args.smoke:
        args.pictures = 2
    return args


if __name__ == "__main__":
    main()
