"""A pretrained model: what every importer returns, and how it becomes a checkpoint folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fewstep
from fewstep.card import Card, CheckpointError, Dataset, Levels
from fewstep.unet_config import config_fields

if TYPE_CHECKING:  # at run time not before a network is read: `import --help` works without torch
    from torch import Tensor

    from fewstep.checkpoint import NetworkConfig

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Imported:
    config: "NetworkConfig"
    weights: "dict[str, Tensor]"  # float32, named as in the state dict of the network of `config`
    sigma_data: float
    origin: dict[str, Any]  # for the card: JSON-able facts about the file
    data_name: str = UNKNOWN
    images: int = 0  # 0: not known
    role: Literal["teacher", "student"] = "teacher"
    levels: Levels = field(default_factory=dict)  # of a student

    def __post_init__(self) -> None:
        if self.config.channels not in (1, 3):
            raise CheckpointError(
                f"the network has {self.config.channels} image channels; only gray and RGB images can be imported"
            )


@dataclass(frozen=True)
class Provenance:
    """Facts that only the user knows."""

    data_name: str | None = None  # None: what the file says
    data_licence: str = UNKNOWN
    weights_licence: str = UNKNOWN
    class_names: tuple[str, ...] = field(default=())  # empty: "class 0", "class 1", ...


def save_imported(out: Path, model: Imported, provenance: Provenance) -> Card:
    """Write the checkpoint folder. Call `fewstep.outputs.check_folder(out)` before.

    Raises CheckpointError when there are not as many names as classes.
    """
    from fewstep.checkpoint import save_checkpoint

    classes = model.config.classes
    names = provenance.class_names
    if names and len(names) != classes:
        raise CheckpointError(f"there are {len(names)} class names, but the {model.role} has {classes} classes")
    card = Card(
        role=model.role,
        network=config_fields(model.config),
        sigma_data=model.sigma_data,
        weights="",
        dataset=Dataset(provenance.data_name or model.data_name, UNKNOWN, provenance.data_licence, model.images),
        class_names=names or tuple(f"class {index}" for index in range(classes)),
        levels=model.levels,
        training={
            "imported": {**model.origin, "licence": provenance.weights_licence},
            "environment": {"fewstep": fewstep.__version__},
        },
    )
    return save_checkpoint(out, model.weights, card)
