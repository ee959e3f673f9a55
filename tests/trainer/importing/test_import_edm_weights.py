"""EDM's networks: an imported pickle computes what the published tensors do, and sizes are the published ones."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.card import CheckpointError
from fewstep.checkpoint import load_denoiser
from fewstep.network import UNet
from fewstep.unet_config import adm, ddpmpp, ncsnpp
from tests.trainer.importing.edm_pickles import snapshot, write
from tests.trainer.importing.edm_reference import NETWORKS, Reference, built, reference
from trainer.importing.edm_pickle import SavedObject
from trainer.importing.edm_weights import edm_config, edm_weights, import_edm, published_modules, published_name
from trainer.importing.imported import Provenance, save_imported

every_kind = pytest.mark.parametrize("kind", NETWORKS)
CIFAR = {
    "img_resolution": 32, "in_channels": 3, "out_channels": 3, "label_dim": 10, "augment_dim": 9,
    "model_channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [16], "dropout": 0.13,
}  # fmt: skip
VE = {
    "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]
}  # fmt: skip
IMAGENET = {
    "img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000, "augment_dim": 0,
    "model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8],
    "dropout": 0.10,
}  # fmt: skip


@every_kind
@torch.no_grad()
def test_the_imported_denoiser_computes_what_the_published_tensors_do(kind: str, tmp_path: Path):
    network = reference(kind)
    class_name, kwargs = NETWORKS[kind]
    teacher = import_edm(write(tmp_path / "net.pkl", snapshot(network, class_name, kwargs)))
    save_imported(tmp_path / "out", teacher, Provenance())
    denoiser, card = load_denoiser(tmp_path / "out")
    assert card.role == "teacher" and card.sigma_data == 0.5 and denoiser.classes == 4

    rng = torch.Generator().manual_seed(1)
    sigma = torch.tensor([0.002, 0.5, 3.0, 80.0])
    x = torch.randn(4, 3, 16, 16, generator=rng) * (sigma**2 + 0.25).sqrt()[:, None, None, None]
    labels = torch.tensor([0, 3, 1, -1])
    onehot = torch.eye(5)[labels][:, :4]  # the last row has no class
    total = (sigma**2 + 0.25)[:, None, None, None]
    s = sigma[:, None, None, None]
    raw = network(x / total.sqrt(), sigma.log() / 4, onehot)
    expected = 0.25 / total * x + 0.5 * s / total.sqrt() * raw
    assert raw.abs().mean() > 0.1, "a network that returns zeros proves nothing"
    torch.testing.assert_close(denoiser(x, sigma, labels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "class_name", "kwargs", "tensors", "millions"),
    [
        (ddpmpp(32, 3, 10), "SongUNet", CIFAR, 427, 55.735),
        (ncsnpp(32, 3, 0), "SongUNet", CIFAR | VE | {"label_dim": 0}, None, 56.398),
        (adm(64), "DhariwalUNet", IMAGENET, 553, 295.90),
    ],
    ids=["cifar10 cond vp", "cifar10 uncond ve", "imagenet adm"],
)
def test_full_size_networks_have_the_published_tensors(
    config: Any, class_name: str, kwargs: dict[str, Any], tensors: int | None, millions: float
):
    published = built(class_name, kwargs, device="meta").t
    if tensors is not None:
        assert len(published) == tensors
    trained = {name: t for name, t in published.items() if "resample_filter" not in name and "freqs" not in name}
    assert sum(tensor.numel() for tensor in trained.values()) / 1e6 == pytest.approx(millions, abs=0.001)

    saved = SavedObject(class_name, {"_init_kwargs": kwargs})
    assert edm_config(saved) == config
    with torch.device("meta"):
        ours = UNet(config).state_dict()
    modules = published_modules(config)
    shapes = {published_name(name, modules): tensor.shape for name, tensor in ours.items()}
    assert len(shapes) == len(ours)
    dropped = {"map_augment.weight"} | {name for name in published if name.endswith("resample_filter")}
    assert shapes == {name: tensor.shape for name, tensor in published.items() if name not in dropped}


def test_the_origin_names_the_file_and_what_was_dropped(tmp_path: Path):
    class_name, kwargs = NETWORKS["ddpm++"]
    teacher = import_edm(write(tmp_path / "net.pkl", snapshot(reference("ddpm++"), class_name, kwargs)))
    assert teacher.origin["file"] == "net.pkl" and len(teacher.origin["sha256"]) == 64
    assert teacher.origin["dropped"].startswith("map_augment.weight")
    assert (teacher.data_name, teacher.images) == ("cifar10-32x32", 50000)


def changed(change: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    class_name, kwargs = NETWORKS["ddpm++"]
    return class_name, kwargs | change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_type": "skip"}, "encoder_type = 'skip'; only 'standard' or 'residual'"),
        ({"decoder_type": "skip"}, "decoder_type = 'skip'; only 'standard'"),
        ({"channel_mult_emb": 2}, "channel_mult_emb = 2; only 4"),
        ({"channel_mult_noise": 2}, "channel_mult_noise = 2; only 1"),
        ({"out_channels": 6}, "out_channels = 6; only 3"),
        ({"self_attention": True}, "argument self_attention, which this importer does not know"),
        ({"img_resolution": "16"}, "img_resolution = '16', which makes no sense"),
        ({"img_resolution": 15}, "resolution 15 is not a multiple"),
        ({"channel_mult": [1, 2, 2]}, r"lacks enc\.4x4_down"),
        ({"attn_resolutions": []}, r"has dec\.8x8_block2\.norm2\.bias, for which this configuration has no place"),
        ({"label_dim": 3}, r"map_label.* where the network's arguments ask for"),
        ({"resample_filter": [1, 3, 3, 1]}, r"resample_filter is not the filter \[1, 3, 3, 1\]"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path):
    path = write(tmp_path / "net.pkl", snapshot(reference("ddpm++"), *changed(change)))
    with pytest.raises(CheckpointError, match=message) as refusal:
        import_edm(path)
    assert str(path) in str(refusal.value)


def test_a_missing_tensor_and_another_class_are_refused_by_name(tmp_path: Path):
    class_name, kwargs = NETWORKS["adm"]
    network = copy.deepcopy(reference("adm"))
    for wrong, message in (
        (snapshot(network, class_name, kwargs, precond="EDM2"), "class EDM2; EDMPrecond, VPPrecond, VEPrecond, iDDPM"),
        (snapshot(network, "UNet3D", kwargs), "class UNet3D inside EDMPrecond; known are SongUNet, DhariwalUNet"),
        ({"G_ema": 1, "D": 2}, "no EDM network under 'ema', only 'G_ema', 'D'"),
        ({}, "no EDM network under 'ema', only nothing"),
        ([1, 2], "holds a list, not the dictionary"),
    ):
        with pytest.raises(CheckpointError, match=message):
            import_edm(write(tmp_path / "net.pkl", wrong))
    del network.t["dec.8x8_in0.qkv.bias"]
    with pytest.raises(CheckpointError, match=r"lacks dec\.8x8_in0\.qkv\.bias \(1 of \d+ tensors"):
        import_edm(write(tmp_path / "net.pkl", snapshot(network, class_name, kwargs)))


def test_whole_numbers_are_no_weights():
    class_name, kwargs = NETWORKS["adm"]
    config = edm_config(SavedObject(class_name, {"_init_kwargs": kwargs}))
    tensors = dict(reference("adm").t)
    tensors["out_conv.bias"] = tensors["out_conv.bias"].int()
    with pytest.raises(CheckpointError, match=r"out_conv\.bias is torch\.int32"):
        edm_weights(dataclasses.replace(config, dropout=0.0), tensors)


def published_denoiser(precond: str, network: Reference, x: torch.Tensor, sigma: torch.Tensor, onehot: torch.Tensor):
    """D(x; sigma) as Karras et al. 2022 state it for the three older kinds (Table 1), in float64."""
    s = sigma.double()
    ask = lambda image, c_noise: network(image.float(), c_noise.float(), onehot).double()  # noqa: E731
    column = s[:, None, None, None]
    if precond == "VEPrecond":
        return x + column * ask(x.double(), (s / 2).log())
    if precond == "VPPrecond":
        time = ((0.1**2 + 2 * 19.9 * (1 + s**2).log()).sqrt() - 0.1) / 19.9
        c_noise = 999 * time
    else:
        u = [0.0]
        bar = lambda j: math.sin(0.5 * math.pi * j / 1000 / 1.008) ** 2  # noqa: E731
        for j in range(1000, 0, -1):
            u.insert(0, ((u[0] ** 2 + 1) / max(bar(j - 1) / bar(j), 0.001) - 1) ** 0.5)
        c_noise = 999 - (s[:, None] - torch.tensor(u, dtype=torch.float64)).abs().argmin(dim=1).double()
    raw = ask(x.double() / (1 + column**2).sqrt(), c_noise)
    return x - column * raw[:, :3]


@pytest.mark.parametrize("sigma_data", [None, 0.3])
@pytest.mark.parametrize(
    ("precond", "kind"), [("VPPrecond", "ddpm++"), ("VEPrecond", "ncsn++"), ("iDDPMPrecond", "adm")]
)
@torch.no_grad()
def test_older_preconditionings_become_the_published_denoisers(
    precond: str, kind: str, sigma_data: float | None, tmp_path: Path
):
    class_name, kwargs = NETWORKS[kind]
    if precond == "iDDPMPrecond":
        kwargs = kwargs | {"out_channels": 6}
    network = built(class_name, kwargs)
    teacher = import_edm(
        write(tmp_path / "net.pkl", snapshot(network, class_name, kwargs, precond=precond)), sigma_data
    )
    save_imported(tmp_path / "out", teacher, Provenance())
    denoiser, card = load_denoiser(tmp_path / "out")
    assert card.sigma_data == (sigma_data or 0.5)
    rng = torch.Generator().manual_seed(1)
    sigma = torch.tensor([0.01, 0.5, 3.0, 60.0])
    x = torch.randn(4, 3, 16, 16, generator=rng) * (sigma**2 + 0.25).sqrt()[:, None, None, None]
    labels = torch.tensor([0, 3, 1, -1])
    expected = published_denoiser(precond, network, x, sigma, torch.eye(5)[labels][:, :4])
    scale = sigma[:, None, None, None].clamp(min=1)
    torch.testing.assert_close(denoiser(x, sigma, labels) / scale, expected.float() / scale, rtol=1e-3, atol=1e-4)


def test_constants_that_are_not_the_published_ones_are_refused(tmp_path: Path):
    content = snapshot(reference("ddpm++"), *NETWORKS["ddpm++"], precond="VPPrecond")
    content["ema"].meta["state"]["beta_d"] = 5.0
    with pytest.raises(CheckpointError, match=r"VPPrecond has beta_d = 5.0; only 19.9"):
        import_edm(write(tmp_path / "net.pkl", content))


@pytest.mark.parametrize("dropout", [0, 0.0, 0.1])
def test_label_dropout_is_of_training_alone(dropout: float, tmp_path: Path):
    class_name, kwargs = NETWORKS["ddpm++"]
    content = snapshot(reference("ddpm++"), class_name, kwargs | {"label_dropout": dropout})
    assert import_edm(write(tmp_path / "net.pkl", content)).config.classes == 4


@torch.no_grad()
def test_adm_narrower_than_a_head_has_no_attention_there(tmp_path: Path):
    class_name, kwargs = NETWORKS["adm"]
    kwargs = kwargs | {"model_channels": 32, "channel_mult": [1, 3], "attn_resolutions": [16, 8]}
    network = built(class_name, kwargs)
    teacher = import_edm(write(tmp_path / "net.pkl", snapshot(network, class_name, kwargs)))
    save_imported(tmp_path / "out", teacher, Provenance())
    ours = load_denoiser(tmp_path / "out")[0].network
    x, c_noise, onehot = torch.randn(2, 3, 16, 16), torch.tensor([-1.0, 0.5]), torch.eye(4)[:2]
    torch.testing.assert_close(ours(x, c_noise, onehot), network(x, c_noise, onehot), rtol=1e-4, atol=1e-5)
