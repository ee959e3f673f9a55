"""A reward as it is written on a command line.

class:DIR:3             class 3 of the classifier in DIR (fewstep trainer classifier --out DIR)
classes:DIR:0,2,4       any of several classes
each-class:DIR          every class, told to the posterior as y
inpaint:IMAGE:5x5+2+1   IMAGE with the rectangle of width x height + left + top unknown
upscale:IMAGE:4         an image whose means of 4x4 pixels are those of IMAGE, which is the large or the small one
deblur:IMAGE:1.5        an image that is IMAGE once it is blurred by 1.5 pixels
module:function         any function(images [B, C, H, W] in [-1, 1]) -> log r [B]
FILE.py:function        likewise
"""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fewstep.outputs import CLASSIFIER_FILE
from fewstep.pixels import from_pixels
from trainer.critics.classifier import load_classifier
from trainer.data.format import DataError
from trainer.data.sources.pictures import decode, flatten, to_array
from trainer.methods.rtb import LogReward
from trainer.rewards.checked import FLOOR, RewardError, blamed, checked, unchanged
from trainer.rewards.classes import class_reward, clean_logits, told_class_reward
from trainer.rewards.linear import Operator, blur, inpainting, measured, super_resolution

FORMS = "class:DIR:3, classes:DIR:0,2, each-class:DIR, inpaint:IMAGE:WxH+X+Y, upscale:IMAGE:4, deblur:IMAGE:1.5, module:function, FILE.py:function"  # noqa: E501


@dataclass(frozen=True)
class Reward:
    log_reward: LogReward
    groups: int = 0  # values of y the posterior is told; 0: none
    group_names: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()  # whose content decides the reward
    floor: float = FLOOR  # lower log r are raised to it


def reward_of(text: str, shape: tuple[int, int, int], noise: float, device: str, floor: float = FLOOR) -> Reward:
    """The reward that `text` names, for images of `shape` (C, H, W). noise: standard deviation of a measurement.

    Raises RewardError, or CheckpointError for a classifier that cannot be read.
    """
    kind, _, rest = text.partition(":")
    if kind in ("class", "classes", "each-class"):
        return _classes(text, kind, rest, shape, device, floor)
    if kind in ("inpaint", "upscale", "deblur"):
        path, _, setting = rest.rpartition(":")
        if not path:
            raise RewardError(f"--reward {text} lacks its image or its setting; write one of {FORMS}")
        operator, y = _measurement(text, kind, Path(path), setting, shape)
        y = y.to(device)
        unbounded = -float("inf")
        return Reward(checked(measured(operator, y, noise), text, unbounded), files=(Path(path),), floor=unbounded)
    if rest:
        function, file = _function(text)
        return Reward(checked(_ours(function, text, file), text, floor), files=(file,) if file else (), floor=floor)
    raise RewardError(f"--reward {text} is unknown; write one of {FORMS}")


def _classes(text: str, kind: str, rest: str, shape: tuple[int, int, int], device: str, floor: float) -> Reward:
    folder, _, numbers = rest.rpartition(":") if kind != "each-class" else (rest, "", "")
    if not folder:
        raise RewardError(f"--reward {text} lacks its folder or its classes; write one of {FORMS}")
    classifier = load_classifier(Path(folder), device)
    config = classifier.config
    if (config.channels, config.resolution, config.resolution) != shape:
        raise RewardError(
            f"--reward {text}: the classifier takes {config.channels}x{config.resolution}x{config.resolution} images, "
            f"and the prior makes {'x'.join(map(str, shape))}"
        )
    logits, files = clean_logits(classifier), (Path(folder) / CLASSIFIER_FILE,)
    if kind == "each-class":
        names = tuple(f"class {number}" for number in range(config.classes))
        return Reward(checked(told_class_reward(logits), text, floor), config.classes, names, files, floor)
    chosen = numbers.split(",")
    if not all(re.fullmatch(r"\d+", number) and int(number) < config.classes for number in chosen):
        raise RewardError(f"--reward {text}: classes are whole numbers from 0 to {config.classes - 1}, not {numbers}")
    if kind == "class" and len(chosen) > 1:
        raise RewardError(f"--reward {text} names several classes; write classes:{rest}")
    scored = class_reward(logits, [int(number) for number in chosen])
    return Reward(checked(scored, text, floor), files=files, floor=floor)


def _measurement(
    text: str, kind: str, path: Path, setting: str, shape: tuple[int, int, int]
) -> tuple[Operator, Tensor]:
    """The operator and its measurement [1, ...]. An image of the prior's size is measured here."""
    channels, height, width = shape
    if kind == "inpaint":
        box = re.fullmatch(r"(\d+)x(\d+)\+(\d+)\+(\d+)", setting)
        if not box:
            raise RewardError(f"--reward {text}: the unknown rectangle is WIDTHxHEIGHT+LEFT+TOP, not {setting}")
        wide, high, left, top = map(int, box.groups())
        if not (wide and high and left + wide <= width and top + high <= height):
            raise RewardError(f"--reward {text}: the rectangle {setting} does not lie in {width}x{height} pixels")
        mask = torch.ones(1, 1, height, width)
        mask[..., top : top + high, left : left + wide] = 0
        operator = _on_device(mask)
        return operator, operator(_image(text, path, shape))
    if kind == "upscale":
        if not re.fullmatch(r"\d+", setting) or int(setting) < 2 or height % int(setting) or width % int(setting):
            raise RewardError(
                f"--reward {text}: the factor is a whole number from 2 that divides {height}, not {setting}"
            )
        small = (channels, height // int(setting), width // int(setting))
        operator, y = super_resolution(int(setting)), _image(text, path, shape, small)
        return operator, y if tuple(y.shape[1:]) == small else operator(y)
    if not re.fullmatch(r"\d+(\.\d+)?", setting) or not 0 < float(setting) <= (min(height, width) - 1) / 3:
        raise RewardError(
            f"--reward {text}: the blur is above 0 and at most {(min(height, width) - 1) / 3:.2g} pixels, not {setting}"
        )
    return blur(float(setting)), _image(text, path, shape)


def _on_device(mask: Tensor) -> Operator:
    return lambda images: inpainting(mask.to(images))(images)


def _image(text: str, path: Path, *shapes: tuple[int, int, int]) -> Tensor:
    """[1, C, H, W] in [-1, 1], of one of these shapes; the pixels that training pictures have."""
    try:
        picture = flatten(decode(path.read_bytes(), str(path)), str(path), gray=shapes[0][0] == 1)
    except OSError as error:
        raise RewardError(f"--reward {text}: {path} cannot be read ({error.strerror})") from error
    except DataError as error:
        raise RewardError(f"--reward {text}: {error}") from error
    image = torch.from_numpy(from_pixels(to_array(picture)[None]))
    if tuple(image.shape[1:]) not in shapes:
        sizes = " or ".join(f"{shape[2]}x{shape[1]}" for shape in shapes)
        raise RewardError(f"--reward {text}: {path} is {image.shape[3]}x{image.shape[2]}; it must be {sizes}")
    return image


def _function(text: str) -> tuple[Callable[..., Any], Path | None]:
    """The function, and the file of its module where it has one."""
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise RewardError(f"--reward {text} lacks its file or its function; write one of {FORMS}")
    own = Path(place) if place.endswith(".py") else None
    try:
        with unchanged():
            _find_modules_of(own.parent if own else Path())
            module = _loaded(own) if own else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # a file of the user's may raise anything, and may call sys.exit
        file = own or _found(place)
        raise RewardError(
            f"--reward {text}: {place} cannot be imported ({blamed(error, file)}); write one of {FORMS}"
        ) from error
    function, file = getattr(module, name, None), own or _file_of(module)
    if not callable(function):
        found = "" if own or file is None else f" ({file})"  # another module of that name may have been found first
        raise RewardError(f"--reward {text}: {place}{found} has no function {name}")
    return function, file


def _loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reward {file.absolute()}", file)  # no import has such a name
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up there
    spec.loader.exec_module(module)
    return module


def _find_modules_of(folder: Path) -> None:
    """From now on modules of a folder are found, after all others: those that a file of the user's imports, perhaps
    only when its function is called. The `fewstep` command does not look into the current folder by itself."""
    if (place := str(folder.absolute())) not in sys.path:
        sys.path.append(place)


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


def _found(place: str) -> Path | None:
    """The file of a module that cannot be imported, where there is one."""
    try:
        spec = importlib.util.find_spec(place)
    except Exception:  # it imports the packages around the module, which may raise anything
        return None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _ours(function: Callable[..., Any], text: str, file: Path | None) -> LogReward:
    """A function of images, or of images and y, as one of both. RewardError says where it raises."""
    try:
        parameters = inspect.signature(function).parameters.values()
        places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        takes_y = len(places) > 1 and places[1].default is inspect.Parameter.empty
    except (ValueError, TypeError):  # written in C, without a signature
        takes_y = False

    def run(images: Tensor, y: Tensor) -> Tensor:
        try:
            return function(images, y) if takes_y else function(images)
        except (Exception, SystemExit) as error:
            raise RewardError(f"--reward {text} failed: {blamed(error, file)}") from error

    return run
