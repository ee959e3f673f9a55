"""Two processes under torchrun do what one does: the same curve, the same weights, one checkpoint, an orderly end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewstep.checkpoint import load_denoiser
from tests.trainer.processes import every_update_logged, interrupted
from tests.trainer.tiny import TINY_RECIPE
from trainer import classify, commands
from trainer.__main__ import main
from trainer.data.format import ImageSet, write_image_set
from trainer.methods.dpdm import Student
from trainer.methods.endpoints import FILE
from trainer.run.shards import FOLDER, read_shards
from trainer.run.state import STATE_FILE, read_facts

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
pytestmark = pytest.mark.timeout(600)  # five processes load torch, on machines that may be busy
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

UPDATES = 4  # of every run; sharded ones take half a second each
# Between them: every method, every network, every draw that processes share, every phase of a run.
SID = {"loss": "sid", "simulate": 0.5, "simulate-from": 0}
WARM = {"objective": "ncvsd", "warm": 0.2, "auxiliary-first": 0.4, "auxiliary-updates": 2}


def flags(switches: dict[str, object]) -> list[str]:
    return [word for name, value in switches.items() for word in (f"--{name}", str(value))]


@dataclass(frozen=True)
class Runs:
    """Folders of finished runs, and what each of two processes said and wrote, by name of the run."""

    folder: Path
    reports: tuple[dict, dict]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Everything trained: the served average, the networks, the head."""
        folder = self.folder / name
        state = load_file(folder / STATE_FILE)
        for shards in (folder / FOLDER).glob("*"):
            state |= read_shards(folder, shards.name, lambda _: None, "net.")
        return {key: value for key, value in state.items() if key.startswith("net.")}

    def curve(self, name: str) -> dict[str, list[tuple[int, float]]]:
        events = EventAccumulator(str(self.folder / name / "events")).Reload()
        tags = set(events.Tags()["scalars"]) - {"images_per_s"}
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module")
def data(thumbnails: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "thumbnails.zip"
    write_image_set(path, thumbnails)
    return path


@pytest.fixture(scope="module")
def runs(data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every run once in this process and once in two."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["--recipe", "digits", "--data", str(data), "--device", "cpu", "--precision", "fp32", "--compile", "off"]
    common += ["--images", str(8 * UPDATES)]
    student = ["student", *common, "--teacher", str(tiny_teacher), "--batch", "8"]

    def to(name: str) -> list[str]:
        return ["--out", str(folder / name)]

    def alone(*argv: str) -> int:
        patch.setattr(sys, "argv", ["trainer", *argv])
        return main()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "recipe", lambda name: TINY_RECIPE)
        patch.setattr(commands, "loop_config", every_update_logged(commands.loop_config))
        patch.setattr(classify, "loop_config", every_update_logged(classify.loop_config))
        assert alone("teacher", *common, "--batch", "8", *to("teacher 1")) == 0
        assert alone(*student, *flags(SID), *to("sid 1")) == 0
        assert alone(*student, *flags(WARM), *to("warm 1")) == 0
        for method in ("dmd2", "consistency"):
            assert alone(*student, "--method", method, *to(f"{method} 1")) == 0
        assert alone("classifier", *common, "--batch", "8", *to("classifier 1")) == 0
        start = ["--init", str(folder / "sid 1")]
        critic = ["--critic", str(folder / "classifier 1"), "--simulate", "0.5"]
        later = {
            "progressive": [*student, *start, "--method", "progressive", "--further", "0.004", "--simulate", "0.5"],
            "adversarial": [*student, *start, "--method", "adversarial", *critic],
        }
        for method, argv in later.items():
            assert alone(*argv, *to(f"{method} 1")) == 0
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Student, "update", interrupted(Student.update, 2))
            assert alone(*student, *flags(SID), *to("1 then 2")) == 130
        shutil.copytree(folder / "1 then 2", folder / "1 then sharded")

        by_method = {
            "teacher": ["teacher", *common, "--batch", "8"],
            "sid": [*student, *flags(SID)],
            "warm": [*student, *flags(WARM), "--rows-at-once", "3"],
            "dmd2": [*student, "--method", "dmd2"],
            "consistency": [*student, "--method", "consistency"],
            "classifier": ["classifier", *common, "--batch", "8"],
            **later,
        }
        sid = by_method["sid"]
        plan: dict[str, tuple[list[str], list[int] | None]] = {
            **{f"{name} 2": ([*argv, *to(f"{name} 2")], None) for name, argv in by_method.items()},
            **{
                f"{name} sharded": ([*by_method[name], *to(f"{name} sharded"), "--shard"], None)
                for name in ("teacher", *OTHERS)
            },
            "1 then 2": ([*sid, *to("1 then 2"), "--resume"], None),
            "2 then 1": ([*sid, *to("2 then 1")], [1, 2]),
            "1 then sharded": ([*sid, *to("1 then sharded"), "--resume", "--shard"], None),
            "sharded then 1": ([*by_method["warm"], *to("sharded then 1"), "--shard"], [1, 3]),
            "again": ([*sid, *to("sid 2"), "--resume"], None),
            "indivisible": (["teacher", *common, "--batch", "7", *to("indivisible")], None),
        }
        listed = [{"argv": argv, "interrupt": interrupt} for argv, interrupt in plan.values()]
        (folder / "plan.json").write_text(json.dumps(listed))
        command = (*TORCHRUN, str(ROOT / "tests" / "trainer" / "processes.py"), str(folder))
        done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        reports = [json.loads((folder / f"report.{rank}.json").read_text()) for rank in range(2)]
        first, second = (dict(zip(plan, report, strict=True)) for report in reports)

        for name, method, images in (("2 then 1", "sid", 16), ("sharded then 1", "warm", 24)):
            assert load_denoiser(folder / name)[1].training["images"] == images
            assert alone(*by_method[method], *to(name), "--resume") == 0
    return Runs(folder, (first, second))


def test_commands_end_alike_in_both_processes(runs: Runs):
    codes = {"indivisible": 2, "2 then 1": 130, "sharded then 1": 130}
    for report in runs.reports:
        assert {name: entry["code"] for name, entry in report.items()} == {name: codes.get(name, 0) for name in report}


OTHERS = ("dmd2", "consistency", "classifier", "progressive", "adversarial")
PAIRS = {
    "teacher": ("teacher 1", "teacher 2"),
    "student": ("sid 1", "sid 2"),
    "ncvsd": ("warm 1", "warm 2"),
    **{method: (f"{method} 1", f"{method} 2") for method in OTHERS},
    "resumed by more": ("sid 1", "1 then 2"),
    "resumed by fewer": ("sid 1", "2 then 1"),
    **{f"{name}, sharded": (f"{name} 1", f"{name} sharded") for name in ("teacher", *OTHERS)},
    "student, resumed sharded": ("sid 1", "1 then sharded"),
    "ncvsd, sharded, resumed by one": ("warm 1", "sharded then 1"),
}


@pytest.mark.parametrize(("one", "two"), PAIRS.values(), ids=list(PAIRS))
def test_two_processes_follow_the_curve_of_one(runs: Runs, one: str, two: str):
    ours, theirs = runs.curve(one), runs.curve(two)
    assert ours.keys() == theirs.keys()
    assert len({step for points in ours.values() for step, _ in points}) == UPDATES  # every update has something to say
    for tag, points in ours.items():
        assert [step for step, _ in points] == [step for step, _ in theirs[tag]], tag
        # The mean square of differences d of float32 images of order one is known to 2e-7 d: where it is small, not to
        # 1e-5 of it.
        expected = pytest.approx([value for _, value in points], rel=1e-5, abs=5e-9)
        assert [value for _, value in theirs[tag]] == expected, tag


@pytest.mark.parametrize(("one", "two"), PAIRS.values(), ids=list(PAIRS))
def test_two_processes_train_the_weights_of_one(runs: Runs, one: str, two: str):
    ours, theirs = runs.weights(one), runs.weights(two)
    assert ours.keys() == theirs.keys()
    apart = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
    # Divided weights are not channels-last, so that convolutions round in another way.
    assert max(apart.values()) < (5e-6 if "sharded" in two else 1e-6)
    assert any(name.startswith("net.average-") for name in ours)


def test_the_comparison_can_fail(runs: Runs):
    start, trained = load_file(runs.folder / "sid 1" / "model.safetensors"), runs.weights("warm 1")
    moved = (start["out_conv.conv.weight"] - trained["net.average-0.15.out_conv.conv.weight"]).abs().max().item()
    assert moved > 1e-5  # two runs of different settings are that far apart


def test_only_the_first_process_writes(runs: Runs):
    first, second = runs.reports
    written = {path for entry in second.values() for path in entry["written"]}
    assert all(f"/{FOLDER}/" in path for path in written)
    assert sum(bool(entry["written"]) for entry in second.values()) == len(OTHERS) + 3  # the sharded runs
    for name, files in (("sid 2", ("model.safetensors", STATE_FILE)), ("warm 2", (FILE,))):
        assert all(any(file in path for path in first[name]["written"]) for file in files)


def test_a_signal_to_one_process_stops_both_at_the_same_update(runs: Runs):
    first, second = (report["2 then 1"] for report in runs.reports)
    assert first["code"] == second["code"] == 130
    assert "--resume continues it" in first["said"] and second["said"] == ""  # said once


def test_a_batch_that_cannot_be_shared_out_is_refused(runs: Runs):
    assert "a batch of 7 cannot be shared by 2 processes" in runs.reports[0]["indivisible"]["said"]
    assert not (runs.folder / "indivisible").exists()


def test_the_card_says_how_many_processes_trained(runs: Runs):
    told = {name: load_denoiser(runs.folder / name)[1].training["processes"] for name in ("sid 1", "sid 2", "2 then 1")}
    assert told == {"sid 1": 1, "sid 2": 2, "2 then 1": 1}


def test_terminated_training_leaves_a_checkpoint_that_resumes(data: Path, tiny_teacher: Path, tmp_path: Path):
    run = ["student", "--recipe", "digits", "--data", str(data), "--teacher", str(tiny_teacher), "--batch", "8"]
    run += ["--device", "cpu", "--precision", "fp32", "--compile", "off", "--out", str(tmp_path)]
    command = (*TORCHRUN, "-m", "trainer", *run, "--images", "10000000")
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE) as training:
        assert training.stderr is not None
        said = b""
        while b" images/s" not in said:  # progress: training has begun
            chunk = os.read(training.stderr.fileno(), 4096)
            assert chunk, said.decode()
            said += chunk
        training.send_signal(signal.SIGTERM)
        said += training.stderr.read()
    assert b"--resume continues it" in said
    denoiser, card = load_denoiser(tmp_path)
    assert card.training["images"] == read_facts(tmp_path)["images"] > 0 and card.training["processes"] == 2
    assert denoiser(torch.zeros(1, 1, 8, 8), torch.ones(1)).isfinite().all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["trainer", *run, "--images", str(card.training["images"] + 8), "--resume"])
        assert main() == 0
    resumed = load_denoiser(tmp_path)[1].training
    assert resumed["images"] == card.training["images"] + 8 and resumed["processes"] == 1
