"""Images that `fewstep generate` has made, for the panel's students: what is in such a file is not sampled again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from benchmarks.cells import Task
from fewstep.metrics.cache import Cache, Key

CHECKED = 4  # images of each piece that are sampled again
ROUNDING = 1  # levels of 255 by which these may differ: batches round differently
FITTING = "fewstep generate --model MODEL --label balanced --steps {} --seeds {}-{} --out FILE.npz"


def read_made(file: Path) -> tuple[dict, NDArray[np.int64], NDArray[np.uint8]]:
    """The recipe, seeds [N] and images [N, H, W, C] of an .npz. Raises ValueError."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return json.loads(str(archive["recipe"])), archive["seeds"], archive["images"]
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise ValueError(f"{file} is no .npz of fewstep generate ({error})") from error


class Wanted(NamedTuple):
    """A piece of a student's images."""

    checkpoint: str
    calls: int
    task: Task


def take_made(cache: Cache, file: Path, wanted: Sequence[Wanted], key_of: Callable[[Task], Key]) -> int:
    """Keep the images of the file for those pieces whose seeds it has. Returns how many images were kept.

    key_of: the key of a task's pixels in the cache. Raises ValueError where the file has none of them, or its images
    are not the student's.
    """
    recipe, seeds, images = read_made(file)
    fitting = [task for checkpoint, calls, task in wanted if _fits(recipe, checkpoint, calls)]
    places = {int(seed): place for place, seed in enumerate(seeds)}
    found = [task for task in fitting if all(int(seed) in places for seed in task.seeds)]
    if not found:
        pieces = sorted({(piece.calls, piece.task.seeds[0], piece.task.seeds[-1]) for piece in wanted})
        commands = "\n  ".join(FITTING.format(*piece) for piece in pieces)
        raise ValueError(f"{file} has none of the images that are judged; these commands make them:\n  {commands}")
    for task in found:
        pixels = images[[places[int(seed)] for seed in task.seeds]]
        again = np.concatenate([batch.pixels for batch in task.batches(task.seeds[:CHECKED])])
        if np.abs(again.astype(int) - pixels[:CHECKED]).max() > ROUNDING:
            raise ValueError(f"{file} has other images for the seeds from {task.seeds[0]} on than its model makes now")
        cache.write(key_of(task), pixels=pixels)
    return sum(len(task.seeds) for task in found)


def _fits(recipe: Key, checkpoint: str, calls: int) -> bool:
    """Whether a run's images are those of a sampler: of the same weights and calls, classes in turn, nothing given."""
    in_turn = recipe["label"] == "balanced" or not recipe["class_names"]
    plain = in_turn and not {"guidance", "inputs"} & recipe.keys()
    return plain and (recipe["checkpoint"], recipe["steps"]) == (checkpoint, calls)
