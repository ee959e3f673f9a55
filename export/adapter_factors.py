"""The adapters of an engine directory, as what its network takes: the factors of all of them, stacked by index."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.manifest import AdapterFiles, Manifest
from fewstep.card import CheckpointError
from fewstep.tensor_file import read_tensors

Factors = dict[str, NDArray[np.float32]]  # LAYER.down [r, taps, in] and LAYER.up [out, r] of the layers that change


@dataclass(frozen=True)
class Stacked:
    """LAYER.down [N, rank, taps, in] and LAYER.up [N, out, rank] in the order of the network's inputs. Index 0 is the
    backbone: zeros. So is what is above the rank of an adapter's layer."""

    inputs: Factors
    count: int  # N, with the backbone
    rank: int

    @property
    def bytes(self) -> int:
        return sum(values.nbytes for values in self.inputs.values())


def stacked_adapters(folder: Path, manifest: Manifest, files: AdapterFiles) -> Stacked:
    """folder: only named in errors. Raises CheckpointError for files that do not fit the manifest's layers."""
    named = zip(files.entries, files.contents, strict=True)
    return stack([_factors(folder / entry.file, content, manifest) for entry, content in named], manifest)


def stack(adapters: list[Factors], manifest: Manifest) -> Stacked:
    """The factors of adapters that fit the manifest's layers."""
    rank = max(
        (values.shape[-1] for each in adapters for name, values in each.items() if name.endswith(".up")), default=1
    )
    count, inputs = 1 + len(adapters), {}
    for layer, (out, width, taps) in manifest.adapted.items():
        down = np.zeros((count, rank, taps, width), np.float32)
        up = np.zeros((count, out, rank), np.float32)
        for index, factors in enumerate(adapters, start=1):
            if f"{layer}.up" in factors:
                own = factors[f"{layer}.up"].shape[1]
                down[index, :own], up[index, :, :own] = factors[f"{layer}.down"], factors[f"{layer}.up"]
        inputs |= {f"{layer}.down": down, f"{layer}.up": up}
    return Stacked(inputs, count, rank)


def _factors(path: Path, content: bytes, manifest: Manifest) -> Factors:
    try:
        factors = read_tensors(content)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error})") from error
    check_factors(factors, manifest.adapted, path)
    return factors


def check_factors(factors: Mapping[str, NDArray], adapted: Mapping[str, tuple[int, int, int]], where: Path) -> None:
    """Raise CheckpointError unless every tensor is of a layer of the network, in its shape, in pairs, and finite."""
    for name, values in factors.items():
        layer, _, part = name.rpartition(".")
        other = factors.get(f"{layer}.{'up' if part == 'down' else 'down'}")
        if layer not in adapted or other is None or part not in ("down", "up"):
            raise CheckpointError(f"{where} holds {name}, which is no pair of a layer of this engine")
        out, width, taps = adapted[layer]
        rank = values.shape[0 if part == "down" else -1]
        if values.shape != ((rank, taps, width) if part == "down" else (out, rank)) or values.dtype != np.float32:
            raise CheckpointError(
                f"{where} holds {name} of shape {values.shape}, and the layer has {(out, width, taps)}"
            )
        if part == "up" and other.shape[0] != rank:
            raise CheckpointError(f"{where} holds {layer} with factors of two ranks, {other.shape[0]} and {rank}")
        if not np.isfinite(values).all():
            raise CheckpointError(f"{where} holds values of {name} that are not finite")
