"""The training commands: settings in, a trained checkpoint folder out."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fewstep.card import Card, CheckpointError, distilled_from, read_card
from fewstep.checkpoint import NetworkModule, load_denoiser
from fewstep.consistency import consistency_levels
from fewstep.network import UNet
from fewstep.precond import Denoiser
from trainer.critics.classifier import NoisyClassifier, classifier_hash, load_classifier
from trainer.data.format import ImageSet
from trainer.data.matching import check_learnable, check_match, check_shape, check_teacher
from trainer.methods.consistency import Consistency
from trainer.methods.dmd2 import DMD2, dmd2
from trainer.methods.dpdm import Student, asked_conditions
from trainer.methods.edm import Teacher
from trainer.methods.endpoints import Endpoints, load_or_make
from trainer.methods.gan import Adversarial
from trainer.methods.rivals import diff_instruct, tied
from trainer.methods.self_distillation import Progressive
from trainer.options import Distillation, RunOptions
from trainer.recipes.by_name import recipe
from trainer.recipes.recipe import Recipe
from trainer.run.artifacts import describe
from trainer.run.compute import Compute, move_to_device, runner
from trainer.run.distributed import rank
from trainer.run.state import load_network
from trainer.runs import compute_for, deviation, fit_to_data, loop_config, own_folder, run_method
from trainer.settings import (
    AdversarialConfig,
    ConsistencyConfig,
    ProgressiveConfig,
    StudentConfig,
    stored_settings,
)
from trainer.switches import (
    ADVERSARIAL,
    CONSISTENCY,
    PROGRESSIVE,
    SwitchError,
    adversarial,
    apply_switches,
    consistency,
    progressive,
    with_lists,
)
from trainer.switches import DMD2 as DMD2_SWITCHES


def train_teacher(
    options: RunOptions, data: ImageSet, start: Path | None = None, lr: float | None = None,
    label_dropout: float | None = None,
) -> bool:  # fmt: skip
    """start: a teacher to continue, with its network. lr, label_dropout: in place of the recipe's.

    Returns False when interrupted; the checkpoint in options.out is usable either way. Raises CheckpointError or
    DataError when start and data do not belong together, RangeError when lr is out of range.
    """
    with own_folder(options):
        return _train_teacher(options, data, start, lr, label_dropout)


def _train_teacher(
    options: RunOptions, data: ImageSet, start: Path | None, lr: float | None, label_dropout: float | None
) -> bool:
    check_learnable(data)
    chosen = recipe(options.recipe)
    config = loop_config(options, chosen, chosen.teacher_images)
    settings = chosen.teacher if lr is None else replace(chosen.teacher, adam=replace(chosen.teacher.adam, lr=lr))
    if label_dropout is not None:
        settings = replace(settings, label_dropout=label_dropout)
    network, start_card = _starting_teacher(start, data) if start else (None, None)
    torch.manual_seed(options.seed)
    fitted = fit_to_data(chosen.network_of(options.network), data)
    sigma = start_card.sigma_data if start_card else deviation(fitted, data)
    network = network or UNet(fitted if fitted.precond == "edm" else replace(fitted, sigma_data=sigma))
    if settings.label_dropout and not network.config.classes:
        raise SwitchError("--label-dropout leaves out classes, and these images have none; leave it out")
    compute = compute_for(options, network, config)
    move_to_device(network, compute.device)
    torch.manual_seed(options.seed + rank())  # each process drops out other units
    method = Teacher(network, sigma, settings, compute)
    names = data.class_names if network.config.classes else ()
    facts = {"start": start_card and start_card.weights, **stored_settings(settings)}
    card = Card("teacher", describe(network), sigma, "", data.provenance(), names)
    return run_method(method, data, config, options, card, facts, compute)


def _starting_teacher(folder: Path, data: ImageSet) -> tuple[NetworkModule, Card]:
    """Raises CheckpointError or DataError when it is not a teacher of such images."""
    denoiser, card = load_denoiser(folder)
    if card.role != "teacher":
        raise CheckpointError(f"{folder} is a {card.role}; --init continues a teacher")
    check_teacher(card, folder)
    check_shape(card, data, "the teacher")  # any contrast is allowed: the teacher will learn these images
    assert isinstance(denoiser.network, NetworkModule)
    return denoiser.network.requires_grad_(True), card


# The switches of methods with a file of their own; the others are variants of DPDM and take all of its switches.
OWN_SWITCHES = {
    "dmd2": DMD2_SWITCHES,
    "consistency": CONSISTENCY,
    "progressive": PROGRESSIVE,
    "adversarial": ADVERSARIAL,
}
Settings = StudentConfig | ConsistencyConfig | ProgressiveConfig | AdversarialConfig
WITH_CONDITIONS = ("dpdm", "tied", "diff-instruct")  # methods whose students may take conditions


def train_student(options: RunOptions, data: ImageSet, request: Distillation) -> bool:
    """Returns False when interrupted. Raises CheckpointError when teacher, start and data do not belong together."""
    with own_folder(options):
        return _train_student(options, data, request)


def _train_student(options: RunOptions, data: ImageSet, request: Distillation) -> bool:
    chosen = recipe(options.recipe)
    config = loop_config(options, chosen, chosen.student_images)
    denoiser, parent = load_denoiser(request.teacher)
    check_match(parent, data, request.teacher)
    classifiers = [_classifier(folder, parent) for folder in request.critics]
    settings = _settings(chosen, request, classifiers)
    _check_conditions(parent, request.method, settings)
    start, start_card = _starting_student(request.start, parent, settings) if request.start else (None, None)
    kept, kept_card = _kept_student(request.kept, parent, settings) if request.kept else (None, None)
    network = denoiser.network
    assert isinstance(network, NetworkModule)
    torch.manual_seed(options.seed)
    compute = compute_for(options, network.requires_grad_(True), config)
    for placing in filter(None, (network, start, kept, *classifiers)):
        move_to_device(placing, compute.device)
    if isinstance(settings, ConsistencyConfig):
        method = Consistency(network, parent.sigma_data, settings, compute, start)
        levels = {k: consistency_levels(k, parent.sigma_data, settings.sigma_max) for k in settings.steps}
    elif isinstance(settings, ProgressiveConfig):
        assert start is not None and start_card is not None, "_settings saw to it"
        method = Progressive(start, parent.sigma_data, settings, compute, kept, network)
        levels = start_card.levels
    elif isinstance(settings, AdversarialConfig):
        assert start is not None and start_card is not None, "_settings saw to it"
        method = Adversarial(start, classifiers, parent.sigma_data, settings, compute)
        levels = start_card.levels
    elif request.method == "dmd2":
        method, levels = DMD2(network, parent.sigma_data, settings, compute, start), settings.level_lists
    else:
        endpoints = _endpoints(settings, options, denoiser, parent, compute)
        method = Student(network, parent.sigma_data, settings, compute, start, endpoints)
        levels = settings.level_lists
    # A teacher has one hash for each precision. A continued student keeps the hash of its teacher in its card.
    name = start_card.parent if start_card and distilled_from(start_card, parent) else parent.weights
    images = data.provenance()
    card = Card("student", describe(method.network), parent.sigma_data, "", images, data.class_names, levels, name)
    facts = {"method": request.method, "start": start_card and start_card.weights, **stored_settings(settings)}
    if kept_card:
        facts["kept"] = kept_card.weights
    if classifiers:
        facts["critics"] = [classifier_hash(folder) for folder in request.critics]
    if request.start and isinstance(method, Student | DMD2):
        facts["auxiliary_continues"] = _continue_auxiliary(method, request.start)
    return run_method(method, data, config, options, card, facts, compute)


def _settings(chosen: Recipe, request: Distillation, classifiers: Sequence[NoisyClassifier]) -> Settings:
    base = chosen.student
    if request.method in OWN_SWITCHES:
        _refuse_variants(request)
    if request.critics and request.method != "adversarial":
        raise SwitchError("--critic belongs to --method adversarial")
    if request.kept and request.method != "progressive":
        raise SwitchError("--kept belongs to --method progressive")
    if request.method == "consistency":
        return consistency(chosen.consistency, request.switches)
    if request.method == "progressive":
        if not request.start:
            raise SwitchError("--method progressive distils a student by itself; add --init")
        return progressive(chosen.progressive, request.switches, read_card(request.start))
    if request.method == "adversarial":
        if not request.start or not classifiers:
            raise SwitchError("--method adversarial continues a student against classifiers; add --init and --critic")
        lowest = max(classifier.config.sigma_min for classifier in classifiers)
        return adversarial(chosen.adversarial, request.switches, read_card(request.start), lowest)
    presets = {"dpdm": base, "tied": tied(base), "diff-instruct": diff_instruct(base), "dmd2": dmd2(base)}
    return apply_switches(with_lists(presets[request.method], request.lists), request.switches)


def _check_conditions(parent: Card, method: str, settings: Settings) -> None:
    """Raise SwitchError where the method or the teacher cannot have what the student is to take."""
    guided = isinstance(settings, StudentConfig) and settings.guidance_max > 1
    if not parent.conditions and not guided:
        return
    if method not in WITH_CONDITIONS:
        taken = ", ".join(condition.name for condition in parent.conditions) or "a guidance weight"
        raise SwitchError(f"--method {method} trains no student that takes {taken}; {', '.join(WITH_CONDITIONS)} do")
    assert isinstance(settings, StudentConfig), "WITH_CONDITIONS saw to it"
    if settings.warm:
        raise SwitchError("--warm stores endpoints of the teacher without conditions, which this teacher needs")
    if guided and not (parent.network["classes"] and parent.training.get("label_dropout")):
        raise SwitchError(
            "--guidance-max needs a teacher that knows images without their class, too: train one of images with "
            "classes with --label-dropout 0.1"
        )


def _refuse_variants(request: Distillation) -> None:
    """Raise SwitchError for switches that a method with a file of its own does not take."""
    method = request.method
    if foreign := [name for name in request.switches if name not in OWN_SWITCHES[method]]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise SwitchError(f"{flags}: a variant of DPDM, which --method {method} does not have")
    if request.lists and method != "dmd2":
        trained = "at every level" if method == "consistency" else "at the lists that --init serves"
        raise SwitchError(f"--lists-of: {method} distillation is trained {trained}; leave it out")


def _starting_student(
    folder: Path, parent: Card, settings: Settings, use: str = "--init continues one"
) -> tuple[NetworkModule, Card]:
    """The student to continue from. Raises CheckpointError when it is another kind of model than is trained here."""
    denoiser, card = load_denoiser(folder)
    same = all(card.network[key] == parent.network[key] for key in ("resolution", "channels", "classes"))
    if card.role != "student" or not same or card.sigma_data != parent.sigma_data:
        raise CheckpointError(f"{folder} is not a student of such a teacher; {use}")
    assert isinstance(denoiser.network, NetworkModule)
    asked = asked_conditions(settings) if isinstance(settings, StudentConfig) else ()
    if card.conditions not in (parent.conditions, (*parent.conditions, *asked)):
        taken = ", ".join(f"{each.name} up to {each.high:g}" for each in card.conditions) or "no conditions"
        raise CheckpointError(f"{folder} takes {taken}, which is not what is trained here; {use}")
    ncvsd = isinstance(settings, StudentConfig) and settings.objective == "ncvsd"
    if denoiser.network.config.extra and not ncvsd:
        raise CheckpointError(f"{folder} is an NCVSD student; continue it with --objective ncvsd")
    return denoiser.network, card


def _kept_student(folder: Path, parent: Card, settings: Settings) -> tuple[NetworkModule, Card]:
    """The student that anchored calls imitate. Raises CheckpointError for another kind of model or other lists."""
    network, card = _starting_student(folder, parent, settings, "--kept names one whose calls are to stay")
    assert isinstance(settings, ProgressiveConfig), "_settings saw to it"
    if {tuple(levels) for levels in card.levels.values()} != set(settings.lists):
        raise CheckpointError(f"{folder} serves other levels than --init; --kept names one of the same levels")
    return network, card


def _classifier(folder: Path, parent: Card) -> NoisyClassifier:
    """A critic's classifier. Raises CheckpointError when it was trained on images of another kind."""
    classifier = load_classifier(folder)
    kind = {key: parent.network[key] for key in ("resolution", "channels", "classes")}
    if {key: getattr(classifier.config, key) for key in kind} != kind:
        raise CheckpointError(f"{folder} classifies other images than the teacher makes, which have {kind}")
    return classifier


def _continue_auxiliary(student: Student | DMD2, start: Path) -> bool:
    """Continue the auxiliary of the run in `start`. False: there is no such state, or its shapes differ."""
    continues = load_network(start, "auxiliary", student.networks["auxiliary"])
    if rank() == 0:
        reason = f"{start} stores none of this shape; let it catch up with --auxiliary-first"
        print(f"the auxiliary {'continues' if continues else f'starts as the teacher; {reason}'}", file=sys.stderr)
    return continues


def _endpoints(
    settings: StudentConfig, options: RunOptions, teacher: Denoiser, card: Card, compute: Compute
) -> Endpoints | None:
    if settings.warm == 0:
        return None
    fast = replace(teacher, network=runner(teacher.network, compute))  # pyright: ignore[reportArgumentType]
    return load_or_make(options.out, fast, card.weights, settings.warm_pairs, card.image_shape, compute.device)
