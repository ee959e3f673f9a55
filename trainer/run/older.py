"""Names in files that earlier versions wrote, and today's names for them."""

from typing import Any

SETTINGS = {  # method -> earlier name of a setting -> today's
    "progressive": {"keep": "anchor_weight"},
    "adversarial": {
        "play": "trained_steps", "keep": "imitation_share", "weight": "imitation_weight", "mend": "self_distill_level",
        "mended": "self_distill_unit",
    },
}  # fmt: skip


def current_settings(stored: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run as its state or card stores them, under today's names.

    `objective` "posterior" is "ncvsd" today.
    """
    names = SETTINGS.get(stored.get("method", ""), {})
    settings = {names.get(name, name): value for name, value in stored.items()}
    return settings | {"objective": "ncvsd"} if settings.get("objective") == "posterior" else settings


def current_tensor_name(name: str) -> str:
    """Layers called `told` are called `level_embedding` today."""
    return ".".join("level_embedding" if part == "told" else part for part in name.split("."))
