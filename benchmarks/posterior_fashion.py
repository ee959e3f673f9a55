"""A posterior of the shipped Fashion-MNIST models, by adapters alone, from training to the images a server returns.

    fewstep trainer data fashion --out runs/data/fashion.zip
    python benchmarks/posterior_fashion.py             # about half an hour of one core; goes on where it stopped
    python benchmarks/posterior_fashion.py --smoke     # a minute; proves that it runs

r(x) is a classifier's probability that a garment is light (`benchmarks/posterior_fashion_tone.py`). The prior is the
shipped teacher, told its class, in a chain of `--levels` calls (of 40, four calls are a tenth): so there is a
posterior, and a Z, for every class. Rejection from that chain is exact, for r <= 1. Every row has the labels of the
accepted images.

tilted denoising  the prior's images in proportion to r; then Adam on the denoising loss, at all levels
RTB               trajectory balance, for as long as tilted denoising took with its images of the prior (CPU time); and
                  once more, for `--longer` times as long
student           DPDM of the best of these in distance (`chosen`), from the shipped student; adapters beside it.
                  It is exported beside the shipped backbone, and its images are those of `fewstep serve`, over HTTP

Columns: E[log r]; judged: share that a classifier of other images calls light; exact: share lighter than the threshold;
class: share whose class the shipped half-b classifier confirms; distance: Fréchet distance to the accepted images'
other half in the judge's features; class distance: in those of the half-b classifier, to which tones are all the same;
pairwise: mean distance of two images. What is finished is kept in --work.
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import WORK, table
from benchmarks.inputs import DATA, MODELS
from benchmarks.posterior_fashion_judging import Judge, chain_row, expected, verdict
from benchmarks.posterior_fashion_serving import engine_with, served, served_images
from benchmarks.posterior_fashion_task import CLASSES, Task
from benchmarks.posterior_fashion_training import CALLS, distil, teachers
from benchmarks.posterior_results import SHOWN, end, keep_settings, parsed, picture, said, settings_of, write_rows
from fewstep.card import write_atomically
from fewstep.ranges import POSITIVE, SHARE, Range, number, whole

COLUMNS = {
    "method": "method", "nfe": "calls", "log_reward": "E[log r]", "judged": "judged", "exact": "exact",
    "class": "class", "distance": "distance", "class_distance": "class distance", "pairwise": "pairwise",
    "elbo": "log Z - ELBO", "ess": "ESS", "cpu_s": "train CPU s",
}  # fmt: skip
ON_SHEET = {
    "prior's chain": "the prior: 10 calls",
    "rejection": "the exact posterior",
    "student, served, 1": "its student: 1 call",
}
SHEET_COLUMNS = 20
FREE = ("work", "data", "without_rtb", "sheet")  # what is kept in --work holds with other values of these, too


def run(task: Task) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, Any]]:
    """The rows, the images that are drawn, and facts of the reference."""
    judge, y, levels = Judge(task), task.labels, task.args.levels
    rows: list[dict[str, Any]] = []
    shown: dict[str, Tensor] = {}

    def add(name: str, images: Tensor, **more: float) -> dict[str, Any]:
        rows.append({"method": name, **judge.row(images, y, **more)})
        shown[name] = images[:SHOWN]
        print(rows[-1], flush=True)
        return rows[-1]

    add("rejection", task.accepted["images"][: len(y)], nfe=levels / acceptance(task))
    prior = task.kept("images-prior", lambda: {"images": task.chain_images(task.prior, y, seed=3)})["images"]
    add("prior's chain", prior, nfe=levels)
    found = {}
    for name, (adapter, spent) in teachers(task).items():
        images, monitors = chain_row(task, name, adapter)
        row = add(name, images, nfe=levels, cpu_s=spent, **monitors)
        found[name] = adapter, images, row["distance"]
    chosen = min(found, key=lambda name: found[name][2])
    add_served(task, distil(task, *found[chosen][:2]), add)
    return rows, shown, facts_of(task, rows, chosen)


def add_served(task: Task, adapter: Path, add: Callable[..., Any]) -> None:
    """Rows of the shipped student and of its adapter, by what a server answers."""
    spent = json.loads((adapter / "adapter.json").read_text())["training"]["cpu_s"]
    with served(engine_with(task.args.work, adapter)) as client:
        add("prior's student, served", served_images(client, "fashion", task.labels, 4), nfe=4)
        for calls in CALLS:
            images = served_images(client, f"fashion:{adapter.name}", task.labels, calls)
            add(f"student, served, {calls}", images, nfe=calls, cpu_s=spent)


def acceptance(task: Task) -> float:
    return len(task.accepted["y"]) / task.args.proposals


def facts_of(task: Task, rows: list[dict[str, Any]], chosen: str) -> dict[str, Any]:
    y = task.labels
    weights = {"backbone": MODELS / "model.safetensors", "adapter": task.args.work / "light" / "adapter.safetensors"}
    return {
        "acceptance": acceptance(task), "accepted": len(task.accepted["y"]), "judged_by": len(y),
        "chosen": chosen, "threshold": task.tone.threshold,
        "log_reward": expected(task), "labels": torch.bincount(y, minlength=CLASSES).tolist(),
        "bytes": {name: file.stat().st_size for name, file in weights.items()},
        "verdict": verdict(rows, chosen, task.args.levels),
    }  # fmt: skip


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    if not args.data.exists():
        sys.exit(f"error: {args.data} does not exist; make it with: fewstep trainer data fashion --out {args.data}")
    args.work.mkdir(parents=True, exist_ok=True)
    keep_settings(args.work / "settings.json", settings_of(args, FREE))
    began = time.monotonic()
    rows, shown, facts = run(Task(args))
    write_rows(args, "posterior_fashion", rows, shown, FREE, reference=facts)
    if args.sheet:
        chosen = {title: shown[name] for name, title in ON_SHEET.items()}
        write_atomically(args.sheet, picture(chosen, SHEET_COLUMNS))
    said("complete", began)
    end(args.out, table(rows, COLUMNS), json.dumps(facts, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=DATA, metavar="ZIP", help="the training images (default %(default)s)")
    add("--levels", type=whole(3), default=10, help="of the chain: network calls per image (default %(default)s)")
    add("--proposals", type=whole(100), default=1200, help="images of the prior for rejection (default %(default)s)")
    add("--pool", type=whole(20), default=800, help="further ones that tilted denoising learns from (default 800)")
    add("--classifier-updates", type=whole(1), default=600, help="of classifier and judge (default %(default)s)")
    add("--tilted-updates", type=whole(1), default=120, help="of tilted denoising (default %(default)s)")
    add("--tilted-lr", type=number(POSITIVE), default=3e-4, help="of tilted denoising (default %(default)s)")
    add("--batch", type=whole(2), default=48, help="images of an update of tilted denoising (default %(default)s)")
    add("--lr", type=number(POSITIVE), default=1e-3, help="of trajectory balance (default %(default)s)")
    add("--balance-batch", type=whole(20), default=40, help="trajectories of an update (default %(default)s)")
    add("--gradient-levels", type=whole(1), default=3, help="steps whose gradient is taken (default %(default)s)")
    add(
        "--longer",
        type=number(Range(1, 1000)),
        default=3.0,
        help="RTB's second row: times the first's (default 3; 1: none)",
    )
    add("--sheet", type=Path, metavar="FILE.png", help="also write a small picture: prior, posterior and one call")
    add("--without-rtb", action="store_true", help="leave trajectory balance out: half of the training")
    add("--distil-updates", type=whole(1), default=200, help="of the student (default %(default)s)")
    add(
        "--auxiliary-first",
        type=number(SHARE),
        default=0.2,
        help="share of these in which only the auxiliary is trained (default %(default)s)",
    )
    add("--distil-batch", type=whole(2), default=32, help="images of an update of the student (default %(default)s)")
    add("--distil-lr", type=number(POSITIVE), default=5e-4, help="of the auxiliary; the student's is a quarter of it")
    add("--work", type=Path, default=WORK / "runs/posterior-fashion", metavar="DIR",
        help="what is finished (default runs/posterior-fashion)")  # fmt: skip
    args = parsed(parser, "posterior-fashion")
    if args.smoke:
        args.levels, args.proposals, args.pool, args.classifier_updates, args.tilted_updates = 3, 200, 20, 30, 2
        args.distil_updates, args.batch, args.distil_batch, args.balance_batch, args.gradient_levels = 2, 4, 4, 20, 1
        args.auxiliary_first = 0.0
        args.work = args.work.with_name(args.work.name + "-smoke")
    return args


if __name__ == "__main__":
    main()
