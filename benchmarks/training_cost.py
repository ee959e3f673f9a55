"""What distillation costs (the paper's Table 6): time and memory of an update, DPDM beside consistency distillation.

    python benchmarks/training_cost.py            # minutes on a CPU
    python benchmarks/training_cost.py --smoke    # seconds; proves that it runs

Updates of all methods are timed interleaved in one process, so read them as ratios. Memory is each method's own, in a
process of its own: the high-water mark over a few updates, less what was there before the first network. Networks,
optimisers and the batch are in it. Beside them stand the totals of two finished runs, from their cards.
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import ROOT, peak_memory_mb, result_file, table, time_interleaved, write_result
from fewstep.card import Card, CheckpointError, distilled_from, read_card
from fewstep.checkpoint import network_config
from fewstep.network import UNet
from fewstep.ranges import whole
from fewstep.schedule import student_levels
from fewstep.unet_config import UNetConfig
from trainer.critics.classifier import ClassifierConfig, NoisyClassifier
from trainer.methods.consistency import Consistency
from trainer.methods.dpdm import Student
from trainer.methods.edm import Teacher
from trainer.methods.gan import Adversarial
from trainer.methods.self_distillation import Progressive
from trainer.run.compute import Compute, default_device, move_to_device
from trainer.run.draws import Draws
from trainer.run.loop import Method
from trainer.settings import AdversarialConfig, ConsistencyConfig, ProgressiveConfig, StudentConfig, TeacherConfig

REFERENCE = "consistency"
PROGRESS = 0.5  # of a run: everything that starts late has started
COLUMNS = {
    "method": "method", "ms_p50": "ms/update", "ratio": "vs consistency", "images_per_s": "images/s",
    "peak_mb": "peak MB", "memory_ratio": "vs consistency",
}  # fmt: skip
TOTAL_COLUMNS = {"from": "a student from", "images": "images", "hours": "hours", "share": "vs its teacher"}


def methods() -> dict[str, Callable[[UNet, float, Compute], Method]]:
    """Builders of everything that is compared. Each takes the teacher over: give it one of its own."""
    base = StudentConfig()
    distilled = lambda config: lambda teacher, sigma, compute: Student(teacher, sigma, config, compute)  # noqa: E731
    one_call = ProgressiveConfig(lists=((2.5,),))  # its dearest update: the frozen student makes all further calls
    return {
        REFERENCE: lambda teacher, sigma, compute: Consistency(teacher, sigma, ConsistencyConfig(), compute),
        "dpdm": distilled(base),
        "dpdm, sid": distilled(replace(base, loss="sid")),
        "dpdm, 5 auxiliary updates": distilled(replace(base, auxiliary_updates=5)),
        "progressive": lambda teacher, sigma, compute: Progressive(teacher, sigma, one_call, compute),
        "adversarial": _adversarial,
        "edm teacher": lambda teacher, sigma, compute: Teacher(teacher, sigma, TeacherConfig(), compute),
    }


def _adversarial(start: UNet, sigma_data: float, compute: Compute) -> Method:
    """Its most expensive update: all steps of the lists of one to four calls, with three untrained classifiers."""
    net = start.config
    config = ClassifierConfig(net.resolution, net.channels, net.classes, sigma_data)
    classifiers = [
        move_to_device(NoisyClassifier(config), compute.device).eval().requires_grad_(False) for _ in range(3)
    ]
    settings = AdversarialConfig(
        lists=tuple(student_levels(k, sigma_max=2.5) for k in (1, 2, 3, 4)), imitation_share=0.0
    )
    return Adversarial(start, classifiers, sigma_data, settings, compute)


@dataclass(frozen=True)
class Setting:
    """The network, the batch and the machine that all methods share."""

    network: UNetConfig
    sigma_data: float
    batch: int
    compute: Compute

    def updates(self, name: str) -> Callable[[], None]:
        """A call is one update of a freshly built method, on random images: every image costs the same."""
        device = self.compute.device
        torch.manual_seed(0)
        network = move_to_device(UNet(self.network), device)
        method = methods()[name](network, self.sigma_data, self.compute)
        rng = Draws(torch.Generator().manual_seed(0), device=device)
        shape = (self.batch, self.network.channels, self.network.resolution, self.network.resolution)
        images = torch.rand(shape, device=device) * 2 - 1
        labels = torch.arange(self.batch, device=device) % max(self.network.classes, 1)

        def update() -> None:
            method.update(images, labels, PROGRESS, rng)
            if device == "cuda":
                torch.cuda.synchronize()

        return update


def memory_mb(setting: Setting, name: str, updates: int = 3) -> float | None:
    """Peak memory of this process while it builds the method and trains, above what it held before.

    On a GPU what torch allocated there; on a CPU resident memory, None where the kernel does not reset its mark.
    """

    def train() -> None:
        update = setting.updates(name)
        for _ in range(updates):
            update()

    if setting.compute.device == "cuda":
        train()
        return torch.cuda.max_memory_allocated() / 2**20
    before = resident_mb()
    peak = peak_memory_mb(train)
    return None if peak is None else peak - before


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def memory_elsewhere(name: str, args: argparse.Namespace) -> float | None:
    """`memory_mb` in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--batch", str(args.batch), "--device", args.device]
    command += ["--precision", args.precision, "--student", str(args.student), "--teacher", str(args.teacher)]
    done = subprocess.run(command + ["--compile"] * args.compile, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    setting: Setting, names: list[str], rounds: int, memory: Callable[[str], float | None]
) -> list[dict[str, Any]]:
    """A row per method; the first name is what the ratios refer to."""
    seconds = time_interleaved({name: setting.updates(name) for name in names}, rounds, warmup=2)
    reference = np.array(seconds[names[0]])
    peaks = {name: memory(name) for name in names}
    return [
        {
            "method": name,
            "ms_p50": float(np.median(seconds[name])) * 1000,
            "ratio": float(np.median(np.array(seconds[name]) / reference)),
            "images_per_s": setting.batch / float(np.median(seconds[name])),
            "peak_mb": peaks[name],
            "memory_ratio": _ratio(peaks[name], peaks[names[0]]),
        }
        for name in names
    ]


def totals(student: Card, teacher: Card) -> list[dict[str, Any]]:
    """Images and hours of training behind a student, counted from its teacher and from nothing.

    A student that continues another checkpoint counts from there, and one whose teacher does has no total from nothing.
    Raises CheckpointError when they do not belong together or a card does not say.
    """
    if not distilled_from(student, teacher):
        raise CheckpointError(
            "the student was not distilled from this teacher; give --student and --teacher of one run"
        )
    try:
        images = [card.training["images"] for card in (student, teacher)]
        hours = [card.training["seconds"] / 3600 for card in (student, teacher)]
    except KeyError as error:
        raise CheckpointError(f"a card does not say how long its training took: it has no {error}") from error
    start = student.training.get("start")
    rows = [{"from": f"checkpoint {start[:12]}" if start else "its teacher", "images": images[0], "hours": hours[0]}]
    if not start and not teacher.training.get("start"):
        rows.append({"from": "nothing", "images": sum(images), "hours": sum(hours)})
    return [{**row, "share": row["hours"] / hours[1]} for row in rows]


def main() -> int:
    args = _arguments()
    try:
        student, teacher = read_card(args.student), read_card(args.teacher)
        config, behind = network_config(teacher), totals(student, teacher)
        if not isinstance(config, UNetConfig):
            raise CheckpointError(f"{args.teacher} is not a U-Net of fewstep; give --teacher one that is")
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    setting = Setting(config, teacher.sigma_data, args.batch, Compute(args.device, args.precision, args.compile))
    if args.memory_of:
        print(json.dumps(memory_mb(setting, args.memory_of)))
        return 0
    names = [REFERENCE, "dpdm"] if args.smoke else list(methods())
    rows = measure(setting, names, args.rounds, lambda name: memory_elsewhere(name, args))
    print(f"batch {args.batch}, {args.device}, {args.precision}, {'compiled' if args.compile else 'eager'}\n")
    print(table(rows, COLUMNS))
    print(f"\n{table(behind, TOTAL_COLUMNS)}")
    kept = ("batch", "rounds", "device", "precision", "compile")
    settings = {name: value for name, value in vars(args).items() if name in kept}
    cards = {"student": student.weights, "teacher": teacher.weights}
    write_result(args.out, "training-cost", settings, rows, totals=behind, checkpoints=cards, network=teacher.network)
    print(f"\nwrote {args.out}")
    return 0


def _ratio(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value / reference


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = ROOT / "models" / "fashion"
    parser.add_argument("--student", type=Path, default=models, metavar="DIR", help="a finished run, for the totals")
    parser.add_argument(
        "--teacher", type=Path, default=models / "teacher", metavar="DIR", help="its teacher: the network"
    )
    parser.add_argument("--batch", type=whole(1), default=64, help="images per update (default %(default)s)")
    parser.add_argument("--rounds", type=whole(1), default=10, help="timed updates of every method (default 10)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of the networks (default bf16)")
    parser.add_argument("--compile", action="store_true", help="as long runs do; takes minutes before the first update")
    parser.add_argument("--device", default=default_device(), help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--out",
        type=result_file,
        default=ROOT / "build" / "training-cost.json",
        metavar="FILE.json",
        help="the JSON with the result (default %(default)s)",
    )
    parser.add_argument("--smoke", action="store_true", help="two methods, batch 2, one round")
    parser.add_argument("--memory-of", choices=list(methods()), help=argparse.SUPPRESS)  # what the subprocess is asked
    args = parser.parse_args()
    if args.smoke:
        args.batch, args.rounds = 2, 1
    return args


if __name__ == "__main__":
    raise SystemExit(main())
