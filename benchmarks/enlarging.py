"""A model that enlarges images: is it nearer to the real ones than an interpolation, and does it know how sure it is?

    fewstep trainer data earth-x4 --split test --out runs/data/earth-x4-test.zip
    python benchmarks/enlarging.py --teacher runs/earth-x4/teacher     # ten minutes of one core
    python benchmarks/enlarging.py --smoke                             # seconds

Held-out crops are reduced to the size that the model takes (means of squares, rounded to 8 bits, as a server gets
them) and enlarged again. Many large images have the same small one, so an answer of the model is one draw of them.

psnr: of one answer, in dB, over all pixels of all crops; psnr_mean: of the mean of 16 answers, which the squared error
prefers to any single one; better: the share of crops at which that mean has a smaller squared error than the bicubic
interpolation whose means of squares are set to the small image, as the model's are (fewstep.residual_precond).
off: what the answers' own means of squares miss of the small image, root mean square in levels of 255.
coverage: how often the truth lies between the least and the largest of 19 answers, 0.90 for answers of the truth's own
law; error: a standard error over crops; crps: the continuous ranked probability score, in levels (see
benchmarks/edit_coverage.py).

Distances are Fréchet distances on 64 principal axes, to crops of which none was enlarged: of random features
(fewstep.metrics.extractors.random_convolutions), and of what the enlarged image has beyond the bilinear interpolation
that the network starts at, as pixels ("residual"). detail: the deviation of that residual, as a share of the real one.
The row "real" is of the crops themselves.
"""

from fewstep import extras

extras.name_missing()

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.edit_coverage import ANSWERS, NOMINAL, crps, outside
from benchmarks.harness import ROOT, WORK, picture_file, result_file, table, write_result
from fewstep.card import CheckpointError
from fewstep.checkpoint import load_denoiser
from fewstep.conditions import LOW, Condition, find
from fewstep.metrics.extractors.random_convolutions import RandomConvolutions
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.pca import Axes
from fewstep.noise import noise_for
from fewstep.pixels import Pixels, from_pixels, grid, to_pixels
from fewstep.ranges import whole
from fewstep.samplers import sample_dpdm, sample_heun
from fewstep.schedule import solver_sigmas
from trainer.data.format import DataError, read_image_set
from trainer.methods.conditions import enlarged_again
from trainer.run.sheet import add_titles

MODEL = ROOT / "models" / "earth-x4"
HELD_OUT = WORK / "runs/data/earth-x4-test.zip"
STEPS = (1, 2, 4)
AVERAGED = 16  # answers of a mean
AXES = 64
TEACHER_LEVELS, TEACHER_LOWEST = 10, 0.004
BATCH = 64
SHOWN = 10  # crops in the picture
COLUMNS = {
    "of": "of", "psnr": "psnr", "psnr_mean": "psnr_mean", "better": "better", "off": "off", "coverage": "coverage",
    "error": "error", "crps": "crps", "random": "random", "residual": "residual", "detail": "detail",
}  # fmt: skip

# small images float32 [B, C, h, w] in [-1, 1] and a seed for each -> large ones uint8 [B, H, W, C]
Enlarge = Callable[[NDArray[np.float32], Sequence[int]], Pixels]


@dataclass(frozen=True)
class Crops:
    truth: Pixels  # uint8 [N, H, W, C]
    small: Pixels  # uint8 [N, h, w, C], their means of squares

    @staticmethod
    def of(truth: Pixels, side: int) -> "Crops":
        """With what a model takes whose small images have this side."""
        return Crops(truth, reduced(truth, side))

    def first(self, count: int) -> "Crops":
        return Crops(self.truth[:count], self.small[:count])


def reduced(images: Pixels, side: int) -> Pixels:
    """Means of squares, rounded: uint8 [N, H, W, C] -> [N, side, side, C]. H is a multiple of side."""
    count, height, _, channels = images.shape
    factor = height // side
    squares = images.reshape(count, side, factor, side, factor, channels)
    return np.floor(squares.mean(axis=(2, 4)) + 0.5).astype(np.uint8)


def bicubic(small: Pixels, side: int) -> Pixels:
    """uint8 [N, h, w, C] -> [N, side, side, C], as Pillow interpolates."""
    enlarged = [Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC) for each in small]
    return np.stack([np.asarray(each) for each in enlarged])


def with_means(images: Pixels, small: Pixels) -> Pixels:
    """The images [N, H, W, C] whose means of squares are small [N, h, w, C], nearest to the given ones."""
    factor = images.shape[1] // small.shape[1]
    squares = images.reshape(len(images), small.shape[1], factor, small.shape[2], factor, -1)
    missing = small.astype(float) - squares.mean(axis=(2, 4))
    return np.clip(np.round(images + missing.repeat(factor, 1).repeat(factor, 2)), 0, 255).astype(np.uint8)


def answers(enlarge: Enlarge, small: Pixels, count: int, first_seed: int) -> Pixels:
    """`count` answers to each of small uint8 [N, h, w, C]: [N, count, H, W, C], with seeds from first_seed on."""
    asked = np.repeat(from_pixels(small), count, axis=0)
    seeds = range(first_seed, first_seed + len(asked))
    parts = [enlarge(asked[i : i + BATCH], seeds[i : i + BATCH]) for i in range(0, len(asked), BATCH)]
    made = np.concatenate(parts)
    return made.reshape(len(small), count, *made.shape[1:])


class Enlarger:
    """A checkpoint that enlarges images, by PyTorch."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError."""
        self.denoiser, self.card = load_denoiser(folder)
        self.low = _low(folder, find(self.card.conditions, LOW))

    @torch.no_grad()
    def __call__(self, small: NDArray[np.float32], seeds: Sequence[int], levels: Sequence[float]) -> Pixels:
        """By a student's levels; those of a solver end with zero, and Heun's method takes them."""
        bound = self.denoiser.given(**{LOW: torch.from_numpy(small)})
        drawn = noise_for(seeds, self.card.image_shape)
        sample = sample_dpdm if levels[-1] else sample_heun
        return to_pixels(sample(bound, lambda step: torch.from_numpy(drawn(step)), levels).images.numpy())


def _low(folder: Path, low: Condition | None) -> Condition:
    if low is None:
        raise CheckpointError(f"{folder} enlarges no images; name a model of the recipe earth-x4 or one like it")
    return low


class Distances:
    """Of images to real ones, [N, H, W, C], in two spaces."""

    def __init__(self, real: Crops, low: Condition) -> None:
        self.low, self.network = low, RandomConvolutions()
        self.spaces = {name: _space(found) for name, found in self._features(real).items()}
        self.deviation = float(self._residual(real).std())

    def of(self, crops: Crops) -> dict[str, float]:
        """Of images `crops.truth` and the small ones that they were made from."""
        found = self._features(crops)
        distances = {
            name: frechet_distance(Moments.of(axes.project(found[name])), moments)
            for name, (axes, moments) in self.spaces.items()
        }
        return {**distances, "detail": float(self._residual(crops).std()) / self.deviation}

    def _features(self, crops: Crops) -> dict[str, NDArray[np.float32]]:
        with torch.no_grad():
            parts = [self.network(torch.from_numpy(part)).numpy() for part in _parts(crops.truth)]
        return {"random": np.concatenate(parts), "residual": self._residual(crops)}

    def _residual(self, crops: Crops) -> NDArray[np.float32]:
        """[N, pixels]: what the images have beyond the interpolation of the small ones."""
        images, small = from_pixels(crops.truth), from_pixels(crops.small)
        held = np.repeat(np.repeat(small, images.shape[2] // small.shape[2], 2), images.shape[3] // small.shape[3], 3)
        smooth = enlarged_again(torch.from_numpy(held), self.low).numpy()
        return (images - smooth).reshape(len(images), -1)


def _space(features: NDArray[np.float32]) -> tuple[Axes, Moments]:
    axes = Axes.of(features, AXES)
    return axes, Moments.of(axes.project(features))


def _parts(pixels: Pixels) -> Iterable[Pixels]:
    return (pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH))


def psnr(truth: Pixels, images: NDArray[Any]) -> float:
    """In dB, of the squared error over all pixels."""
    return float(10 * np.log10(255**2 / squared_errors(truth, images).mean()))


def squared_errors(truth: Pixels, images: NDArray[Any]) -> NDArray[np.float64]:
    """[N], means over pixels."""
    return ((truth.astype(np.float64) - images) ** 2).mean(axis=(1, 2, 3))


def accuracy(crops: Crops, many: Pixels, plain: Pixels) -> dict[str, float]:
    """Of answers uint8 [N, ANSWERS, H, W, C] to crops, beside the interpolation `plain` [N, H, W, C]."""
    truth, side = crops.truth, crops.small.shape[1]
    mean = many[:, :AVERAGED].mean(axis=1)
    sides = outside(truth, many, np.random.default_rng(0))
    inside = (~(sides.below | sides.above)).mean(axis=(1, 2, 3))
    flat, flat_many = truth.reshape(len(truth), -1), many.reshape(*many.shape[:2], -1)
    scores = [crps(flat[i : i + 1].astype(float), flat_many[i : i + 1].astype(float)) for i in range(len(truth))]
    return {
        "psnr": psnr(truth, many[:, 0]), "psnr_mean": psnr(truth, mean),
        "better": float((squared_errors(truth, mean) < squared_errors(truth, plain)).mean()),
        "off": missed(many[:, 0], crops.small, side),
        "coverage": float(inside.mean()), "error": float(inside.std(ddof=1) / len(inside) ** 0.5),
        "crps": float(np.mean(scores)),
    }  # fmt: skip


def missed(images: Pixels, small: Pixels, side: int) -> float:
    return float(((reduced(images, side).astype(float) - small) ** 2).mean() ** 0.5)


def row(name: str, enlarge: Enlarge, crops: Crops, covered: int, distances: Distances) -> tuple[dict[str, Any], Pixels]:
    """The figures of one way to enlarge, and its first answers [N, H, W, C]. covered: crops with many answers."""
    some = crops.first(covered)
    many = answers(enlarge, some.small, ANSWERS, 0)
    others = answers(enlarge, crops.small[covered:], 1, covered * ANSWERS)[:, 0] if covered < len(crops.small) else None
    first = many[:, 0] if others is None else np.concatenate([many[:, 0], others])
    plain = with_means(bicubic(some.small, some.truth.shape[1]), some.small)
    figures = accuracy(some, many, plain)
    return {"of": name, **figures, **distances.of(Crops(first, crops.small))}, first


def interpolated(name: str, made: Pixels, crops: Crops, covered: int, distances: Distances) -> dict[str, Any]:
    """The figures of images [N, H, W, C] that are the same at every attempt."""
    error = psnr(crops.truth[:covered], made[:covered])
    off = missed(made[:covered], crops.small[:covered], crops.small.shape[1])
    return {"of": name, "psnr": error, "psnr_mean": error, "off": off, **distances.of(Crops(made, crops.small))}


def sheet(crops: Crops, made: dict[str, Pixels]) -> Pixels:
    """One row for each way to enlarge, between the small images and the real ones."""
    side = crops.truth.shape[1]
    factor = side // crops.small.shape[1]
    rows = {"given": crops.small.repeat(factor, axis=1).repeat(factor, axis=2), **made, "real": crops.truth}
    count = min(SHOWN, len(crops.truth))
    picture = grid(np.concatenate([images[:count] for images in rows.values()]), count)
    return add_titles(picture, side, "held-out crops, enlarged", [], list(rows))


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    try:
        _judge(args)
    except (CheckpointError, DataError) as error:
        sys.exit(f"error: {error}")


def _judge(args: argparse.Namespace) -> None:
    student, teacher = Enlarger(args.model), Enlarger(args.teacher) if args.teacher else None
    if missing := [str(steps) for steps in STEPS if steps not in student.card.levels]:
        raise CheckpointError(f"{args.model} is a {student.card.role} without levels of {', '.join(missing)} calls")
    if not args.held_out.exists():
        command = f"fewstep trainer data earth-x4 --split test --out {args.held_out}"
        raise DataError(f"{args.held_out} does not exist; for crops of the Earth: {command}")
    images = read_image_set(args.held_out).images
    if len(images) < args.pictures + args.real:
        raise DataError(f"{args.held_out} has {len(images):,} images, and {args.pictures + args.real:,} are asked for")
    order = np.random.default_rng(0).permutation(len(images))[: args.pictures + args.real]
    crops, real = (Crops.of(images[part], student.low.shape[1]) for part in np.split(order, [args.pictures]))
    distances = Distances(real, student.low)
    ways: dict[str, Enlarge] = {
        f"{steps} call{'s' * (steps > 1)}": partial(student, levels=student.card.levels[steps]) for steps in STEPS
    }
    if teacher:
        sigmas = solver_sigmas(TEACHER_LEVELS, TEACHER_LOWEST, max(student.card.levels[1]))
        ways[f"teacher, {2 * TEACHER_LEVELS - 1}"] = partial(teacher, levels=sigmas)
    plain = bicubic(crops.small, images.shape[1])
    shown = {"bicubic": plain, "bicubic, means set": with_means(plain, crops.small)}
    rows = [interpolated(name, made, crops, args.covered, distances) for name, made in shown.items()]
    for name, enlarge in ways.items():
        found, shown[name] = row(name, enlarge, crops, args.covered, distances)
        rows.append(found)
        print(found, flush=True)
    rows.append({"of": "real", **distances.of(crops)})
    settings = {"pictures": args.pictures, "covered": args.covered, "answers": ANSWERS, "averaged": AVERAGED,
                "real": args.real, "axes": AXES, "held_out": args.held_out.name}  # fmt: skip
    models = {"student": student.card.weights, "images": student.card.training["images"]}
    write_result(args.out, "enlarging", settings, rows, nominal=NOMINAL, **models)
    Image.fromarray(sheet(crops, shown)).save(args.sheet)
    print("\n" + table(rows, COLUMNS) + f"\n\nexact coverage: {NOMINAL:.2f}; wrote {args.out} and {args.sheet}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--threads", type=whole(0), default=1, help="0: as many as there are cores (default %(default)s)")
    add("--model", type=Path, default=MODEL, metavar="DIR", help="checkpoint of a student (default %(default)s)")
    add("--teacher", type=Path, metavar="DIR", help="of its teacher, by Heun's method (default: not measured)")
    add("--held-out", type=Path, default=HELD_OUT, metavar="ZIP",
        help="images that nothing was trained on (default %(default)s)")  # fmt: skip
    add("--pictures", type=whole(AXES), default=400, help="of them, enlarged once (default %(default)s)")
    add("--covered", type=whole(2), default=48, help="of these, enlarged 19 times (default %(default)s)")
    add("--real", type=whole(AXES), default=2000, help="others, to which distances are (default %(default)s)")
    add("--out", type=result_file, default=ROOT / "build" / "enlarging.json", metavar="FILE.json",
        help="the JSON with the result (default %(default)s)")  # fmt: skip
    add("--sheet", type=picture_file, default=ROOT / "build" / "enlarging.png", metavar="FILE.png",
        help="a picture of some crops (default %(default)s)")  # fmt: skip
    add("--smoke", action="store_true", help="64 pictures, two of them 19 times")
    args = parser.parse_args()
    if args.smoke:
        args.pictures, args.covered, args.real = AXES, 2, 2 * AXES
    if args.covered > args.pictures:
        parser.error(f"--covered {args.covered} is more than --pictures {args.pictures}; choose as many or fewer")
    return args


if __name__ == "__main__":
    main()
