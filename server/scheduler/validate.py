"""From the fields of a request, whatever protocol brought them, to an ImageRequest that the scheduler can run."""

import math
import secrets
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from typing import cast, get_args

import numpy as np

from export.manifest import Manifest
from fewstep.blend import Blend, evenly
from fewstep.conditions import GUIDANCE, LOW, Condition, find
from fewstep.editing import calls_for
from fewstep.noise import random_labels
from fewstep.schedule import MAX_STEPS
from server.scheduler.refusal import Refusal, escaped, invalid, shown
from server.scheduler.request import Edit, Given, ImageFormat, ImageRequest, Previews, Priority

DEFAULT_STEPS = 4
SEED_LIMIT = 2**63
JPEG_CHANNELS = (1, 3)
MAX_DIGITS = 18  # of a class number in a text, without zeros before it; no model has as many classes
COMPARED_CHARACTERS = 60  # of a text, with each class name
LISTED_CHARACTERS = 300  # of the names in a sentence
# A drawn seed is short enough to be written down, and JavaScript reads it exactly (it does so only below 2^53).
DRAWN_SEED_LIMIT = 2**32


def image_request(
    manifest: Manifest,
    *,
    steps: int | Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    seed_to: int | None = None,
    mix: float | Sequence[float] | None = None,
    images: int | None = None,
    label: int | str | None = None,
    labels: Sequence[int | str | None] | None = None,
    format: ImageFormat = "png",
    strength: float | None = None,
    edit: Edit | None = None,
    previews: Previews = "none",
    quality: int | None = None,
    priority: str | None = None,
    guidance: float | Sequence[float] | None = None,
    pictured: Collection[str] = (),
    log_weight: bool = False,
) -> ImageRequest:
    """Image i gets seed + i or seeds[i], and label or labels[i]. Absent: 4 steps, a drawn seed, one image or as many as
    the lists have entries, and for each image, or entry that is None, a class drawn from its seed.

    steps: one step count, or that of each image. sigmas: the levels of all images instead. strength: the share of the
    step count's calls that are made, the last ones; None: all. seed_to: all images have the noise between that of
    seed and that of seed_to, mix of the way, or mix[i]; None: evenly from one to the other.
    priority: a Priority; None: interactive. guidance: the guidance weight of all images, or that of each. pictured:
    names of the conditions that the request's pictures will bring. log_weight: whether that of each image is told.
    Raises Refusal.
    """
    if strength is not None and not 0 < strength <= 1:  # NaN is not
        message = f"strength must be above 0 and at most 1, not {shown(strength)}"
        raise invalid(message, code="out_of_range", param="strength")
    each = {
        "seeds": seeds, "labels": labels, "steps": steps if isinstance(steps, Sequence) else None,
        "mix": mix if isinstance(mix, Sequence) else None,
        "guidance": guidance if isinstance(guidance, Sequence) else None,
    }  # fmt: skip
    images = image_count(images, {name: len(entries) for name, entries in each.items() if entries is not None})
    if format == "jpeg" and manifest.channels not in JPEG_CHANNELS:
        message = f"{manifest.name} makes images of {manifest.channels} channels, which JPEG cannot hold; ask for png"
        raise invalid(message, code="unsupported_format", param="format")
    conditions = choose_conditions(manifest, guidance, pictured)
    blends = choose_blends(seed_to, mix, images)
    if log_weight:
        check_log_weight(manifest, begun=edit is not None, blended=bool(blends))
    if blends:
        chosen = choose_seeds(seed, 1) * images
    else:
        chosen = choose_seeds(seed, images) if seeds is None else checked_seeds(seeds)
    if sigmas is not None:
        schedules = (check_sigmas(sigmas, manifest),)
        largest = len(sigmas)
    else:
        counts = [choose_steps(count, manifest) for count in (steps if isinstance(steps, Sequence) else [steps])]
        largest = max(counts)
        schedules = tuple(
            manifest.levels[count] if strength is None else manifest.levels[count][-calls_for(strength, count) :]
            for count in counts
        )
    return ImageRequest(
        model=manifest.name,
        steps=largest,
        seeds=chosen,
        labels=choose_labels(label, manifest, chosen) if labels is None else each_label(labels, manifest, chosen),
        sigmas=max(schedules, key=len),
        schedules=schedules if len(set(schedules)) > 1 else (),
        blends=blends,
        format=format,
        edit=edit,
        previews=previews,
        quality=quality,
        priority=choose_priority(priority),
        conditions=conditions,
        log_weight=log_weight,
    )


def image_count(images: int | None, entries: Mapping[str, int]) -> int:
    """How many images are asked for. entries: how many the lists of a request have, by name. Raises Refusal."""
    if images is not None and images < 1:
        raise invalid(f"n must be at least 1, not {shown(images)}", code="out_of_range", param="n")
    count = next(iter(entries.values()), 1) if images is None else images
    for name, given in entries.items():
        if given != count or not given:
            others = f"n is {images}" if images is not None else "the request makes at least 1 image"
            if images is None and given:
                others = f"{next(iter(entries))} has {count}"
            message = f"{name} has {given} entries, but {others}; a list has one entry for each image"
            raise invalid(message, code="out_of_range", param=name)
    return count


def check_sigmas(sigmas: Sequence[float], manifest: Manifest) -> tuple[float, ...]:
    """Levels for a model: 1 to MAX_STEPS, each below the one before, in the range of its own levels. Raises Refusal."""
    known = [sigma for levels in manifest.levels.values() for sigma in levels]
    low, high = min(known), max(known)
    falling = all(second < first for first, second in pairwise(sigmas))
    if not 1 <= len(sigmas) <= MAX_STEPS or not falling or not all(low <= sigma <= high for sigma in sigmas):
        message = f"sigmas must be 1 to {MAX_STEPS} levels from {high:g} down to {low:g}, each below the one before"
        raise invalid(f"{message}; not {shown(sigmas)}", code="out_of_range", param="sigmas")
    return tuple(map(float, sigmas))  # only now: an integer may be larger than every float


def choose_model(name: str | None, manifests: Mapping[str, Manifest]) -> Manifest:
    """The manifest of a model by the name it is served under; None: the first. Raises Refusal."""
    if name is None:
        return next(iter(manifests.values()))
    if name in manifests:
        return manifests[name]
    raise no_model(name, manifests)


def no_model(name: str, served: Iterable[str]) -> Refusal:
    """The answer to a request for a model of another name than those that are served."""
    served = list(served)
    message = f"there is no model {shown(name)} here; this server has {listed(served)}"
    if close := get_close_matches(name[:COMPARED_CHARACTERS], served, n=1):
        message += f"; the nearest is {close[0]}"
    return Refusal("not_found", "model_not_found", message, "model")


def choose_steps(steps: int | None, manifest: Manifest) -> int:
    """A step count that the model has levels for. Raises Refusal."""
    if steps is None:
        return DEFAULT_STEPS if DEFAULT_STEPS in manifest.levels else max(manifest.levels)
    check_range("steps", steps, 1, MAX_STEPS)
    if steps not in manifest.levels:
        served = ", ".join(map(str, sorted(manifest.levels)))
        message = f"{manifest.name} has no levels for {steps} steps; it serves {served}"
        raise invalid(message, code="unsupported_steps", param="steps")
    return steps


def choose_priority(name: str | None) -> Priority:
    """None: interactive. Raises Refusal."""
    known = get_args(Priority)
    if name is not None and name not in known:
        message = f"priority must be {' or '.join(known)}, not {shown(name)}"
        raise invalid(message, code="unknown_priority", param="priority")
    return cast(Priority, name or known[0])


def check_log_weight(manifest: Manifest, *, begun: bool, blended: bool) -> None:
    """Raises Refusal for images whose log weight cannot be told. begun: they begin at a picture. blended: two seeds
    make their noise."""
    if not manifest.weighs:
        message = (
            f"{manifest.name} has no log weights: only the adapter of a posterior's own chain has; leave log_weight out"
        )
        raise invalid(message, code="unsupported_log_weight", param="log_weight")
    if begun or blended:
        given = "image" if begun else "seed_to"
        message = f"give {given} or log_weight, not both: a weight is that of images drawn from noise of their own"
        raise invalid(message, code="conflict", param="log_weight")


def choose_conditions(
    manifest: Manifest, guidance: float | Sequence[float] | None, pictured: Collection[str]
) -> tuple[Given, ...]:
    """The conditions that are numbers. Raises Refusal for one that the model does not take, for a number out of its
    range, and for one that must be given and is not among `pictured` either."""
    check_taken(manifest, guidance is not None, pictured)
    weight = find(manifest.conditions, GUIDANCE)
    if guidance is None or weight is None:
        return ()
    weights = list(guidance) if isinstance(guidance, Sequence) else [guidance]
    for each in weights:
        check_range(GUIDANCE, each, weight.low, weight.high)
    return (Given.of(GUIDANCE, np.array(weights, np.float32)),)


def check_taken(manifest: Manifest, guided: bool, pictured: Collection[str]) -> None:
    """Raises Refusal for a condition that is given and that the model does not take, and for one that is missing.

    guided: whether there is a guidance weight. pictured: names of the conditions that pictures bring.
    """
    if guided and find(manifest.conditions, GUIDANCE) is None:
        message = f"{manifest.name} takes no guidance weight; leave guidance out"
        raise invalid(message, code="unsupported_condition", param=GUIDANCE)
    if LOW in pictured and find(manifest.conditions, LOW) is None:
        message = f"{manifest.name} enlarges no images; leave upscale out"
        raise invalid(message, code="unsupported_condition", param="upscale")
    for condition in manifest.conditions:
        if condition.default is None and condition.name not in (*pictured, GUIDANCE):
            raise _missing(condition, manifest)


def _missing(condition: Condition, manifest: Manifest) -> Refusal:
    if condition.name == LOW:
        size = f"{condition.shape[2]}x{condition.shape[1]}"
        message = (
            f"{manifest.name} enlarges images of {size}: send the picture to enlarge as upscale of /v1/generate or "
            "/v2, or as image of /v1/images/edits"
        )
        return invalid(message, code="missing_image", param="upscale")
    message = f"{manifest.name} needs {condition.name}, which no field of this API brings"
    return invalid(message, code="unsupported_condition", param=condition.name)


def check_conditions(given: Sequence[Given], manifest: Manifest, images: int) -> None:
    """Refuse conditions that a slot table cannot run. Raises Refusal."""
    left = {condition.name: condition for condition in manifest.conditions}
    for each in given:
        condition = left.pop(each.name, None)
        if condition is None:
            message = f"{manifest.name} takes no {shown(each.name)}, or the request has it twice"
            raise invalid(message, code="unsupported_condition", param="conditions")
        rows = len(each.data) / (4 * condition.size)
        if tuple(each.shape) != condition.shape or rows not in (1, images):
            message = (
                f"{each.name} of {manifest.name} has the shape {condition.shape} for each image, or for all of them"
            )
            raise invalid(message, code="out_of_range", param=each.name)
        values = each.rows()
        check_range(each.name, float(values.min()), condition.low, condition.high)
        check_range(each.name, float(values.max()), condition.low, condition.high)
    for condition in left.values():
        if condition.default is None:
            raise _missing(condition, manifest)


def choose_seeds(seed: int | None, images: int) -> tuple[int, ...]:
    """seed, seed + 1, ...: all in [0, SEED_LIMIT). None: a drawn one. Raises Refusal."""
    if seed is None:
        seed = secrets.randbelow(DRAWN_SEED_LIMIT)
    check_range("seed", seed, 0, SEED_LIMIT - 1)
    if seed + images > SEED_LIMIT:
        message = (
            f"seed must be at most {SEED_LIMIT - images} with n = {images}, because image i has the seed seed + i; "
            f"not {shown(seed)}"
        )
        raise invalid(message, code="out_of_range", param="seed")
    return tuple(range(seed, seed + images))


def choose_blends(seed_to: int | None, mix: float | Sequence[float] | None, images: int) -> tuple[Blend, ...]:
    """How the noise of each image is mixed; empty without seed_to. Raises Refusal."""
    if seed_to is None:
        if mix is not None:
            message = "mix needs seed_to: the seed that the images are on the way to"
            raise invalid(message, code="missing_seed", param="mix")
        return ()
    check_range("seed_to", seed_to, 0, SEED_LIMIT - 1)
    if mix is None:
        mix = evenly(images)
    mixes = mix if isinstance(mix, Sequence) else (mix,) * images
    for each in mixes:
        check_range("mix", each, 0.0, 1.0)
    return tuple(Blend(seed_to, float(each)) for each in mixes)


def checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Raises Refusal unless all are in [0, SEED_LIMIT)."""
    for seed in seeds:
        check_range("seeds", seed, 0, SEED_LIMIT - 1)
    return tuple(seeds)


def each_label(labels: Sequence[int | str | None], manifest: Manifest, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """One class index per image; None: drawn from the image's seed. Raises Refusal."""
    if not manifest.classes and any(label is not None for label in labels):
        raise invalid(f"{manifest.name} has no classes; leave labels out", code="unknown_label", param="labels")
    drawn = choose_labels(None, manifest, seeds)
    pairs = zip(labels, drawn, strict=True)
    return tuple(other if label is None else _class_index(label, manifest, "labels") for label, other in pairs)


def choose_labels(label: int | str | None, manifest: Manifest, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """One class index per image; -1 where the model has no classes. Raises Refusal."""
    if not manifest.classes:
        if label is not None:
            message = f"{manifest.name} has no classes; leave label out"
            raise invalid(message, code="unknown_label", param="label")
        return (-1,) * len(seeds)
    if label is None:
        return tuple(random_labels(seeds, manifest.classes).tolist())
    return (_class_index(label, manifest, "label"),) * len(seeds)


def class_named(name: str, manifest: Manifest) -> int | None:
    """The index of a class, by its name in any case and any Unicode normal form; None: there is no such class."""
    names, text = _names(manifest.class_names), name.strip()
    # No step of _plain makes a text shorter, and Unicode's canonical order takes quadratic time in a run of accents.
    return names.get(_plain(text)) if len(text) <= max(map(len, names), default=0) else None


def number_or_name(label: int | str | None, manifest: Manifest) -> int | str | None:
    """A label that came as text: digits that are no class name are a number, because forms and headers have texts
    alone."""
    if isinstance(label, str) and class_named(label, manifest) is None and label.isascii() and label.isdecimal():
        return int(label.lstrip("0")[:MAX_DIGITS] or "0")
    return label


def nearest_class(name: str, manifest: Manifest) -> str | None:
    """The class name that resembles a text most (Ratcliff and Obershelp's ratio above 0.3); None: none does."""
    names = {_plain(each): each for each in reversed(manifest.class_names)}
    close = get_close_matches(_plain(name[:COMPARED_CHARACTERS]), names, n=1, cutoff=0.3)
    return names[close[0]] if close else None


def _class_index(label: int | str, manifest: Manifest, param: str) -> int:
    if isinstance(label, str):
        index = class_named(label, manifest)
        if index is not None:
            return index
    elif 0 <= label < manifest.classes:
        return label
    names = f" or one of {listed(manifest.class_names)}" if manifest.class_names else ""
    message = (
        f"{manifest.name} has no class {shown(label)}; a class is a number from 0 to {manifest.classes - 1}{names}"
    )
    raise invalid(message, code="unknown_label", param=param)


@lru_cache(maxsize=64)
def _names(class_names: tuple[str, ...]) -> dict[str, int]:
    """The first class of each name."""
    return {_plain(name): index for index, name in reversed(list(enumerate(class_names)))}


def _plain(name: str) -> str:
    """The same for names that differ in case or normal form (Unicode 16.0, D145)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name.strip()).casefold())


def check_request(request: ImageRequest, manifests: Mapping[str, Manifest]) -> None:
    """Refuse what a slot table cannot run, of requests that `image_request` has not made. Raises Refusal."""
    manifest = choose_model(request.model, manifests)
    seeds, labels, sigmas, edit = request.seeds, request.labels, request.sigmas, request.edit
    if not seeds or len(seeds) != len(labels):
        message = f"a request has a seed and a label for each image, not {len(seeds)} seeds and {len(labels)} labels"
        raise invalid(message, code="out_of_range", param="seeds")
    check_range("seed", min(seeds), 0, SEED_LIMIT - 1)
    check_range("seed", max(seeds), 0, SEED_LIMIT - 1)
    check_range("label", min(labels), -1, manifest.classes - 1)
    check_range("label", max(labels), -1, manifest.classes - 1)
    schedules = (sigmas, *request.schedules)
    if request.schedules and (len(request.schedules) != len(seeds) or len(sigmas) != max(map(len, request.schedules))):
        message = "a request with schedules has one for each image, and sigmas is the longest of them"
        raise invalid(message, code="out_of_range", param="schedules")
    if request.blends and len(request.blends) != len(seeds):
        message = f"a request with blends has one for each image, not {len(request.blends)} for {len(seeds)}"
        raise invalid(message, code="out_of_range", param="blends")
    short = all(1 <= len(schedule) <= MAX_STEPS for schedule in schedules)
    if not short or not all(0 < sigma < math.inf for schedule in schedules for sigma in schedule):
        message = f"sigmas must be 1 to {MAX_STEPS} levels above 0, not {shown(sigmas)}"
        raise invalid(message, code="out_of_range", param="sigmas")
    check_conditions(request.conditions, manifest, len(seeds))
    if request.log_weight:
        check_log_weight(manifest, begun=edit is not None, blended=bool(request.blends))
    if edit is not None:
        size, pixels = math.prod(manifest.image_shape), math.prod(manifest.image_shape[1:])
        if (edit.shape, len(edit.image)) != (manifest.image_shape, size) or len(edit.known or b"*" * pixels) != pixels:
            message = f"an edit of {manifest.name} begins at an image of shape {manifest.image_shape} (C, H, W), and"
            raise invalid(f"{message} keeps pixels of that height and width", code="out_of_range", param="edit")


def check_range(param: str, value: float, low: float, high: float) -> None:
    """Raises Refusal unless low <= value <= high; NaN is refused."""
    if not low <= value <= high:
        between = f"{low} to {high}" if isinstance(high, int) else f"{low:g} to {high:g}"
        raise invalid(f"{param} must be from {between}, not {shown(value)}", code="out_of_range", param=param)


def listed(names: Iterable[str]) -> str:
    """Names in printable ASCII, as many as fit into LISTED_CHARACTERS."""
    text, left = "", list(map(escaped, names))
    while left and len(text) + len(left[0]) <= LISTED_CHARACTERS:
        text += (", " if text else "") + left.pop(0)
    return f"{text} and {len(left)} more" if left else text
