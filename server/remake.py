"""`fewstep remake IMAGE.png`: make an image again from what server.http.png_text wrote into it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from export.manifest import Manifest, engine_of, read_student, served_models
from fewstep.card import CheckpointError
from fewstep.outputs import check_writable
from fewstep.pixels import KEYWORD, Pixels, encode, png_size, text_of, with_text
from server.http.picture_files import MODES, PictureError
from server.http.pictures import decode
from server.scheduler.loading import LoadOptions
from server.scheduler.local import LocalService
from server.scheduler.refusal import Refusal, shown
from server.scheduler.request import ImageRequest
from server.scheduler.validate import choose_model, image_request
from server.settings.settings import MODEL_NAME, MODELS

MAX_FILE_BYTES = 2**26  # of a PNG, edited or not; a device such as /dev/zero has no end
# The types that a PNG's values have.
KINDS: dict[str, tuple[type, ...]] = {
    "model": (str,), "checkpoint": (str,), "noise_version": (int,), "seed": (int,), "label": (int, type(None)),
    "steps": (int,),
}  # fmt: skip


class RemakeError(Exception):
    """Why an image cannot be made again: a sentence."""


def remake(path: Path, out: Path, engine: Path | None = None) -> str:
    """Write the image of a PNG anew; returns how the two compare, in a sentence.

    engine: of the model that made it; None: the checkout's model of that name. Raises RemakeError.
    """
    check_out(out)
    try:
        with path.open("rb") as file:
            png = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RemakeError(f"{path} cannot be read: {error.strerror}") from error
    if len(png) > MAX_FILE_BYTES:
        raise RemakeError(f"{path} has more than {MAX_FILE_BYTES} bytes; no image of this server has as many")
    text = text_of(png, KEYWORD)
    if text is None:
        raise RemakeError(f"{path} does not say what it was made of; only unedited PNGs of this server do")
    recipe = _parsed(path, text)
    backbone = engine_of(recipe["model"])
    folder = engine or MODELS / backbone / "engine"
    if not engine and not folder.is_dir():
        raise RemakeError(f"there is no model {shown(recipe['model'])} here; --engine DIR names its engine")
    try:
        manifest = choose_model(recipe["model"], served_models(read_student(folder, backbone)))
        request = requested(path, recipe, manifest)
        with LocalService.open({backbone: folder}, LoadOptions(mode="exact")) as service:
            (pixels,) = service.submit(request).result().images
    except CheckpointError as error:
        hint = "" if engine else "; --engine DIR names the engine that made the image"
        raise RemakeError(f"{error}{hint}") from error
    except Refusal as error:
        raise RemakeError(f"{path} says what this model cannot make: {error.message}") from error
    made = with_text(encode(pixels, "png"), KEYWORD, text)
    try:
        out.write_bytes(made)
    except OSError as error:
        message = f"{out} cannot be written: {error.strerror}; --out FILE names a file in a folder that exists"
        raise RemakeError(message) from error
    return f"wrote {out}: {compared(png, made, pixels)}"


def check_out(out: Path) -> None:
    """Raise RemakeError, before any work, where no file can be written."""
    try:
        if out.is_dir():
            raise RemakeError(f"--out {out} is a folder; name the file to write")
        check_writable(out.parent)
        if not out.parent.is_dir():
            raise RemakeError(f"--out {out} cannot be written: there is no folder {out.parent}")
    except CheckpointError as error:
        raise RemakeError(str(error)) from error


def _parsed(path: Path, text: str) -> dict[str, Any]:
    """What a PNG says. Raises RemakeError."""
    try:
        recipe = json.loads(text)
        complete = all(type(recipe[name]) in kinds for name, kinds in KINDS.items())
        levels = recipe.get("sigmas") or []
        seed_to, mix = recipe.get("seed_to", 0), recipe.get("mix", 0.0)
        complete = complete and type(seed_to) is int and type(mix) in (int, float)
        complete = complete and type(recipe.get("guidance", 1.0)) in (int, float)
        complete = complete and type(levels) is list and all(type(level) in (int, float) for level in levels)
    except (ValueError, TypeError, KeyError, RecursionError):
        complete, recipe = False, {}
    if not complete or not recipe["checkpoint"] or not MODEL_NAME.fullmatch(engine_of(recipe["model"])):
        raise RemakeError(f"{path} holds a text of ours that is damaged: {shown(text)}")
    if recipe.get("edit"):
        raise RemakeError(f"{path} began at a picture, which it does not hold; send that picture to /v1/generate again")
    return recipe


def requested(path: Path, recipe: dict[str, Any], manifest: Manifest) -> ImageRequest:
    """The request of one image. Raises RemakeError for another model, and Refusal for what no request may hold."""
    checkpoint, version = recipe["checkpoint"], recipe["noise_version"]
    pairs = (
        ("checkpoint", checkpoint, manifest.checkpoint[: len(checkpoint)]),
        ("noise version", version, manifest.noise_version),
    )
    for name, made, has in pairs:
        if made != has:
            message = f"was made with the {name} {shown(made)}, and {manifest.name} has {shown(has)}"
            raise RemakeError(f"{path} {message}; --engine DIR names the engine that made it")
    sigmas = recipe.get("sigmas")
    steps = None if sigmas else recipe["steps"]
    request = image_request(
        manifest, steps=steps, sigmas=sigmas, seed=recipe["seed"], label=recipe["label"],
        seed_to=recipe.get("seed_to"), mix=recipe.get("mix"), guidance=recipe.get("guidance"),
    )  # fmt: skip
    return replace(request, format="pixels")


def compared(old: bytes, new: bytes, pixels: Pixels) -> str:
    """How the file and the image that was made again differ."""
    if old == new:
        return "the same bytes"
    side, _, channels = pixels.shape
    try:
        before = decode(old, side, channels) if channels in MODES and png_size(old) == (side, side) else None
    except PictureError:
        before = None
    if before is None:
        return "the file's own pixels cannot be compared"
    gap = np.abs(before.astype(int) - pixels)
    if not gap.any():
        return "the same pixels"
    return f"{np.count_nonzero(gap)} of {gap.size} values differ, by {gap.max()} of 255 levels at most"
