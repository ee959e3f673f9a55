"""Are served images with their log weights draws of the posterior? A student's own chain, tilted, exported and served.

    python benchmarks/posterior_weights.py             # about ten minutes of a core; goes on where it stopped
    python benchmarks/posterior_weights.py --smoke     # a minute; proves that it runs

The prior is the shipped Fashion-MNIST student in `--steps` calls, told its class; log r is `--strength` times the mean
pixel, in [-1, 1]. `fewstep posterior --fixed-variance` trains an adapter of the student's own steps, and a server
answers with it and with the backbone. The prior's images weighted by r are draws of the exact posterior of the prior's
chain, up to their number. A posterior's image has the weight exp(x-log-weight + log r).

Rows: images as they are, and weighted. Columns: log r and lit (the share of pixels above middle gray), each with a
standard error of its mean; ess: effective sample size, a share; log Z: its estimate. Means over the classes, each of
which has a posterior, weights and a Z of its own. The ratio of times is of requests of eight images with weights and
without, by medians.
"""

from fewstep import extras

extras.name_missing()

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import WORK, table, time_interleaved
from benchmarks.inputs import MODELS
from benchmarks.posterior_fashion_serving import ASKED, engine_with, served
from benchmarks.posterior_results import end, parsed, said, write_rows
from fewstep.client import Client
from fewstep.pixels import from_pixels
from fewstep.ranges import POSITIVE, number, whole
from trainer.posterior import main as train

CLASSES, MODEL, ADAPTER = 10, "fashion", "bright"
COLUMNS = {
    "images": "images", "log_reward": "log r", "log_reward_error": "error", "lit": "lit", "lit_error": "error",
    "ess": "ess", "log_z": "log Z",
}  # fmt: skip
ROUNDS = 5
Values = NDArray[np.float64]


def adapter_of(args: argparse.Namespace) -> Path:
    """The folder of the trained posterior, which `fewstep posterior` makes or finds complete."""
    reward = args.work / "reward.py"
    reward.write_text(f"def bright(images):\n    return {args.strength} * images.clamp(-1, 1).mean(dim=(1, 2, 3))\n")
    out = args.work / ADAPTER
    status = train([
        "--prior", str(MODELS), "--reward", f"{reward}:bright", "--steps", str(args.steps), "--out",
        str(out), "--fixed-variance", "--updates", str(args.updates), "--batch", str(args.batch), "--lr", str(args.lr),
        "--evaluate", str(max(2 * CLASSES, args.batch)), "--device", "cpu",
    ])  # fmt: skip
    if status:
        sys.exit(f"error: fewstep posterior ended with status {status}")
    return out


def ask(client: Client, model: str, count: int, steps: int, weighed: bool) -> tuple[Values, Values]:
    """Images [count, 32, 32] in [-1, 1] and log weights [count], 0 where none is asked for; the classes in turn."""
    images, log_weights = [], []
    for first in range(0, count, ASKED):
        seeds = list(range(first, min(first + ASKED, count)))
        labels = [seed % CLASSES for seed in seeds]
        made = client.generate(model=model, seeds=seeds, labels=labels, steps=steps, log_weight=weighed)  # pyright: ignore[reportArgumentType]
        images.append(from_pixels(made.pixels)[:, 0])
        log_weights += [image.log_weight or 0.0 for image in made.images]
    return np.concatenate(images).astype(np.float64), np.array(log_weights)


def row(name: str, images: Values, log_weights: Values, strength: float) -> dict[str, Any]:
    """log_weights: what the images are weighted by; those that are all the same say nothing of Z."""
    statistics = {"log_reward": strength * images.mean(axis=(1, 2)), "lit": (images > 0).mean(axis=(1, 2))}
    shares, sizes, log_z = np.empty(len(images)), [], []
    for label in range(CLASSES):
        own = log_weights[label::CLASSES]
        weights = np.exp(own - own.max())
        shares[label::CLASSES] = weights / weights.sum()
        sizes.append(1 / (shares[label::CLASSES] ** 2).sum() / len(own))
        log_z.append(own.max() + np.log(weights.mean()))
    found: dict[str, Any] = {"images": name}
    for statistic, values in statistics.items():
        means = np.array([shares[label::CLASSES] @ values[label::CLASSES] for label in range(CLASSES)])
        away = shares * (values - means[np.arange(len(values)) % CLASSES])
        found |= {statistic: float(means.mean()), f"{statistic}_error": float(np.sqrt((away**2).sum()) / CLASSES)}
    return {**found, "ess": float(np.mean(sizes)), "log_z": float(np.mean(log_z)) if np.ptp(log_weights) else None}


def rows_of(client: Client, args: argparse.Namespace) -> list[dict[str, Any]]:
    tilted = f"{MODEL}:{ADAPTER}"
    prior, zeros = ask(client, MODEL, args.reference, args.steps, weighed=False)
    own, log_weights = ask(client, tilted, args.images, args.steps, weighed=True)
    log_rewards = [args.strength * images.mean(axis=(1, 2)) for images in (prior, own)]
    return [
        row("prior", prior, zeros, args.strength),
        row("prior, weighted by r: the posterior", prior, log_rewards[0], args.strength),
        row("adapter", own, np.zeros(len(own)), args.strength),
        row("adapter, weighted", own, log_weights + log_rewards[1], args.strength),
    ]


def cost(client: Client, args: argparse.Namespace) -> float:
    """The time of a request of eight images with weights over one without, by medians."""
    asked: dict[str, Any] = {"model": f"{MODEL}:{ADAPTER}", "n": 8, "seed": 0, "steps": args.steps}
    calls = {
        "plain": lambda: client.generate(**asked),
        "weighed": lambda: client.generate(**asked, log_weight=True),
    }
    seconds = time_interleaved(calls, 1 if args.smoke else ROUNDS)
    return float(np.median(seconds["weighed"]) / np.median(seconds["plain"]))


def main() -> None:
    args = _arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    engine = engine_with(args.work, adapter_of(args))
    said("trained and exported", began)
    with served(engine) as client:
        rows, ratio = rows_of(client, args), cost(client, args)
    write_rows(args, "posterior_weights", rows, free=("work",), time_ratio=ratio)
    end(args.out, table(rows, COLUMNS), f"a request with weights takes {ratio:.2f} times as long")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=whole(2), default=4, help="network calls per image (default %(default)s)")
    add("--strength", type=number(POSITIVE), default=10.0, help="log r over the mean pixel (default %(default)s)")
    add("--updates", type=whole(1), default=40, help="of trajectory balance (default %(default)s)")
    add("--batch", type=whole(20), default=40, help="trajectories of an update (default %(default)s)")
    add("--lr", type=number(POSITIVE), default=1e-4, help="of trajectory balance (default %(default)s)")
    add("--images", type=whole(20), default=400, help="of the adapter (default %(default)s)")
    add("--reference", type=whole(20), default=1600, help="images of the prior (default %(default)s)")
    add("--work", type=Path, default=WORK / "runs/posterior-weights", metavar="DIR",
        help="what is finished (default runs/posterior-weights)")  # fmt: skip
    args = parsed(parser, "posterior-weights")
    if args.smoke:
        args.updates, args.batch, args.images, args.reference, args.steps = 1, 20, 20, 20, 2
        args.work = args.work.with_name(args.work.name + "-smoke")
    return args


if __name__ == "__main__":
    main()
