"""A file is one concept: none is longer than 300 lines."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("fewstep", "kernels", "trainer", "export", "server", "benchmarks", "tests")
MAX_LINES = 300


def test_no_python_file_is_longer_than_300_lines():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 20, "the folders moved; this test looks at nothing"
    counts = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files}
    assert {name: lines for name, lines in counts.items() if lines > MAX_LINES} == {}
