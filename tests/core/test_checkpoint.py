"""Checkpoints: identical after a round trip, refused in words when damaged, whole at whatever moment a writer dies."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep import card as card_module
from fewstep import checkpoint
from fewstep.card import CARD_FILE, WEIGHTS_FILE, Card, CheckpointError, Dataset, file_sha256, write_atomically
from fewstep.checkpoint import build_network, load_checkpoint, load_denoiser, network_config, save_checkpoint
from fewstep.ddpm_network import DDPMConfig, DDPMNetwork
from fewstep.network import UNet
from fewstep.unet_config import UNetConfig

CONFIG = UNetConfig(resolution=8, channels=1, classes=3, width=8, mult=(1, 2), blocks=1)
CARD = Card(
    role="student",
    network=asdict(CONFIG),
    sigma_data=0.5,
    weights="",
    dataset=Dataset("digits", "ab" * 32, "CC BY 4.0", 1797),
    class_names=("zero", "one", "zwölf"),
    levels={1: (80.0,), 2: (80.0, 4.5)},
    parent="cd" * 32,
    training={"seed": 0, "images": 1_000},
    metrics={"fd": 1.5},
)


def random_weights(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    network = UNet(CONFIG)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.state_dict()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", random_weights(0), CARD)
    return tmp_path / "model"


def assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_weights_and_card_come_back_identical(saved: Path):
    weights, card = load_checkpoint(saved)
    assert_same_weights(weights, random_weights(0))
    as_json = json.loads(json.dumps(CARD.network))  # tuples are lists in JSON
    assert card == replace(CARD, weights=file_sha256(saved / WEIGHTS_FILE), network=as_json)
    assert network_config(card) == CONFIG
    assert card.image_shape == (1, 8, 8)
    assert sorted(path.name for path in saved.iterdir()) == [CARD_FILE, WEIGHTS_FILE]


def test_saving_twice_gives_the_same_bytes(saved: Path, tmp_path: Path):
    save_checkpoint(tmp_path / "again", random_weights(0), CARD)
    for name in (CARD_FILE, WEIGHTS_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


@torch.no_grad()
def test_the_loaded_denoiser_computes_what_the_saved_network_did(saved: Path):
    denoiser, card = load_denoiser(saved)
    assert card.class_names == CARD.class_names
    network = UNet(CONFIG).eval()
    network.load_state_dict(random_weights(0))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma, labels = torch.tensor([0.5, 40.0]), torch.tensor([2, -1])
    expected = replace(denoiser, network=network)(x, sigma, labels)
    torch.testing.assert_close(denoiser(x, sigma, labels), expected, rtol=1e-5, atol=1e-6)
    assert isinstance(denoiser.network, UNet)
    assert not denoiser.network.training
    assert not any(parameter.requires_grad for parameter in denoiser.network.parameters())


def test_half_precision_weights_load_as_float32(tmp_path: Path):
    half = {name: tensor.half() for name, tensor in random_weights(0).items()}
    save_checkpoint(tmp_path, half, CARD)
    network = load_denoiser(tmp_path)[0].network
    assert isinstance(network, UNet)
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, half[name].float()), name


@pytest.mark.parametrize("kept", [0, 7, 8, 1_000, -1])
def test_a_truncated_file_is_refused_by_name(saved: Path, kept: int):
    content = (saved / WEIGHTS_FILE).read_bytes()
    (saved / WEIGHTS_FILE).write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the file its card describes.*truncated"):
        load_denoiser(saved)


def test_one_flipped_bit_is_noticed(saved: Path):
    content = bytearray((saved / WEIGHTS_FILE).read_bytes())
    content[-5] ^= 1
    (saved / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="not the file its card describes"):
        load_denoiser(saved)


def test_a_folder_that_is_no_checkpoint_is_refused_in_words(tmp_path: Path, saved: Path):
    with pytest.raises(CheckpointError, match="not a fewstep checkpoint"):
        load_denoiser(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_denoiser(tmp_path)
    (saved / CARD_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"no card\.json"):
        load_denoiser(saved)


def test_weights_that_are_not_safetensors_are_refused_even_when_the_hash_fits(saved: Path):
    (saved / WEIGHTS_FILE).write_bytes(b"not a tensor")
    edit_card(saved, weights=file_sha256(saved / WEIGHTS_FILE))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_denoiser(saved)


def edit_card(folder: Path, **fields: object) -> None:
    data = json.loads((folder / CARD_FILE).read_text("utf-8"))
    (folder / CARD_FILE).write_text(json.dumps(data | fields), "utf-8")


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_format_number_is_refused_and_named(saved: Path, number: object):
    edit_card(saved, format=number)
    with pytest.raises(CheckpointError, match=rf"card format {number}; this version reads format 1"):
        load_denoiser(saved)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"7", b'{"format": 1}', b'{"format": 1, "dataset": 3}', b"\xff\xfe\x00",
        b'{"format": 1, "dataset": {"name": "x", "surprise": 1}}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_card_is_refused_in_words(saved: Path, text: bytes):
    (saved / CARD_FILE).write_bytes(text)
    with pytest.raises(CheckpointError, match=r"card\.json is not a"):
        load_denoiser(saved)


@pytest.mark.parametrize(
    "fields",
    [
        {"levels": {"one": [80.0]}},
        {"levels": [1]},
        {"levels": {"1": [0.0]}},
        {"levels": {"3": [1.0]}},
        {"class_names": None},
        {"class_names": "abc"},
        {"class_names": ["one"]},
        {"surprise": 1},
        {"role": "rival"},
        {"sigma_data": -1.0},
        {"sigma_data": "0.5"},
        {"network": {}},
        {"network": {**asdict(CONFIG), "channels": "1"}},
    ],
    ids=str,
)
def test_a_card_with_a_wrong_field_is_refused_in_words(saved: Path, fields: dict[str, object]):
    edit_card(saved, **fields)
    with pytest.raises(CheckpointError, match="not a readable fewstep card"):
        load_denoiser(saved)


def test_a_card_of_another_model_is_refused(saved: Path, tmp_path: Path):
    save_checkpoint(tmp_path / "other", random_weights(1), CARD)
    (saved / CARD_FILE).write_bytes((tmp_path / "other" / CARD_FILE).read_bytes())
    with pytest.raises(CheckpointError, match="belongs to another card"):
        load_denoiser(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 16}, "do not fit the network"),
        ({"depth": 3}, "a network this version does not know"),
        ({"resolution": 9}, "a network this version does not know"),
    ],
    ids=str,
)
def test_a_card_whose_network_does_not_fit_is_refused(saved: Path, change: dict[str, int], message: str):
    edit_card(saved, network=asdict(CONFIG) | change)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(saved)


DDPM = DDPMConfig(8, 1, (8, 16), (False, True), (True, False), classes=3, blocks=1, groups=4, middle_groups=4)


@pytest.fixture
def ddpm(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "ddpm", build_network(DDPM).state_dict(), replace(CARD, network=asdict(DDPM)))
    return tmp_path / "ddpm"


@torch.no_grad()
def test_the_family_of_a_card_decides_which_network_is_built(saved: Path, ddpm: Path):
    denoiser, card = load_denoiser(ddpm)
    assert isinstance(denoiser.network, DDPMNetwork)
    assert network_config(card) == denoiser.network.config == DDPM
    assert card.image_shape == (1, 8, 8) and denoiser.classes == 3
    torch.manual_seed(0)
    expected = replace(denoiser, network=DDPMNetwork(DDPM).eval())
    x, sigma = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 40.0])
    torch.testing.assert_close(denoiser(x, sigma), expected(x, sigma), rtol=1e-5, atol=1e-5)

    edit_card(saved, network=asdict(CONFIG) | {"family": "unet"})  # said outright, what a card without a family means
    assert isinstance(load_denoiser(saved)[0].network, UNet)


@pytest.mark.parametrize("family", ["edm3", None, 3, ["unet"]], ids=str)
def test_an_unknown_family_is_refused_and_named(saved: Path, family: object):
    edit_card(saved, network=asdict(CONFIG) | {"family": family})
    with pytest.raises(CheckpointError, match=r"of the family .*; this version knows 'unet', 'ddpm' and 'edm2'"):
        load_denoiser(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": [8, 24]}, "do not fit the network"),
        ({"widths": 8}, "a network this version does not know"),
        ({"beta_end": 2.0}, r"a network this version does not know .*no noise levels that rise"),
        ({"timesteps": "many"}, "a network this version does not know"),
        ({"prediction": "flow"}, "a network this version does not know"),
        ({"sigma_data": 0.6}, "its network expects sigma_data 0.6, the card says 0.5"),
    ],
    ids=str,
)
def test_a_ddpm_card_that_does_not_fit_is_refused(ddpm: Path, change: dict[str, object], message: str):
    edit_card(ddpm, network=asdict(DDPM) | change)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(ddpm)


class ProcessDiedError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("moment", range(6))
def test_a_writer_that_dies_at_any_moment_leaves_the_old_pair_or_the_new_one(
    saved: Path, moment: int, monkeypatch: pytest.MonkeyPatch
):
    """Renames: pending card, weights, card. Moments 0-5: before and after each of them."""
    renames = 0
    rename = Path.replace

    def dying_replace(self: Path, target: Path) -> Path:
        nonlocal renames
        before, after = 2 * renames, 2 * renames + 1
        renames += 1
        if moment == before:
            raise ProcessDiedError
        result = rename(self, target)
        if moment == after:
            raise ProcessDiedError
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying_replace)
        with pytest.raises(ProcessDiedError):
            save_checkpoint(saved, random_weights(1), replace(CARD, sigma_data=0.6))
    weights, card = load_checkpoint(saved)
    new = moment >= 3  # the weights are in place after the second rename
    assert_same_weights(weights, random_weights(1 if new else 0))
    assert card.sigma_data == (0.6 if new else 0.5)
    # And the next save works whatever was left behind.
    save_checkpoint(saved, random_weights(2), CARD)
    assert_same_weights(load_checkpoint(saved)[0], random_weights(2))
    assert sorted(path.name for path in saved.iterdir()) == [CARD_FILE, WEIGHTS_FILE]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(card_module.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_nothing_is_ever_unpickled(saved: Path):
    source = Path(checkpoint.__file__).read_text("utf-8") + Path(card_module.__file__).read_text("utf-8")
    assert "torch.load" not in source
    assert "import pickle" not in source
    (saved / WEIGHTS_FILE).unlink()
    torch.save(random_weights(0), saved / WEIGHTS_FILE)
    edit_card(saved, weights=file_sha256(saved / WEIGHTS_FILE))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_denoiser(saved)
