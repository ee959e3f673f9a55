"""OUT/report.html: the stages and the results of a run, in one file without external resources."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.card import write_atomically
from fewstep.checkpoint import load_denoiser
from fewstep.metrics.extractors.teacher import REFERENCE_SEED, TeacherSpace, evenly
from fewstep.metrics.nearest import nearest
from fewstep.network import UNet
from fewstep.noise_torch import noise_for
from fewstep.pixels import Pixels, encode, from_pixels, grid, to_pixels
from fewstep.precond import Denoiser
from fewstep.samplers import sample_dpdm
from trainer.curves import curves, svg
from trainer.data.format import ImageSet
from trainer.journal import Journal
from trainer.levels.calibration import labels_in_proportion
from trainer.methods.conditions import of_images
from trainer.plan import Plan, expect, images_seen, too_few
from trainer.recipes.recipe import Recipe
from trainer.run.progress import format_seconds
from trainer.run.sheet import add_titles

FILE = "report.html"
STEPS = (1, 2, 4, 8)
SHEETS = 5  # of a stage, at most
PAIRS = 12  # images shown beside their nearest training images
SEARCHED = 20_000  # training images among which the nearest is looked for, at most
SEARCHED_BYTES = 2**28  # of pixels in them, at most
BATCH = 50

STYLE = """
:root { color-scheme: light dark; --page: #f6f6f9; --card: #fff; --ink: #17171c; --soft: #62626f; --line: #dedee6; --mark: #4f46e5; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #101014; --card: #1a1a21; --ink: #ececf1; --soft: #9c9caa; --line: #30303b; --mark: #8b85ff; --bad: #ffb4ab; } }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .8rem; padding: 1rem 1.25rem; margin: 1rem 0; }
h1 { margin: 0; } h2 { margin: 0 0 .5rem; font-size: 1.15rem; } h3 { margin: 1rem 0 .3rem; font-size: 1rem; }
p { margin: .3rem 0; } .soft, figcaption { color: var(--soft); } .bad { color: var(--bad); font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } td, th { padding: .2rem .9rem .2rem 0; text-align: right; } td:first-child, th:first-child { text-align: left; }
th { color: var(--soft); font-weight: 400; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; } img { max-width: 100%; border-radius: .4rem; } .row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: .5rem 0; } svg { background: none; } svg text { fill: var(--soft); font-size: 11px; }
pre { overflow-x: auto; background: var(--page); padding: .6rem .8rem; border-radius: .5rem; }
"""  # noqa: E501


@dataclass(frozen=True)
class Contents:
    out: Path
    data: ImageSet
    plan: Plan
    recipe: Recipe
    journal: Journal
    command: str
    serve: str
    device: str


def write(contents: Contents) -> dict[str, Any]:
    """Write the page. Returns its measurements: distances by step count, and distances to the nearest images."""
    made, labels = generate(contents)
    distances = distances_of(contents, made, labels)
    pairs, copies = nearest_training(contents.data, made)
    journal, plan = contents.journal, contents.plan
    side = contents.data.images.shape[1]
    expected = expect(plan, contents.data, contents.recipe)
    verdict = too_few(side, images_seen(plan.images, contents.recipe.stages))
    parts = [
        f"<h1>{escape(contents.data.name)}</h1>",
        f'<p class="bad">{escape(verdict)}</p>' if verdict else "<p>A usable student.</p>",
        *(f'<p class="soft">{escape(sentence)}</p>' for sentence in expected if not (verdict and verdict in sentence)),
        section("Images", sheets(contents.out, [contents.recipe.stages[-1].name], last=True)),
        section("Distance to the training images", distance_table(distances, len(labels))),
        section("Nearest training images", nearest_part(pairs, copies, len(contents.data.images))),
        section("Speed", speed_part(journal, plan)),
        section("Curves", curves_part(contents.out, list(plan.images))),
        section("Sheets over time", sheets(contents.out, list(plan.images))),
        section("Stages", stages_table(journal)),
        section("Commands", f"<p>Make it again:</p><pre>{escape(contents.command)}</pre>"
                f"<p>Serve it:</p><pre>{escape(contents.serve)}</pre>"),
    ]  # fmt: skip
    title = f"fewstep: {escape(contents.data.name)}"
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    page = f"{head}{viewport}<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    write_atomically(contents.out / FILE, page.encode())
    return {"distance": distances, "images": len(labels), **copies}


@torch.no_grad()
def generate(contents: Contents) -> tuple[dict[int, Pixels], NDArray[np.integer]]:
    """Images uint8 [N, H, W, C] of the student by step count, from seeds 0 to N - 1, and their labels [N], with the
    class frequencies of the data."""
    student, card = load_denoiser(contents.out / "student", contents.device)
    labels = labels_in_proportion(contents.data.labels, contents.plan.report_images)
    made = {}
    for steps in STEPS:
        parts = []
        for first in range(0, len(labels), BATCH):
            own = labels[first : first + BATCH]
            noise = noise_for(range(first, first + len(own)), card.image_shape, torch.device(contents.device))
            classes = torch.from_numpy(own.astype(np.int64)).to(contents.device) if student.classes else None
            own_student = student.given(**conditions_of(contents, student, range(first, first + len(own))))
            bound = lambda x, sigma, classes=classes, own=own_student: own(x, sigma, classes)  # noqa: E731
            parts.append(to_pixels(sample_dpdm(bound, noise, card.levels[steps]).images.cpu().numpy()))
        made[steps] = np.concatenate(parts)
    return made, labels


def conditions_of(contents: Contents, student: Denoiser, seeds: range) -> dict[str, torch.Tensor]:
    """What the student is shown, of training images spread evenly over the data: one for each seed."""
    if not student.conditions:
        return {}
    rows = evenly(len(contents.data.images), contents.plan.report_images)[seeds.start : seeds.stop]
    images = torch.from_numpy(from_pixels(contents.data.images[rows])).to(contents.device)
    return of_images(student.conditions, images)


def distances_of(contents: Contents, made: Mapping[int, Pixels], labels: NDArray[np.integer]) -> dict[str, float]:
    """Fréchet distances to one half of the training images, in the teacher's features, by step count; "real": of as
    many images of the other half. Empty for a teacher without such features."""
    teacher, _ = load_denoiser(contents.out / "teacher", contents.device)
    images, count = contents.data.images, len(labels)
    if not isinstance(teacher.network, UNet) or teacher.conditions or len(images) < 4:
        return {}
    half, other = np.arange(0, len(images), 2), np.arange(1, len(images), 2)
    half = half[evenly(len(half), min(len(half), 4 * count))]
    other = other[evenly(len(other), min(len(other), count))]
    space = TeacherSpace.of(teacher, images[half], contents.data.labels[half])
    distances = {str(k): space.distance(pixels, labels, range(count)) for k, pixels in made.items()}
    seeds = range(REFERENCE_SEED // 2, REFERENCE_SEED // 2 + len(other))
    return {**distances, "real": space.distance(images[other], contents.data.labels[other], seeds)}


def nearest_training(data: ImageSet, made: Mapping[int, Pixels]) -> tuple[Pixels, dict[str, float]]:
    """Images of four steps over their nearest training images, in pixels, as a titled picture; and the median distance
    of generated images to training images beside that of training images to other ones, all among the `searched`."""
    pixels = made[4]
    most = max(min(SEARCHED, SEARCHED_BYTES // pixels[0].size), 2)
    rows = evenly(len(data.images), min(len(data.images), most))
    searched = data.images[rows]
    references, queries = searched.reshape(len(rows), -1), pixels.reshape(len(pixels), -1)
    found = nearest(queries[:200], references)
    asked = evenly(len(rows), max(min(200, len(rows) // 2), 1))
    others = np.delete(np.arange(len(rows)), asked)
    real = nearest(references[asked], references[others])
    shown = evenly(min(len(pixels), 200), min(PAIRS, len(pixels)))
    both = np.concatenate([pixels[shown], searched[found.row[shown]]])
    title = "four steps, and the nearest training image of each"
    picture = add_titles(grid(both, len(shown)), pixels.shape[1], title, [], ["student", "training"])
    scale = 255 * queries.shape[1] ** 0.5
    return picture, {
        "nearest": float(np.median(found.distance)) / scale,
        "nearest_real": float(np.median(real.distance)) / scale,
        "searched": len(rows),
    }


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def image(content: bytes, caption: str) -> str:
    source = base64.b64encode(content).decode()
    words = escape(caption)
    return f'<figure><img alt="{words}" src="data:image/png;base64,{source}"><figcaption>{words}</figcaption></figure>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = lambda row, kind: "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in row)  # noqa: E731
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells(head, "th")}</tr>{body}</table></div>'


def distance_table(distances: Mapping[str, float], count: int) -> str:
    if not distances:
        return "<p>Not measured: the teacher has no features to measure in, or there are too few images.</p>"
    rows = [(f"{k} step{'s' * (k != '1')}" if k != "real" else "real images", f"{v:.4g}") for k, v in distances.items()]
    return table(("", "distance"), rows) + (
        f'<p class="soft">Fréchet distance in the features of this run\'s teacher, {count:,} images; smaller is '
        "closer, and real images are compared with the other half of them. It compares step counts of this run, "
        "nothing else.</p>"
    )


def nearest_part(picture: Pixels, copies: Mapping[str, float], count: int) -> str:
    """count: training images, of which `searched` were looked at."""
    close = copies["nearest"] < 0.5 * copies["nearest_real"]
    said = (
        "The student's images are much closer to training images than those are to each other: it has memorised."
        if close
        else "The student's images are about as far from training images as those are from each other, or farther."
    )
    if copies["searched"] < count:
        said += (
            f" The nearest was looked for among {copies['searched']:,} of the {count:,} training images, evenly "
            "spread; a copy of another one is not found."
        )
    return f"{image(encode(picture, 'png'), 'nearest in pixels')}<p>{said}</p>" + table(
        ("median root mean square difference", "of the range from black to white"),
        [
            ("student to training image", f"{copies['nearest']:.3f}"),
            ("training image to another", f"{copies['nearest_real']:.3f}"),
        ],
    )


def speed_part(journal: Journal, plan: Plan) -> str:
    served = journal.stages["export"].facts.get("ms_per_image", {})
    rows = [(f"{name}, training", f"{speed:.3g} images/s") for name, speed in plan.images_per_s.items()]
    rows += [(f"{k} step{'s' * (k != '1')}, one image", f"{ms:.3g} ms") for k, ms in served.items()]
    threads = torch.get_num_threads()
    return table(("", ""), rows) + f'<p class="soft">{escape(plan.device)}, {threads} threads, as measured here.</p>'


def curves_part(out: Path, stages: Sequence[str]) -> str:
    parts = []
    for name in stages:
        drawn = [
            f"<figure>{svg(points)}<figcaption>{escape(tag)}</figcaption></figure>"
            for tag, points in curves(out / name).items()
        ]
        parts.append(f'<h3>{escape(name)}</h3><div class="row">{"".join(drawn) or "too short for a curve"}</div>')
    return "".join(parts)


def sheets(out: Path, stages: Sequence[str], last: bool = False) -> str:
    """Some of the sheets of every stage, evenly spaced; only the last one if `last`."""
    parts = []
    for name in stages:
        files = sorted((out / name / "samples").glob("*.png"))
        if not files:
            continue
        chosen = [files[-1]] if last else [files[i] for i in sorted(set(evenly(len(files), SHEETS)))] + [files[-1]]
        captions = {file: f"{name}, after {int(file.stem):,} images of this stage" for file in chosen}
        drawn = [image(file.read_bytes(), caption) for file, caption in captions.items()]
        parts.append("".join(drawn) if last else f"<h3>{escape(name)}</h3>{''.join(drawn)}")
    return "".join(parts) or "<p>none</p>"


def stages_table(journal: Journal) -> str:
    rows = [
        (
            name,
            f"{done.images:,}" if done.images else "",
            format_seconds(done.seconds),
            ", ".join(done.parents),
            " ".join(f"{key}={value}" for key, value in done.facts.get("switches", {}).items()),
            done.result[:12],
        )
        for name, done in journal.stages.items()
    ]
    return table(("stage", "images", "took", "from", "settings", "sha256"), rows)
