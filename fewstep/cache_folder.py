"""Where fewstep keeps what can be made again: below the user's cache folder."""

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(name: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """fewstep/NAME in $XDG_CACHE_HOME, else in ~/.cache; None for a user without a home folder. Nothing is made."""
    given = environment.get("XDG_CACHE_HOME", "")
    if given.startswith("/"):  # another path is to be ignored, by the specification
        return Path(given) / "fewstep" / name
    try:
        return Path.home() / ".cache" / "fewstep" / name
    except RuntimeError:  # neither HOME nor an entry in the list of users, as in some containers
        return None
