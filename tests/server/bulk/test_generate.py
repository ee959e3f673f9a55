"""`fewstep generate`: the server's bytes, six kinds of output, and what is refused."""

import errno
import fcntl
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.manifest import read_manifest, read_student, write_manifest
from fewstep.noise import random_labels
from fewstep.pixels import KEYWORD, text_of
from server.bulk.journal import Journal
from server.bulk.order import chunk_size
from tests.server.bulk.conftest import Generate, contents
from tests.server.conftest import serving
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


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("o.foo", (), "ends in .foo, which means no format; end it in .png, .npz"),
        ("o.zip", ("--format", "npz"), "--format npz writes a file that ends in .npz"),
        ("o.zip", ("--per-file", "9"), "--per-file is of --format webdataset"),
        ("o", ("--label", "boat"), 'no class "boat"; a class is a number from 0 to 2'),
        ("o", ("--steps", "7"), "has no levels for 7 steps"),
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
