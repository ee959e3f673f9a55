"""Reading EDM's pickles: nothing inside them runs, and whatever is not one is refused in words."""

import functools
import io
import operator
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._utils import _rebuild_tensor_v2

from fewstep.card import CheckpointError
from tests.trainer.importing.edm_pickles import Persistent, persistence, snapshot, write
from tests.trainer.importing.edm_reference import NETWORKS, reference
from trainer.importing.edm_pickle import MAX_DEPTH, SavedObject, module_tensors, read_edm_pickle, submodule


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists if something ran."""
    return tmp_path / "it ran"


def touching(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def test_the_embedded_source_is_not_executed(tmp_path: Path, marker: Path):
    path = write(tmp_path / "net.pkl", snapshot(reference("ddpm++"), *NETWORKS["ddpm++"], touching(marker)))
    read_edm_pickle(path)
    assert not marker.exists()
    assert "torch_utils" not in sys.modules
    with persistence():
        pickle.loads(path.read_bytes())
    assert marker.exists(), "the ordinary way would have run it: the test can fail"


def test_tensors_come_back_with_their_published_names_and_bits(tmp_path: Path):
    network = reference("ncsn++")
    data = read_edm_pickle(write(tmp_path / "net.pkl", snapshot(network, *NETWORKS["ncsn++"])))
    model = submodule(data["ema"], "model")
    assert model is not None and model.class_name == "SongUNet"
    assert model.state["_init_kwargs"] == NETWORKS["ncsn++"][1]
    found = module_tensors(model)
    assert found.keys() == network.t.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in network.t.items())
    assert submodule(data["ema"], "elsewhere") is None


def test_every_pickle_protocol_of_python_3_is_read(tmp_path: Path):
    with persistence():
        for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
            content = pickle.dumps(snapshot(reference("ddpm++"), *NETWORKS["ddpm++"]), protocol)
            (tmp_path / "net.pkl").write_bytes(content)
            model = submodule(read_edm_pickle(tmp_path / "net.pkl")["ema"], "model")
            assert model is not None and module_tensors(model).keys() == reference("ddpm++").t.keys()


def payloads(marker: Path) -> dict[str, Any]:
    shell = f"touch '{marker}'"
    bad = Calls(os.system, shell)
    return {
        "os.system": {"ema": bad},
        "eval": {"ema": Calls(eval, touching(marker))},
        "unknown global": {"ema": Calls(functools.partial, print)},
        "attribute access": {"ema": Calls(operator.attrgetter("system"), os)},
        "in a persistent state": {"ema": Persistent("EDMPrecond", inner=bad)},
        "behind a good network": {**snapshot(reference("ddpm++"), *NETWORKS["ddpm++"]), "more": bad},
        "in the bytes of a tensor": {"ema": Persistent("X", w=Calls(torch.storage._load_from_bytes, saved(bad)))},
        "in a zip in the bytes": {
            "ema": Persistent("X", w=Calls(torch.storage._load_from_bytes, saved(bad, zip=True)))
        },
    }


def saved(content: Any, *, zip: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zip)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("os.system", "posix.system"), ("eval", "builtins.eval"), ("unknown global", "functools.partial"),
        ("attribute access", "operator.attrgetter"), ("in a persistent state", "posix.system"),
        ("behind a good network", "posix.system"), ("in the bytes of a tensor", "posix.system"),
        ("in a zip in the bytes", "posix.system"),
    ],
)  # fmt: skip
def test_an_unsafe_pickle_is_refused_by_what_it_names(kind: str, named: str, tmp_path: Path, marker: Path):
    if kind == "attribute access":
        content = b"\x80\x04}\x8c\x03emac" + b"operator\nattrgetter\n\x8c\x06system\x85Rs."
        (tmp_path / "net.pkl").write_bytes(content)
    else:
        write(tmp_path / "net.pkl", payloads(marker)[kind])
    with pytest.raises(CheckpointError, match=rf"net\.pkl is not safe to read: .*{named}") as refusal:
        read_edm_pickle(tmp_path / "net.pkl")
    assert "\n" not in str(refusal.value)
    assert not marker.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pkl"]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (100,), (1,)), (3, (2,), (1,)), (0, (2,), (-1,)), (-1, (1,), (1,)), (0, (2,), (1, 1))],
)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_tensor_outside_its_bytes_is_refused(offset: int, size: tuple[int], stride: tuple[int], tmp_path: Path):
    def of_four(*place: Any) -> Calls:
        return Calls(_rebuild_tensor_v2, torch.arange(4.0).storage(), *place, False, OrderedDict())

    good = read_edm_pickle(write(tmp_path / "net.pkl", {"ema": of_four(1, (2,), (2,))}))
    assert good["ema"].tolist() == [1.0, 3.0]
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        read_edm_pickle(write(tmp_path / "net.pkl", {"ema": of_four(offset, size, stride)}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Calls(_rebuild_tensor_v2, "bytes", 0, (1,), (1,), False, {}), "a tensor is made of a str"),
        (Calls(torch.storage._load_from_bytes, b"junk"), "the bytes of a tensor cannot be read"),
        (Calls(torch.storage._load_from_bytes, saved({"a": 1})), "the bytes of a tensor hold a dict"),
    ],
    ids=["no storage", "junk", "no tensor"],
)
def test_a_tensor_without_bytes_is_refused(content: Any, message: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=message):
        read_edm_pickle(write(tmp_path / "net.pkl", {"ema": content}))


@pytest.mark.parametrize("target", ["torch._utils _rebuild_tensor_v2", "collections OrderedDict", "numpy dtype"])
def test_a_pickle_cannot_change_what_it_names(target: str, tmp_path: Path):
    # BUILD with a pair sets attributes on whatever lies on the stack, here the callable itself.
    content = b"\x80\x02c" + target.replace(" ", "\n").encode() + b"\nN}X\x08\x00\x00\x00__call__K\x01s\x86b."
    (tmp_path / "net.pkl").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_edm_pickle(tmp_path / "net.pkl")
    read_edm_pickle(write(tmp_path / "good.pkl", snapshot(reference("ddpm++"), *NETWORKS["ddpm++"])))


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path):
    path = write(tmp_path / "net.pkl", snapshot(reference("ddpm++"), *NETWORKS["ddpm++"]))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"net\.pkl is (damaged or truncated|not a pickle)") as refusal:
        read_edm_pickle(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>404</html>", r"not a pickle: it begins with b'<!DOCTYPE html"),
        (b"", "not a pickle: it begins with b''"),
        (saved({"net": 1}, zip=True), r"zip archive, .* import network-snapshot-\*\.pkl"),
        (pickle.dumps(7), "holds a int, not the dictionary"),
        (b"\x80\x04\x95" + b"\xff" * 40, "damaged or truncated"),
    ],
    ids=["html", "empty", "torch.save", "a number", "noise"],
)
def test_another_kind_of_file_is_refused_by_what_it_is(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "net.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_edm_pickle(tmp_path / "net.pkl")


@pytest.mark.parametrize("meta", [{"type": "function", "version": 6}, {"type": "class", "version": 7}, 3], ids=str)
def test_another_persistence_format_is_refused(meta: Any, tmp_path: Path):
    thing = Persistent("X")
    thing.meta = meta
    with pytest.raises(CheckpointError, match="not a class of version 6"):
        read_edm_pickle(write(tmp_path / "net.pkl", {"ema": thing}))


def test_a_module_that_contains_itself_is_refused():
    module = SavedObject("Loop")
    module.state["_modules"] = {"again": module}
    with pytest.raises(CheckpointError, match=f"deeper than {MAX_DEPTH}"):
        module_tensors(module)
