"""Where the folders beside `fewstep` are: its siblings in a checkout; in an installed wheel, a private folder.

`server` and `kernels` are names of other people's packages, too. A wheel therefore installs `fewstep` alone, with the
other folders inside it, and only the `fewstep` command puts them on its path (docs/adr/0031).
"""

import sys
from pathlib import Path

PRIVATE = Path(__file__).resolve().parent / "_application"  # the name is also in pyproject.toml
INSTALLED = PRIVATE.is_dir()  # from a wheel
ROOT = PRIVATE if INSTALLED else PRIVATE.parents[1]  # holds server/, export/, models/ and so on


def put_on_path() -> None:
    """From now on, `import server` finds ours: before every other package of that name."""
    if sys.path[:1] != [str(ROOT)]:
        sys.path.insert(0, str(ROOT))
