"""One run of `fewstep posterior`: the chain, the adapter, training, and what is written of it."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewstep.adapters import Adapter, AdapterCard, load_adapter, merged, read_adapter_card, save_adapter, told
from fewstep.ancestral import Chain, sample_ancestral
from fewstep.card import WEIGHTS_FILE, CheckpointError
from fewstep.checkpoint import load_denoiser, save_checkpoint
from fewstep.noise_torch import noise_for
from fewstep.outputs import STATE_FILE, check_folder
from fewstep.pixels import to_pixels
from fewstep.schedule import karras_sigmas
from trainer.data.loader import batches
from trainer.data.matching import check_shape
from trainer.data.named import read_data
from trainer.methods.rtb import TrajectoryBalance, evaluate
from trainer.methods.tilted import TILTED, prior_pool, tilted_regression
from trainer.posterior_chain import chain_of_teacher, say, steps_of_student
from trainer.posterior_checks import (
    PROBED,
    check_above_floor,
    check_counts,
    diverged,
    probe,
    same_run,
)
from trainer.posterior_distil import check_distil, distil
from trainer.posterior_options import Order
from trainer.posterior_report import Sheet, write_report, write_sheet
from trainer.posterior_setup import Setup, usual_lr
from trainer.report import FILE as REPORT
from trainer.rewards.named import reward_of
from trainer.run.artifacts import describe, environment
from trainer.run.claim import claim
from trainer.run.clock import Clock
from trainer.run.compute import usable_device
from trainer.run.distributed import ranks
from trainer.run.draws import Draws
from trainer.run.loop import LoopConfig, train
from trainer.run.state import settle_state
from trainer.settings import MachineError

Outcome = Literal["complete", "diverged", "interrupted"]
MERGED = "merged"  # the folder below --out
COLUMNS = 16  # of a sheet


def run(order: Order, command: str) -> Outcome:
    """Train, or go on. What has diverged is written, and not distilled.

    Raises CheckpointError, DataError, RewardError, RangeError, MachineError, or DivergedError.
    """
    if ranks() > 1:
        raise MachineError("a posterior is trained in one process; start the command without torchrun")
    device = usable_device(order.device)
    with claim(order.out):
        settle_state(order.out)
        resumed = (order.out / STATE_FILE).exists()
        if not resumed:
            check_folder(order.out)
        setup = set_up(order, device, read_adapter_card(order.out).chain if resumed else None)
        identity = setup.identity()
        complete = resumed and same_run(order.out, identity) and _complete(setup)
        if not complete and not _train(setup, identity, resumed, command):
            return "interrupted"
        adapter, card = load_adapter(order.out, setup.network)
        if diverged(card.monitors, order.config.beta):
            return "diverged"
        if order.distil and not distil(setup, adapter.to(device), order.distil):
            return "interrupted"
        return "complete"


def set_up(order: Order, device: str, chain: Chain | None) -> Setup:
    """chain: of a run that goes on; None: made here."""
    denoiser, card = load_denoiser(order.prior, device)
    if card.network.get("extra"):
        raise CheckpointError(f"{order.prior} takes a latent beside the image; a prior takes none")
    assert isinstance(denoiser.network, nn.Module)
    reward = reward_of(order.reward, card.image_shape, order.noise, device)
    network = told(denoiser.network, card, reward.groups)
    check_counts(order.batch, order.evaluated, reward.groups or denoiser.classes, order.config.log_z)
    if chain is None and card.role == "student":
        chain = steps_of_student(order.prior, card, order.steps)
    data = read_data(order.data, card.image_shape[1]) if order.data else None
    if data:
        check_shape(card, data, "the prior")
    if order.distil:
        check_distil(order, card, reward.groups or denoiser.classes)
    noise = noise_for(range(PROBED), card.image_shape, device)(0)
    probe(reward, denoiser, noise, chain.sigmas[0] if chain else order.sigma_max)
    if chain is None:
        sigmas = karras_sigmas(order.steps, order.sigma_min, order.sigma_max)
        chain = chain_of_teacher(denoiser, card, sigmas, order.variance, device)
    return Setup(order, card, denoiser, network, reward, data, chain, device)


def _complete(setup: Setup) -> bool:
    """Whether nothing is left to do: trained, evaluated on as many trajectories, and reported. Says so."""
    order, card = setup.order, read_adapter_card(setup.order.out)
    if not card.monitors or card.training.get("evaluated") != order.evaluated or not (order.out / REPORT).exists():
        return False
    if order.merged and not (order.out / MERGED / WEIGHTS_FILE).exists():
        write_merged(setup, load_adapter(order.out, setup.network)[0].to(setup.device), order.out / MERGED)
    print(f"{order.out} is complete: nothing was left to train\n{_closing(setup, card.monitors)}")
    return True


def _train(setup: Setup, identity: dict[str, Any], resumed: bool, command: str) -> bool:
    order, out = setup.order, setup.order.out
    generator = torch.Generator().manual_seed(order.seed)
    adapter = Adapter(setup.network, order.rank, setup.chain.steps, generator).to(setup.device)
    lr = order.lr or usual_lr(setup.card.image_shape)
    config = replace(order.config, adam=replace(order.config.adam, lr=lr))
    if order.warm_start and not resumed:
        _warm(setup, adapter, lr, Draws(generator, device=setup.device))
    method = TrajectoryBalance(setup.problem(adapter), adapter, config, setup.like(1)[0])
    loop = LoopConfig(
        batch=order.batch, images=order.updates * order.batch, checkpoint_s=order.checkpoint_s, seed=order.seed,
        log_every=max(order.updates // 200, 1), label="posterior",
    )  # fmt: skip

    def card_of(images: int, monitors: dict[str, float]) -> AdapterCard:
        training = {**identity, "images": images, "evaluated": order.evaluated, "environment": environment()}
        return AdapterCard(
            setup.card.weights, order.rank, setup.reward.groups, setup.chain, order.reward, training=training,
            monitors=monitors, class_names=tuple(setup.reward.group_names or setup.card.class_names),
        )  # fmt: skip

    def save(average: nn.Module, clock: Clock, folder: Path) -> None:
        assert isinstance(average, Adapter)
        save_adapter(folder, average, card_of(clock.images, {}))

    averaged: list[Adapter] = []

    def draw(average: nn.Module, clock: Clock, folder: Path) -> None:
        assert isinstance(average, Adapter)
        averaged[:] = [average]
        write_sheet(folder, sheet(setup, average), clock.images)

    done = train(method, _batches(setup, loop), loop, out, save, draw=draw, resume=resumed, identity=identity)
    if not done:
        say("interrupted; the same command goes on where it stopped")
        return False
    final = averaged[0]
    say(f"evaluating on {order.evaluated} trajectories")
    monitors = _evaluated(setup, final)
    check_above_floor(monitors, setup.reward, order.evaluated)
    save_adapter(out, final, card_of(loop.images or 0, monitors))
    settle_state(out)
    if order.merged:
        write_merged(setup, final, out / MERGED)
    write_report(out, command, order.reward, monitors)
    print(_closing(setup, monitors))
    return True


def _warm(setup: Setup, adapter: Adapter, lr: float, rng: Draws) -> None:
    order, problem = setup.order, setup.problem(adapter)
    say(f"warm start: {order.pool} samples of the prior")
    pool = prior_pool(problem, setup.like(order.batch), setup.y(order.batch), order.pool, rng)
    every = max(order.warm_start // 10, 1)
    tilted_regression(
        setup.posterior(adapter), adapter, pool, (setup.chain.sigmas[-1], setup.chain.sigmas[0]), order.warm_start, rng,
        beta=order.config.beta, batch=order.batch, adam=replace(TILTED, lr=lr), told=bool(setup.groups),
        said=lambda done, loss: say(f"warm start  {done} of {order.warm_start}  loss {loss:.3g}")
        if done % every == 0 else None,
    )  # fmt: skip


def _batches(setup: Setup, config: LoopConfig) -> Any:
    """trainer.run.loop.Batches: the data where there are some, else zeros, with y."""
    order, groups, data = setup.order, setup.groups, setup.data
    if data is None:
        return lambda seen, device: itertools.repeat((setup.like(order.batch), setup.y(order.batch)))

    def stream(seen: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches(data, config, seen, device):
            yield images, labels if groups and setup.denoiser.classes else setup.y(order.batch)

    return stream


def _evaluated(setup: Setup, adapter: Adapter) -> dict[str, float]:
    """The monitors of `trainer.methods.rtb.evaluate`."""
    problem, count = setup.problem(adapter), setup.order.evaluated
    rng = Draws(torch.Generator().manual_seed(setup.order.seed + 1), device=setup.device)
    return evaluate(problem, setup.like(count), setup.y(count), setup.order.config.beta, rng)


@torch.no_grad()
def sheet(setup: Setup, adapter: Adapter) -> Sheet:
    """Samples of the prior's chain over those of the posterior's, from the same noise: seeds 0, 1, 2 and so on."""
    y, posterior = setup.y(COLUMNS), setup.posterior(adapter)
    noise = noise_for(range(COLUMNS), setup.card.image_shape, setup.device)
    prior = lambda x, sigma: setup.prior(x, sigma, y)  # noqa: E731
    tilted = lambda x, sigma: posterior(x, sigma, y if setup.groups else None)  # noqa: E731
    made = [
        sample_ancestral(prior, noise, setup.chain),
        sample_ancestral(tilted, noise, setup.chain, decoder=prior, log_variance=adapter.log_variance.tolist()),
    ]
    names = setup.reward.group_names or setup.card.class_names
    columns = [names[int(number) % len(names)] for number in y] if setup.groups and names else []
    return Sheet([to_pixels(sample.images.cpu().numpy()) for sample in made], ["prior", "posterior"], columns)


def write_merged(setup: Setup, adapter: Adapter, folder: Path) -> None:
    """A checkpoint like the prior, with the adapter in its weights: what samples or distils the prior takes it too."""
    network: Any = merged(setup.network, adapter)
    card = replace(
        setup.card, network={**setup.card.network, **describe(network)}, class_names=setup.reward.group_names
        or setup.card.class_names, parent=setup.card.weights, metrics={},
        training={"posterior": setup.order.reward, "images": setup.order.updates * setup.order.batch},
    )  # fmt: skip
    save_checkpoint(folder, network.state_dict(), card)


def _closing(setup: Setup, monitors: dict[str, float]) -> str:
    lines = [
        f"E[log r] {monitors['log_reward']:.3f} (prior {monitors['prior_log_reward']:.3f}), "
        f"ELBO {monitors['elbo']:.3f} <= log Z <= EUBO {monitors['eubo']:.3f}, "
        f"log Z by weights {monitors['log_z']:.3f}, by the prior {monitors['log_z_prior']:.3f}, "
        f"effective sample size {100 * monitors['ess']:.0f} %",
        f"adapter of {setup.order.prior} in {setup.order.out}; report: {setup.order.out / REPORT}",
    ]
    if diverged(monitors, setup.order.config.beta):
        lines.append(
            "the ELBO is below that of the prior itself: training diverged. Use another --out and a lower --lr"
        )
    return "\n".join(lines)
