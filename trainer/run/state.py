"""Resumable training state in one safetensors file: weights, averages, optimiser moments, generators.

Of networks that are divided among processes (trainer.run.sharding) the file names a folder of shards
(trainer.run.shards). Either kind of state can be resumed by either kind of run.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from fewstep.card import WEIGHTS_FILE, CheckpointError, file_sha256, write_atomically
from fewstep.outputs import ADAPTER_FILE, CLASSIFIER_FILE, STATE_FILE
from trainer.run.distributed import rank
from trainer.run.older import current_tensor_name
from trainer.run.sharding import fitted, is_divided
from trainer.run.shards import read_shards, remove_shards, save_shards

FORMAT = 2  # 2: generators lie on the CPU, and a run knows how many images it plans
_STAGED = f".{STATE_FILE}.staged"


@dataclass(frozen=True)
class Parts:
    """Everything with tensors that changes during training, by name. It is saved, and restored in place."""

    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    generator: torch.Generator


def stage_state(folder: Path, parts: Parts, facts: dict[str, Any]) -> None:
    """Write the state to a second file. After the weights of the same moment are written, `settle_state` renames it.

    facts: JSON-able values for `read_facts`, such as the images seen. Every process takes part where networks are
    divided, otherwise only the first one.
    """
    tensors: dict[str, Tensor] = {
        f"net.{name}.{key}": value for name, net in parts.networks.items() for key, value in net.state_dict().items()
    }
    for name, optimizer in parts.optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"opt.{name}.{index}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    tensors["rng.loop"] = parts.generator.get_state()
    tensors["rng.torch"] = torch.get_rng_state()  # dropout draws from it
    divided = {name: tensor.detach() for name, tensor in tensors.items() if is_divided(tensor)}
    shards = {"shards": save_shards(folder, divided)} if divided else {}
    if rank() > 0:
        return
    rest = {name: tensor for name, tensor in tensors.items() if name not in divided}
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in rest.items()}
    metadata = {"facts": json.dumps({"format": FORMAT, **facts}), "replaces": _served_sha256(folder), **shards}
    write_atomically(folder / _STAGED, save_tensors(owned, metadata=metadata))


def settle_state(folder: Path) -> None:
    """Rename a staged state if the weights of its moment are there, and remove it if they are not.

    State and weights cannot be renamed at the same time. The staged state stores the hash of the weights that it
    replaces, so after a process was killed at any moment the folder has a state and the weights that belong to it.
    Shards that no state names are removed.
    """
    staged = folder / _STAGED
    if not staged.is_file():
        return
    with safe_open(staged, framework="pt") as file:
        written = file.metadata()["replaces"] != _served_sha256(folder)
    if written:
        staged.replace(folder / STATE_FILE)
    else:
        staged.unlink()
    remove_shards(folder, _shards_of(folder / STATE_FILE) if (folder / STATE_FILE).is_file() else None)


def _shards_of(path: Path) -> str | None:
    """The folder of shards that a state names; None: it has none."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("shards")


def _served_sha256(folder: Path) -> str:
    """Of the weights, the classifier or the adapter that a run leaves; "" where there are none."""
    files = [folder / name for name in (WEIGHTS_FILE, CLASSIFIER_FILE, ADAPTER_FILE) if (folder / name).is_file()]
    return file_sha256(files[0]) if files else ""


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts given to `stage_state`. Raises CheckpointError."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {STATE_FILE}: there is nothing to resume; start without --resume")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
        if facts.pop("format") != FORMAT:
            raise CheckpointError(f"{path} was written by another version; choose another --out")
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not a readable training state ({error}); choose another --out") from error
    return facts


def load_state(folder: Path, parts: Parts) -> None:
    """Restore every part in place. Every process takes part. Raises CheckpointError."""
    own = {
        f"net.{name}.{key}": value for name, net in parts.networks.items() for key, value in net.state_dict().items()
    }
    parameters = {name: _parameters(optimizer) for name, optimizer in parts.optimizers.items()}

    def like(name: str) -> Tensor | None:
        """A moment is divided as its parameter is."""
        kind, part, index = [*name.split(".", 2), ""][:3]
        return parameters[part][int(index.split(".")[0])] if kind == "opt" and part in parameters else own.get(name)

    try:
        tensors = _read(folder, like)
        for name, network in parts.networks.items():
            mine = _below(own, f"net.{name}.")
            stored = _below(tensors, f"net.{name}.")
            network.load_state_dict({key: fitted(value, mine.get(key, value)) for key, value in stored.items()})
        for name, optimizer in parts.optimizers.items():
            _restore_optimizer(optimizer, _below(tensors, f"opt.{name}."))
        parts.generator.set_state(tensors["rng.loop"])
        torch.set_rng_state(tensors["rng.torch"])
    except (SafetensorError, KeyError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{folder / STATE_FILE} does not fit this run ({error}); choose another --out") from error


def load_network(folder: Path, name: str, network: nn.Module) -> bool:
    """Fill `network` from the one called `name` in the state of `folder`, in place. Every process takes part.

    False: there is no state, no such network in it, or one of other shapes; then nothing has changed.
    Raises CheckpointError for a state that cannot be read.
    """
    path, prefix, own = folder / STATE_FILE, f"net.{name}.", network.state_dict()
    if not path.is_file():
        return False
    try:
        weights = _below(_read(folder, lambda key: own.get(key.removeprefix(prefix)), prefix), prefix)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a readable training state ({error}); delete it to go on without"
        ) from error
    if weights.keys() != own.keys() or any(weights[key].shape != own[key].shape for key in own):
        return False
    network.load_state_dict(weights)
    return True


def _read(folder: Path, like: Callable[[str], Tensor | None], prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`. What lies in shards is divided as `like(its name)` is."""
    path = folder / STATE_FILE
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        tensors = {current_tensor_name(name): file.get_tensor(name) for name in names}
    shards = _shards_of(path)
    return tensors | read_shards(folder, shards, like, prefix) if shards else tensors


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = _parameters(optimizer)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # Fused Adam reads both in memory order, so a moment needs the memory layout of its parameter.
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(fitted(tensor, parameter))
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
