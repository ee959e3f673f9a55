"""engine.json: what is written comes back, and what is not a manifest is refused in a sentence."""

import dataclasses
import json

import pytest

from export.manifest import OPTIONAL, Manifest, read_manifest, write_manifest
from fewstep.card import CheckpointError

MANIFEST = Manifest(
    name="fashion",
    role="student",
    checkpoint="a" * 64,
    network_sha256="b" * 64,
    opset=20,
    dtype="float32",
    weights_dtype="float16",
    channels=3,
    resolution=32,
    classes=2,
    class_names=("shirt", "Ankle boot"),
    sigma_data=0.5,
    levels={1: (80.0,), 2: (80.0, 0.1 + 0.2)},
    buckets=(1, 2, 4),
    noise_version=1,
    parity={"1": {"mean": 1e-5, "max": 2e-4, "differing": 0.0, "images": 2, "seeds": [0, 1], "nfe": 1}},
    bounds={"mean": 1.0, "max": 3.0},
    versions={"onnxruntime": "1.31.0"},
)
ADAPTER = {
    "name": "a", "sha256": "d" * 64, "levels": {"1": [80.0]}, "classes": 2, "class_names": [], "parity": {},
    "bounds": {},
}  # fmt: skip


def test_round_trip(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    assert read_manifest(tmp_path).image_shape == (3, 32, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["engine.json"]


def test_an_ncvsd_student_is_told_by_its_extra_channels(tmp_path):
    ncvsd = dataclasses.replace(MANIFEST, extra=3)
    write_manifest(tmp_path, ncvsd)
    assert read_manifest(tmp_path) == ncvsd
    assert (ncvsd.image_shape, ncvsd.latent_shape, ncvsd.input_shape) == (
        (3, 32, 32), (3, 32, 32), (6, 32, 32)
    )  # fmt: skip
    assert (MANIFEST.latent_shape, MANIFEST.input_shape) == ((0, 32, 32), (3, 32, 32))


def test_a_marginal_manifest_is_one_that_a_reader_without_the_field_can_read(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    assert set(json.loads((tmp_path / "engine.json").read_text())) == set(dataclasses.asdict(MANIFEST)) - set(OPTIONAL)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "engine format 2; this version reads format 1"),
        ({"levels": None}, "not a readable fewstep engine manifest"),
        ({"colour": "red"}, "not a readable fewstep engine manifest"),
        ({"network": "../elsewhere.onnx"}, "outside its own directory"),
        ({"levels": {"1": [-1.0]}}, "levels must be positive"),
        ({"levels": {"2": [80.0]}}, "the levels of 2 steps are 1"),
        ({"levels": {"1": ["80"]}}, "Expected `float`, got `str`"),
        ({"channels": "3"}, "Expected `int`, got `str`"),
        ({"channels": 0}, "a size below 1"),
        ({"sigma_data": float("nan")}, "its sigma_data is nan"),
        ({"class_names": "ab"}, "got `str`"),
        ({"class_names": ["shirt"]}, "it names 1 classes, and has 2"),
        ({"adapters": [{}]}, "missing required field `name`"),
        ({"adapters": [ADAPTER | {"colour": "red"}]}, "a field 'colour', which this version does not know"),
        ({"adapted": {"layer": [1, 2]}}, "length 3"),
    ],
)
def test_refuses_what_it_does_not_know(tmp_path, change, says):
    content = json.loads(json.dumps(dataclasses.asdict(MANIFEST))) | change
    (tmp_path / "engine.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=says):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe\x00"])
def test_refuses_what_is_no_manifest(tmp_path, content):
    (tmp_path / "engine.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a"):
        read_manifest(tmp_path)


def test_an_empty_folder_is_no_engine(tmp_path):
    with pytest.raises(CheckpointError, match="not a fewstep engine"):
        read_manifest(tmp_path)
