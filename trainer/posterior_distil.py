"""The stages of `fewstep posterior --distil`: from a posterior's chain to a student that can be exported.

A teacher's chain (trainer.methods.posterior_student, two stages): OUT/distil/pool.safetensors, images of the chain with
their weights; OUT/distil/teacher, a teacher of all levels; OUT/student, a DPDM. A student's own chain is of few steps
already: OUT/student is one network for its calls. Stages that are complete are not repeated.

OUT/student is a model, and beside it the same as an adapter (adapter.safetensors): of the prior, or of the student it
began from. `export.adapters` adds that to the engine of its backbone.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from fewstep.adapters import (
    Adapter,
    AdapterCard,
    adapted,
    joined,
    load_adapter,
    merged,
    read_adapter_card,
    save_adapter,
)
from fewstep.card import WEIGHTS_FILE, Card, CheckpointError, Levels, read_card, write_atomically
from fewstep.checkpoint import NetworkModule, load_checkpoint, load_denoiser, save_checkpoint
from fewstep.network import UNet
from fewstep.outputs import ADAPTER_FILE, STATE_FILE
from fewstep.precond import Denoiser
from fewstep.schedule import SIGMA_MAX
from trainer.methods.dpdm import Student
from trainer.methods.posterior_student import FewStepPrior, Pool, adapter_parts, imitate, pool_batches
from trainer.methods.tilted import posterior_pool, tilted_regression
from trainer.posterior_chain import say
from trainer.posterior_options import DistilConfig, Order
from trainer.posterior_setup import Setup, usual_lr
from trainer.run.artifacts import describe, write_sheet
from trainer.run.clock import Clock
from trainer.run.draws import Draws
from trainer.run.loop import LoopConfig, train
from trainer.run.state import settle_state
from trainer.settings import StudentConfig

STUDENT, WORK = "student", "distil"  # folders below --out
POOL_FILE, SETTINGS_FILE = "pool.safetensors", "settings.json"


def check_distil(order: Order, prior: Card, groups: int) -> None:
    """Raise CheckpointError for what cannot be distilled, before any work. groups: values of y; 0 for none."""
    config = order.distil
    assert config is not None
    if prior.role == "teacher":
        if config.student:
            few_step_student(config.student, prior, groups)
    elif config.student:
        raise CheckpointError("--distil-from is for a teacher as the prior, and --prior is a student; leave it out")
    elif order.config.learn_variance:
        raise CheckpointError(
            "--distil of a student's own chain needs --fixed-variance: a server adds the noise of the levels, no other"
        )


def few_step_student(folder: Path, prior: Card, groups: int, device: str = "cpu") -> tuple[NetworkModule, Card]:
    """The student of the prior to begin from. Raises CheckpointError for another kind of model."""
    denoiser, card = load_denoiser(folder, device)
    wanted = {**{key: prior.network[key] for key in ("resolution", "channels")}, "classes": groups}
    if card.role != "student" or card.network.get("extra") or card.sigma_data != prior.sigma_data:
        raise CheckpointError(f"--distil-from {folder} is not a student of such a prior")
    if found := {key: card.network[key] for key in wanted if card.network[key] != wanted[key]}:
        asked = ", ".join(f"{key} {wanted[key]}" for key in found)
        raise CheckpointError(f"--distil-from {folder} is of another kind: the posterior's student has {asked}")
    assert isinstance(denoiser.network, NetworkModule)
    return denoiser.network, card


def distil(setup: Setup, adapter: Adapter, config: DistilConfig) -> bool:
    """Write OUT/student. Returns False when interrupted. Raises CheckpointError for a run with other settings."""
    out, work = setup.order.out / STUDENT, setup.order.out / WORK
    config = replace(config, lr=_lr(setup, config))  # so that the facts tell a run of another default apart
    facts = _facts(setup, config)
    _same_settings(work / SETTINGS_FILE, facts)
    if setup.card.role == "student":
        if not (out / WEIGHTS_FILE).exists():
            _one_network(setup, adapter, config, out)
        return True
    pool = _pool(setup, adapter, config, work / POOL_FILE)
    teacher = _teacher(setup, adapter, pool, config, work / "teacher")
    return _few_steps(setup, teacher, pool, config, facts, out, work / "teacher")


def _lr(setup: Setup, config: DistilConfig) -> float:
    return config.lr or usual_lr(setup.card.image_shape)


def _facts(setup: Setup, config: DistilConfig) -> dict[str, Any]:
    """What the stages of a run share, JSON-able: the switches, and the weights that they begin from."""
    order = setup.order
    begun = read_card(config.student).weights if config.student else None
    named = {**asdict(config), "student": begun, "batch": order.batch, "seed": order.seed}
    if begun:  # runs of versions whose auxiliary began as the teacher do not go on
        named["auxiliary_begins_as"] = "the prior"
    weights = {"prior": setup.card.weights, "adapter": read_adapter_card(order.out).weights}
    return json.loads(json.dumps({**named, **weights}))


def _same_settings(path: Path, facts: dict[str, Any]) -> None:
    """Keep the facts of a first run; raise CheckpointError where those of a later one differ."""
    if not path.exists():
        write_atomically(path, (json.dumps(facts, indent=2) + "\n").encode())
        return
    stored = json.loads(path.read_text())
    differing = [
        f"{name} was {stored.get(name)}, now {value}" for name, value in facts.items() if stored.get(name) != value
    ]
    if differing:
        said = "; ".join(differing)
        raise CheckpointError(
            f"{path.parent} was made with other settings: {said}. Repeat them, or remove it and {STUDENT}"
        )


def _pool(setup: Setup, adapter: Adapter, config: DistilConfig, path: Path) -> Pool:
    """Images of the posterior's chain, log weights and y; of the file where there is one."""
    if not path.exists():
        order = setup.order
        say(f"{config.pool:,} samples of the posterior's chain")
        rng = Draws(torch.Generator().manual_seed(order.seed + 2), device=setup.device)
        rows = min(max(order.batch, 2 * max(setup.groups, 1)), config.pool)
        made = posterior_pool(
            setup.problem(adapter), setup.like(rows), setup.y(rows), config.pool, rng, order.config.beta
        )
        parts = [part.cpu().contiguous() for part in made]
        write_atomically(path, save_tensors({"images": parts[0], "log_weights": parts[1], "y": parts[2]}))
    stored = load_tensors(path.read_bytes())
    images, log_weights, y = (stored[name].to(setup.device) for name in ("images", "log_weights", "y"))
    return images, log_weights, y


def _teacher(setup: Setup, adapter: Adapter, pool: Pool, config: DistilConfig, folder: Path) -> NetworkModule:
    """The posterior's denoiser at all levels, as a checkpoint: it can be sampled by any solver."""
    network = merged(setup.network, adapter)
    assert isinstance(network, NetworkModule)
    if (folder / WEIGHTS_FILE).exists():
        network.load_state_dict(load_checkpoint(folder)[0])
        return network
    order = setup.order
    generator = torch.Generator().manual_seed(order.seed + 3)
    fresh = Adapter(network, order.rank, 0, generator).to(setup.device)
    frozen = network.requires_grad_(False)
    denoiser = Denoiser(adapted(frozen, fresh), setup.card.sigma_data, setup.groups)
    images, log_weights, y = pool
    weights = log_weights if config.weighted else torch.zeros_like(log_weights)
    every = max(config.consolidate // 10, 1)
    sigmas = setup.chain.sigmas  # DPDM noises to levels up to SIGMA_MAX, whatever the chain's highest is
    tilted_regression(
        denoiser, fresh, (images, weights, y), (sigmas[-1], max(sigmas[0], SIGMA_MAX)), config.consolidate,
        Draws(generator, device=setup.device), batch=order.batch, adam=replace(config.adam, lr=_lr(setup, config)),
        told=bool(setup.groups),
        said=lambda done, loss: say(f"teacher of all levels  {done} of {config.consolidate}  loss {loss:.3g}")
        if done % every == 0 else None,
    )  # fmt: skip
    whole = merged(frozen, fresh)
    assert isinstance(whole, NetworkModule)
    beside = joined(setup.network, [adapter, fresh])  # kept: the student's adapter stands beside the prior, too
    save_adapter(folder, beside, _adapter_card(setup, beside, setup.card.weights, {}))
    save_checkpoint(folder, whole.state_dict(), _card(setup, whole, "teacher", {}, {"updates": config.consolidate}))
    return whole


def _few_steps(
    setup: Setup,
    teacher: NetworkModule,
    pool: Pool,
    config: DistilConfig,
    facts: dict[str, Any],
    out: Path,
    teacher_folder: Path,
) -> bool:
    """DPDM by adapters, in the training loop of all methods: resumable, and averaged."""
    order, begin, levels, stands_by = setup.order, None, None, setup.card.weights
    if config.student:
        start, card = few_step_student(config.student, setup.card, setup.groups, setup.device)
        assert isinstance(setup.network, NetworkModule)
        begin, levels, stands_by = FewStepPrior(start, setup.network), card.levels, card.weights
    sees_level = isinstance(teacher, UNet)  # a level is a UNet's input alone
    settings = student_config(config, _lr(setup, config), levels, sees_level)
    method = _adapter_student(setup, teacher, begin, settings)
    loop = LoopConfig(
        batch=order.batch, images=config.updates * order.batch, checkpoint_s=order.checkpoint_s, seed=order.seed,
        log_every=max(config.updates // 200, 1), label="student",
    )  # fmt: skip
    identity = {"posterior": order.reward, **facts}
    begun = begin.student if begin else teacher
    apart = _beside_prior(setup, teacher_folder) if begin is None else lambda average: average
    lists = settings.level_lists

    def save(average: nn.Module, clock: Clock, folder: Path) -> None:
        assert isinstance(average, Adapter)
        whole = merged(begun, average)
        training = {**identity, "images": clock.images}
        if (alone := apart(average)) is not None:
            groups = setup.reward.groups if begin is None else 0  # a student of the prior has classes of its own
            save_adapter(folder, alone, _adapter_card(setup, alone, stands_by, lists, groups, training))
        save_checkpoint(folder, whole.state_dict(), _card(setup, whole, "student", lists, training))

    def draw(average: nn.Module, clock: Clock, folder: Path) -> None:
        assert isinstance(average, Adapter)
        whole = merged(begun, average)
        write_sheet(folder, whole, _card(setup, whole, "student", lists, {}), clock.images)

    def batches(seen: int, device: torch.device) -> Iterator[tuple[Tensor, Any]]:
        for images, y in pool_batches(pool, order.batch, order.seed, config.weighted, seen):
            yield images, y if setup.groups else None

    settle_state(out)
    resume = (out / STATE_FILE).exists()
    if not train(method, batches, loop, out, save, draw=draw, resume=resume, identity=identity):
        say("interrupted; the same command goes on where it stopped")
        return False
    print(_next_commands(out, lists))
    return True


def _adapter_student(
    setup: Setup, teacher: NetworkModule, begin: FewStepPrior | None, settings: StudentConfig
) -> Student:
    """Student and auxiliary as adapters, on the device of the run."""
    order = setup.order
    generator = torch.Generator().manual_seed(order.seed + 4)
    parts = adapter_parts(
        teacher, order.rank, setup.card.sigma_data, setup.groups, generator, begin,
        sees_level=settings.auxiliary_sees_level,
    )  # fmt: skip
    method = Student.of_parts(parts, settings, setup.device)
    for adapter in method.networks.values():
        adapter.to(setup.device)
    return method


def _next_commands(out: Path, lists: Levels) -> str:
    model, engine = (shlex.quote(str(path)) for path in (out, out / "engine"))
    return (
        f"a student of {', '.join(map(str, lists))} steps is in {out}\n"
        f"next: fewstep export --model {model} --out {engine}; fewstep serve --engine {engine}"
    )


def student_config(
    config: DistilConfig, lr: float, levels: Mapping[int, tuple[float, ...]] | None, sees_level: bool
) -> StudentConfig:
    """DPDM's switches for adapters. levels: of a student that is continued; None: the usual lists."""
    rate = replace(config.adam, lr=lr, betas=(0.0, 0.99))
    base = StudentConfig(adam=replace(rate, lr=lr / 4), auxiliary_adam=rate, auxiliary_sees_level=sees_level)
    if levels is None:
        return base
    highest = max(max(each) for each in levels.values())
    return replace(base, steps=tuple(levels), lists=tuple(levels.values()), sigma_max=highest)


def _one_network(setup: Setup, adapter: Adapter, config: DistilConfig, out: Path) -> None:
    """A student's chain calls the posterior, and at last the prior: one network for both, by imitation."""
    order, problem = setup.order, setup.problem(adapter)
    generator = torch.Generator().manual_seed(order.seed + 3)
    begun = merged(setup.network, adapter).requires_grad_(False)
    fresh = Adapter(begun, order.rank, 0, generator).to(setup.device)
    denoiser = Denoiser(adapted(begun, fresh), setup.card.sigma_data, setup.groups)
    every = max(config.consolidate // 10, 1)
    imitate(
        problem, lambda x, sigma, y: denoiser(x, sigma, y if setup.groups else None), fresh, setup.like(order.batch),
        setup.y(order.batch), config.consolidate, replace(config.adam, lr=_lr(setup, config)),
        Draws(generator, device=setup.device),
        said=lambda done, loss: say(f"one network  {done} of {config.consolidate}  error {math.sqrt(loss):.3g}")
        if done % every == 0 else None,
    )  # fmt: skip
    whole = merged(begun, fresh)
    levels = {len(setup.chain.sigmas): setup.chain.sigmas}
    beside = joined(setup.network, [adapter, fresh])
    save_adapter(out, beside, _adapter_card(setup, beside, setup.card.weights, levels, setup.reward.groups))
    save_checkpoint(out, whole.state_dict(), _card(setup, whole, "student", levels, {"updates": config.consolidate}))


def _beside_prior(setup: Setup, teacher: Path) -> Callable[[Adapter], Adapter | None]:
    """What makes of an adapter beside the teacher of all levels one beside the prior. None, said once, where the
    teacher was made by a version that kept no adapter of it."""
    if not (teacher / ADAPTER_FILE).exists():
        say(f"{teacher} holds no {ADAPTER_FILE}: the student is written as a model alone, not as an adapter")
        return lambda average: None
    first, _ = load_adapter(teacher, setup.network)
    return lambda average: joined(setup.network, [first, average])


def _adapter_card(
    setup: Setup, adapter: Adapter, backbone: str, levels: Levels, groups: int = 0,
    training: dict[str, Any] | None = None,
) -> AdapterCard:  # fmt: skip
    """Of an adapter of few steps, or of the teacher of all levels. backbone: the sha256 of what it stands beside."""
    names = setup.reward.group_names or setup.card.class_names
    return AdapterCard(
        backbone, adapter.rank, groups, None, setup.order.reward, training=training or {}, levels=levels,
        class_names=tuple(names),
    )  # fmt: skip


def _card(setup: Setup, network: Any, role: Any, levels: Any, training: dict[str, Any]) -> Card:
    card = setup.card
    return replace(
        card, role=role, network={**card.network, **describe(network)}, levels=levels, weights="",
        class_names=setup.reward.group_names or card.class_names, parent=card.weights, metrics={},
        training={"posterior": setup.order.reward, **training},
    )  # fmt: skip
