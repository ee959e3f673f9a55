"""`fewstep generate`: the server's bytes, six kinds of output, and what is refused."""

import base64
import errno
import fcntl
import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from export.manifest import read_manifest, read_student, write_manifest
from fewstep.__main__ import main
from fewstep.conditions import guidance_weight
from fewstep.noise import random_labels
from fewstep.pixels import KEYWORD, encode, text_of
from server.bulk.journal import Journal
from server.bulk.order import chunk_size
from server.http.dialects.native import NativeDialect
from server.http.service import ImageService
from server.scheduler.loading import LoadOptions
from server.scheduler.local import LocalService
from server.settings.settings import Settings
from tests.server.bulk.conftest import Generate, contents, write_pictures
from tests.server.conftest import serving, write_engine
from tests.server.fakes import SHAPE
from trainer.data.sources.edm_zip import read_edm_zip


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))[..., None]


def test_the_images_are_those_of_a_server_in_exact_mode_to_the_byte(
    generate: Generate, engine_dir: Path, tmp_path: Path
):
    made = generate(tmp_path / "out", "--steps", "3", seeds="40-52,7")
    assert made.code == 0, made.errors
    with serving(engine_dir, "--mode", "exact") as server, server.client() as client:
        for seed in (*range(40, 53), 7):
            png = client.post("/v1/generate", json={"seed": seed, "steps": 3}).content
            assert (tmp_path / "out" / f"{seed:06d}.png").read_bytes() == png, seed
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {f"{s:06d}.png" for s in (*range(40, 53), 7)}


def test_every_kind_of_output_has_the_same_pixels_seeds_and_classes(
    generate: Generate, engine_dir: Path, tmp_path: Path
):
    names = ("folder", "a.npz", "s.zip", "shards")
    for name in names:
        options = ("--format", "webdataset", "--per-file", "60") if name == "shards" else ()
        assert generate(tmp_path / name, "--label", "balanced", *options).code == 0
    with np.load(tmp_path / "a.npz") as archive:
        pixels, labels = archive["images"], archive["labels"]
        assert archive["seeds"].tolist() == list(range(100)) and labels.tolist() == [s % 3 for s in range(100)]
    assert pixels.shape == (100, 8, 8, 1) and len(np.unique(pixels, axis=0)) == 100
    images = [decoded((tmp_path / "folder" / f"{seed:06d}.png").read_bytes()) for seed in range(100)]
    assert np.array_equal(np.stack(images), pixels)
    edm = read_edm_zip(tmp_path / "s.zip")
    assert np.array_equal(edm.images, pixels) and np.array_equal(edm.labels, labels)
    shards = sorted((tmp_path / "shards").glob("*.tar"))
    assert [path.name for path in shards] == ["tiny-000000.tar", "tiny-000001.tar"]
    members = {m.name: a.extractfile(m).read() for a in map(tarfile.open, shards) for m in a}  # pyright: ignore[reportOptionalMemberAccess]
    assert len(members) == 300
    for seed in range(100):
        name = f"{seed:06d}"
        assert np.array_equal(decoded(members[f"{name}.png"]), pixels[seed])
        assert int(members[f"{name}.cls"]) == labels[seed] and json.loads(members[f"{name}.json"])["seed"] == seed


def test_parquet_has_a_row_for_each_seed(generate: Generate, tmp_path: Path):
    table = pytest.importorskip("pyarrow.parquet", reason="needs the extra [parquet]")
    assert generate(tmp_path / "s.parquet", "--label", "balanced").code == 0
    assert generate(tmp_path / "folder", "--label", "balanced").code == 0
    rows = table.read_table(tmp_path / "s.parquet").to_pylist()
    assert [row["seed"] for row in rows] == list(range(100)) and [row["label"] for row in rows] == [0, 1, 2] * 33 + [0]
    for row in rows:
        assert row["image"]["bytes"] == (tmp_path / "folder" / row["image"]["path"]).read_bytes()
    assert generate(tmp_path / "s.parquet", "--label", "balanced").said.endswith("is complete: 100 images of tiny\n")


def test_a_sheet_shows_the_images_in_the_order_of_their_seeds(generate: Generate, tmp_path: Path):
    assert generate(tmp_path / "g.png", seeds="0-9").code == 0 and generate(tmp_path / "a.npz", seeds="0-9").code == 0
    sheet = decoded((tmp_path / "g.png").read_bytes())
    assert sheet.shape == (26, 35, 1)  # 4 columns, 3 rows, a pixel between them
    with np.load(tmp_path / "a.npz") as archive:
        assert np.array_equal(sheet[9:17, 9:17], archive["images"][5])


@pytest.mark.parametrize(
    ("label", "classes"), [("random", random_labels(range(9), 3).tolist()), ("coat", [2] * 9), ("1", [1] * 9)]
)
def test_a_label_is_drawn_or_given_by_name_or_number(
    generate: Generate, tmp_path: Path, label: str, classes: list[int]
):
    assert generate(tmp_path / "o", "--label", label, seeds="0-8").code == 0
    texts = [text_of(path.read_bytes(), KEYWORD) or "" for path in sorted((tmp_path / "o").glob("*.png"))]
    assert [json.loads(text)["label"] for text in texts] == classes


def test_the_same_command_does_nothing_again_and_another_is_refused(generate: Generate, tmp_path: Path):
    for out in (tmp_path / "o", tmp_path / "o.npz", tmp_path / "o.zip", tmp_path / "o.png"):
        assert generate(out).code == 0
        before = contents(out)
        again = generate(out)
        assert again.code == 0 and again.said == f"{out} is complete: 100 images of tiny\n"
        other = generate(out, "--steps", "2", "--label", "bag")
        assert other.code == 2
        assert "is complete, of other settings: --steps was 4, now 2; --label was random, now 0" in other.errors
        assert contents(out) == before


def test_a_full_disk_is_said_and_the_same_command_goes_on(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, sync, calls = tmp_path / "o.zip", os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > 6:  # the order is noted, and five chunks
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        failed = generate(out)
    assert failed.code == 2 and "the disk is full. What is finished is kept; free some room" in failed.errors
    other = generate(out, "--steps", "2")
    assert other.code == 2 and "holds an unfinished run of other settings: --steps was 4, now 2" in other.errors
    ended = generate(out)
    assert ended.code == 0 and "100 images of tiny; 60 of them made now" in ended.said
    assert generate(tmp_path / "straight.zip").code == 0
    assert out.read_bytes() == (tmp_path / "straight.zip").read_bytes() and not Path(f"{out}.part").exists()


def test_two_runs_at_once_are_refused(generate: Generate, tmp_path: Path):
    with Journal(tmp_path / "o.zip.part").claimed():
        second = generate(tmp_path / "o.zip")
    assert second.code == 2 and "another process is at work in" in second.errors


@pytest.mark.parametrize("removed", ["before the lock is opened", "before it is locked"])
def test_a_run_that_begins_while_another_ends_has_the_lock_or_the_result(
    removed: str, generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, journal = tmp_path / "o.zip", Journal(tmp_path / "o.zip.part")
    module, name = (os, "open") if removed == "before the lock is opened" else (fcntl, "flock")
    real, ended = getattr(module, name), []

    def late(*arguments: Any, **options: Any) -> Any:
        if not ended and (name == "flock" or str(arguments[0]).endswith("lock")):
            ended.append(1)
            monkeypatch.setattr(module, name, real)
            journal.remove()
            assert generate(out).code == 0, "the other run"
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, late)
    second = generate(out)
    assert ended and second.code == 0, second.errors
    assert "100 images of tiny; 0 of them made now" in second.said and not journal.folder.exists()


def test_the_files_of_others_are_left_where_the_journal_is(generate: Generate, tmp_path: Path):
    theirs = tmp_path / "o.zip.part" / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    assert generate(tmp_path / "o.zip").code == 0
    assert generate(tmp_path / "o.zip").code == 0
    assert [path.name for path in theirs.parent.iterdir()] == ["notes.txt"] and theirs.read_text() == "mine"
    (tmp_path / "o.npz.part").write_text("mine")
    refused = generate(tmp_path / "o.npz")
    assert refused.code == 2 and "o.npz.part is a file; a run keeps its work there. Name another" in refused.errors


def test_what_is_damaged_or_of_others_is_refused_and_stays(generate: Generate, tmp_path: Path):
    seeds = "0-9"
    for name in ("o.npz", "o.zip", "o.png"):
        out = tmp_path / name
        assert generate(out, seeds=seeds).code == 0
        whole = out.read_bytes()
        deep = io.BytesIO()
        np.savez(deep, recipe=np.array("[" * 100_000))
        array = io.BytesIO()
        np.save(array, np.zeros(3))
        for content in (b"", whole[: len(whole) // 2], whole[len(whole) // 2 :], deep.getvalue(), array.getvalue()):
            out.write_bytes(content)
            refused = generate(out, seeds=seeds)
            assert refused.code == 2 and out.read_bytes() == content
            assert "cannot be read: it is damaged" in refused.errors or "none of this command's" in refused.errors
    for form, lost in (("folder", "000003.png"), ("webdataset", "tiny-000000.tar")):
        out = tmp_path / form
        assert generate(out, "--format", form, seeds=seeds).code == 0
        (out / lost).unlink()
        refused = generate(out, "--format", form, seeds=seeds)
        assert refused.code == 2 and f"lacks 1 of its files now, such as {lost}" in refused.errors


def test_a_journal_that_is_damaged_is_named(generate: Generate, tmp_path: Path):
    assert generate(tmp_path / "o", seeds="0-9").code == 0
    recipe = json.loads((tmp_path / "o" / "generate.json").read_text())
    journal = tmp_path / "p" / ".generate"
    journal.mkdir(parents=True)

    def refused(order: str) -> str:
        (journal / "order.json").write_text(order)
        ran = generate(tmp_path / "p", seeds="0-9")
        assert ran.code == 2
        return ran.errors

    for chunk in (0, -8, 3, True, "8", 8.0, None):
        assert "order.json is damaged; remove" in refused(json.dumps({"recipe": recipe, "chunk": chunk}))
    assert "order.json is damaged; remove" in refused("[" * 100_000)
    order = json.dumps({"recipe": recipe, "chunk": 16})
    for pixels in (np.zeros((2, 8, 8, 1), np.uint8), np.zeros((10, *SHAPE[1:], SHAPE[0]), np.float32)):
        np.save(journal / "chunk-000000.npy", pixels)
        assert "chunk-000000.npy is damaged; remove it" in refused(order)
    (journal / "chunk-000000.npy").write_bytes(b"")
    assert "chunk-000000.npy is damaged; remove it" in refused(order)
    (journal / "chunk-000000.npy").unlink()
    assert generate(tmp_path / "p", seeds="0-9").code == 0


def test_an_engine_that_changes_while_it_is_loaded_makes_no_images(
    generate: Generate, engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    manifest = read_manifest(engine_dir)
    other = {steps: tuple(0.9 * sigma for sigma in sigmas) for steps, sigmas in manifest.levels.items()}
    begin = Journal.begin

    def changed(*arguments: Any) -> int:
        write_manifest(engine_dir, replace(manifest, levels=other))
        return begin(*arguments)

    monkeypatch.setattr(Journal, "begin", changed)
    try:
        ran = generate(tmp_path / "o", seeds="0-9")
    finally:
        write_manifest(engine_dir, manifest)
    assert ran.code == 2 and "has changed since this command began" in ran.errors and not (tmp_path / "o").exists()


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine that takes a weight."""
    folder = tmp_path_factory.mktemp("models") / "guided"
    write_engine(folder, "guided", conditions=(guidance_weight(4.0),))
    return folder


def test_a_weight_is_in_every_kind_of_output_and_an_image_is_made_again_with_it(
    generate: Generate, guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given, seeds, shards = ("--model", str(guided), "--guidance", "2.5"), "0-9", ("--format", "webdataset")
    for name in ("folder", "a.npz", "s.zip", "shards"):
        made = generate(tmp_path / name, *given, *(shards if name == "shards" else ()), seeds=seeds)
        assert made.code == 0, made.errors
    assert generate(tmp_path / "plain.npz", *given[:2], seeds=seeds).code == 0
    with np.load(tmp_path / "a.npz") as archive, np.load(tmp_path / "plain.npz") as plain:
        assert archive["guidance"].tolist() == [2.5] * 10 and "guidance" not in plain
        assert (archive["images"] != plain["images"]).any(axis=(1, 2, 3)).all()
        images = archive["images"]
    about = json.loads((tmp_path / "folder" / "generate.json").read_text())
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert json.loads(archive.read("dataset.json"))["fewstep"] == {**about, "output": "zip"}
    assert about["guidance"] == 2.5
    with tarfile.open(tmp_path / "shards" / "guided-000000.tar") as archive:
        facts = [json.load(archive.extractfile(m)) for m in archive if m.name.endswith(".json")]  # pyright: ignore[reportArgumentType]
    assert [each["guidance"] for each in facts] == [2.5] * 10
    path = tmp_path / "folder" / "000007.png"
    assert np.array_equal(decoded(path.read_bytes()), images[7])
    assert main(["remake", str(path), "--engine", str(guided)]) == 0
    assert capsys.readouterr().out.endswith(": the same bytes\n")


def test_parquet_has_a_column_for_the_weight(generate: Generate, guided: Path, tmp_path: Path):
    table = pytest.importorskip("pyarrow.parquet", reason="needs the extra [parquet]")
    assert generate(tmp_path / "s.parquet", "--model", str(guided), "--guidance", "2.5", seeds="0-2").code == 0
    rows = table.read_table(tmp_path / "s.parquet").to_pylist()
    assert [row["guidance"] for row in rows] == [2.5] * 3


def test_a_run_goes_on_with_its_own_weight_only(generate: Generate, guided: Path, tmp_path: Path):
    whole, begun, model = tmp_path / "whole", tmp_path / "begun", ("--model", str(guided))
    assert generate(whole, *model, "--guidance", "2.5", seeds="0-9").code == 0
    (begun / ".generate").mkdir(parents=True)
    order = {"recipe": json.loads((whole / "generate.json").read_text()), "chunk": 8}
    (begun / ".generate" / "order.json").write_text(json.dumps(order))
    for out, state in ((whole, "is complete, of"), (begun, "holds an unfinished run of")):
        for options, now in (((), "not given"), (("--guidance", "3"), "3.0")):
            other = generate(out, *model, *options, seeds="0-9")
            assert other.code == 2 and f"{state} other settings: --guidance was 2.5, now {now}" in other.errors
    assert generate(begun, *model, "--guidance", "2.5", seeds="0-9").code == 0
    assert [path.read_bytes() for path in sorted(begun.iterdir())] == [
        path.read_bytes() for path in sorted(whole.iterdir())
    ]
    beyond = generate(tmp_path / "o", *model, "--guidance", "4.5", seeds="0-9")
    assert beyond.code == 2 and "guidance must be from 1 to 4, not 4.5" in beyond.errors
    assert not (tmp_path / "o").exists()


def as_by_the_api(enlarging: Path, pictures: list[bytes]) -> np.ndarray:
    """Each picture enlarged with the seed of its number, as POST /v1/generate reads it."""
    manifest = read_student(enlarging, "enlarging")
    dialect = NativeDialect({"enlarging": manifest}, Settings({"enlarging": enlarging}), cast(ImageService, None))
    with LocalService.open({"enlarging": enlarging}, LoadOptions(mode="exact")) as service:
        made = []
        for seed, picture in enumerate(pictures):
            body = {"seed": seed, "upscale": base64.b64encode(picture).decode()}
            order = dialect.read(json.dumps(body).encode()).order()
            assert order.decode is not None
            given = order.decode().conditions
            made += service.submit(structs.replace(order.request, conditions=given, format="pixels")).result().images
        return np.stack(made)


def test_every_picture_is_enlarged_once_as_by_the_api(generate: Generate, enlarging: Path, tmp_path: Path):
    small = tmp_path / "small"
    write_pictures(small, 20)
    large = np.random.default_rng(2).integers(0, 256, (6, 9, 3), np.uint8)
    (small / "é.JPG").write_bytes(encode(large, "jpeg"))  # its middle square is resized, and it becomes gray
    (small / ".0000.png").write_bytes(b"of an operating system")
    (small / "generate.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "small.zip", "w") as archive:
        for path in small.iterdir():
            archive.write(path, path.name)
    given = ("--model", str(enlarging), "--inputs")
    for out, source in (("a.npz", small), ("b.npz", tmp_path / "small.zip"), ("folder", small)):
        made = generate(tmp_path / out, *given, str(source), seeds=None)
        assert made.code == 0 and "21 images of enlarging" in made.said, made.errors
    names = [*(f"{number:04d}.png" for number in range(20)), "é.JPG"]
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["inputs"].tolist() == names and archive["seeds"].tolist() == list(range(21))
        api = as_by_the_api(enlarging, [(small / name).read_bytes() for name in names])
        assert np.array_equal(archive["images"], api)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    texts = [text_of(path.read_bytes(), KEYWORD) or "" for path in sorted((tmp_path / "folder").glob("*.png"))]
    assert [(json.loads(text)["input"], json.loads(text)["edit"]) for text in texts] == [(name, True) for name in names]


def test_a_run_goes_on_with_its_own_pictures_only(generate: Generate, enlarging: Path, tmp_path: Path):
    write_pictures(tmp_path / "small", 10)
    write_pictures(tmp_path / "other", 10, seed=2)
    given = ("--model", str(enlarging), "--inputs")
    assert generate(tmp_path / "o", *given, str(tmp_path / "small"), seeds=None).code == 0
    recipe = json.loads((tmp_path / "o" / "generate.json").read_text())
    (tmp_path / "p" / ".generate").mkdir(parents=True)
    (tmp_path / "p" / ".generate" / "order.json").write_text(json.dumps({"recipe": recipe, "chunk": 8}))
    for out in ("o", "p"):
        refused = generate(tmp_path / out, *given, str(tmp_path / "other"), seeds=None)
        assert refused.code == 2 and "of other settings: the hash of --inputs was " in refused.errors


@pytest.mark.parametrize(
    ("inputs", "seeds", "words"),
    [
        (None, "0-1", "enlarging enlarges images of 4x4; --inputs names a folder or a zip of them"),
        ("absent", None, "absent is not there; name a folder or a zip of pictures"),
        ("empty", None, "empty holds no file that ends in .png, .jpg, .jpeg, .webp"),
        ("text.zip", None, "text.zip is neither a folder nor a zip: File is not a zip file"),
        ("damaged", None, "0001.png of --inputs "),
        ("damaged", None, " is cut off before its end"),
        ("endless", None, "has more than 3145728 bytes; save it smaller"),
        ("small", "0-2", "--seeds lists 3 and --inputs "),
        ("small", "0-2", " has 2 pictures; each picture needs one seed"),
    ],
)
def test_inputs_that_cannot_be_enlarged_are_said_before_the_work(
    generate: Generate, enlarging: Path, tmp_path: Path, inputs: str | None, seeds: str | None, words: str
):
    for name in ("small", "damaged"):
        write_pictures(tmp_path / name, 2)
    (tmp_path / "damaged" / "0001.png").write_bytes((tmp_path / "small" / "0001.png").read_bytes()[:40])
    for name in ("empty", "endless"):
        (tmp_path / name).mkdir()
    (tmp_path / "endless" / "0.png").symlink_to("/dev/zero")
    (tmp_path / "text.zip").write_text("no archive")
    given = ("--inputs", str(tmp_path / inputs)) if inputs else ()
    refused = generate(tmp_path / "o", "--model", str(enlarging), *given, seeds=seeds)
    assert refused.code == 2 and words in refused.errors.splitlines()[-1] and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("o.foo", (), "ends in .foo, which means no format; end it in .png, .npz"),
        ("o.zip", ("--format", "npz"), "--format npz writes a file that ends in .npz"),
        ("o.zip", ("--per-file", "9"), "--per-file is of --format webdataset"),
        ("o", ("--label", "boat"), 'no class "boat"; a class is a number from 0 to 2'),
        ("o", ("--steps", "7"), "has no levels for 7 steps"),
        ("o", ("--guidance", "2"), "tiny takes no guidance weight; leave guidance out"),
        ("o", ("--inputs", "."), "tiny enlarges no images; leave --inputs out"),
        ("o", ("--guidance", "nan"), "--guidance: nan is not a number above 0"),
        ("o", ("--model", "absent"), "there is no model 'absent'; the models with an engine are: "),
        ("o", ("--model", "no/where"), "no/where holds no engine.json"),
        ("o", ("--backend", "foo"), "there is no backend 'foo'"),
        ("o", ("--seeds", "5-3"), "ends before it begins; write 3-5"),
        ("o", ("--seeds", "0-9,4"), "names the seed 4 twice"),
        ("o", ("--seeds", "a"), "'a' are no seeds; write 7, 0-63"),
        ("o", ("--seeds", f"{2**63}"), "is too large; seeds are from 0 to"),
        ("o", ("--seeds", f"0-{2**63 - 1}"), "at most 1,000,000,000 images"),
        ("o.png", ("--seeds", "0-4096"), "holds at most 4,096 images"),
        ("full", (), "exists and is none of this command's"),
        ("full/file.npz", (), "cannot be read"),
        ("full/file.zip", (), "cannot be read"),
        ("full/file.png", (), "exists and is none of this command's"),
        ("full/file.npz/o", (), "is not a folder; name another place"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_sentence(
    generate: Generate, tmp_path: Path, out: str, options: tuple[str, ...], words: str
):
    (tmp_path / "full").mkdir()
    for suffix in ("npz", "zip", "png"):
        (tmp_path / "full" / f"file.{suffix}").write_bytes(b"something of the user's")
    before = contents(tmp_path / "full")
    refused = generate(tmp_path / out, *options)
    assert refused.code == 2 and words in refused.errors.splitlines()[-1]
    assert contents(tmp_path / "full") == before and [path.name for path in tmp_path.iterdir()] == ["full"]


def test_progress_is_shown_from_the_start(generate: Generate, tmp_path: Path):
    lines = generate(tmp_path / "o.npz").errors.splitlines()
    assert lines[:2] == ["generate  loading tiny", "generate    0 %  0 of 100 images  0 images/s"]
    assert lines[-1].startswith("generate  100 %  100 of 100 images")


@pytest.mark.parametrize(("images", "capacity", "size"), [(1, 8, 8), (600, 8, 16), (10**6, 8, 256), (10**6, 300, 300)])
def test_a_chunk_is_whole_network_calls(images: int, capacity: int, size: int):
    assert chunk_size(images, capacity) == size


def test_an_engine_that_was_exported_anew_does_not_go_on_with_the_images_of_the_old_one(
    generate: Generate, engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert read_student(engine_dir, "tiny").checkpoint == "c" * 64
    assert generate(tmp_path / "o.npz").code == 0
    from server.settings import sources

    def exported_anew(folder: Path, name: str) -> Any:
        return replace(read_student(folder, name), checkpoint="d" * 64)

    monkeypatch.setattr(sources, "read_student", exported_anew)
    other = generate(tmp_path / "o.npz")
    assert other.code == 2 and "the model's checkpoint was cccc" in other.errors
