"""What model.safetensors says of itself: any reader finds it, equal models are equal files, older files are read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewstep.card import WEIGHTS_FILE, CheckpointError, Dataset, card_from_json, card_to_json, file_sha256, read_card
from fewstep.checkpoint import load_checkpoint, load_denoiser
from fewstep.metadata import card_sha256, metadata, read_metadata, with_metadata
from tests.core.test_checkpoint import CARD, assert_same_weights, edit_card, random_weights, saved

__all__ = ["saved"]  # a fixture


def test_the_library_reads_what_the_network_takes(saved: Path) -> None:
    with safe_open(saved / WEIGHTS_FILE, "pt") as file:
        told = file.metadata()
    assert told == {
        "format": "pt", "fewstep_format": "1", "role": "student", "resolution": "8", "channels": "1", "classes": "3",
        "sigma_data": "0.5", "card_sha256": card_sha256(read_card(saved)),
    }  # fmt: skip
    assert_same_weights(load_file(saved / WEIGHTS_FILE), random_weights(0))


def test_the_file_is_made_of_a_length_json_and_aligned_tensors(saved: Path) -> None:
    content = (saved / WEIGHTS_FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and next(iter(header)) == "__metadata__"
    assert (
        max(entry["data_offsets"][1] for name, entry in header.items() if name[0] != "_") == len(content) - 8 - length
    )


def test_the_hash_is_of_what_nothing_rewrites() -> None:
    again = card_from_json(card_to_json(CARD), Path("card.json"))  # tuples are lists in JSON
    assert card_sha256(again) == card_sha256(CARD)
    later = replace(CARD, levels={1: (70.0,)}, metrics={}, training={"seconds": 3.5}, weights="ef" * 32)
    assert card_sha256(later) == card_sha256(CARD)
    other = {
        "role": "teacher", "sigma_data": 0.6, "class_names": (), "parent": None,
        "network": CARD.network | {"width": 16}, "dataset": Dataset("other", "ab" * 32, "CC BY 4.0", 1797),
    }  # fmt: skip
    hashes = {card_sha256(replace(CARD, **{name: value})) for name, value in other.items()}
    assert len(hashes | {card_sha256(CARD)}) == len(other) + 1


def test_files_without_metadata_are_read_as_before(saved: Path) -> None:
    save_file(random_weights(1), saved / WEIGHTS_FILE)
    assert read_metadata((saved / WEIGHTS_FILE).read_bytes()) == {}
    edit_card(saved, weights=file_sha256(saved / WEIGHTS_FILE), sigma_data=0.7)
    weights, card = load_checkpoint(saved)
    assert_same_weights(weights, random_weights(1))
    assert card.sigma_data == 0.7


def test_a_card_with_another_sigma_data_is_refused(saved: Path) -> None:
    edit_card(saved, sigma_data=0.25)
    with pytest.raises(CheckpointError, match=r"it says sigma_data 0\.25, and the weights were saved with 0\.5"):
        load_denoiser(saved)
    edit_card(saved, sigma_data=0.5, class_names=["a", "b", "c"])  # a name is the user's to change
    assert load_denoiser(saved)[1].class_names == ("a", "b", "c")


def test_metadata_of_a_file_is_replaced_not_doubled(saved: Path) -> None:
    content = (saved / WEIGHTS_FILE).read_bytes()
    told = metadata(replace(CARD, role="teacher"))
    changed = with_metadata(content, told)
    assert read_metadata(changed) == told
    assert with_metadata(changed, metadata(CARD)) == content
