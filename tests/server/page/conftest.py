"""axe-core for the tests of the page: a file of its own licence (MPL 2.0), which is not in the checkout."""

import os
from pathlib import Path

import pytest

VARIABLE = "AXE_CORE"


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe.min.js."""
    path = os.environ.get(VARIABLE)
    if not path:
        pytest.skip(f"{VARIABLE} does not name an axe.min.js (npm pack axe-core has one)")
    return Path(path).read_text("utf-8")
