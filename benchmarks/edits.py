"""Draw the picture of edits: one image, versions of it, and its lower half made again. No picking.

python benchmarks/edits.py --out docs/images/edits.png
"""

from fewstep import extras

extras.name_missing()

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.harness import ROOT, picture_file
from export.engine import Engine, load_engine
from fewstep.editing import calls_for, repaint, vary
from fewstep.latent import with_latent
from fewstep.noise import latent_for, noise_for
from fewstep.pixels import Pixels, from_pixels, grid, to_pixels
from fewstep.samplers import sample_dpdm

STEPS = 4
SEEDS = range(16)
BEGUN_AT = 40  # seed of the image that is edited; the others have noise of their own
BOOT, SANDAL = "Ankle boot", "Sandal"


class Edited(NamedTuple):
    """One row of the picture."""

    strength: float
    label: str
    half: bool  # only the lower half is made again


ROWS = {
    "strength 0.25": Edited(0.25, BOOT, half=False),
    "strength 0.5": Edited(0.5, BOOT, half=False),
    "strength 0.75": Edited(0.75, BOOT, half=False),
    "strength 1": Edited(1.0, BOOT, half=False),
    "lower half": Edited(1.0, BOOT, half=True),
    "lower half\nas a sandal": Edited(1.0, SANDAL, half=True),
}


def images(engine: Engine, edited: Edited, begun: Pixels, seeds: range = SEEDS) -> Pixels:
    """What the server answers to this edit of `begun` [1, H, W, C], for each seed: uint8 [seeds, H, W, C]."""
    manifest = engine.manifest
    labels = np.full(len(seeds), manifest.class_names.index(edited.label))
    denoiser = with_latent(engine.denoiser, latent_for(seeds, manifest.latent_shape), labels)
    image = np.repeat(from_pixels(begun), len(seeds), axis=0)
    noise, sigmas = noise_for(seeds, manifest.image_shape), manifest.levels[STEPS][-calls_for(edited.strength, STEPS) :]
    if not edited.half:
        return to_pixels(vary(denoiser, image, noise, sigmas).images)
    known = (np.arange(manifest.resolution) < manifest.resolution // 2)[None, None, :, None]
    return to_pixels(repaint(denoiser, image, known, noise, sigmas).images)


def first_image(engine: Engine) -> Pixels:
    """The image that is edited: uint8 [1, H, W, C]."""
    manifest = engine.manifest
    label = np.array([manifest.class_names.index(BOOT)])
    denoiser = with_latent(engine.denoiser, latent_for([BEGUN_AT], manifest.latent_shape), label)
    return to_pixels(sample_dpdm(denoiser, noise_for([BEGUN_AT], manifest.image_shape), manifest.levels[STEPS]).images)


def draw(begun: Pixels, rows: Mapping[str, Pixels], out: Path) -> None:
    """A strip per row: the image itself, then what was made of it."""
    figure = Figure(figsize=(11, 0.66 * len(rows)), dpi=100, layout="constrained")
    for axes, (name, made) in zip(figure.subplots(len(rows)), rows.items(), strict=True):
        strip = grid(np.concatenate([begun, made]), len(made) + 1, gap=1)
        axes.imshow(strip[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine",
        type=Path,
        default=ROOT / "models" / "fashion" / "engine",
        metavar="ENGINE",
        help="engine of the student (default %(default)s)",
    )
    parser.add_argument("--out", type=picture_file, required=True, metavar="PNG", help="the picture to write")
    args = parser.parse_args()
    engine = load_engine(args.engine)
    begun = first_image(engine)
    draw(begun, {name: images(engine, edited, begun) for name, edited in ROWS.items()}, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
