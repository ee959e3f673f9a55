"""Draw the README's picture: the same seeds at every step count, and the teacher's solvers beside them. No picking.

python benchmarks/grids.py --out docs/images/fashion.png
"""

from fewstep import extras

extras.name_missing()

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.harness import ROOT, picture_file
from benchmarks.latency import Variant
from benchmarks.plots import show_pixels
from export.engine import load_engine
from fewstep.pixels import grid
from fewstep.samplers import sample_dpdm, sample_euler, sample_heun
from fewstep.schedule import solver_sigmas

COLUMNS = 20  # seeds 0 .. 39 in two lines; classes in turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = ROOT / "models" / "fashion"
    parser.add_argument(
        "--student",
        type=Path,
        default=models / "engine",
        metavar="ENGINE",
        help="engine of the student (default %(default)s)",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        default=models / "teacher" / "engine",
        metavar="ENGINE",
        help="engine of the student's teacher (default %(default)s)",
    )
    parser.add_argument("--out", type=picture_file, required=True, metavar="PNG", help="the picture to write")
    args = parser.parse_args()
    student, teacher = load_engine(args.student), load_engine(args.teacher)
    levels = student.manifest.levels
    rows = {f"student, {k} call{'s' * (k > 1)}": Variant("dpdm", student, sample_dpdm, levels[k]) for k in (1, 2, 4, 8)}
    rows |= {
        "teacher, Euler, 4 calls": Variant("euler", teacher, sample_euler, solver_sigmas(4)),
        "teacher, Heun, 9 calls": Variant("heun", teacher, sample_heun, solver_sigmas(5)),
        "teacher, Heun, 35 calls": Variant("heun", teacher, sample_heun, solver_sigmas(18)),
    }
    draw(rows, args.out)
    print(f"wrote {args.out}")


def draw(rows: dict[str, Variant], out: Path) -> None:
    """One strip of 2 x 20 images per variant, its name on the left."""
    figure = Figure(figsize=(11, 1.02 * len(rows)), dpi=100, layout="constrained")
    for axes, (name, variant) in zip(figure.subplots(len(rows)), rows.items(), strict=True):
        pixels, nfe = variant.pixels(0, 2 * COLUMNS)
        assert f" {nfe} call" in name, f"{name} made {nfe} calls"
        show_pixels(axes, grid(pixels, COLUMNS))
        axes.set_ylabel(name.replace(", ", "\n"), rotation=0, ha="right", va="center", fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


if __name__ == "__main__":
    main()
