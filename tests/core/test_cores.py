"""Which cores there are, how many a container pays for, and who gets which."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep import cores


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "ascii")
    return root


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/of/the/host\n", {"cpu.max": "50000 100000"}, 0.5),
        ("3:memory:/x\n2:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "4000", "cpu/x/cpu.cfs_period_us": "1000"}, 4.0),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("1:cpu:/\n0::/\n", {"unified/cpu.max": "300000 100000"}, 3.0),
        ("", {}, None),
    ],
)  # fmt: skip
def test_the_quota_of_a_container(tmp_path: Path, membership: str, files: dict[str, str], expected: float | None):
    root = written(tmp_path / "cgroup", files)
    root.mkdir(exist_ok=True)
    assert cores.quota(written(tmp_path, {"membership": membership}) / "membership", root) == expected


def test_no_more_cores_than_the_quota_pays_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "usable", lambda: tuple(range(8)))
    for limit, expected in ((None, 8), (3.9, 3), (0.5, 1), (64.0, 8)):
        monkeypatch.setattr(cores, "quota", lambda limit=limit: limit)
        assert cores.count() == expected


def test_siblings_are_one_core(tmp_path: Path):
    siblings = {f"cpu{core}/topology/thread_siblings_list": f"{core % 2},{core % 2 + 2}\n" for core in range(4)}
    assert cores.groups((0, 1, 2, 3, 7), written(tmp_path, siblings)) == [(0, 2), (1, 3), (7,)]


@given(st.integers(1, 12), st.integers(1, 16))
def test_shares_are_disjoint_while_there_is_a_core_for_each(groups: int, shares: int):
    pairs = [(core, core + groups) for core in range(groups)]
    given = [cores.share(pairs, index, shares) for index in range(shares)]
    assert all(given) and {core for each in given for core in each} <= {core for pair in pairs for core in pair}
    if shares <= groups:
        assert sorted(core for each in given for core in each) == list(range(2 * groups)), "each core has one owner"
        assert max(map(len, given)) - min(map(len, given)) <= 2
