"""Images that stay in tar files or in EDM's zip: their index, the order they are read in, and errors that name them."""

import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from fewstep.checkpoint import load_denoiser
from tests.trainer.data.archives import edm_names, png, write_edm, write_shards, write_tar
from tests.trainer.tiny import run_options
from trainer.commands import train_teacher
from trainer.data import command, loader
from trainer.data.format import DataError, ImageSet, write_image_set
from trainer.data.loader import STREAMS, batches, shard_order
from trainer.data.named import read_data
from trainer.data.prefetch import prefetched
from trainer.data.shards import PART, read_index
from trainer.data.sources.shards import write_index
from trainer.run.loop import LoopConfig

CPU = torch.device("cpu")
COUNT = 600
CONFIG = LoopConfig(batch=16, seed=3, flip=True)


@pytest.fixture(scope="module")
def pictures() -> ImageSet:
    """600 images of 8x8, all different."""
    rng = np.random.default_rng(0)
    labels = (np.arange(COUNT) % 10).astype(np.int32)
    return ImageSet("p", rng.integers(0, 256, (COUNT, 8, 8, 1), np.uint8), labels, tuple("0123456789"), "CC0", "here")


@pytest.fixture(scope="module")
def tars(pictures: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    write_shards(folder, pictures.images, pictures.labels, 250)
    return folder


@pytest.fixture(scope="module")
def index(tars: Path) -> Path:
    out = tars / "index.zip"
    write_index(tars, out)
    return out


def test_an_index_of_tars_has_the_images_the_labels_and_the_hash_of_a_dataset_zip(pictures, index, tmp_path):
    found = read_index(index)
    write_image_set(tmp_path / "p.zip", pictures)
    assert found.provenance() == replace(found.provenance(), **{
        key: getattr(pictures.provenance(), key) for key in ("sha256", "sigma_data", "images")
    })  # fmt: skip
    assert np.array_equal(found.images[:], pictures.images) and np.array_equal(found.labels, pictures.labels)
    assert np.array_equal(found.images[[599, 0, 251]], pictures.images[[599, 0, 251]])
    assert np.array_equal(found.images[7], pictures.images[7])
    assert len(index.read_bytes()) < 48 * COUNT  # no pixels


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_index_of_edms_zip(compression, pictures, tmp_path):
    names = edm_names(40)
    labels = [[name, int(label)] for name, label in zip(names, pictures.labels[:40], strict=True)]
    write_edm(tmp_path / "edm.zip", pictures.images[:40], {"labels": labels}, compression)
    (tmp_path / "elsewhere").mkdir()
    write_index(tmp_path / "edm.zip", tmp_path / "elsewhere" / "index.zip", resolution=4)
    found = read_index(tmp_path / "elsewhere" / "index.zip")
    assert found.images.shape == (40, 4, 4, 1) and found.labels.tolist() == pictures.labels[:40].tolist()
    assert abs(found.images[3].mean() - pictures.images[3].mean()) < 10  # resized
    assert cast(Any, found.images).where(5) == f"{tmp_path / 'edm.zip'}: {names[5]}"


def of_process(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    monkeypatch.setattr(loader, "rank", lambda: rank)
    monkeypatch.setattr(loader, "ranks", lambda: ranks)


def taken(data: ImageSet, count: int, seen: int = 0, config: LoopConfig = CONFIG) -> tuple[torch.Tensor, torch.Tensor]:
    stream = batches(data, config, seen, CPU)
    images, labels = zip(*(next(stream) for _ in range(count)), strict=True)
    stream.close()
    return torch.stack(images), torch.stack(labels)


def test_batches_depend_on_the_seed_and_the_images_seen_and_not_on_the_processes(index, monkeypatch):
    data = read_index(index)
    straight = taken(data, 80)  # two epochs and a bit
    for one, other in zip(taken(data, 40, seen=40 * CONFIG.batch), straight, strict=True):
        assert torch.equal(one, other[40:])
    for ranks in (2, 4):
        parts = []
        for rank in range(ranks):
            of_process(monkeypatch, rank, ranks)
            parts.append(taken(data, 80))
        for whole, several in zip(straight, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(several, dim=1), whole)
    of_process(monkeypatch, 0, 1)
    assert not torch.equal(taken(data, 3, config=replace(CONFIG, seed=4))[0], straight[0][:3])


def test_an_epoch_shows_every_image_once_and_a_stream_reads_whole_parts():
    count, streams = 100_000, STREAMS
    first, second = (shard_order(0, epoch, count, streams) for epoch in (0, 1))
    for order in (first, second):
        assert np.array_equal(np.sort(order), np.arange(count))
    assert not np.array_equal(first, second)
    own = first[: count // streams * streams].reshape(-1, streams)[:, 5]
    parts = np.unique(own // PART)
    assert len(parts) <= len(own) / PART + 3  # its own, and one or two that it shares with its neighbours
    assert len(np.unique(own[:64] // PART)) > 8  # which are shuffled among each other


def test_training_asks_for_the_parts_around_its_images_and_a_sample_does_not(index, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *request: asked.append(request), raising=False)
    data = read_index(index)
    assert np.array_equal(data.images[[0, 300]], cast(Any, data.images).with_neighbours([0, 300])) and len(asked) == 2
    asked.clear()
    assert len(data.images[::50]) == 12 and not asked
    taken(data, 1)
    assert asked


def test_pictures_with_a_tar_beside_them_are_read(pictures, tmp_path):
    (tmp_path / "a.png").write_bytes(png(pictures.images[0]))
    write_tar(tmp_path / "a.tar", {})
    assert read_data(tmp_path, 8).unread == ("a.tar",)


def overwritten(path: Path, member: str, content: bytes) -> None:
    """The first bytes of a member of a tar, overwritten."""
    with tarfile.open(path) as archive:
        offset = archive.getmember(member).offset_data
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(content)] = content
    path.write_bytes(whole)


def copied(folder: Path, to: Path) -> None:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())


def test_one_image_that_changed_at_equal_size_is_refused_when_it_is_read(tars, index, pictures, tmp_path):
    copied(tars, tmp_path)
    other = png(pictures.images[301])
    assert len(other) == len(png(pictures.images[300]))
    overwritten(tmp_path / "p-000001.tar", "000300.png", other)
    data = read_index(tmp_path / "index.zip")
    with pytest.raises(DataError, match=r"p-000001\.tar: 000300\.png has changed since the index was made"):
        taken(data, 38)
    assert np.array_equal(data.images[301], pictures.images[301])


def test_a_shard_that_was_made_again_at_equal_size_is_refused_at_the_start(tars, index, pictures, tmp_path):
    copied(tars, tmp_path)
    write_shards(tmp_path, pictures.images[::-1], pictures.labels, 250)
    assert all((tmp_path / file.name).stat().st_size == file.stat().st_size for file in tars.glob("*.tar"))
    with pytest.raises(DataError, match=r"p-000000\.tar: 000000\.png has changed since the index was made; make the"):
        read_index(tmp_path / "index.zip")


def test_an_error_names_the_shard_and_the_member(tars, index, pictures, tmp_path):
    copied(tars, tmp_path)
    overwritten(tmp_path / "p-000001.tar", "000300.png", b"\0" * 8)
    with pytest.raises(DataError, match=r"p-000001\.tar: 000300\.png is not a readable image"):
        write_index(tmp_path, tmp_path / "again.zip")
    with (tmp_path / "p-000000.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"p-000000\.tar has changed since .*index\.zip was made; make the index again"):
        read_index(tmp_path / "index.zip")
    (tmp_path / "p-000002.tar").rename(tmp_path / "gone")
    (tmp_path / "p-000000.tar").write_bytes((tars / "p-000000.tar").read_bytes())
    with pytest.raises(DataError, match=r"p-000002\.tar is missing"):
        read_index(tmp_path / "index.zip")


BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "no picture": ({"a.cls": b"1"}, "holds no pictures"),
    "some classes": ({"a.png": b"", "a.cls": b"1", "b.png": b""}, "1 of 2 images have no .cls"),
    "no class": ({"a.png": b"", "a.cls": b"cat"}, r"a\.cls says 'cat', which is no class"),
    "two pictures": ({"a.png": b"", "a.jpg": b""}, "a second picture of a"),
    "no image": ({"a.png": b"nothing"}, r"a\.png is not a readable image"),
}


@pytest.mark.parametrize("name", BAD)
def test_shards_that_cannot_be_used_are_refused(name, tmp_path):
    members, said = BAD[name]
    write_tar(tmp_path / "s.tar", members)
    with pytest.raises(DataError, match=said):
        write_index(tmp_path, tmp_path / "index.zip")


def test_other_sizes_other_files_and_cut_files_are_refused(pictures, tmp_path):
    write_tar(tmp_path / "s.tar", {"a.png": png(pictures.images[0]), "b.png": png(pictures.images[0][:4, :4])})
    with pytest.raises(DataError, match=r"s\.tar: b\.png is 4x4, not 8x8; give --resolution N"):
        write_index(tmp_path, tmp_path / "index.zip")
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:600])
    with pytest.raises(DataError, match=r"s\.tar"):
        write_index(tmp_path, tmp_path / "index.zip")
    (tmp_path / "s.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"s\.tar is not a readable, uncompressed tar"):
        write_index(tmp_path, tmp_path / "index.zip")
    with pytest.raises(DataError, match=r"holds no \.tar files"):
        write_index(tmp_path / "nowhere", tmp_path / "index.zip")


@pytest.mark.usefixtures("tiny_recipe")
def test_the_command_makes_an_index_and_a_teacher_is_trained_from_it(tars, pictures, tmp_path, capsys):
    with pytest.raises(DataError, match="fewstep trainer data shards"):
        read_data(tars, 8)
    out = tmp_path / "index.zip"
    command.run(["shards", str(tars), "--out", str(out), "--licence", "CC0-1.0", "--name", "noise"])
    command.run(["show", str(out)])
    assert "600 images, 8x8 gray" in capsys.readouterr().out
    data = read_data(out, 32)
    assert train_teacher(run_options(tmp_path / "teacher", images=16), data)
    card = load_denoiser(tmp_path / "teacher")[1]
    assert card.dataset.sha256 == pictures.sha256() and card.dataset.licence == "CC0-1.0"
    assert card.training["shards"]
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def counted(upto: int, ahead: int, asked: list[int], broken: int | None = None) -> Iterator[int]:
    for number in range(upto):
        assert number <= len(asked) + ahead, "made too early"
        if number == broken:
            raise DataError(f"number {number}")
        yield number


def test_items_come_in_order_a_bounded_number_ahead_and_an_error_at_its_place():
    asked: list[int] = []
    stream: Any = prefetched(counted(50, 3, asked), 3)
    for number in range(50):
        asked.append(number)
        assert next(stream) == number
    assert next(stream, None) is None
    failing = prefetched(counted(50, 3, asked, broken=5), 3)
    assert [next(failing) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="number 5"):
        next(failing)
    endless = prefetched(counted(10**9, 10**9, asked), 3)
    next(endless)
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]
