"""Stored teacher endpoints: the seed of a noise, and the image to which the teacher's ODE maps that noise.

After a regression on a few thousand of them the student's top level makes images and not the gray mean. Yin et al. 2024
(DMD, Section 4.3) use them in the whole training, this project only at its start.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor
from tqdm import tqdm

from fewstep.card import CheckpointError, write_atomically
from fewstep.noise_torch import noise_for, normals
from fewstep.precond import Denoiser
from fewstep.samplers import sample_heun
from fewstep.schedule import solver_sigmas
from trainer.run.distributed import from_first, rank
from trainer.run.draws import Draws

FILE = "endpoints.safetensors"
LEVELS = 18  # Heun levels: 35 calls an image; with 10, images of a Gaussian teacher come out a fifth too wide
CHUNK = 128
FIRST_SEED = 2**32  # far from the seeds of evaluations


@dataclass(frozen=True)
class Endpoints:
    images: Tensor  # [N, C, H, W]; image i comes from the noise of seed FIRST_SEED + i
    labels: Tensor  # [N]; -1: no class

    def draw(self, count: int, rng: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """`count` pairs: unit normals [B, C, H, W], labels [B], images [B, C, H, W]."""
        index = rng.integers(len(self.images), count)
        keys = FIRST_SEED + index  # of `noise_for`, made on the device: the host does not wait for the indices
        noise = normals(keys, torch.zeros_like(keys), tuple(self.images.shape[1:]))
        return noise, self.labels[index], self.images[index]


def load_or_make(
    folder: Path, teacher: Denoiser, teacher_hash: str, count: int, shape: tuple[int, int, int], device: str
) -> Endpoints:
    """The endpoints of this teacher stored in `folder`. If there are none they are computed and stored first."""
    path, facts = folder / FILE, {"teacher": teacher_hash, "count": str(count), "levels": str(LEVELS)}
    if rank() == 0 and _stored_facts(path) != facts:
        made = _make(teacher, count, shape, device)
        stored = {"images": made.images.half().cpu().contiguous(), "labels": made.labels.cpu()}
        write_atomically(path, save_tensors(stored, metadata=facts))
    from_first(None)  # the other processes wait for the file
    with safe_open(path, framework="pt", device=device) as file:
        return Endpoints(file.get_tensor("images").float(), file.get_tensor("labels"))


def _stored_facts(path: Path) -> dict[str, str] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata()
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable file of endpoints ({error}); delete it") from error


@torch.no_grad()
def _make(teacher: Denoiser, count: int, shape: tuple[int, int, int], device: str) -> Endpoints:
    index = torch.arange(count, device=device)
    labels = index % teacher.classes if teacher.classes else torch.full_like(index, -1)
    images = []
    for start in tqdm(range(0, count, CHUNK), desc="teacher endpoints", unit="batch"):
        seeds = range(FIRST_SEED + start, FIRST_SEED + min(start + CHUNK, count))
        chosen = labels[start : start + CHUNK]
        bound = lambda x, sigma, chosen=chosen: teacher(x, sigma, chosen)  # noqa: E731
        images.append(sample_heun(bound, noise_for(seeds, shape, device), solver_sigmas(LEVELS)).images)
    return Endpoints(torch.cat(images), labels)
