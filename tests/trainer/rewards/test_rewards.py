"""Rewards: their values in closed form, how they are written on a command line, and every way to get one wrong."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.card import CheckpointError, write_atomically
from fewstep.pixels import encode, to_pixels
from tests.trainer.tiny import normals
from trainer.critics.classifier import ClassifierConfig, NoisyClassifier, save_classifier
from trainer.rewards.checked import FLOOR, HOPELESS, RewardError, checked
from trainer.rewards.classes import class_reward, told_class_reward
from trainer.rewards.linear import blur, inpainting, measured, super_resolution
from trainer.rewards.named import reward_of

SHAPE = (1, 8, 8)
Y = torch.zeros(3, dtype=torch.long)


@pytest.fixture(autouse=True)
def _path_of_modules(monkeypatch: pytest.MonkeyPatch):
    """Without the current folder, as the `fewstep` command has it; what a reward adds is gone behind the test."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])


def images() -> torch.Tensor:
    return normals(3, *SHAPE, seed=2)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_classifier(tmp_path / "c", NoisyClassifier(ClassifierConfig(8, 1, 4, 0.5, width=8)), {})
    return tmp_path / "c"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    gray = to_pixels(np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8))[0]
    write_atomically(tmp_path / "p.png", encode(gray, "png"))
    return tmp_path / "p.png"


def test_a_class_set_has_the_sum_of_its_probabilities():
    logits = lambda found: found.flatten(1)[:, :5]  # noqa: E731
    probabilities = logits(images()).softmax(dim=1)
    torch.testing.assert_close(class_reward(logits, [1, 3])(images(), Y).exp(), probabilities[:, [1, 3]].sum(dim=1))
    assert float(class_reward(logits, range(5))(images(), Y).abs().max()) < 1e-6
    y = torch.tensor([0, 4, 2])
    torch.testing.assert_close(told_class_reward(logits)(images(), y).exp(), probabilities[[0, 1, 2], y])


@pytest.mark.parametrize("name", ["inpainting", "super-resolution", "blur"])
def test_measurements_are_linear_and_their_reward_is_a_normal_density(name: str):
    mask = torch.ones(1, 1, 8, 8)
    mask[..., 2:5, 1:4] = 0
    operator = {"inpainting": inpainting(mask), "super-resolution": super_resolution(2), "blur": blur(1.2)}[name]
    a, b = images(), normals(3, *SHAPE, seed=5)
    torch.testing.assert_close(operator(2 * a - 3 * b), 2 * operator(a) - 3 * operator(b), rtol=1e-4, atol=1e-5)
    y = operator(a[:1])
    found = measured(operator, y, 0.5)(b, Y)
    density = torch.distributions.Normal(y, 0.5).log_prob(operator(b)) + math.log(0.5) + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(found, density.flatten(1).sum(dim=1), rtol=1e-4, atol=1e-4)
    assert float(measured(operator, y, 0.5)(a, Y)[0]) == pytest.approx(0, abs=1e-9)


def test_what_is_measured():
    flat = torch.full((1, *SHAPE), 0.3)
    torch.testing.assert_close(blur(1.0)(flat), flat)
    assert super_resolution(4)(images()).shape == (3, 1, 2, 2)
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1
    spread = blur(1.0)(point)[0, 0]
    torch.testing.assert_close(spread, spread.T)
    squares = (torch.arange(9.0) - 4) ** 2
    assert float((spread.sum(dim=0) * squares).sum()) == pytest.approx(1, abs=0.03)  # the variance of a blur of 1


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (torch.tensor([0.0, math.nan, math.nan]), "NaN for 2 of 3 images"),
        (torch.tensor([0.0, math.inf, 1.0]), r"\+inf for 1 of 3 images"),
        (torch.zeros(3, 1), r"shape \[3, 1\] for 3 images.*the shape \[3\]"),
        (torch.zeros(()), r"shape \[\] for 3 images"),
        (1.5, "returned float; it must return a tensor"),
        (torch.zeros(3, dtype=torch.complex64), "a tensor of torch.complex64"),
        (torch.zeros(3, device="meta"), "on meta"),
        (torch.zeros(3).to_sparse(), "torch.sparse_coo"),
    ],
)
def test_a_reward_that_returns_no_log_r_is_stopped_with_a_sentence(returned, said: str):
    with pytest.raises(RewardError, match=said):
        checked(lambda images, y: returned, "mine")(images(), Y)


def test_a_reward_changes_neither_its_images_nor_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    file = tmp_path / "careless.py"
    file.write_text(
        "import os\nimport torch\n"
        "def change():\n"
        "    os.chdir('/')\n    torch.set_default_dtype(torch.float64)\n    torch.set_default_device('meta')\n"
        "change()\n"
        "def reward(images):\n"
        "    found = images.mean((1, 2, 3))\n    images.zero_()\n    change()\n    return found\n"
    )
    given = images()
    kept = given.clone()
    reward = reward_of(f"{file}:reward", SHAPE, 0.1, "cpu").log_reward
    found = reward(given, Y)
    assert torch.equal(given, kept) and torch.equal(found, kept.mean((1, 2, 3)))
    assert (Path.cwd(), torch.get_default_dtype()) == (tmp_path, torch.float32)
    assert torch.get_default_device() == torch.device("cpu")


def test_impossible_images_get_the_floor():
    found = checked(lambda images, y: torch.tensor([-math.inf, -3.0, -1e9], dtype=torch.float64), "mine")(images(), Y)
    assert found.tolist() == [FLOOR, -3.0, FLOOR] and found.dtype == torch.float32


def test_classes_on_a_command_line(classifier: Path):
    reward = reward_of(f"class:{classifier}:2", SHAPE, 0.1, "cpu").log_reward(images(), Y)
    both = reward_of(f"classes:{classifier}:2,3", SHAPE, 0.1, "cpu").log_reward(images(), Y)
    assert (reward < both).all() and (both < 0).all()
    told = reward_of(f"each-class:{classifier}", SHAPE, 0.1, "cpu")
    assert told.groups == 4
    torch.testing.assert_close(told.log_reward(images(), Y + 2), reward)


def test_measurements_on_a_command_line(picture: Path):
    clean = torch.linspace(-1, 1, 64).view(1, *SHAPE)
    for text in (f"inpaint:{picture}:3x2+1+4", f"upscale:{picture}:2", f"deblur:{picture}:0.5"):
        reward = reward_of(text, SHAPE, 0.1, "cpu")
        scores = reward.log_reward(torch.cat([clean, -clean]), Y[:2])
        assert reward.groups == 0 and scores[1] < scores[0] <= 0
    hidden = clean.clone()
    hidden[..., 4:6, 1:4] = 0.9
    pair = torch.cat([clean, hidden])
    scores = reward_of(f"inpaint:{picture}:3x2+1+4", SHAPE, 0.1, "cpu").log_reward(pair, Y[:2])
    assert scores[0] == scores[1]


def test_a_picture_has_the_pixels_that_training_gives_it(tmp_path: Path):
    cut = np.full((8, 8, 4), 255, np.uint8)
    cut[2:6, 2:6] = (0, 0, 0, 0)  # transparent, over a stored black: white, as in training
    Image.fromarray(cut).save(tmp_path / "cut.png")
    reward = reward_of(f"deblur:{tmp_path}/cut.png:0.5", SHAPE, 0.1, "cpu").log_reward
    assert reward(torch.ones(1, *SHAPE), Y[:1]).item() == pytest.approx(0, abs=1e-6)
    (tmp_path / "large.png").write_bytes(b"no picture")
    with pytest.raises(RewardError, match=r"--reward deblur:.*large\.png is not a readable image"):
        reward_of(f"deblur:{tmp_path}/large.png:0.5", SHAPE, 0.1, "cpu")


def test_any_function_of_images_is_a_reward(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "def dark(images):\n    return -images.mean(dim=(1, 2, 3))\n\n"
        "def told(images, y):\n    return y.float() - 3\n\n"
        "def option(images, scale=2.0):\n    return scale * images[:, 0, 0, 0] * 0 - scale\n\nnumber = 3\n"
    )
    score = lambda text: reward_of(text, SHAPE, 0.1, "cpu").log_reward(images(), Y + 1)  # noqa: E731
    torch.testing.assert_close(score(f"{tmp_path}/mine.py:dark"), -images().mean(dim=(1, 2, 3)))
    assert score(f"{tmp_path}/mine.py:told").tolist() == [-2, -2, -2]
    assert score(f"{tmp_path}/mine.py:option").tolist() == [-2, -2, -2]
    assert score("tests.trainer.rewards.own_reward:zero").tolist() == [0, 0, 0]
    (tmp_path / "undefined.py").write_text("import math\n\nscale = missing\n")
    (tmp_path / "wrong.py").write_text("import math\ndef f(:\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    for text, said in {
        f"{tmp_path}/mine.py:number": "has no function number",
        f"{tmp_path}/absent.py:dark": "cannot be imported",
        f"{tmp_path}/undefined.py:f": r"undefined.py, line 3: NameError: name 'missing' is not defined",
        f"{tmp_path}/wrong.py:f": r"wrong.py, line 2: SyntaxError",
        f"{tmp_path}/leaves.py:f": r"leaves.py, line 2: SystemExit: 3",
        "no_such_module:f": "cannot be imported.*ModuleNotFoundError",
        ".mine:f": "cannot be imported.*TypeError",
        ":f": "lacks its file or its function",
        "anything": r"unknown; write one of class:DIR:3",
    }.items():
        with pytest.raises(RewardError, match=said):
            reward_of(text, SHAPE, 0.1, "cpu")


def test_a_rewards_file_imports_its_neighbours_and_defines_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "scale_of_mine.py").write_text("SCALE = 3.0\n")
    (tmp_path / "late_of_mine.py").write_text("OFFSET = 1.0\n")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom scale_of_mine import SCALE\n\n"
        "@dataclass\nclass Weights:\n    scale: float = SCALE\n\n"
        "def f(images):\n    from late_of_mine import OFFSET\n"
        "    return Weights().scale * images[:, 0, 0, 0] * 0 + OFFSET\n"
    )
    monkeypatch.chdir(tmp_path)
    for text in ("mine.py:f", "mine:f", f"{tmp_path}/mine.py:f"):
        assert reward_of(text, SHAPE, 0.1, "cpu").log_reward(images(), Y).tolist() == [1, 1, 1]
    with pytest.raises(RewardError, match=rf"mine \({tmp_path}/mine.py\) has no function g"):
        reward_of("mine:g", SHAPE, 0.1, "cpu")


def test_a_function_that_raises_is_named_with_its_file_and_line(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "def inner(images):\n    raise KeyError('weights')\n\n"
        "def deep(images):\n    return inner(images)\n\n"
        "def library(images):\n    return images.view(7, 7)\n\n"
        "def leaves(images):\n    raise SystemExit(1)\n"
    )
    for name, said in {
        "deep": r"mine.py, line 2: KeyError: 'weights'",
        "library": r"mine.py, line 8: RuntimeError: shape",
        "leaves": r"mine.py, line 11: SystemExit: 1",
    }.items():
        text = f"{tmp_path}/mine.py:{name}"
        with pytest.raises(RewardError, match=rf"^--reward .*:{name} failed: .*{said}"):
            reward_of(text, SHAPE, 0.1, "cpu").log_reward(images(), Y)


def test_a_reward_at_its_floor_stops_once_enough_images_are_seen():
    many, y = torch.zeros(HOPELESS // 2, 1, 1, 1), torch.zeros(HOPELESS // 2, dtype=torch.long)
    nothing = checked(lambda images, y: torch.full((len(images),), -math.inf), "mine")
    nothing(many, y)
    with pytest.raises(RewardError, match=r"mine gives each of the first 4,096 images the floor.*nothing to learn"):
        nothing(many, y)
    rare = checked(lambda images, y: torch.where(images[:, 0, 0, 0] > 0, 0.0, -math.inf), "mine")
    rare(torch.ones(1, 1, 1, 1), y[:1])
    for _ in range(3):
        rare(many, y)


def test_a_reward_names_the_files_that_decide_it(classifier: Path, picture: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text("def f(images):\n    return images.mean(dim=(1, 2, 3))\n")
    own = Path(__file__).with_name("own_reward.py")
    for text, file in {
        f"class:{classifier}:2": classifier / "classifier.safetensors",
        f"each-class:{classifier}": classifier / "classifier.safetensors",
        f"deblur:{picture}:0.5": picture,
        f"{tmp_path}/mine.py:f": tmp_path / "mine.py",
        "tests.trainer.rewards.own_reward:zero": own,
    }.items():
        assert reward_of(text, SHAPE, 0.1, "cpu").files == (file,)


def test_impossible_rewards_are_refused_before_the_work(classifier: Path, picture: Path):
    for text, said in {
        f"class:{classifier}:4": "whole numbers from 0 to 3, not 4",
        f"class:{classifier}:1,2": "names several classes",
        f"classes:{classifier}:a": "whole numbers from 0 to 3",
        "class:3": "lacks its folder",
        f"inpaint:{picture}:9x2+0+0": "does not lie in 8x8",
        f"inpaint:{picture}:left": r"WIDTHxHEIGHT\+LEFT\+TOP",
        f"upscale:{picture}:3": "divides 8, not 3",
        f"deblur:{picture}:0": "above 0 and at most",
        "deblur:x": "lacks its image",
        "deblur:absent.png:1": r"absent\.png cannot be read \(No such file or directory\)",
    }.items():
        with pytest.raises(RewardError, match=said):
            reward_of(text, SHAPE, 0.1, "cpu")
    with pytest.raises(RewardError, match="takes 1x8x8 images, and the prior makes 3x8x8"):
        reward_of(f"class:{classifier}:1", (3, 8, 8), 0.1, "cpu")
    with pytest.raises(RewardError, match="is 8x8; it must be 16x16 or 4x4"):
        reward_of(f"upscale:{picture}:4", (1, 16, 16), 0.1, "cpu")
    with pytest.raises(CheckpointError, match="train one with"):
        reward_of("class:absent:1", SHAPE, 0.1, "cpu")
