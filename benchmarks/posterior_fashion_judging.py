"""What judges in `benchmarks/posterior_fashion.py`: networks that trained nothing, and the chain's monitors."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_fashion_task import CLASSES, ROWS, Task, Tensors
from benchmarks.posterior_fashion_tone import tones
from benchmarks.posterior_fashion_training import CALLS, folder_of
from fewstep.adapters import Adapter
from fewstep.metrics.extractors.fashion128 import FOLDER_B, load_extractor
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.pixels import to_pixels
from trainer.methods.rtb import effective_share, own_steps, walk
from trainer.run.draws import seeded


@dataclass(frozen=True)
class Judge:
    task: Task

    @cached_property
    def extractor(self) -> Any:
        return load_extractor(FOLDER_B, threads=1)

    def row(self, images: Tensor, y: Tensor, **more: float) -> dict[str, Any]:
        """What images [N, 1, 32, 32] and their labels alone say."""
        pixels, other = to_pixels(images.numpy()), self.task.accepted["images"][len(self.task.labels) :]
        features, classes = self.extractor(pixels)
        reference = self.extractor(to_pixels(other.numpy()))[0]
        between = lambda these, those: frechet_distance(Moments.of(these), Moments.of(those))  # noqa: E731
        return {
            "log_reward": float(self.task.tone.log_reward(images).mean()), "judged": self.task.tone.judged(images),
            "exact": float((tones(pixels) > self.task.tone.threshold).mean()),
            "class": float((classes == y.numpy()).mean()),
            "distance": between(self.task.tone.features(images), self.task.tone.features(other)),
            "class_distance": between(features, reference),
            "pairwise": float(torch.pdist(images.flatten(1)).mean()), **more,
        }  # fmt: skip


def chain_row(task: Task, name: str, adapter: Adapter) -> tuple[Tensor, dict[str, float]]:
    """Images of a trained chain, and its monitors: the mean over labels of each."""

    def make() -> Tensors:
        problem, rng, parts = task.problem(adapter), seeded(900), []
        for y in task.labels.split(ROWS):
            found = walk(problem, y, problem.start(torch.empty(len(y), 1, 32, 32), rng), own_steps(problem, rng))
            parts.append((found.images, -found.residual(1.0)))
        images, log_weights = (torch.cat(part) for part in zip(*parts, strict=True))
        return {"images": images, "log_weights": log_weights}

    stored, shares = task.kept(f"images-{folder_of(name)}", make), []
    for label in task.labels.unique():
        log_weights = stored["log_weights"][task.labels == label]
        proposals = task.proposals["y"][: task.args.proposals] == label
        log_z = task.proposals["log_rewards"][: task.args.proposals][proposals].exp().mean().log()
        shares.append(torch.stack([log_z - log_weights.mean(), effective_share(log_weights)]))
    gap, ess = torch.stack(shares).mean(dim=0).tolist()
    return stored["images"], {"elbo": gap, "ess": ess}


def expected(task: Task) -> float:
    """E[log r] of the exact posterior for these labels, by weights r of all proposals of a label."""
    log_rewards = task.proposals["log_rewards"][: task.args.proposals]
    of = task.proposals["y"][: task.args.proposals]
    means = [(log_rewards[of == y].softmax(0) * log_rewards[of == y]).sum() for y in range(CLASSES)]
    return float(torch.stack(means)[task.labels].mean())


def verdict(rows: list[dict[str, Any]], teacher: str, levels: int) -> dict[str, dict[str, float]]:
    """Of each student: nats below its teacher's chain (bar: 0.3), its distance over the chain's (1.5), and how many
    times fewer calls (10)."""
    by_name = {row["method"]: row for row in rows}
    chain = by_name[teacher]
    found = {}
    for calls in CALLS:
        row = by_name[f"student, served, {calls}"]
        found[str(calls)] = {
            "nats_below": chain["log_reward"] - row["log_reward"],
            "distance_ratio": row["distance"] / chain["distance"],
            "fewer_calls": levels / calls,
        }
    return found
