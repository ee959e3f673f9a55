"""The switches of DPDM, one at a time: how much each changes the distance to the data, over three seeds.

    python benchmarks/ablation.py                             # resumable: every finished run stays in --work
    python benchmarks/ablation.py --only base tied sid-1      # train these now; the table shows all that is there
    python benchmarks/ablation.py --smoke                     # seconds; proves that it runs

Handwritten digits of 8x8 pixels (scikit-learn), one teacher for all; every variant sees as many training images from
the same start. The distance is Fréchet's, in the features of a small classifier of these digits, at k = 1, 2, 4 and 8
calls; its floor is that of as many real held-out digits. training_cost.py measures what each variant costs. Prints a
table, writes JSON and a plot.
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.ablation_plot import draw_ablation
from benchmarks.ablation_table import STEPS, Row, compose, printed
from benchmarks.digit_features import Yardstick, load_digit_sets, make_yardstick
from benchmarks.harness import ROOT, result_file, write_result
from fewstep.card import Card, CheckpointError, write_atomically
from fewstep.checkpoint import load_denoiser, network_config, save_checkpoint
from fewstep.latent import with_latent
from fewstep.network import UNet
from fewstep.noise_torch import latent_for, noise_for
from fewstep.pixels import Pixels, from_pixels, to_pixels
from fewstep.precond import Denoiser
from fewstep.ranges import whole
from fewstep.samplers import sample_dpdm
from fewstep.schedule import SIGMA_MAX
from fewstep.unet_config import UNetConfig
from trainer.data.format import DataError, ImageSet
from trainer.methods.dpdm import Student
from trainer.methods.edm import Teacher
from trainer.methods.endpoints import Endpoints, load_or_make
from trainer.methods.rivals import tied
from trainer.run.artifacts import describe
from trainer.run.compute import Compute
from trainer.run.draws import Draws
from trainer.run.ema import average_of, blend, power_decay
from trainer.run.loop import Method
from trainer.runs import fit_to_data
from trainer.settings import StudentConfig, TeacherConfig

INTERRUPTED = 130
COMPUTE = Compute("cpu", "fp32")  # graphs of so small a network take longer to compile than to train
SMALL = UNetConfig(resolution=8, width=32, mult=(1, 2), blocks=1, patch=2)
BASE = StudentConfig()


@dataclass(frozen=True)
class Plan:
    """What all runs share."""

    images: int = 40_960  # training images of a student
    teacher_images: int = 204_800
    batch: int = 64
    generated: int = 599  # images behind a distance: as many as are held out, so that the floor is at the same N
    network: UNetConfig = SMALL


SMOKE = Plan(images=128, teacher_images=640, generated=60, network=replace(SMALL, width=16, mult=(1,)))


def variants(base: StudentConfig = BASE) -> dict[str, StudentConfig]:
    """Every switch, thrown alone."""
    return {
        "base": base,
        "tied": replace(base, renoise="tied"),
        "independent": replace(base, renoise="independent"),
        "subinterval": replace(base, renoise="subinterval"),
        "lognormal": replace(base, renoise="lognormal"),
        "from-80": replace(base, sigma_max=SIGMA_MAX),
        "auxiliary-blind": replace(base, auxiliary_sees_level=False),
        "from-80-blind": replace(base, sigma_max=SIGMA_MAX, auxiliary_sees_level=False),
        "paper": tied(base),
        "weight-one": replace(base, weight="one"),
        "sid-0.5": replace(base, loss="sid", alpha=0.5),
        "sid-1": replace(base, loss="sid", alpha=1.0),
        "auxiliary-x5": replace(base, auxiliary_updates=5),
        "simulate-late": replace(base, simulate=0.3, simulate_from=0.5),
        "warm-start": replace(base, warm=0.1, warm_pairs=1024),
        "ncvsd": replace(base, objective="ncvsd", sigma_max=SIGMA_MAX),
    }


@dataclass(frozen=True)
class World:
    """The teacher, what it learnt from, and the yardstick: kept in one work folder, shared by all runs."""

    work: Path
    plan: Plan
    data: ImageSet
    teacher: Denoiser  # around a UNet
    card: Card  # the teacher's
    yardstick: Yardstick


def make_world(work: Path, plan: Plan) -> World:
    """Teacher and yardstick of `work`, trained and stored there first if it is empty.

    Raises CheckpointError when the teacher there is another plan's, DataError without scikit-learn.
    """
    data, held_out = load_digit_sets()
    teacher, card = stored_teacher(work / "teacher", plan, plan.teacher_images, data)
    return World(work, plan, data, teacher, card, make_yardstick(work, data, held_out))


def stored_teacher(folder: Path, plan: Plan, images: int, data: ImageSet) -> tuple[Denoiser, Card]:
    settings, config = {"images": images, "batch": plan.batch}, fit_to_data(plan.network, data)
    if not folder.exists():
        torch.manual_seed(0)
        network, deviation = UNet(config), data.sigma_data()
        average = fit(Teacher(network, deviation, TeacherConfig(), COMPUTE), data, images, plan.batch, 0)
        card = Card("teacher", describe(network), deviation, "", data.provenance(), data.class_names, training=settings)
        save_checkpoint(folder, average.state_dict(), card)
    teacher, card = load_denoiser(folder)
    if card.training != settings or network_config(card) != config:
        raise CheckpointError(
            f"{folder} was trained with other settings; choose another --work, or delete {folder.parent}"
        )
    return teacher, card


def fit(method: Method, data: ImageSet, images: int, batch: int, seed: int) -> UNet:
    """Train on `images` images drawn from the data; returns the averaged weights."""
    network = method.networks[method.served]
    average = average_of(network)
    rng, order = Draws(torch.Generator().manual_seed(seed)), np.random.default_rng(seed)
    pixels, labels = torch.from_numpy(from_pixels(data.images)), torch.from_numpy(data.labels).long()
    for seen in tqdm(range(0, images, batch), desc=method.served, unit="update", leave=False):
        index = torch.from_numpy(order.integers(len(pixels), size=batch))
        method.update(pixels[index], labels[index], seen / images, rng)
        blend(average, network, power_decay(method.ema_width, batch, seen + batch))
    assert isinstance(average, UNet)
    return average


def run(world: World, config: StudentConfig, seed: int) -> dict[str, Any]:
    """Train one student and measure its distances: {"distance": {k: value, or None if it diverged}}."""
    plan, sigma = world.plan, world.teacher.sigma_data
    assert isinstance(world.teacher.network, UNet)
    endpoints = stored_endpoints(world, config.warm_pairs) if config.warm else None
    student = Student(world.teacher.network, sigma, config, COMPUTE, endpoints=endpoints)
    average = fit(student, world.data, plan.images, plan.batch, seed)
    seeds = range(seed * plan.generated, (seed + 1) * plan.generated)
    lists = config.level_lists
    distance: dict[str, float | None] = {}
    for k in STEPS:
        pixels = sampled(average, sigma, lists[k], seeds)
        distance[str(k)] = None if pixels is None else world.yardstick.distance(pixels)
    return {"distance": distance}


def stored_endpoints(world: World, pairs: int) -> Endpoints:
    return load_or_make(world.work, world.teacher, world.card.weights, pairs, world.card.image_shape, COMPUTE.device)


@torch.no_grad()
def sampled(network: UNet, sigma_data: float, levels: tuple[float, ...], seeds: range) -> Pixels | None:
    """uint8 [N, 8, 8, 1] of these seeds, classes in turn; None if the network returns no numbers any more."""
    config = network.config
    shape = (config.channels, config.resolution, config.resolution)
    labels = torch.tensor(seeds) % config.classes
    latent = latent_for(seeds, (config.extra, *shape[1:]))
    bound = with_latent(Denoiser(network, sigma_data, config.classes), latent, labels)
    images = sample_dpdm(bound, noise_for(seeds, shape), levels).images
    return to_pixels(images.numpy()) if torch.isfinite(images).all() else None


def stored(world: World, name: str, config: StudentConfig, seed: int) -> dict[str, Any] | None:
    """The result of a finished run. Raises CheckpointError when it was made with other settings."""
    path = result_path(world, name, seed)
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    if result["identity"] != identity(world, config, seed):
        raise CheckpointError(f"{path} was made with other settings; choose another --work, or delete it")
    return result


def store(world: World, name: str, config: StudentConfig, seed: int, result: dict[str, Any]) -> None:
    content = {"variant": name, "seed": seed, **result, "identity": identity(world, config, seed)}
    write_atomically(result_path(world, name, seed), json.dumps(content, indent=2, allow_nan=False).encode())


def result_path(world: World, name: str, seed: int) -> Path:
    return world.work / "runs" / f"{name}-{seed}.json"


def identity(world: World, config: StudentConfig, seed: int) -> dict[str, Any]:
    """All that a run's figures depend on, as JSON gives it back."""
    facts = {
        "plan": asdict(world.plan),
        "settings": asdict(config),
        "seed": seed,
        "teacher": world.card.weights,
        "yardstick": world.yardstick.sha256,
    }
    return json.loads(json.dumps(facts))


def measure(world: World, wanted: list[str], seeds: range) -> list[Row]:
    """Run what is missing of the wanted variants; the rows are of everything the work folder holds."""
    known = variants()
    missing = [(name, seed) for seed in seeds for name in wanted if stored(world, name, known[name], seed) is None]
    for name, seed in tqdm(missing, desc="ablation", unit="run"):
        store(world, name, known[name], seed, run(world, known[name], seed))
    found = {
        name: [result for seed in seeds if (result := stored(world, name, config, seed))]
        for name, config in known.items()
    }
    return compose({name: results for name, results in found.items() if results})


def main() -> int:
    args = _arguments()
    plan = SMOKE if args.smoke else Plan()
    plan = replace(plan, generated=args.images or plan.generated)
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or (Path(scratch) if args.smoke else ROOT / "build" / "ablation")
        try:
            world = make_world(work, plan)
            rows = measure(world, args.only or list(variants()), range(args.seeds))
        except (CheckpointError, DataError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"interrupted; the finished runs are in {work}, and the same command goes on", file=sys.stderr)
            return INTERRUPTED
    floor = world.yardstick.floor(plan.generated)
    print(printed(rows, floor, plan.generated))
    facts = {"floor": floor, "classifier_accuracy": world.yardstick.accuracy, "teacher": world.card.weights}
    settings = {**json.loads(json.dumps(asdict(plan))), "seeds": args.seeds, "steps": list(STEPS)}
    write_result(args.out, "ablation", settings, [asdict(row) for row in rows], **facts)
    draw_ablation(rows, floor, args.out.with_suffix(".png"))
    print(f"\nwrote {args.out} and {args.out.with_suffix('.png')}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, metavar="DIR", help="finished runs (default: build/ablation)")
    parser.add_argument("--only", nargs="+", choices=list(variants()), metavar="NAME", help=", ".join(variants()))
    parser.add_argument("--seeds", type=whole(1), default=3, help="runs of every variant (default 3)")
    parser.add_argument("--images", type=whole(1), metavar="N", help="generated for every distance (default 599)")
    parser.add_argument(
        "--out", type=result_file, default=ROOT / "build" / "ablation.json", help="JSON; the PNG lies beside it"
    )
    parser.add_argument("--smoke", action="store_true", help="two variants, two updates each")
    args = parser.parse_args()
    if args.smoke and not args.only:
        args.only, args.seeds = ["base", "tied"], 2
    return args


if __name__ == "__main__":
    raise SystemExit(main())
