"""Adapters by row: one call gives every row what its own merged network gives, by torch and by ONNX Runtime, and a row
without an adapter the bytes of the backbone's own engine; what does not belong together is refused."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from export import adapters
from export.__main__ import main
from export.adapter_factors import stack
from export.adapters import add_adapter, engine_factors, remove_adapter
from export.build import export_checkpoint
from export.engine import Engine, load_engine
from export.fusible import fusible
from export.grouped import adapted_layers, grouped_network
from export.manifest import Manifest, read_manifest, served_models, write_manifest
from export.residuals import residuals_folded
from export.upsampling import enlarged_last
from export.verify import Gap
from fewstep.adapters import Adapter, AdapterCard, load_posterior, load_student, merged, save_adapter, told
from fewstep.ancestral import ancestral_chain, sample_weighted, student_chain
from fewstep.card import CheckpointError, read_card
from fewstep.checkpoint import load_denoiser
from fewstep.network import UNet
from fewstep.noise import noise_for
from fewstep.pixels import to_pixels
from fewstep.samplers import sample_dpdm
from server.scheduler.loading import LoadOptions
from server.scheduler.local import LocalService
from server.scheduler.validate import image_request
from tests.export.conftest import CONFIGS, TINY, example_rows, make_checkpoint

LEVELS = {1: (1.5,), 3: (2.0, 0.7, 0.2)}


def lively_adapter(network: torch.nn.Module, rank: int, seed: int) -> Adapter:
    """An adapter whose weights change much; the ranks of small layers are smaller."""
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter(network, rank, 0, generator).requires_grad_(False)
    for up in adapter.up.values():
        up.normal_(0, 0.1, generator=generator)
    return adapter


def network_of(kind: str) -> UNet:
    torch.manual_seed(0)
    network = UNet(CONFIGS[kind]).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def described(network: torch.nn.Module, told_classes: int = 0) -> Manifest:
    """As much of a manifest as the factors need."""
    adapted = adapted_layers(network)
    return cast(Manifest, type("M", (), {"adapted": adapted, "told": told_classes}))


def grouped_output(network: UNet, form: torch.nn.Module, adapters: list[Adapter], rows: list[int]) -> torch.Tensor:
    """One call of a grouped network over rows of these adapters, from 1, and of none."""
    manifest = described(network)
    arrays = [
        {name: values.numpy() for name, values in engine_factors(each, network, manifest).items()} for each in adapters
    ]
    factors = [torch.from_numpy(values) for values in stack(arrays, manifest).inputs.values()]
    return grouped_network(form)(*inputs(network, len(rows)), torch.tensor(rows), *factors)


def inputs(network: UNet, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    config = network.config
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.channels + config.extra, config.resolution, config.resolution, generator=generator)
    onehot = torch.eye(max(config.classes, batch))[:batch, : config.classes]
    return x, torch.linspace(-1, 1, batch), onehot


@pytest.mark.parametrize("kind", CONFIGS)
def test_rows_of_several_adapters_are_those_of_the_merged_networks(kind: str):
    """Of every kind of network, as it is and in the forms that are exported; ranks differ."""
    network = network_of(kind)
    adapters = [lively_adapter(network, 2, seed=1), lively_adapter(network, 5, seed=2)]
    rows = [1, 0, 2, 1]
    question = inputs(network, len(rows))
    expected = torch.cat(
        [
            (merged(network, adapters[row - 1]) if row else network)(*(part[place : place + 1] for part in question))
            for place, row in enumerate(rows)
        ]
    )
    assert float((expected - network(*question)).abs().amax((1, 2, 3))[[0, 2, 3]].min()) > 0.05
    for form in (merged(network, Adapter(network, 1)), fusible(enlarged_last(residuals_folded(network)))):
        made = grouped_output(network, form, adapters, rows)
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["unconditional", "adm"])
def test_an_adapter_that_is_told_fewer_values_than_the_engine_has_room_for_is_the_same(kind: str):
    config = dataclasses.replace(CONFIGS[kind], classes=0)
    torch.manual_seed(0)
    network = UNet(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    card = cast("object", type("C", (), {"network": dataclasses.asdict(config)}))
    narrow, wide = (told(network, card, groups) for groups in (3, 7))  # pyright: ignore[reportArgumentType]
    adapter = lively_adapter(narrow, 2, seed=3)
    factors = engine_factors(adapter, cast(UNet, narrow), described(wide))
    stacked = stack([{name: values.numpy() for name, values in factors.items()}], described(wide)).inputs.values()
    x, c_noise, _ = inputs(network, 3)
    made = grouped_network(wide)(
        x, c_noise, torch.eye(7)[:3], torch.tensor([1, 1, 0]), *(torch.from_numpy(each) for each in stacked)
    )
    expected = merged(narrow, adapter)(x, c_noise, torch.eye(3))[:2]
    torch.testing.assert_close(made[:2], expected, rtol=1e-5, atol=1e-5)
    assert float((expected - made[2]).abs().max()) > 0.05


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an engine, an engine for adapters, and two adapters in folders beside them."""
    folder = make_checkpoint(tmp_path_factory.mktemp("backbone"), TINY)
    network = cast(torch.nn.Module, load_denoiser(folder)[0].network)
    export_checkpoint(folder, folder / "plain", threads=1)
    export_checkpoint(folder, folder / "engine", "tiny", threads=1, adapters=True)
    for name, rank in (("threes", 2), ("fives", 4)):
        card = AdapterCard(
            read_card(folder).weights, rank, 0, None, f"class:{name}", levels=LEVELS, class_names=("a",) * 10
        )
        save_adapter(folder / name, lively_adapter(network, rank, seed=rank), card)
    assert main(["adapter", str(folder / "engine"), "--add", str(folder / "threes"), "--threads", "1"]) == 0
    add_adapter(folder / "engine", folder / "fives", threads=1)
    return folder


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "torch"])
def test_an_engine_with_adapters_gives_each_row_its_own(backbone: Path, backend: str):
    engine = load_engine(backbone / "engine", backend=backend, threads=1, buckets=(1, 6))
    rows = example_rows(engine, 6)
    mixed = np.array([2, 0, 1, 1, 2, 0])
    together = engine.network(*rows, mixed)
    for adapter, name in ((0, None), (1, "threes"), (2, "fives")):
        student = load_student(backbone, backbone / name) if name else None
        eager = (student.denoiser if student else load_denoiser(backbone)[0]).network
        expected = eager(*map(torch.from_numpy, rows)).numpy()
        np.testing.assert_allclose(together[mixed == adapter], expected[mixed == adapter], rtol=1e-5, atol=1e-5)
    for place in range(6):  # alone in its batch or not
        alone = [np.repeat(part[place : place + 1], 6, axis=0) for part in (*rows, mixed)]
        assert engine.network(*alone)[place].tobytes() == together[place].tobytes()


def test_a_row_without_an_adapter_has_the_bytes_of_the_backbones_own_engine(backbone: Path):
    plain, engine = (load_engine(backbone / name, threads=1) for name in ("plain", "engine"))
    rows = example_rows(plain, 6)
    expected = plain.network(*rows)
    assert engine.network(*rows).tobytes() == expected.tobytes()
    mixed = engine.network(*rows, np.array([0, 2, 0, 1, 0, 1]))
    assert mixed[[0, 2, 4]].tobytes() == expected[[0, 2, 4]].tobytes()


def test_what_is_served_has_levels_of_its_own_and_its_images_are_eager_ones(backbone: Path):
    engine = load_engine(backbone / "engine", threads=1)
    served = served_models(engine.manifest)
    assert list(served) == ["tiny", "tiny:threes", "tiny:fives"]
    assert served["tiny:fives"].levels == LEVELS and served["tiny:fives"].class_names == ("a",) * 10
    assert engine.manifest.adapters[1].parity["3"]["images"] == 16
    student, labels = load_student(backbone, backbone / "fives"), np.array([4, 5])
    noise = noise_for([7, 8], (1, 8, 8))
    made = sample_dpdm(lambda x, sigma: engine.adapted_denoiser(2)(x, sigma, labels), noise, LEVELS[3]).images
    eager = sample_dpdm(
        lambda x, sigma: student.denoiser(x, sigma, torch.from_numpy(labels)),
        lambda step: torch.from_numpy(noise(step)),
        LEVELS[3],
    ).images
    np.testing.assert_allclose(made, eager.numpy(), rtol=1e-4, atol=1e-4)


def test_a_posterior_of_the_backbones_own_steps_is_served_with_its_log_weights(backbone: Path, tmp_path: Path):
    """Images and weights are those of `sample_weighted` in PyTorch; learned variances are refused."""
    folder = tmp_path / "copy"
    shutil.copytree(backbone, folder)
    network, chain = cast(torch.nn.Module, load_denoiser(folder)[0].network), student_chain(LEVELS[3])
    adapter = Adapter(network, 2, chain.steps, torch.Generator().manual_seed(3)).requires_grad_(False)
    for up in adapter.up.values():
        up.normal_(0, 0.05, generator=torch.Generator().manual_seed(4))
    card = AdapterCard(read_card(folder).weights, 2, 0, chain, "bright", class_names=("a",) * 10)
    save_adapter(folder / "bright", adapter, card)
    entry = add_adapter(folder / "engine", folder / "bright", threads=1)
    assert (entry.last_map, entry.levels, list(entry.parity)) == ("backbone", {3: LEVELS[3]}, ["3"])
    assert read_manifest(folder / "engine").adapters[2].last_map == "backbone"

    loaded, labels = load_posterior(folder, folder / "bright"), torch.tensor([4, 9])
    noise = noise_for([7, 8], (1, 8, 8))
    with torch.no_grad():
        made = sample_weighted(
            lambda x, sigma: loaded.prior(x, sigma, labels), lambda x, sigma: loaded.posterior(x, sigma, labels),
            lambda step: torch.from_numpy(noise(step)), loaded.chain, lambda images: torch.zeros(len(images)),
        )  # fmt: skip
    with LocalService.open({"tiny": folder / "engine"}, LoadOptions(mode="exact", capacity=4, threads=1)) as service:
        request = image_request(
            service.manifests["tiny:bright"], seed=7, images=2, labels=[4, 9], format="pixels", log_weight=True
        )
        done = service.submit(request).result()
    assert done.log_weights == pytest.approx(made.log_weight.tolist(), abs=1e-3) and min(map(abs, done.log_weights)) > 1
    assert np.abs(np.stack(done.images).astype(int) - to_pixels(made.images.numpy())).max() <= 1

    adapter.log_variance[1] = 0.5
    save_adapter(folder / "wide", adapter, card)
    with pytest.raises(CheckpointError, match="Train it with --fixed-variance"):
        add_adapter(folder / "engine", folder / "wide", threads=1)


def test_a_backbone_without_classes_serves_adapters_that_are_told_some(tmp_path: Path):
    folder = make_checkpoint(tmp_path / "m", dataclasses.replace(TINY, classes=0, mult=(1,)))
    export_checkpoint(folder, folder / "engine", "free", threads=1, adapters=True, told_classes=3)
    backbone = load_denoiser(folder)[0]
    network = told(cast(torch.nn.Module, backbone.network), read_card(folder), 2)
    card = AdapterCard(read_card(folder).weights, 2, 2, None, "r", levels=LEVELS, class_names=("left", "right"))
    save_adapter(folder / "sides", lively_adapter(network, 2, seed=1), card)
    add_adapter(folder / "engine", folder / "sides", threads=1)
    engine = load_engine(folder / "engine", threads=1)
    served = served_models(engine.manifest)
    assert [(each.classes, each.columns) for each in served.values()] == [(0, 3), (2, 2)]
    x, sigma, labels = np.ones((2, 1, 8, 8), np.float32), np.array([1.0, 0.5], np.float32), np.array([0, 1])
    made = engine.adapted_denoiser(1)(x, sigma, labels)
    eager = load_student(folder, folder / "sides").denoiser(*map(torch.from_numpy, (x, sigma, labels)))
    np.testing.assert_allclose(made, eager.numpy(), rtol=1e-5, atol=1e-5)
    plain = backbone(torch.from_numpy(x), torch.from_numpy(sigma)).numpy()
    np.testing.assert_allclose(engine.denoiser(x, sigma), plain, rtol=1e-5, atol=1e-5)

    chain = AdapterCard(read_card(folder).weights, 2, 2, student_chain(LEVELS[3]), "r", class_names=("left", "right"))
    save_adapter(folder / "tilted", Adapter(network, 2, 2).requires_grad_(False), chain)
    entry = add_adapter(folder / "engine", folder / "tilted", threads=1)
    assert (entry.classes, entry.class_names, entry.parity["3"]["nfe"]) == (2, ("left", "right"), 3)

    wide = AdapterCard(read_card(folder).weights, 2, 4, None, "r", levels=LEVELS)
    save_adapter(
        folder / "four", lively_adapter(told(network_without_classes(folder), read_card(folder), 4), 2, 1), wide
    )
    with pytest.raises(CheckpointError, match="has room for 3"):
        add_adapter(folder / "engine", folder / "four", threads=1)


def network_without_classes(folder: Path) -> torch.nn.Module:
    return cast(torch.nn.Module, load_denoiser(folder)[0].network)


def test_what_two_commands_write_at_once_stays(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Both begin with the same manifest; one ends while the other one still measures."""
    folder = tmp_path / "copy"
    shutil.copytree(backbone, folder)
    engine, measured = folder / "engine", adapters.prove_adapter

    def meanwhile(command: Callable[[], object]) -> None:
        def prove(*arguments: Any) -> dict[str, Gap]:
            monkeypatch.setattr(adapters, "prove_adapter", measured)
            command()
            return measured(*arguments)

        monkeypatch.setattr(adapters, "prove_adapter", prove)

    meanwhile(lambda: add_adapter(engine, folder / "fives", "second", threads=1))
    add_adapter(engine, folder / "threes", "first", threads=1)
    meanwhile(lambda: remove_adapter(engine, "threes"))
    add_adapter(engine, folder / "threes", "third", threads=1)
    names = ["fives", "second", "first", "third"]
    assert [entry.name for entry in read_manifest(engine).adapters] == names
    loaded = load_engine(engine, threads=1)
    assert loaded.facts["adapters"] == "4"

    other = dataclasses.replace(loaded.manifest, network_sha256="0" * 64)
    meanwhile(lambda: write_manifest(engine, other))
    assert main(["adapter", str(engine), "--add", str(folder / "threes"), "--name", "late"]) == 2
    assert "was exported again meanwhile" in capsys.readouterr().err
    assert read_manifest(engine) == other and not (engine / "adapters" / "late.safetensors").exists()


def test_wrong_pairs_are_refused_and_leave_the_engine_as_it_was(backbone: Path, tmp_path: Path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(backbone, folder)
    engine = folder / "engine"
    before = (engine / "engine.json").read_bytes()
    weights = read_card(folder).weights
    network = cast(torch.nn.Module, load_denoiser(folder)[0].network)
    adapter = lively_adapter(network, 2, seed=9)
    chain = ancestral_chain((2.0, 0.5), "small")
    for name, card, why in (
        ("other", AdapterCard("0" * 64, 2, 0, None, "r", levels=LEVELS), "was trained beside the network"),
        ("chain", AdapterCard(weights, 2, 0, chain, "r"), "samples the chain of a teacher"),
    ):
        save_adapter(folder / name, adapter if name == "other" else Adapter(network, 2, 1), card)
        with pytest.raises(CheckpointError, match=why):
            add_adapter(engine, folder / name, threads=1)
    with pytest.raises(CheckpointError, match="give it one with --name"):
        add_adapter(engine, folder / "threes", "a:b", threads=1)
    with pytest.raises(CheckpointError, match="takes no adapters"):
        add_adapter(folder / "plain", folder / "threes", threads=1)
    with pytest.raises(CheckpointError, match="Nothing was written"):
        add_adapter(engine, folder / "threes", "more", threads=1, bounds={"mean": 0.0, "max": 0.0})
    assert (engine / "engine.json").read_bytes() == before and len(list((engine / "adapters").iterdir())) == 2
    with pytest.raises(CheckpointError, match="which an export would remove"):
        export_checkpoint(folder, engine, threads=1)
    with pytest.raises(CheckpointError, match="which backend openvino does not run"):
        load_engine(engine, backend="openvino")
    loaded: Engine = load_engine(engine, threads=1)
    with pytest.raises(ValueError, match="has 2 adapters"):
        loaded.network(*example_rows(loaded, 1), np.array([3]))

    assert main(["adapter", str(engine), "--remove", "nobody"]) == 2
    assert "it has threes, fives" in capsys.readouterr().err
    remove_adapter(engine, "threes")
    assert list(served_models(read_manifest(engine))) == ["tiny", "tiny:fives"]
    path = engine / "adapters" / "fives.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated or was changed"):
        load_engine(engine)
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_engine(engine)
