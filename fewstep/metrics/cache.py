"""Arrays kept on disk under the facts they depend on.

A key is everything an entry depends on, as JSON; its hash names the file and its text lies inside. Never pickle.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.card import CheckpointError, write_atomically
from fewstep.noise import NOISE_VERSION

Key = dict[str, Any]
FORMAT = 1


@dataclass(frozen=True)
class Cache:
    """A folder of .npz files, one per key; `kind` of a key begins the file's name."""

    folder: Path

    def path(self, key: Key) -> Path:
        digest = hashlib.sha256(_text(key).encode()).hexdigest()
        return self.folder / f"{key['kind']}-{digest[:24]}.npz"

    def read(self, key: Key) -> dict[str, NDArray] | None:
        """The arrays under this key, or None. Raises CheckpointError when the file is not what its name says."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            if str(arrays.pop("key")) == _text(key):
                return arrays
        except (ValueError, KeyError, OSError, zipfile.BadZipFile, EOFError):
            pass
        raise CheckpointError(f"{path} is damaged; delete it, and it will be made again")

    def write(self, key: Key, **arrays: Any) -> None:
        """Whole or not at all, whatever happens to this process."""
        buffer = io.BytesIO()
        np.savez(buffer, key=np.array(_text(key)), **arrays)
        write_atomically(self.path(key), buffer.getvalue())


def _text(key: Key) -> str:
    return json.dumps({"format": FORMAT, "noise": NOISE_VERSION, **key}, sort_keys=True)
