"""fewstep export: proof before writing, and a refusal that leaves everything as it was."""

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import export.build
from export.__main__ import main
from export.build import backends_here, export_checkpoint, verify_engine
from export.manifest import read_manifest
from export.verify import BOUNDS, compare, proof_labels
from fewstep.card import CheckpointError

ROOT = Path(__file__).parents[2]
NEVER = {"mean": -1.0, "max": -1.0}  # bounds that nothing meets


@pytest.fixture
def quick_export(monkeypatch, checkpoint):
    """Export without the exporter: the network file is the shared one, only proving and writing are at work."""
    content = (checkpoint("patch") / "engine" / "network.onnx").read_bytes()
    monkeypatch.setattr(export.build, "network_to_onnx", lambda network, weights_dtype, dtype, adapters: content)


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_manifest_describes_the_checkpoint(checkpoint):
    folder = checkpoint("patch")
    card = json.loads((folder / "card.json").read_text())
    manifest = read_manifest(folder / "engine")
    assert manifest.checkpoint == card["weights"]
    assert manifest.name == "patch"
    assert (manifest.channels, manifest.resolution, manifest.classes) == (1, 16, 10)
    assert list(manifest.class_names) == card["class_names"]
    assert sorted(manifest.levels) == [1, 2, 4, 8]
    assert manifest.bounds == BOUNDS
    assert {"torch", "onnx", "onnxruntime"} <= set(manifest.versions)


def test_command_writes_replaces_and_verifies(model, quick_export, capsys):
    out = model / "deep" / "engine"
    assert main(["--model", str(model), "--out", str(out), "--threads", "1"]) == 0
    assert read_manifest(out).name == "model"
    assert main(["--model", str(model), "--out", str(out), "--name", "second", "--threads", "1"]) == 0
    assert read_manifest(out).name == "second"
    assert sorted(path.name for path in out.parent.iterdir()) == ["engine"], "staging was left behind"
    assert main(["verify", str(out), "--model", str(model), "--threads", "1"]) == 0
    assert main(["verify", str(model / "engine"), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "mean gap" in printed and "within 1/255 mean" in printed


@pytest.mark.parametrize(("gpu", "expected"), [(True, ["torch", "onnxruntime-cpu"]), (False, ["onnxruntime-cpu"])])
def test_on_a_gpu_pytorch_is_served_by_default(monkeypatch, gpu, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert list(backends_here()) == expected


def test_parity_beyond_bounds_writes_nothing(model, quick_export):
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"differ from eager PyTorch's by .*/255 on average"):
        export_checkpoint(model, model / "engine", bounds=NEVER, threads=1)
    with pytest.raises(CheckpointError, match="differ from eager"):
        export_checkpoint(model, model / "new" / "engine", bounds=NEVER, threads=1)
    with pytest.raises(CheckpointError, match="differ from eager"):
        verify_engine(model / "engine", model, bounds=NEVER, threads=1)
    assert snapshot(model) == before
    assert not (model / "new").exists()


def test_a_wrong_network_is_refused_with_exit_code_2(model, monkeypatch, capsys):
    """The real bounds, and a network that is a little wrong: one weight tensor is half as large as it should be."""
    network = onnx.load(model / "engine" / "network.onnx")
    tensor = max(network.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 2, tensor.name))
    wrong = network.SerializeToString()
    monkeypatch.setattr(export.build, "network_to_onnx", lambda network, weights_dtype, dtype, adapters: wrong)
    before = snapshot(model)
    assert main(["--model", str(model), "--out", str(model / "engine"), "--threads", "1"]) == 2
    assert "allowed are 1/255 and 3/255. Nothing was written" in capsys.readouterr().err
    assert snapshot(model) == before


def test_interrupted_export_leaves_nothing(model, quick_export, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = snapshot(model)
    monkeypatch.setattr(export.build, "measure", interrupt)
    assert main(["--model", str(model), "--out", str(model / "engine")]) == 130
    assert main(["--model", str(model), "--out", str(model / "new" / "engine")]) == 130
    assert snapshot(model) == before
    assert not (model / "new").exists()


# `python -m export` without the exporter: the network file is the one at the path that comes first.
QUICK_EXPORT = """
import runpy, sys
from pathlib import Path
import export.build
content = Path(sys.argv.pop(1)).read_bytes()
export.build.network_to_onnx = lambda network, weights_dtype, dtype, adapters: content
runpy.run_module("export", run_name="__main__")
"""


def test_terminated_export_leaves_nothing(model):
    before = snapshot(model)
    flags = ["--model", str(model), "--out", str(model / "engine"), "--threads=1"]
    command = [sys.executable, "-c", QUICK_EXPORT, model / "engine" / "network.onnx", *flags]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.returncode is None and not list(model.glob(".engine.export.*")):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert snapshot(model) == before


@pytest.mark.parametrize("damage", ["truncated", "foreign", "missing"])
def test_unusable_checkpoint_is_refused(model, tmp_path, capsys, damage):
    path = model / "model.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "foreign":
        (model / "card.json").write_text('{"who": "knows"}')
    else:
        path.unlink()
    assert main(["--model", str(model), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_no_engine_is_left_alone(model, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    assert main(["--model", str(model), "--out", str(precious)]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    (model / "engine" / "notes.txt").write_text("mine")
    assert main(["--model", str(model), "--out", str(model / "engine")]) == 2
    assert main(["--model", str(model), "--out", str(model)]) == 2
    assert main(["--model", str(model), "--out", str(precious / "thesis.tex")]) == 2
    assert (precious / "thesis.tex").read_text() == "years of work"
    assert (model / "engine" / "notes.txt").read_text() == "mine"


def test_verify_refuses_another_checkpoint(checkpoint, capsys):
    assert main(["verify", str(checkpoint("patch") / "engine"), "--model", str(checkpoint("adm"))]) == 2
    assert "exported from another checkpoint" in capsys.readouterr().err


def test_compare_counts_in_pixels():
    black = np.full((2, 1, 2, 2), -1.0, dtype=np.float32)
    lighter = black.copy()
    lighter[0, 0, 0, 0] += 2 * 4 / 255
    gap = compare(black, lighter, nfe=3)
    assert gap.max == pytest.approx(4.0, rel=1e-4)
    assert gap.mean == pytest.approx(4.0 / 8, rel=1e-4)
    assert gap.differing == 1 / 8
    assert not gap.within(BOUNDS)
    assert not dataclasses.replace(gap, mean=float("nan"), max=float("nan")).within(BOUNDS)


def test_proof_covers_the_classes():
    assert proof_labels(0, 16) is None
    assert set(np.asarray(proof_labels(10, 16))) == set(range(10))
    spread = np.asarray(proof_labels(1000, 16))
    assert len(set(spread)) == 16 and spread.max() < 1000
