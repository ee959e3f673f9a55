"""The adapter of a posterior's own chain, beside the student whose steps it tilts: `fewstep posterior --prior STUDENT`.

Its last call is the backbone's, and every call before it is a Gaussian step, so images have log weights.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.engine import Engine
from export.verify import BATCHES, SEEDS, Gap, compare, proof_labels
from fewstep.adapters import LoadedPosterior, load_posterior
from fewstep.ancestral import sample_ancestral, student_chain
from fewstep.card import CheckpointError
from fewstep.noise import noise_for
from fewstep.precond import Array, Denoiser


def load_chain(backbone: Path, folder: Path) -> LoadedPosterior:
    """Raises CheckpointError for one that cannot be read, that belongs to another backbone, or whose steps a server
    does not make."""
    loaded = load_posterior(backbone, folder)
    if loaded.chain != student_chain(loaded.chain.sigmas):
        raise CheckpointError(
            f"the posterior in {folder} samples the chain of a teacher, and a server makes the steps of students. Tilt "
            "a student's own steps (fewstep posterior --prior STUDENT --steps 4 --fixed-variance), or make it a "
            "student: fewstep posterior ... --distil"
        )
    if any(loaded.log_variance):
        raise CheckpointError(
            f"the posterior in {folder} has learned variances, and a server adds the noise of the levels, no other. "
            "Train it with --fixed-variance"
        )
    return loaded


def prove_chain(engine: Engine, index: int, loaded: LoadedPosterior) -> dict[str, Gap]:
    """The gap between the images of eager PyTorch and of an engine with this adapter, by its number from 1."""
    labels = proof_labels(loaded.posterior.classes, len(SEEDS))

    def images(posterior: Denoiser, prior: Denoiser, rows: slice, tensors: bool = False) -> NDArray[np.float32]:
        of = torch.from_numpy if tensors else np.asarray
        noise = noise_for(SEEDS[rows], loaded.prior_card.image_shape)
        told = None if labels is None else of(labels[rows])

        def last(x: Array, sigma: Array) -> Array:
            return prior(x, sigma, told if prior.classes else None)

        sample = sample_ancestral(
            lambda x, sigma: posterior(x, sigma, told), lambda step: of(noise(step)), loaded.chain, decoder=last
        )
        return np.asarray(sample.images)

    with torch.no_grad():
        eager = images(loaded.posterior, loaded.prior, slice(None), tensors=True)
    ends = np.cumsum(BATCHES).tolist()
    parts = [slice(end - count, end) for end, count in zip(ends, BATCHES, strict=True)]
    made = [images(engine.adapted_denoiser(index), engine.denoiser, part) for part in parts]
    calls = len(loaded.chain.sigmas)
    return {str(calls): compare(eager, np.concatenate(made), calls)}
