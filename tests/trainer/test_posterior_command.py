"""fewstep posterior: from a prior and a reward to an adapter, stopped and continued, and what is refused."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from export.__main__ import main as export
from fewstep.__main__ import main
from fewstep.adapters import load_adapter, load_posterior, load_student, read_adapter_card
from fewstep.ancestral import sample_ancestral, student_chain
from fewstep.card import Card, CheckpointError, Dataset, read_card
from fewstep.checkpoint import load_denoiser, save_checkpoint
from fewstep.command_line import parse
from fewstep.noise_torch import noise_for
from fewstep.pixels import to_pixels
from fewstep.samplers import sample_dpdm
from fewstep.unet_config import UNetConfig
from tests.server.conftest import serving
from tests.trainer.flags import numeric_flags
from tests.trainer.tiny import lively, normals
from trainer import posterior_distil, posterior_run
from trainer.critics.classifier import ClassifierConfig, NoisyClassifier, save_classifier
from trainer.data.format import ImageSet, write_image_set
from trainer.posterior import PROG
from trainer.posterior_checks import diverged
from trainer.posterior_options import Order, PosteriorCommand
from trainer.run.artifacts import describe

PRIOR = UNetConfig(resolution=8, channels=1, width=8, mult=(1,), blocks=1)
SHORT = ("--updates", "4", "--batch", "8", "--steps", "4", "--sigma-max", "10", "--evaluate", "16", "--device", "cpu")
BRIGHT = "def bright(images):\n    return 5 * images.clamp(-1, 1).mean(dim=(1, 2, 3))\n"


def checkpoint(
    folder: Path, config: UNetConfig = PRIOR, role: Literal["teacher", "student"] = "teacher", **more
) -> Path:
    network = lively(config)
    save_checkpoint(
        folder, network.state_dict(), Card(role, describe(network), 0.5, "", Dataset("none", "", "n", 0), **more)
    )
    return folder


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(BRIGHT)
    return checkpoint(tmp_path / "prior")


def run(prior: Path, out: Path, *more: str, reward: str = "") -> int:
    reward = reward or f"{prior.parent}/mine.py:bright"
    return main(["posterior", "--prior", str(prior), "--reward", reward, "--out", str(out), *SHORT, *more])


def test_a_prior_and_a_function_make_an_adapter_with_its_report(prior: Path, tmp_path: Path, capsys):
    mixed = "on_policy=0.5,explore=0.2,prior=0.3"
    assert (
        run(prior, tmp_path / "p", "--mix", mixed, "--warm-start", "2", "--pool", "16", "--merged", "--lr", "0.02") == 0
    )
    said = capsys.readouterr()
    assert "ELBO" in said.out and "warm start  2 of 2" in said.err and "100 %  32 of 32 images" in said.err
    page = (tmp_path / "p" / "report.html").read_text()
    assert "effective sample size" in page and "explore" in page and "fewstep posterior" in page
    monitors = json.loads((tmp_path / "p" / "monitors.json").read_text())
    assert monitors["elbo"] <= monitors["log_z"] and 0 < monitors["ess"] <= 1
    card = read_adapter_card(tmp_path / "p")
    assert card.monitors == monitors and card.prior == read_card(prior).weights and card.training["images"] == 32
    assert len(list((tmp_path / "p" / "samples").glob("*.png"))) == 1

    loaded = load_posterior(prior, tmp_path / "p")
    noise = noise_for(range(3), (1, 8, 8))
    made = sample_ancestral(
        loaded.posterior, noise, loaded.chain, decoder=loaded.prior, log_variance=loaded.log_variance
    )
    assert made.nfe == 4 and made.images.isfinite().all()
    merged, merged_card = load_denoiser(tmp_path / "p" / "merged")
    x, sigma = torch.ones(2, 1, 8, 8), torch.tensor([3.0, 0.3])
    torch.testing.assert_close(merged(x, sigma), loaded.posterior(x, sigma))
    assert float((merged(x, sigma) - loaded.prior(x, sigma)).abs().max()) > 1e-4
    assert merged_card.parent == card.prior


def test_a_run_that_was_interrupted_ends_where_an_uninterrupted_one_does(prior: Path, tmp_path: Path, capsys):
    """The reward interrupts the process at its fourth call, once: the first is that before the work."""
    stopping = (
        "import os, signal\nfrom pathlib import Path\n"
        "marker, calls = Path(__file__).with_name('stopped'), []\n\n"
        "def bright(images):\n    calls.append(1)\n"
        "    if len(calls) == 4 and not marker.exists():\n"
        "        marker.touch()\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return 5 * images.clamp(-1, 1).mean(dim=(1, 2, 3))\n"
    )
    (prior.parent / "mine.py").write_text(stopping)
    mix = ("--mix", "on_policy=0.5,replay=0.5", "--log-z", "learned", "--levels", "2", "--variance", "small")
    assert run(prior, tmp_path / "a", *mix) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    assert read_adapter_card(tmp_path / "a").training["images"] == 24
    assert run(prior, tmp_path / "a", *mix) == 0
    (prior.parent / "mine.py").write_text(BRIGHT)
    assert run(prior, tmp_path / "b", *mix) == 0
    network = lively(PRIOR)
    ends = [load_adapter(tmp_path / name, network)[0].tensors() for name in ("a", "b")]
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)
    before = (tmp_path / "b" / "adapter.safetensors").read_bytes()
    capsys.readouterr()
    assert run(prior, tmp_path / "b", *mix) == 0  # complete: nothing is trained, and nothing evaluated
    said = capsys.readouterr()
    assert "is complete" in said.out and "ELBO" in said.out and "evaluating" not in said.err
    assert (tmp_path / "b" / "adapter.safetensors").read_bytes() == before
    assert run(prior, tmp_path / "b", *mix, "--rank", "2") == 2
    assert "rank was 4, now 2" in capsys.readouterr().err


def test_every_class_has_a_posterior_in_one_adapter(prior: Path, tmp_path: Path):
    torch.manual_seed(0)
    save_classifier(tmp_path / "c", NoisyClassifier(ClassifierConfig(8, 1, 3, 0.5, width=8)), {})
    more = ("--variance", "small", "--lr", "0.05", "--merged")
    assert run(prior, tmp_path / "p", *more, reward=f"each-class:{tmp_path / 'c'}") == 0
    loaded = load_posterior(prior, tmp_path / "p", merge=False)
    assert loaded.card.groups == 3 and loaded.posterior.classes == 3
    x, sigma = torch.ones(2, 1, 8, 8), torch.tensor([2.0, 2.0])
    outputs = loaded.posterior(x, sigma, torch.tensor([0, 1]))
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-5
    merged, card = load_denoiser(tmp_path / "p" / "merged")
    assert merged.classes == 3 and len(card.class_names) == 3
    torch.testing.assert_close(merged(x, sigma, torch.tensor([0, 1])), outputs, rtol=1e-4, atol=1e-5)


def test_a_prior_with_classes_has_a_posterior_in_each_and_data_can_be_noised_back(prior: Path, tmp_path: Path):
    checkpoint(tmp_path / "labelled", replace(PRIOR, classes=2), class_names=("a", "b"))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(12, dtype=np.int32) % 2
    write_image_set(tmp_path / "d.zip", ImageSet("d", pixels, labels, ("a", "b"), "none", "made here"))
    more = ("--variance", "large", "--mix", "on_policy=0.4,noised_back=0.6", "--data", str(tmp_path / "d.zip"))
    reward = f"{prior.parent}/mine.py:bright"
    assert run(tmp_path / "labelled", tmp_path / "p", *more, reward=reward) == 0
    assert load_posterior(tmp_path / "labelled", tmp_path / "p").posterior.classes == 2


def test_a_student_is_tilted_on_the_chain_of_its_own_steps(prior: Path, tmp_path: Path):
    levels = {2: (2.5, 0.6), 4: (2.5, 1.0, 0.4, 0.1)}
    student = checkpoint(tmp_path / "student", role="student", levels=levels)
    reward = f"{prior.parent}/mine.py:bright"
    assert run(student, tmp_path / "p", reward=reward) == 0
    assert load_posterior(student, tmp_path / "p").chain == student_chain(levels[4])
    assert run(student, tmp_path / "q", "--steps", "3", reward=reward) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--batch", "2"), "gives some of 3 groups less than two"),
        (("--evaluate", "4"), "--evaluate 4 gives some of 3 groups less than two"),
        (("--data", "absent.zip"), "absent.zip does not exist"),
        (("--prior", "absent"), "is not a fewstep checkpoint"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_nothing_written(more, said: str, prior: Path, tmp_path: Path, capsys):
    save_classifier(tmp_path / "c", NoisyClassifier(ClassifierConfig(8, 1, 3, 0.5, width=8)), {})
    assert run(prior, tmp_path / "p", *more, reward=f"each-class:{tmp_path / 'c'}") == 2
    error = capsys.readouterr().err
    assert said in error and "measuring" not in error
    assert not (tmp_path / "p").exists()


def test_a_reward_that_fails_stops_the_run_in_a_sentence(prior: Path, tmp_path: Path, capsys):
    (prior.parent / "bad.py").write_text("def nan(images):\n    return images.sum(dim=(1, 2, 3)) * float('nan')\n")
    assert run(prior, tmp_path / "p", "--variance", "small", reward=f"{prior.parent}/bad.py:nan") == 2
    assert "returned NaN for 2 of 2 images" in capsys.readouterr().err
    assert run(tmp_path / "prior", tmp_path / "prior") == 2
    assert "already holds a model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "text", "said"),
    [
        ("--mix", "on_policy=0.5", "must sum to 1"),
        ("--mix", "own=1", "'own' is no behaviour"),
        ("--mix", "prior", "write prior=0.5"),
        ("--mix", "noised_back=1", "give --data ZIP"),
        ("--sigma-max", "0.01", "must be below --sigma-max"),
        ("--distil-pool", "16", "--distil-pool: only with --distil; add it"),
    ],
)
def test_wrong_values_are_refused_by_name(flag: str, text: str, said: str, prior: Path, tmp_path: Path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(prior, tmp_path / "p", flag, text)
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "p").exists()


def order(*more: str) -> Order:
    return parse(PosteriorCommand, ["--prior", "p", "--reward", "r:f", "--out", "o", *more], PROG).order


@pytest.mark.parametrize(("flag", "default"), list(numeric_flags(PosteriorCommand)))
def test_every_numeric_flag_takes_its_default_and_refuses_what_is_no_such_number(flag, default, tmp_path: Path, capsys):
    line = ["--prior", "p", "--reward", "r:f", "--out", str(tmp_path / "out"), "--distil"]
    if default is not None:
        assert order("--distil", flag, str(default)) == order("--distil")
    assert order("--distil", flag, "0.5" if flag in SMALL else "7") != order("--distil")
    for text in ("-1", "nan", "1e400", "many"):
        with pytest.raises(SystemExit, match="2"):
            main(["posterior", *line, f"{flag}={text}"])
        said = capsys.readouterr().err
        assert flag in said and text in said


SMALL = ("--lr", "--distil-lr", "--beta-until")  # flags of at most 1


def test_a_seed_is_a_whole_number_up_to_its_bound():
    assert [order("--seed", text).seed for text in ("0", "7", str(2**63 - 1))] == [0, 7, 2**63 - 1]


def test_beta_starts_where_it_ends_unless_that_is_given():
    assert order("--beta", "2").config.beta_start == 2 and order().config.beta_start == 1
    assert order("--beta", "2", "--beta-start", "0.5").config.beta_start == 0.5


def test_a_run_takes_a_seed(prior: Path, tmp_path: Path):
    assert run(prior, tmp_path / "p", "--variance", "small", "--seed", str(2**63 - 1)) == 0
    assert read_adapter_card(tmp_path / "p").training["seed"] == 2**63 - 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("images.sum(dim=(1, 2, 3)) * float('nan')", "returned NaN for 2 of 2 images"),
        ("images", r"shape [2, 1, 8, 8] for 2 images"),
        ("images.mean(dim=(1, 2, 3)) + missing", "mine.py, line 2: NameError: name 'missing' is not defined"),
    ],
)
def test_a_wrong_reward_is_refused_before_the_prior_is_measured(body: str, said: str, prior: Path, tmp_path, capsys):
    (prior.parent / "mine.py").write_text(f"def bright(images):\n    return {body}\n")
    assert run(prior, tmp_path / "p") == 2
    error = capsys.readouterr().err
    assert said in error and "measuring" not in error
    assert not (tmp_path / "p").exists()


def test_the_measurement_of_the_prior_shows_how_far_it_is(prior: Path, tmp_path: Path, capsys):
    assert run(prior, tmp_path / "p") == 0
    assert "measuring  39 of 39 network calls" in capsys.readouterr().err


def test_a_changed_reward_is_another_run(prior: Path, tmp_path: Path, capsys):
    mine = prior.parent / "mine.py"
    assert run(prior, tmp_path / "p", "--variance", "small") == 0
    mine.write_text(BRIGHT.replace("5 *", "-5 *"))
    assert run(prior, tmp_path / "p", "--variance", "small") == 2
    assert "--reward is not what the run" in capsys.readouterr().err
    mine.write_text(BRIGHT)
    merged = ("--variance", "small", "--merged")
    assert run(prior, tmp_path / "p", *merged) == 0  # the model is written without another evaluation
    said = capsys.readouterr()
    assert "is complete" in said.out and "evaluating" not in said.err
    x, sigma = torch.ones(2, 1, 8, 8), torch.tensor([3.0, 0.3])
    loaded = load_posterior(prior, tmp_path / "p")
    torch.testing.assert_close(load_denoiser(tmp_path / "p" / "merged")[0](x, sigma), loaded.posterior(x, sigma))
    assert run(prior, tmp_path / "p", *merged, "--evaluate", "20") == 0
    assert "evaluating on 20" in capsys.readouterr().err


def test_changed_images_are_another_run(prior: Path, tmp_path: Path, capsys):
    rng, data, labels = np.random.default_rng(0), tmp_path / "d.zip", np.zeros(12, dtype=np.int32)
    write = lambda: write_image_set(  # noqa: E731
        data, ImageSet("d", rng.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8), labels, ("a",), "none", "made")
    )
    more = ("--variance", "small", "--mix", "on_policy=0.5,noised_back=0.5", "--data", str(data))
    write()
    assert run(prior, tmp_path / "p", *more) == 0
    write()
    assert run(prior, tmp_path / "p", *more) == 2
    assert "--data is not what the run" in capsys.readouterr().err
    data.unlink()
    assert run(prior, tmp_path / "p", *more) == 2


@pytest.mark.parametrize("value", ["-math.inf", "-1e6"])
def test_a_reward_that_is_at_its_floor_everywhere_ends_in_a_sentence(value: str, prior: Path, tmp_path: Path, capsys):
    (prior.parent / "mine.py").write_text(
        f"import math\n\ndef bright(images):\n    return images.new_full((len(images),), {value})\n"
    )
    assert run(prior, tmp_path / "p", "--variance", "small") == 2
    assert "every one of 32 images" in (said := capsys.readouterr().err) and "nothing to learn" in said


@pytest.mark.parametrize("weak", ["0", "0.01 * images.clamp(-1, 1)"])
def test_a_weak_reward_is_not_said_to_diverge(weak: str, prior: Path, tmp_path: Path, capsys):
    (prior.parent / "mine.py").write_text(
        f"def bright(images):\n    return ({weak} + 0 * images).mean(dim=(1, 2, 3))\n"
    )
    assert run(prior, tmp_path / "p", "--variance", "small", "--lr", "0.003", "--evaluate", "200") == 0
    assert "diverged" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("elbo", "error", "ess", "said"),
    [
        (-1.5, 0.1, 0.1, True),
        (-1.5, 0.2, 0.1, False),  # within four standard errors of -1
        (-1.5, 0.1, 0.6, False),  # the samples are the posterior's
        (math.nan, math.nan, math.nan, True),
    ],
)
def test_divergence_takes_both_a_lower_elbo_and_a_small_sample_size(elbo, error, ess, said):
    monitors = {"elbo": elbo, "elbo_error": error, "ess": ess, "prior_log_reward": -0.5, "prior_log_reward_error": 0.0}
    assert diverged(monitors, beta=2.0) is said


def test_rates_fall_with_the_size_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of the warm start and of the teacher of all levels, too; a rate that is asked for is taken."""
    (tmp_path / "mine.py").write_text(BRIGHT)
    rates: list[float] = []
    for module in (posterior_run, posterior_distil):
        monkeypatch.setattr(module, "tilted_regression", lambda *given, adam, **more: rates.append(adam.lr))
    prior = checkpoint(tmp_path / "prior", replace(PRIOR, resolution=16))
    assert run(prior, tmp_path / "p", "--warm-start", "2", "--pool", "16", "--variance", "small", *DISTIL) == 0
    assert rates == pytest.approx([0.001, 0.001])
    assert json.loads((tmp_path / "p" / "distil" / "settings.json").read_text())["lr"] == pytest.approx(0.001)
    assert run(prior, tmp_path / "q", "--lr", "0.003", "--distil-lr", "0.004", "--warm-start", "2", "--pool", "16",
               "--variance", "small", *DISTIL) == 0  # fmt: skip
    assert rates[2:] == [0.003, 0.004]


def test_a_run_that_diverged_says_so_and_is_not_distilled(prior: Path, tmp_path: Path, capsys):
    for _ in range(2):  # also of a run that is complete
        assert run(prior, tmp_path / "p", "--variance", "small", "--lr", "0.5", "--distil") == 1
        assert "training diverged" in capsys.readouterr().out
    assert not (tmp_path / "p" / "student").exists()


DISTIL = ("--distil", "--distil-pool", "16", "--distil-consolidate", "3", "--distil-updates", "4")


def test_a_posterior_becomes_an_engine_that_answers(prior: Path, tmp_path: Path, capsys):
    """From a prior and a reward to a served image. The second run finds every stage done."""
    assert run(prior, tmp_path / "p", "--variance", "small", *DISTIL, "--distil-weighted") == 0
    assert "next: fewstep export" in capsys.readouterr().out
    made = tmp_path / "p" / "student"
    before = (made / "model.safetensors").read_bytes()
    denoiser, card = load_denoiser(made)
    assert (
        card.role == "student" and sorted(card.levels) == list(range(1, 9)) and card.parent == read_card(prior).weights
    )
    assert load_denoiser(tmp_path / "p" / "distil" / "teacher")[1].role == "teacher"
    assert_stored_apart(prior, made)
    assert run(prior, tmp_path / "p", "--variance", "small", *DISTIL, "--distil-weighted") == 0
    assert "samples of the posterior" not in capsys.readouterr().err
    assert (made / "model.safetensors").read_bytes() == before
    assert run(prior, tmp_path / "p", "--variance", "small", *DISTIL) == 2
    assert "weighted was True, now False" in capsys.readouterr().err

    assert export(["--model", str(made), "--out", str(tmp_path / "engine"), "--backend", "onnxruntime-cpu"]) == 0
    expected = sample_dpdm(denoiser, noise_for([3], (1, 8, 8)), card.levels[2]).images
    with serving(tmp_path / "engine") as server, server.client() as client:
        answer = client.post("/v1/generate", json={"seed": 3, "steps": 2}, headers={"Accept": "application/x-npy"})
    assert answer.status_code == 200, answer.text
    pixels = np.load(io.BytesIO(answer.content)).astype(int).reshape(8, 8)
    assert np.abs(pixels - to_pixels(expected.numpy())[0, :, :, 0]).max() <= 1


def assert_stored_apart(backbone: Path, made: Path) -> None:
    """The student as an adapter beside the backbone, merged and switched, is the student as a model."""
    expected, card = load_denoiser(made)
    x, sigma = normals(2, 1, 8, 8, seed=1), torch.tensor([2.0, 0.3])
    for merge in (True, False):
        loaded = load_student(backbone, made, merge=merge)
        assert loaded.card.levels == card.levels
        torch.testing.assert_close(loaded.denoiser(x, sigma), expected(x, sigma), rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="is a student's, which has levels and no chain"):
        load_posterior(backbone, made)


def test_a_students_own_chain_becomes_a_student_of_as_many_calls(prior: Path, tmp_path: Path, capsys):
    levels = {2: (2.5, 0.6), 4: (2.5, 1.0, 0.4, 0.1)}
    student = checkpoint(tmp_path / "student", role="student", levels=levels)
    reward = f"{prior.parent}/mine.py:bright"
    assert run(student, tmp_path / "p", *DISTIL, reward=reward) == 2
    assert "needs --fixed-variance" in capsys.readouterr().err
    assert run(student, tmp_path / "p", *DISTIL, "--fixed-variance", reward=reward) == 0
    assert read_card(tmp_path / "p" / "student").levels == {4: levels[4]}
    assert run(prior, tmp_path / "q", *DISTIL, "--distil-from", str(student), "--variance", "small") == 0
    assert read_card(tmp_path / "q" / "student").levels == levels
    for run_of in ("p", "q"):  # both are adapters of one backbone, which an engine can serve side by side
        assert_stored_apart(student, tmp_path / run_of / "student")
    assert run(prior, tmp_path / "r", *DISTIL, "--distil-from", str(prior)) == 2
    assert "is not a student of such a prior" in capsys.readouterr().err
