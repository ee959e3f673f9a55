"""diffusers' pipelines drive the same weights as our samplers, in one process: what is spent around the network.

    python benchmarks/diffusers_pipelines.py             # about five minutes
    python benchmarks/diffusers_pipelines.py --smoke     # half a minute; proves that it runs

DDPM, DDIM, DPM-Solver++ and UniPC with the teacher, a consistency pipeline with the student. Both sides call one
PyTorch network on one thread, from the same noise and, where we have the solver, at the same noise levels. The gap
between their images, in gray levels, says whether they compute the same; processor time beyond the network's own says
what the loop around it costs. A busy machine disturbs processor time least; the sides take turns, and the ratio is
given as median and range. The last row of a batch is the server's own path: ONNX Runtime and the arithmetic of its
slots.
"""

from fewstep import extras

extras.name_missing()

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.pipelines.consistency_models.pipeline_consistency_models import ConsistencyModelPipeline
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from benchmarks.harness import ROOT, result_file, table, write_result
from export.engine import load_engine
from fewstep.checkpoint import load_denoiser
from fewstep.dpmpp import sample_dpmpp
from fewstep.precond import Denoiser, onehot
from fewstep.ranges import whole
from fewstep.samplers import sample_dpdm, sample_euler
from fewstep.schedule import SIGMA_MAX
from fewstep.unipc import sample_unipc
from server.scheduler.loading import slot_table
from server.scheduler.slots import Image, ImageKey

LABEL = 9
SIGMA_MIN = 0.002  # of the consistency scheduler
GREY = 127.5  # grey levels in a unit of pixel values
COLUMNS = {
    "pipeline": "pipeline", "batch": "batch", "calls": "calls", "theirs_ms": "theirs, CPU ms/image",
    "around_ms": "around the network", "ours_ms": "ours", "ours_around_ms": "around it", "ratio": "theirs/ours",
    "gap": "gap, grey levels",
}  # fmt: skip


class Counted:
    """A raw network F that counts its own processor time."""

    def __init__(self, network: Any) -> None:
        self.network, self.seconds, self.calls = network, 0.0, 0

    def __call__(self, x: Any, c_noise: Any, onehot: Any) -> Any:
        started = time.process_time()
        with torch.inference_mode():
            output = self.network(x, c_noise, onehot)
        self.seconds += time.process_time() - started
        self.calls += 1
        return output


class AsUNet(ModelMixin, ConfigMixin):
    """What pipelines expect of a UNet2DModel. clean: predicts the clean image of a scheduler's x and timestep."""

    clean: Callable[[torch.Tensor, Any], torch.Tensor]

    @register_to_config
    def __init__(self, sample_size: int = 32, in_channels: int = 1, num_class_embeds: int | None = None) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # pipelines ask for a dtype and a device

    def forward(self, sample: torch.Tensor, timestep: Any, class_labels: Any = None, return_dict: bool = True) -> Any:
        output = self.clean(sample, timestep)
        return UNet2DOutput(output) if return_dict else (output,)


class AnyGenerator(UniPCMultistepScheduler):
    """DDPMPipeline, which runs any scheduler, hands each step a generator that this deterministic one does not take."""

    def step(self, *arguments: Any, generator: Any = None, **settings: Any) -> Any:
        return super().step(*arguments, **settings)


@dataclass(frozen=True)
class Pair:
    """A pipeline, and our sampler on the same levels where we have it. Both make a batch from a generator's seed."""

    name: str
    theirs: Callable[[int, torch.Generator], torch.Tensor]
    ours: Callable[[int, torch.Generator], torch.Tensor] | None
    network: Counted


def vp_pair(name: str, scheduler: Any, denoiser: Denoiser, calls: int, size: int, sampler: Any) -> Pair:
    """A scheduler of variance-preserving levels, x = (x0 + sigma eps) / sqrt(1 + sigma^2), with an EDM denoiser."""
    counted = Counted(denoiser.network)
    bound = bind(denoiser, counted)
    kept = scheduler.alphas_cumprod
    sigmas_of = ((1 - kept) / kept).sqrt()

    def clean(sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        sigma = float(sigmas_of[int(timestep)])
        return bound(sample * (1 + sigma**2) ** 0.5, torch.full((len(sample),), sigma))

    unet = AsUNet(size)
    unet.clean = clean
    kind: Any = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
    pipeline = kind(unet, scheduler)
    scheduler.set_timesteps(calls)
    sigmas = [float(sigmas_of[int(t)]) for t in scheduler.timesteps] + [0.0]
    return Pair(name, run(pipeline, calls), against(sampler, bound, sigmas, size, scale=vp_start(sigmas[0])), counted)


def vp_start(sigma: float) -> float:
    """Pipelines begin with unit noise, x_vp; in our units that is sqrt(1 + sigma^2) times as much."""
    return (1 + sigma**2) ** 0.5 / sigma


def consistency_pair(denoiser: Denoiser, calls: int, size: int) -> Pair:
    """The student under the consistency pipeline: its scheduler preconditions F as EDM does but for sigma_min."""
    counted = Counted(denoiser.network)
    settings: dict[str, Any] = {"sigma_data": denoiser.sigma_data, "sigma_max": SIGMA_MAX, "sigma_min": SIGMA_MIN}
    scheduler: Any = CMStochasticIterativeScheduler(**settings, clip_denoised=False)

    def raw(sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        c_noise = torch.full((len(sample),), float(timestep) / 1000)
        return counted(sample, c_noise, onehot(labels_of(sample), denoiser.classes, sample))

    unet = AsUNet(size)
    unet.clean = raw
    pipeline = ConsistencyModelPipeline(unet, scheduler)  # pyright: ignore[reportArgumentType]
    scheduler.set_timesteps(calls)
    sigmas = [float(sigma) for sigma in scheduler.sigmas[:-1]]
    ours = against(sample_dpdm, bind(denoiser, counted), sigmas, size)
    return Pair("consistency", run(pipeline, calls), ours, counted)


def labels_of(rows: torch.Tensor) -> torch.Tensor:
    return torch.full((len(rows),), LABEL)


def bind(denoiser: Denoiser, counted: Counted) -> Callable[[Any, Any], Any]:
    """D(x, sigma) of one class."""
    whole = Denoiser(counted, denoiser.sigma_data, denoiser.classes)
    return lambda x, sigma: whole(x, sigma, labels_of(x))


def run(pipeline: Any, calls: int) -> Callable[[int, torch.Generator], torch.Tensor]:
    pipeline.set_progress_bar_config(disable=True)
    make, settings = pipeline.__call__, {"eta": 0.0} if type(pipeline) is DDIMPipeline else {}

    def images(batch: int, generator: torch.Generator) -> torch.Tensor:
        made: Any = make(batch, generator=generator, num_inference_steps=calls, output_type="pt", **settings)
        return made.images * 2 - 1

    return images


def against(
    sampler: Any, bound: Any, sigmas: Sequence[float], size: int, scale: float = 1.0
) -> Callable[[int, torch.Generator], torch.Tensor] | None:
    """Our sampler at a pipeline's noise levels, with its draws. scale: of the initial noise."""
    if sampler is None:
        return None

    def images(batch: int, generator: torch.Generator) -> torch.Tensor:
        def noise(step: int) -> torch.Tensor:
            drawn = torch.randn((batch, 1, size, size), generator=generator)
            return drawn * scale if step == 0 else drawn

        return sampler(bound, noise, sigmas).images.clamp(-1, 1)

    return images


def pairs(student: Denoiser, teacher: Denoiser, calls: int, size: int) -> list[Pair]:
    vp: dict[str, Any] = {"prediction_type": "sample"}
    unclipped = {**vp, "clip_sample": False}
    zero = {**vp, "final_sigmas_type": "zero"}
    return [
        vp_pair("DDPM", DDPMScheduler(**unclipped), teacher, calls, size, None),
        vp_pair("DDIM", DDIMScheduler(**unclipped), teacher, calls, size, sample_euler),
        vp_pair("DPM-Solver++ 2M", DPMSolverMultistepScheduler(**zero), teacher, calls, size, sample_dpmpp),
        vp_pair("UniPC 2", AnyGenerator(**zero), teacher, calls, size, unipc_2),
        consistency_pair(student, calls, size),
    ]


def unipc_2(bound: Any, noise: Any, sigmas: Sequence[float]) -> Any:
    return sample_unipc(bound, noise, sigmas, order=2)


def measured(pair: Pair, batch: int, calls: int, rounds: int) -> dict[str, Any]:
    """Both sides in turns, each from the same seed. Milliseconds of processor time for an image, medians."""
    figures: dict[str, list[float]] = {"theirs": [], "around": [], "ours": [], "ours_around": []}
    gap = None
    for number in range(rounds + 1):
        theirs, *times = timed(pair.theirs, pair.network, batch, number, calls)
        found = dict(zip(("theirs", "around"), times, strict=True))
        if pair.ours is not None:
            ours, *times = timed(pair.ours, pair.network, batch, number, calls)
            found |= dict(zip(("ours", "ours_around"), times, strict=True))
            gap = max(gap or 0.0, GREY * float((theirs - ours).abs().max()))
        if number:  # the first one warms up
            for name, value in found.items():
                figures[name].append(value)
    ratio = [a / b for a, b in zip(figures["theirs"], figures["ours"], strict=False)]
    return {
        "pipeline": pair.name, "batch": batch, "calls": calls,
        **{f"{name}_ms": median(values) if values else None for name, values in figures.items()},
        "ratio": f"{median(ratio):.2f} [{min(ratio):.2f}, {max(ratio):.2f}]" if ratio else None, "gap": gap,
    }  # fmt: skip


def timed(
    make: Callable[[int, torch.Generator], torch.Tensor], network: Counted, batch: int, seed: int, calls: int
) -> tuple[torch.Tensor, float, float]:
    """Images, and for each of them the ms of processor time of all and of what is not the network's."""
    network.seconds, network.calls = 0.0, 0
    generator = torch.Generator().manual_seed(seed)
    started = time.process_time()
    images = make(batch, generator)
    spent = time.process_time() - started
    if network.calls != calls:
        raise RuntimeError(f"the network was called {network.calls} times, not {calls}; the pair compares other things")
    return images, 1000 * spent / batch, 1000 * (spent - network.seconds) / batch


def served(folder: Path, batch: int, calls: int, rounds: int) -> dict[str, Any]:
    """The student as a worker of the server runs it, on one thread."""
    engine = load_engine(folder, threads=1)
    sigmas = engine.manifest.levels[calls]
    table, seconds = slot_table(engine, (batch,)), []
    for number in range(rounds + 1):
        started = time.process_time()
        table.admit([Image(ImageKey(number, i), seed=i, label=LABEL, sigmas=sigmas) for i in range(batch)])
        while table.requests():
            table.tick()
        seconds.append(time.process_time() - started)
    spent = 1000 * median(seconds[1:]) / batch
    return {"pipeline": f"the server's ({engine.backend})", "batch": batch, "calls": calls, "ours_ms": spent}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=whole(2, 8), default=4, help="network calls an image (default 4)")
    parser.add_argument("--batches", type=whole(1), nargs="+", default=[1, 8], metavar="N",
                        help="images at a time (default 1 8)")  # fmt: skip
    parser.add_argument("--rounds", type=whole(1), default=15, help="turns of each side (default %(default)s)")
    parser.add_argument("--out", type=result_file, default=ROOT / "build" / "diffusers-pipelines.json",
                        help="JSON to write")  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="two calls, one image at a time, two turns")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.calls, args.batches, args.rounds = 2, [1], 2
    torch.set_num_threads(1)
    student, card = load_denoiser(ROOT / "models/fashion")
    teacher, _ = load_denoiser(ROOT / "models/fashion/teacher")
    rows = []
    for batch in args.batches:
        for pair in pairs(student, teacher, args.calls, card.image_shape[1]):
            rows.append(measured(pair, batch, args.calls, args.rounds))
        rows.append(served(ROOT / "models/fashion/engine", batch, args.calls, args.rounds))
    print(table(rows, COLUMNS))
    settings = {"student": card.weights, "label": LABEL, "rounds": args.rounds, "threads": 1}
    write_result(args.out, "diffusers_pipelines", settings, rows)
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
