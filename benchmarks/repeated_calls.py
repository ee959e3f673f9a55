"""A generator that makes each network call once, however often it is asked for.

A student's lists of levels begin alike: with eight calls it makes the calls of four, and some more. Sampled one after
the other on the same seeds, 36 calls of k = 1 .. 8 are 15 different ones. The images are the same to the last bit.
"""

import hashlib
from collections import OrderedDict
from dataclasses import replace

import numpy as np

from benchmarks.generators import Generator
from fewstep.precond import Array, Network


def remembered(generator: Generator, kept: int = 128) -> Generator:
    """The same generator, with the last `kept` answers of its network in memory (0.4 MB each of 100 gray images)."""
    return replace(generator, denoiser=replace(generator.denoiser, network=_once(generator.denoiser.network, kept)))


def _once(network: Network, kept: int) -> Network:
    answers: OrderedDict[bytes, Array] = OrderedDict()

    def run(x: Array, c_noise: Array, onehot: Array) -> Array:
        place = b"".join(_digest(array) for array in (x, c_noise, onehot))
        if place not in answers:
            answers[place] = network(x, c_noise, onehot)
        answers.move_to_end(place)
        if len(answers) > kept:
            answers.popitem(last=False)
        return answers[place]

    return run


def _digest(array: Array) -> bytes:
    values = array if isinstance(array, np.ndarray) else array.cpu().numpy()
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16, key=str(values.shape).encode()).digest()
