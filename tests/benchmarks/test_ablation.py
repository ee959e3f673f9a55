"""The ablation: its arithmetic on canned results, its memory of finished runs, and the command."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import ablation
from benchmarks.ablation_table import STEPS, compose, printed
from benchmarks.digit_features import load_digit_sets, make_yardstick
from fewstep.card import CheckpointError
from fewstep.network import UNet
from trainer.settings import StudentConfig


def result(*distances: float | None) -> dict:
    return {"distance": dict(zip(map(str, STEPS), distances, strict=True))}


CANNED = {
    "base": [result(10.0, 5, 3, 1), result(11.0, 5, 4, 1), result(12.0, 5, 5, 1)],
    "worse": [result(15.0, 5, 3, 2), result(16.0, 6, 4, 2), result(17.0, 7, 5, 2)],
    "broken": [result(11.0, 5, None, None), result(11.0, 5, 3, None)],
}


def test_rows_are_means_and_deviations_over_seeds():
    base, worse, broken = compose(CANNED)
    assert (base.cells["1"].mean, base.cells["1"].std, base.seeds) == (11.0, 1.0, 3)
    assert (worse.cells["2"].mean, worse.seeds, broken.seeds) == (6.0, 3, 2)
    assert broken.cells["4"].diverged == 1 and broken.cells["4"].values == (3,) and broken.cells["4"].std is None
    assert broken.cells["8"].diverged == 2 and broken.cells["8"].mean is None


def test_a_star_marks_differences_of_more_than_two_combined_standard_errors():
    base, worse, _ = compose(CANNED)
    assert not any(cell.stands_out for cell in base.cells.values())
    # k=1: 16 against 11, errors of 1 / sqrt(3) each. k=2: 6 +- 0.58 against 5 exactly. k=4: equal. k=8: no scatter.
    assert [worse.cells[str(k)].stands_out for k in STEPS] == [True, False, False, True]
    text = printed([base, worse], 0.5, 600)
    assert "16 ± 1*" in text and "6 ± 1 " in text and "floor 0.5" in text


def test_a_table_without_the_base_has_no_stars_and_diverged_runs_are_told():
    rows = compose({name: runs for name, runs in CANNED.items() if name != "base"})
    assert not any(cell.stands_out for row in rows for cell in row.cells.values())
    assert "diverged 1/2" in printed(rows, None, 600) and "diverged 2/2" in printed(rows, None, 600)


def test_every_variant_throws_one_switch():
    known = ablation.variants()
    base = vars(known["base"])
    for name, config in known.items():
        changed = {field for field, value in vars(config).items() if value != base[field]}
        together = (
            {"loss"}, {"loss", "alpha"}, {"simulate", "simulate_from"}, {"simulate"}, {"warm", "warm_pairs"},
            {"objective", "sigma_max"}, {"sigma_max", "auxiliary_sees_level"},
            {"renoise", "sigma_max", "auxiliary_sees_level"}, {"adversary", "loss"},
        )  # fmt: skip
        assert (len(changed) == 1 or changed in together) if name != "base" else not changed, (name, changed)
    assert len({str(config) for config in known.values()}) == len(known)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ablation.World:
    return ablation.make_world(tmp_path_factory.mktemp("ablation"), ablation.SMOKE)


def test_finished_runs_are_not_repeated_and_an_interrupted_one_is(world, monkeypatch):
    ran = []

    def fake(_, config: StudentConfig, seed: int) -> dict:
        if config.renoise == "tied" and seed == 1 and ("tied", 0) in ran and ran.count("interrupted") == 0:
            ran.append("interrupted")
            raise KeyboardInterrupt
        ran.append((config.renoise, seed))
        return result(4.0 + seed, 3, 2, 1)

    monkeypatch.setattr(ablation, "run", fake)
    with pytest.raises(KeyboardInterrupt):
        ablation.measure(world, ["base", "tied"], range(2))
    rows = ablation.measure(world, ["base", "tied"], range(2))
    assert [run for run in ran if run != "interrupted"] == [("hybrid", 0), ("tied", 0), ("hybrid", 1), ("tied", 1)]
    assert [(row.variant, row.seeds, row.cells["1"].mean) for row in rows] == [("base", 2, 4.5), ("tied", 2, 4.5)]
    # Asked for one, it shows all that is there.
    assert [row.variant for row in ablation.measure(world, ["base"], range(2))] == ["base", "tied"]


def test_runs_made_with_other_settings_are_refused(world):
    ablation.store(world, "sid-1", ablation.variants()["sid-1"], 7, result(1, 1, 1, 1))
    assert ablation.stored(world, "sid-1", ablation.variants()["sid-1"], 7)
    with pytest.raises(CheckpointError, match="made with other settings"):
        ablation.stored(world, "sid-1", replace(ablation.variants()["sid-1"], alpha=0.7), 7)
    with pytest.raises(CheckpointError, match="trained with other settings"):
        ablation.make_world(world.work, replace(ablation.SMOKE, teacher_images=1280))
    # The same settings find the same teacher and the same yardstick.
    again = ablation.make_world(world.work, ablation.SMOKE)
    assert (again.card, again.yardstick.sha256) == (world.card, world.yardstick.sha256)


@pytest.mark.parametrize("name", ["base", "warm-start", "ncvsd"])
def test_a_run_is_reproducible_and_judged_at_every_step_count(name, world):
    config = replace(ablation.variants()[name], warm_pairs=8)
    first, again = (ablation.run(world, config, 3) for _ in range(2))
    assert first["distance"] == again["distance"] and list(first["distance"]) == [str(k) for k in STEPS]
    assert all(distance > 0 for distance in first["distance"].values())
    assert ablation.run(world, config, 4)["distance"] != first["distance"]


def test_a_network_that_lost_its_numbers_has_no_images():
    network = UNet(replace(ablation.SMOKE.network, classes=10))
    assert ablation.sampled(network, 0.5, (80.0, 3.0), range(4)).shape == (4, 8, 8, 1)  # pyright: ignore[reportOptionalMemberAccess]
    torch.nn.init.constant_(next(network.parameters()), float("nan"))
    assert ablation.sampled(network, 0.5, (80.0, 3.0), range(4)) is None


def test_yardstick_knows_digits_and_sees_what_is_wrong_with_others(world):
    data, held_out = load_digit_sets()
    assert len(data.images) + len(held_out.images) == 1797 and len(held_out.images) == 599
    assert not {image.tobytes() for image in data.images} & {image.tobytes() for image in held_out.images}
    yardstick = world.yardstick
    assert yardstick.accuracy > 0.95
    floor = yardstick.floor(599)
    assert floor == yardstick.distance(held_out.images) and yardstick.floor(600) is None
    blurred = (held_out.images.astype(np.uint16) + np.roll(held_out.images, 1, axis=1)) // 2
    one_class = held_out.images[held_out.labels == 3]
    assert yardstick.distance(blurred.astype(np.uint8)) > 3 * floor and yardstick.distance(one_class) > 10 * floor
    assert make_yardstick(world.work, data, held_out).sha256 == yardstick.sha256


def test_smoke_run_prints_a_table_and_writes_json_and_png(tmp_path, monkeypatch, capsys):
    out = tmp_path / "ablation.json"
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--smoke", "--out", str(out)])
    assert ablation.main() == 0
    written = json.loads(out.read_text())
    assert [row["variant"] for row in written["rows"]] == ["base", "tied"] and written["floor"] > 0
    assert all(len(row["cells"]["4"]["values"]) == 2 for row in written["rows"])
    assert "k=8" in capsys.readouterr().out and out.with_suffix(".png").stat().st_size > 10_000
