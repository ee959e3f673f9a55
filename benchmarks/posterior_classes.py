"""Twelve posteriors of Fashion-MNIST by one adapter: each class, and the even and the odd ones.

    fewstep trainer data fashion --out runs/data/fashion.zip
    python benchmarks/posterior_classes.py             # about an hour of one core; goes on where it stopped
    python benchmarks/posterior_classes.py --smoke     # a minute; proves that it runs

The prior is a teacher that is told no class (`benchmarks/posterior_classless.py`), in a chain of `--levels` calls.
r(x, y) is the probability that a classifier of half a of the images gives class y, or the even or the odd ones
together. The posterior is told y. Rejection from the prior's chain is exact, for r <= 1, and says Z, too.

best of 4         of four images of the prior the one with the highest r
tilted denoising  the prior's images in proportion to r; then Adam on the denoising loss, at all levels
RTB               trajectory balance, for `--times` times as long as tilted denoising took with its images (CPU time)
then RTB          trajectory balance that begins at tilted denoising, for as long in all

Columns, means over the ten classes and over even and odd: E[log r]; accuracy: share of what a classifier of half b
takes for what was asked; distance: Fréchet distance to the accepted images' other half in that one's features, as many
images of each y in every row; pairwise: mean distance of two images of the same y, for diversity; log Z - ELBO; the
error of log Z by importance weights; the effective sample size. "beside_rejection" of the JSON holds each row against
BARS. What is finished is kept in --work.
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import WORK, table
from benchmarks.inputs import DATA
from benchmarks.posterior_classes_task import CLASSES, GROUPS, KINDS, ROWS, Task, Tensors, fits, log_rewards
from benchmarks.posterior_classes_training import trained
from benchmarks.posterior_results import end, keep_settings, parsed, picture, said, settings_of, write_rows
from fewstep.adapters import Adapter
from fewstep.card import write_atomically
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.ranges import POSITIVE, Range, number, whole
from trainer.methods.rtb import effective_share, own_steps, walk
from trainer.run.draws import seeded

COLUMNS = {
    "kind": "y", "method": "method", "nfe": "calls", "log_reward": "E[log r]", "accuracy": "accuracy",
    "distance": "distance", "pairwise": "pairwise", "gap": "log Z - ELBO", "log_z_error": "log Z error",
    "ess": "ESS", "cpu_s": "train CPU s",
}  # fmt: skip
ASKED = {"class": range(CLASSES), "even or odd": range(CLASSES, GROUPS)}
BEST_OF = 4
# How far a row may be from rejection. The last is a ratio of distances, of samples of one size.
BARS = {"nats_below": 0.35, "accuracy_below": 0.05, "pairwise_off": 0.05, "log_z_error": 0.15, "distance_ratio": 4.0}
ON_SHEET = 4  # images of each y
FREE = ("work", "data")  # what is kept in --work holds with other values of these, too


def run(task: Task) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, Any]]:
    """The rows, the images that are drawn, and facts of the reference."""
    levels, y = task.args.levels, task.y
    found: list[dict[str, Any]] = []
    shown: dict[str, Tensor] = {}

    def add(name: str, images: Tensor, **more: Any) -> None:
        per_y = measured(task, images)
        found.extend(rows_of(name, per_y, {"nfe": levels, **more}))
        shown[name] = torch.cat([images[y == kind][:ON_SHEET] for kind in range(GROUPS)])
        print(json.dumps(found[-2:]), flush=True)

    accepted = torch.cat([images for images, _ in task.reference])
    calls = torch.tensor([levels / torch.tensor(task.log_z(kind)).exp() for kind in range(GROUPS)])
    add("rejection", accepted, nfe=calls)
    prior = task.kept("images-prior", lambda: {"images": task.prior_images(len(y), seed=3)})["images"]
    add("prior", prior)
    add(f"best of {BEST_OF}", best_of(task), nfe=BEST_OF * levels)
    for name, (adapter, spent) in trained(task).items():
        images, monitors = chain_images(task, name, adapter)
        add(name, images, cpu_s=spent, **monitors)
    return found, shown, facts_of(task, found)


def measured(task: Task, images: Tensor) -> dict[str, Tensor]:
    """What images say, those of each y apart: [GROUPS] by column."""
    features = task.judge[:-1]
    columns: dict[str, list[float]] = {"log_reward": [], "accuracy": [], "distance": [], "pairwise": []}
    for kind in range(GROUPS):
        some = images[task.y == kind]
        y = torch.full((len(some),), kind)
        with torch.no_grad():
            own, other = (Moments.of(features(each).numpy()) for each in (some, task.reference[kind][1]))
            classes = task.judge(some).argmax(dim=1)
        columns["log_reward"].append(float(log_rewards(task.classifier, some, y).mean()))
        columns["accuracy"].append(float(fits(classes, y).float().mean()))
        columns["distance"].append(frechet_distance(own, other))
        columns["pairwise"].append(float(torch.pdist(some.flatten(1)).mean()))
    return {name: torch.tensor(values) for name, values in columns.items()}


def rows_of(name: str, per_y: dict[str, Tensor], more: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for the classes and one for even and odd: means, and the values of each y under "each"."""
    rows = []
    for kind, asked in ASKED.items():
        values = {**per_y, **{key: value for key, value in more.items() if isinstance(value, Tensor)}}
        chosen = {key: value[list(asked)] for key, value in values.items()}
        row = {key: float(value.mean()) for key, value in chosen.items()}
        each = {key: value.tolist() for key, value in chosen.items()}
        rows.append({"kind": kind, "method": name, **more, **row, "each": each})
    return rows


def best_of(task: Task) -> Tensor:
    """Of the prior's images that are not proposals: BEST_OF at a time, for every y the same ones."""
    images, rewards = (task.proposals[name][task.args.proposals :] for name in ("images", "log_rewards"))
    tries = len(images) // BEST_OF
    parts: list[Tensor] = []
    for kind in range(GROUPS):
        best = rewards[: tries * BEST_OF, kind].view(tries, BEST_OF).argmax(dim=1)
        chosen = images[torch.arange(tries) * BEST_OF + best]
        parts.append(chosen[: int((task.y == kind).sum())])
    return torch.cat(parts)


def chain_images(task: Task, name: str, adapter: Adapter) -> tuple[Tensor, dict[str, Tensor]]:
    """Images of a trained chain, and its monitors of each y: log Z - ELBO, how far log Z by importance weights is off,
    and the effective share."""

    def make() -> Tensors:
        problem, rng, parts = task.problem(adapter), seeded(900), []
        for y in task.y.split(ROWS):
            found = walk(problem, y, problem.start(torch.empty(len(y), 1, 32, 32), rng), own_steps(problem, rng))
            parts.append((found.images, -found.residual(1.0)))
        images, log_weights = (torch.cat(part) for part in zip(*parts, strict=True))
        return {"images": images, "log_weights": log_weights}

    stored = task.kept(f"images-{name.replace(',', '').replace(' ', '-')}", make)
    weights = [stored["log_weights"][task.y == kind] for kind in range(GROUPS)]
    gap = torch.tensor([task.log_z(kind) - float(each.mean()) for kind, each in enumerate(weights)])
    weighted = [float(each.logsumexp(0)) - math.log(len(each)) for each in weights]
    off = torch.tensor([abs(found - task.log_z(kind)) for kind, found in enumerate(weighted)])
    return stored["images"], {"gap": gap, "log_z_error": off, "ess": torch.stack([*map(effective_share, weights)])}


def facts_of(task: Task, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    count = task.args.proposals
    by = {(row["kind"], row["method"]): row for row in rows}
    verdicts = {}
    for (kind, name), row in by.items():
        exact = by[kind, "rejection"]
        found = {
            "nats_below": abs(expected(task, ASKED[kind]) - row["log_reward"]),
            "accuracy_below": exact["accuracy"] - row["accuracy"],
            "pairwise_off": abs(row["pairwise"] / exact["pairwise"] - 1),
            "distance_ratio": row["distance"] / exact["distance"],
            **{key: row[key] for key in ("log_z_error",) if key in row},
        }
        verdicts[f"{name}: {kind}"] = {**found, "hit": [key for key, value in found.items() if value <= BARS[key]]}
    return {
        "log_z": {str(kind): task.log_z(y) for y, kind in enumerate(KINDS)}, "proposals": count,
        "images": torch.bincount(task.y).tolist(), "log_reward": {k: expected(task, y) for k, y in ASKED.items()},
        "bars": BARS, "beside_rejection": verdicts,
    }  # fmt: skip


def expected(task: Task, asked: Sequence[int]) -> float:
    """E[log r] of the exact posteriors, by weights r of all proposals; the mean over y."""
    rewards = task.proposals["log_rewards"][: task.args.proposals]
    return float(torch.stack([(rewards[:, y].softmax(0) * rewards[:, y]).sum() for y in asked]).mean())


def sheet(shown: dict[str, Tensor]) -> bytes:
    """A row of images of each method; there are fewer of a y of which rejection accepted fewer than ON_SHEET."""
    title = f"first {ON_SHEET} images of each y: classes 0 to 9, even, odd"
    return picture(shown, len(next(iter(shown.values()))), title)


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    if not args.data.exists():
        sys.exit(f"error: {args.data} does not exist; make it with: fewstep trainer data fashion --out {args.data}")
    args.work.mkdir(parents=True, exist_ok=True)
    keep_settings(args.work / "settings.json", settings_of(args, FREE))
    began = time.monotonic()
    rows, shown, facts = run(Task(args))
    write_rows(args, "posterior_classes", rows, None, FREE, reference=facts)
    write_atomically(args.out.with_suffix(".png"), sheet(shown))
    said("complete", began)
    end(args.out, *(table([row for row in rows if row["kind"] == kind], COLUMNS) for kind in ASKED))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--data", type=Path, default=DATA, metavar="ZIP", help="the training images (default %(default)s)")
    add("--prior-images", type=whole(64), default=40_000, help="training images of the prior (default %(default)s)")
    add("--levels", type=whole(3), default=10, help="of the chain: network calls per image (default %(default)s)")
    add("--proposals", type=whole(100), default=2000, help="images of the prior for rejection (default %(default)s)")
    add("--judged", type=whole(8), default=60, help="images of each y in a row, at most (default %(default)s)")
    add("--pool", type=whole(40), default=1000, help="further ones that tilted denoising learns from (default 1000)")
    add("--classifier-updates", type=whole(1), default=800, help="of classifier and judge (default %(default)s)")
    add("--tilted-updates", type=whole(1), default=150, help="of tilted denoising (default %(default)s)")
    add("--tilted-lr", type=number(POSITIVE), default=1e-3, help="of tilted denoising (default %(default)s)")
    add("--batch", type=whole(2), default=48, help="images of an update of tilted denoising (default %(default)s)")
    add("--lr", type=number(POSITIVE), default=1e-3, help="of trajectory balance; a quarter of it after tilted "
        "denoising (default %(default)s)")  # fmt: skip
    add("--balance-batch", type=whole(24), default=48, help="trajectories of an update (default %(default)s)")
    add("--gradient-levels", type=whole(1), default=3, help="steps whose gradient is taken (default %(default)s)")
    add("--times", type=number(Range(1.1, 1000)), default=2.0, help="RTB's training time over that of tilted denoising "
        "(default 2)")  # fmt: skip
    add("--work", type=Path, default=WORK / "runs/posterior-classes", metavar="DIR",
        help="what is finished (default runs/posterior-classes)")  # fmt: skip
    args = parsed(parser, "posterior-classes")
    if args.smoke:
        args.prior_images, args.levels, args.proposals, args.judged, args.pool = 64, 10, 300, 8, 40
        args.classifier_updates, args.tilted_updates, args.batch, args.balance_batch = 200, 2, 4, 24
        args.gradient_levels = 1
        args.work = args.work.with_name(args.work.name + "-smoke")
    return args


if __name__ == "__main__":
    main()
