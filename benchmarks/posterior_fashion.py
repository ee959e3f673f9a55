"""A posterior of the shipped Fashion-MNIST models, by adapters alone, from training to the images a server returns.

    fewstep trainer data fashion --out runs/data/fashion.zip
    python benchmarks/posterior_fashion.py             # about ten minutes of one core; goes on where it stopped
    python benchmarks/posterior_fashion.py --smoke     # a minute; proves that it runs

r(x) is a classifier's probability that a garment is light (`benchmarks/posterior_fashion_tone.py`). The prior is the
shipped teacher, told its class, in a chain of `--levels` calls (of 40, four calls are a tenth): so there is a
posterior, and a Z, for every class. Rejection from that chain is exact, for r <= 1. Every row has the labels of the
accepted images.

tilted denoising  the prior's images in proportion to r; then Adam on the denoising loss, at all levels
RTB               trajectory balance, for as long as tilted denoising took with its images of the prior (CPU time)
student           DPDM of the better of both in distance (`chosen`), from the shipped student; adapters beside it.
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
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.harness import ROOT, WORK, result_file, table, write_result
from benchmarks.inputs import DATA, MODELS
from benchmarks.posterior import draws, picture, said
from benchmarks.posterior_fashion_tone import Tone, fit, tones
from export.adapters import add_adapter
from export.build import export_checkpoint
from fewstep.adapters import Adapter, AdapterCard, adapted, load_adapter, merged, save_adapter
from fewstep.ancestral import Chain, ancestral_chain, denoising_errors, sample_ancestral
from fewstep.card import write_atomically
from fewstep.checkpoint import NetworkModule, load_denoiser
from fewstep.client import Client
from fewstep.metrics.extractors.fashion128 import FOLDER_B, load_extractor
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.pixels import from_pixels, to_pixels
from fewstep.precond import Denoiser
from fewstep.ranges import POSITIVE, number, whole
from fewstep.schedule import karras_sigmas
from trainer.data.format import ImageSet, read_image_set
from trainer.data.sources.selection import halved
from trainer.methods.dpdm import Student
from trainer.methods.posterior_student import adapter_parts, pool_batches
from trainer.methods.rtb import Problem, TrajectoryBalance, effective_share, own_steps, start, walk
from trainer.methods.tilted import TILTED as TILTED_ADAM
from trainer.methods.tilted import tilted_regression
from trainer.posterior_distil import student_config
from trainer.posterior_options import DistilConfig
from trainer.settings import PosteriorConfig

CLASSES, CALLS, RANK = 10, (1, 2, 4), 4
SIGMA_MIN, SIGMA_MAX = 0.05, 20.0
ROWS, ASKED = 64, 32  # images of a network call, and of a request
COLUMNS = {
    "method": "method", "nfe": "calls", "log_reward": "E[log r]", "judged": "judged", "exact": "exact",
    "class": "class", "distance": "distance", "class_distance": "class distance", "pairwise": "pairwise",
    "elbo": "log Z - ELBO", "ess": "ESS", "cpu_s": "train CPU s",
}  # fmt: skip
Tensors = dict[str, Tensor]
TILTED, RTB = "tilted denoising", "RTB"


@dataclass(frozen=True)
class Task:
    args: argparse.Namespace

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """The tensors of a stage: of its file in --work where there is one. "cpu_s" says what they cost."""
        path = self.args.work / f"{name}.safetensors"
        if not path.exists():
            since = time.process_time()
            made = make()
            made["cpu_s"] = torch.tensor(time.process_time() - since)
            save_file({key: value.contiguous() for key, value in made.items()}, path)
            print(f"{name}: {float(made['cpu_s']):.0f} CPU s", flush=True)
        return load_file(path)

    @cached_property
    def halves(self) -> tuple[ImageSet, ImageSet]:
        data = read_image_set(self.args.data)
        return halved(data, "a"), halved(data, "b")

    @cached_property
    def tone(self) -> Tone:
        threshold = float(np.median(tones(self.halves[0].images)))

        def network(half: ImageSet, seed: int) -> nn.Sequential:
            def make() -> Tensors:
                light = tones(half.images) > threshold
                return fit(half.images, light, self.args.classifier_updates, seed).state_dict()

            stored = self.kept(f"classifier-{seed}", make)
            stored.pop("cpu_s")
            made = fit(half.images[:1], np.zeros(1, bool), 0, seed)
            made.load_state_dict(stored)
            return made

        return Tone(network(self.halves[0], 11), network(self.halves[1], 12), threshold)

    @cached_property
    def extractor(self) -> Any:
        return load_extractor(FOLDER_B, threads=1)

    @cached_property
    def prior(self) -> Denoiser:
        return load_denoiser(MODELS / "teacher")[0]

    @property
    def network(self) -> NetworkModule:
        assert isinstance(self.prior.network, NetworkModule)
        return self.prior.network.requires_grad_(False)

    @cached_property
    def chain(self) -> Chain:
        def make() -> Tensors:
            half, sigmas = self.halves[0], karras_sigmas(self.args.levels, SIGMA_MIN, SIGMA_MAX)
            images = torch.from_numpy(from_pixels(half.images[:ROWS]))
            labels = torch.from_numpy(half.labels[:ROWS]).long()
            with torch.no_grad():
                errors = denoising_errors(
                    lambda x, sigma: self.prior(x, sigma, labels),
                    images,
                    sigmas,
                    lambda i: draws(i).normal_like(images),
                )
            return {"sigmas": torch.tensor(sigmas), "errors": torch.tensor(errors)}

        stored = self.kept("chain", make)
        return ancestral_chain(stored["sigmas"].tolist(), "opt", stored["errors"].tolist())

    def chain_images(self, denoiser: Denoiser, y: Tensor, seed: int) -> Tensor:
        """Images [N, 1, 32, 32] of a chain with this denoiser in every step, for labels y [N]."""
        rng, images = draws(seed), []
        for labels in y.split(ROWS):
            noise = torch.empty(len(labels), 1, 32, 32)
            bound = lambda x, sigma, labels=labels: denoiser(x, sigma, labels)  # noqa: E731
            with torch.no_grad():
                made = sample_ancestral(bound, lambda _, noise=noise: rng.normal_like(noise), self.chain)
            images.append(made.images)
        return torch.cat(images)

    @cached_property
    def proposals(self) -> Tensors:
        """Images of the prior's chain, as many of every class. Those behind `--proposals` are learned from."""
        tone, _ = self.tone, self.chain  # made first: their time is not that of these images

        def make() -> Tensors:
            y = torch.arange(self.args.proposals + self.args.pool) % CLASSES
            images = self.chain_images(self.prior, y, seed=1)
            return {"images": images, "y": y, "log_rewards": tone.log_reward(images)}

        return self.kept("proposals", make)

    @cached_property
    def accepted(self) -> Tensors:
        count, rng = self.args.proposals, draws(2)
        taken = rng.uniform(count).log() < self.proposals["log_rewards"][:count]
        rows = torch.randperm(int(taken.sum()), generator=rng.generator)
        return {name: self.proposals[name][:count][taken][rows] for name in ("images", "y")}

    @property
    def labels(self) -> Tensor:
        """Those of the first half of the accepted images: of every row."""
        return self.accepted["y"][: len(self.accepted["y"]) // 2]

    def problem(self, adapter: Adapter) -> Problem:
        told = Denoiser(adapted(self.network, adapter), self.prior.sigma_data, CLASSES)
        log_reward = lambda images, y: self.tone.log_reward(images)  # noqa: E731
        return Problem(
            lambda x, s, y: self.prior(x, s, y), lambda x, s, y: told(x, s, y), self.chain, log_reward,
            adapter.log_variance, CLASSES,
        )  # fmt: skip

    def new_adapter(self, steps: int) -> Adapter:
        return Adapter(self.network, RANK, steps, torch.Generator().manual_seed(700))

    def trained(self, name: str, train: Callable[[Adapter], None]) -> tuple[Adapter, float]:
        """An adapter beside the teacher, and the CPU time of its training. One that is kept is read."""
        folder, adapter = self.args.work / folder_of(name), self.new_adapter(self.chain.steps)
        if not (folder / "adapter.json").exists():
            since = time.process_time()
            train(adapter)
            spent = {"cpu_s": time.process_time() - since}
            card = AdapterCard("", RANK, 0, self.chain, "light", training=spent)
            save_adapter(folder, adapter, card)
            print(f"{name}: {spent['cpu_s']:.0f} CPU s", flush=True)
        loaded, card = load_adapter(folder, self.network)
        return loaded, card.training["cpu_s"]

    def row(self, images: Tensor, y: Tensor, **more: float) -> dict[str, Any]:
        """What images [N, 1, 32, 32] and their labels alone say."""
        pixels, other = to_pixels(images.numpy()), self.accepted["images"][len(self.labels) :]
        features, classes = self.extractor(pixels)
        reference = self.extractor(to_pixels(other.numpy()))[0]
        between = lambda these, those: frechet_distance(Moments.of(these), Moments.of(those))  # noqa: E731
        return {
            "log_reward": float(self.tone.log_reward(images).mean()), "judged": self.tone.judged(images),
            "exact": float((tones(pixels) > self.tone.threshold).mean()),
            "class": float((classes == y.numpy()).mean()),
            "distance": between(self.tone.features(images), self.tone.features(other)),
            "class_distance": between(features, reference),
            "pairwise": float(torch.pdist(images.flatten(1)).mean()), **more,
        }  # fmt: skip


def tilt(task: Task, adapter: Adapter) -> None:
    """Tilted denoising on the prior's images that are not the reference's proposals."""
    denoiser = Denoiser(adapted(task.network, adapter), task.prior.sigma_data, CLASSES)
    pool = tuple(task.proposals[name][task.args.proposals :] for name in ("images", "log_rewards", "y"))
    with torch.autocast("cpu", torch.bfloat16):
        tilted_regression(
            denoiser, adapter, pool, (SIGMA_MIN, SIGMA_MAX), task.args.tilted_updates, draws(800),  # pyright: ignore[reportArgumentType]
            batch=task.args.batch, adam=replace(TILTED_ADAM, lr=task.args.tilted_lr), told=True, said=told_every(20),
        )  # fmt: skip


def balance(task: Task, adapter: Adapter, seconds: float) -> None:
    """Trajectory balance for so many CPU seconds. Its sums over a chain are too fine for bfloat16."""
    default, rng = PosteriorConfig(), draws(801)
    config = replace(default, adam=replace(default.adam, lr=task.args.lr), levels=task.args.gradient_levels)
    y = torch.arange(task.args.balance_batch) % CLASSES
    like = torch.empty(len(y), 1, 32, 32)
    method, since, update = TrajectoryBalance(task.problem(adapter), adapter, config, like[0]), time.process_time(), 0
    say = told_every(5)
    while (progress := (time.process_time() - since) / seconds) < 1:
        found = method.update(like, y, progress, rng)
        update += 1
        say(update, float(found["loss"]))


def folder_of(method: str) -> str:
    return method.split()[0].lower()


def told_every(updates: int) -> Callable[[int, float], None]:
    def say(update: int, loss: float) -> None:
        if update % updates == 0:
            print(f"  update {update}: loss {loss:.4g}", flush=True)

    return say


def chain_row(task: Task, name: str, adapter: Adapter) -> tuple[Tensor, dict[str, float]]:
    """Images of a trained chain, and its monitors: the mean over labels of each."""

    def make() -> Tensors:
        problem, rng, parts = task.problem(adapter), draws(900), []
        for y in task.labels.split(ROWS):
            found = walk(problem, y, start(problem, torch.empty(len(y), 1, 32, 32), rng), own_steps(problem, rng))
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


def distil(task: Task, adapter: Adapter, images: Tensor) -> Path:
    """The student's adapter beside the shipped student, in a folder that `fewstep export adapter --add` takes."""
    folder = task.args.work / "light"
    if (folder / "adapter.json").exists():
        return folder
    since = time.process_time()
    begun, card = load_denoiser(MODELS)
    assert isinstance(begun.network, NetworkModule)
    lists = {calls: card.levels[calls] for calls in CALLS}
    teacher = merged(task.network, adapter)
    assert isinstance(teacher, NetworkModule)
    parts = adapter_parts(
        teacher, RANK, task.prior.sigma_data, CLASSES, torch.Generator().manual_seed(60), begun.network, sees_level=True
    )
    config = student_config(DistilConfig(), task.args.distil_lr, lists, sees_level=True)
    method, rng, say = Student.of_parts(parts, config, "cpu"), draws(70), told_every(20)
    batches = pool_batches((images, torch.zeros(len(images)), task.labels), task.args.distil_batch, 71, False, 0)
    with torch.autocast("cpu", torch.bfloat16):
        for update in range(task.args.distil_updates):
            some, y = next(batches)
            found = method.update(some, y, update / task.args.distil_updates, rng)
            say(update + 1, float(found["auxiliary_loss"]))
    student = parts.trained["student"]
    assert isinstance(student, Adapter)
    spent = {"cpu_s": time.process_time() - since}
    names = load_denoiser(MODELS / "teacher")[1].class_names
    save_adapter(
        folder,
        student,
        AdapterCard(card.weights, RANK, 0, None, "light", training=spent, levels=lists, class_names=names),
    )
    print(f"student: {spent['cpu_s']:.0f} CPU s", flush=True)
    return folder


def engine_with(task: Task, adapter: Path) -> Path:
    """The shipped student exported for adapters, with this one."""
    model = task.args.work / "fashion"
    engine = model / "engine"
    if not (engine / "engine.json").exists():
        model.mkdir(exist_ok=True)
        for name in ("model.safetensors", "card.json"):
            shutil.copyfile(MODELS / name, model / name)
        export_checkpoint(model, engine, "fashion", adapters=True, backends=("onnxruntime-cpu",), threads=1)
    if not (engine / "adapters" / f"{adapter.name}.safetensors").exists():
        add_adapter(engine, adapter, threads=1)
    return engine


@contextmanager
def served(engine: Path) -> Iterator[Client]:
    """A server of its own process, which holds the backbone and its adapter."""
    command = [sys.executable, "-m", "server", "--engine", f"fashion={engine}", "--port", "0", "--drain-s", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            with Client(server.stdout.readline().split()[-1]) as client:
                yield client
        finally:
            server.terminate()
            server.wait()


def served_images(client: Client, model: str, y: Tensor, calls: int) -> Tensor:
    """Images [N, 1, 32, 32] of seeds from 0 on, one per label."""
    made = []
    for first in range(0, len(y), ASKED):
        part = y[first : first + ASKED].tolist()
        seeds = list(range(first, first + len(part)))
        made.append(client.generate(model=model, seeds=seeds, labels=part, steps=calls).pixels)
    return torch.from_numpy(from_pixels(np.concatenate(made)))


def teachers(task: Task) -> dict[str, tuple[Adapter, float]]:
    """The adapters of both methods, or of the one that is asked for, and the CPU time of each with its images."""
    args = task.args
    pool_s = float(task.proposals["cpu_s"]) * args.pool / (args.pool + args.proposals)
    tilted, spent = task.trained(TILTED, lambda adapter: tilt(task, adapter))
    found = {TILTED: (tilted, spent + pool_s)}
    if not args.without_rtb:
        found[RTB] = task.trained(RTB, lambda adapter: balance(task, adapter, spent + pool_s))
    return found


def run(task: Task) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, Any]]:
    """The rows, the images that are drawn, and facts of the reference."""
    args, y, rows = task.args, task.labels, []
    shown: dict[str, Tensor] = {}

    def add(name: str, images: Tensor, **more: float) -> None:
        rows.append({"method": name, **task.row(images, y, **more)})
        shown[name] = images[:64]
        print(rows[-1], flush=True)

    acceptance = len(task.accepted["y"]) / args.proposals
    add("rejection", task.accepted["images"][: len(y)], nfe=args.levels / acceptance)
    prior = task.kept("images-prior", lambda: {"images": task.chain_images(task.prior, y, seed=3)})["images"]
    add("prior's chain", prior, nfe=args.levels)
    trained = {}
    for name, (adapter, spent) in teachers(task).items():
        images, monitors = chain_row(task, name, adapter)
        add(name, images, nfe=args.levels, cpu_s=spent, **monitors)
        trained[name] = adapter, images, rows[-1]["distance"]
    chosen = min(trained, key=lambda name: trained[name][2])
    engine = engine_with(task, distil(task, *trained[chosen][:2]))
    spent = json.loads((args.work / "light" / "adapter.json").read_text())["training"]["cpu_s"]
    with served(engine) as client:
        add("prior's student, served", served_images(client, "fashion", y, 4), nfe=4)
        for calls in CALLS:
            add(f"student, served, {calls}", served_images(client, "fashion:light", y, calls), nfe=calls, cpu_s=spent)
    weights = {"backbone": "model.safetensors", "adapter": "light/adapter.safetensors"}
    facts = {
        "acceptance": acceptance, "accepted": len(task.accepted["y"]), "judged_by": len(y),
        "chosen": chosen, "threshold": task.tone.threshold,
        "log_reward": _expected(task), "labels": torch.bincount(y, minlength=CLASSES).tolist(),
        "bytes": {
            name: (MODELS if name == "backbone" else args.work).joinpath(file).stat().st_size
            for name, file in weights.items()
        },
        "verdict": verdict(rows, chosen, args.levels),
    }  # fmt: skip
    return rows, shown, facts


def _expected(task: Task) -> float:
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


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    if not args.data.exists():
        sys.exit(f"error: {args.data} does not exist; make it with: fewstep trainer data fashion --out {args.data}")
    args.work.mkdir(parents=True, exist_ok=True)
    free = ("out", "smoke", "work", "data", "without_rtb")  # what is kept holds with other values of these, too
    settings = {name: value for name, value in vars(args).items() if name not in free}
    _same_settings(args.work / "settings.json", settings)
    began = time.monotonic()
    rows, shown, facts = run(Task(args))
    write_result(args.out, "posterior_fashion", settings, rows, reference=facts)
    write_atomically(args.out.with_suffix(".png"), picture(shown))
    print("\n" + table(rows, COLUMNS) + f"\n\n{json.dumps(facts, indent=1)}")
    said(f"wrote {args.out}", began)


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    """What is kept belongs to one set of settings."""
    if path.exists() and json.loads(path.read_text()) != settings:
        sys.exit(f"error: {path.parent} holds a run with other settings; repeat them, or give another --work")
    write_atomically(path, (json.dumps(settings, indent=2) + "\n").encode())


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
    add("--without-rtb", action="store_true", help="leave trajectory balance out: half of the training")
    add("--distil-updates", type=whole(1), default=80, help="of the student (default %(default)s)")
    add("--distil-batch", type=whole(2), default=32, help="images of an update of the student (default %(default)s)")
    add("--distil-lr", type=number(POSITIVE), default=5e-4, help="of the auxiliary; the student's is a quarter of it")
    add("--work", type=Path, default=WORK / "runs/posterior-fashion", metavar="DIR",
        help="what is finished (default runs/posterior-fashion)")  # fmt: skip
    add("--out", type=result_file, default=ROOT / "build" / "posterior-fashion.json", metavar="FILE.json",
        help="the JSON with the result (default %(default)s)")  # fmt: skip
    add("--smoke", action="store_true", help="a few updates of everything")
    args = parser.parse_args()
    if args.smoke:
        args.levels, args.proposals, args.pool, args.classifier_updates, args.tilted_updates = 3, 200, 20, 30, 2
        args.distil_updates, args.batch, args.distil_batch, args.balance_batch, args.gradient_levels = 2, 4, 4, 20, 1
        args.work = args.work.with_name(args.work.name + "-smoke")
    return args


if __name__ == "__main__":
    main()
