"""InceptionV3 as published on 2015-12-05, the network of the Fréchet Inception Distance. PyTorch, inference only.

Szegedy et al. 2015 (the architecture), Heusel et al. 2017 (its use). Average pools leave the padding out, the last
block pools by maximum, and there are 1,008 classes; in these three it differs from later versions. The weights are a
file of the user's, converted from TensorFlow's graph and known as pt_inception-2015-12-05-6726825d.pth. Nothing is
downloaded.
"""

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fewstep.card import CheckpointError, file_sha256

FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INPUT_SIZE = 299
FEATURES = 2048
CLASSES = 1008


class Layer(NamedTuple):
    """One convolution; stride 1 keeps the size, stride 2 has no padding."""

    name: str  # as in the published file
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Branch = tuple[tuple[Layer, ...], ...]  # steps in turn; the layers of one step see the same input


def chain(*layers: Layer) -> Branch:
    return tuple((layer,) for layer in layers)


K3, K5, K1X3, K3X1, K1X7, K7X1 = (3, 3), (5, 5), (1, 3), (3, 1), (1, 7), (7, 1)


def block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        chain(Layer("branch1x1", 64)),
        chain(Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, K5)),
        chain(Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, K3), Layer("branch3x3dbl_3", 96, K3)),
        chain(Layer("branch_pool", pooled)),
    )


BLOCK_B = (
    chain(Layer("branch3x3", 384, K3, 2)),
    chain(Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, K3), Layer("branch3x3dbl_3", 96, K3, 2)),
)


def block_c(width: int) -> tuple[Branch, ...]:
    return (
        chain(Layer("branch1x1", 192)),
        chain(Layer("branch7x7_1", width), Layer("branch7x7_2", width, K1X7), Layer("branch7x7_3", 192, K7X1)),
        chain(
            Layer("branch7x7dbl_1", width),
            Layer("branch7x7dbl_2", width, K7X1),
            Layer("branch7x7dbl_3", width, K1X7),
            Layer("branch7x7dbl_4", width, K7X1),
            Layer("branch7x7dbl_5", 192, K1X7),
        ),
        chain(Layer("branch_pool", 192)),
    )


BLOCK_D = (
    chain(Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, K3, 2)),
    chain(
        Layer("branch7x7x3_1", 192),
        Layer("branch7x7x3_2", 192, K1X7),
        Layer("branch7x7x3_3", 192, K7X1),
        Layer("branch7x7x3_4", 192, K3, 2),
    ),
)
BLOCK_E = (
    chain(Layer("branch1x1", 320)),
    (*chain(Layer("branch3x3_1", 384)), (Layer("branch3x3_2a", 384, K1X3), Layer("branch3x3_2b", 384, K3X1))),
    (
        *chain(Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, K3)),
        (Layer("branch3x3dbl_3a", 384, K1X3), Layer("branch3x3dbl_3b", 384, K3X1)),
    ),
    chain(Layer("branch_pool", 192)),
)
STEM = {  # name: (input channels, output channels, kernel, stride, padding)
    "Conv2d_1a_3x3": (3, 32, 3, 2, 0),
    "Conv2d_2a_3x3": (32, 32, 3, 1, 0),
    "Conv2d_2b_3x3": (32, 64, 3, 1, 1),
    "Conv2d_3b_1x1": (64, 80, 1, 1, 0),
    "Conv2d_4a_3x3": (80, 192, 3, 1, 0),
}
POOL_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
BLOCKS = {  # name: (input channels, branches)
    "Mixed_5b": (192, block_a(32)),
    "Mixed_5c": (256, block_a(64)),
    "Mixed_5d": (288, block_a(64)),
    "Mixed_6a": (288, BLOCK_B),
    "Mixed_6b": (768, block_c(128)),
    "Mixed_6c": (768, block_c(160)),
    "Mixed_6d": (768, block_c(160)),
    "Mixed_6e": (768, block_c(192)),
    "Mixed_7a": (768, BLOCK_D),
    "Mixed_7b": (1280, BLOCK_E),
    "Mixed_7c": (2048, BLOCK_E),
}
MAX_POOLED = "Mixed_7c"  # its pooled branch takes the maximum, the others the average


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int, padding: int | tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches beside each other, their outputs concatenated. One of them starts with a pool, or is nothing else."""

    def __init__(self, inputs: int, branches: tuple[Branch, ...], *, pool_max: bool) -> None:
        super().__init__()
        self.branches, self.pool_max = branches, pool_max
        for branch in branches:
            channels = inputs
            for step in branch:
                for layer in step:
                    padding = (layer.kernel[0] // 2, layer.kernel[1] // 2) if layer.stride == 1 else 0
                    self.add_module(
                        layer.name, Convolution(channels, layer.channels, layer.kernel, layer.stride, padding)
                    )
                channels = sum(layer.channels for layer in step)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch in self.branches:
            y = self._pool(x) if branch[0][0].name == "branch_pool" else x
            for step in branch:
                y = torch.cat([self.get_submodule(layer.name)(y) for layer in step], dim=1)
            outputs.append(y)
        if not hasattr(self, "branch_pool"):  # the blocks that halve the size
            outputs.append(functional.max_pool2d(x, 3, stride=2))
        return torch.cat(outputs, dim=1)

    def _pool(self, x: Tensor) -> Tensor:
        if self.pool_max:
            return functional.max_pool2d(x, 3, stride=1, padding=1)
        return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class InceptionV3(nn.Module):
    """pixels uint8 [N, H, W, 1 or 3] -> pooled features float32 [N, 2048]. 94 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in STEM.items():
            self.add_module(name, Convolution(*shape))
        for name, (inputs, branches) in BLOCKS.items():
            self.add_module(name, Mixed(inputs, branches, pool_max=name == MAX_POOLED))
        self.fc = nn.Linear(FEATURES, CLASSES)  # in the published file; features do not pass it

    def forward(self, pixels: Tensor) -> Tensor:
        x = tf1_bilinear(pixels.permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1), INPUT_SIZE)
        x = (x - 128) / 128
        for name in STEM:
            x = self.get_submodule(name)(x)
            if name in POOL_AFTER:
                x = functional.max_pool2d(x, 3, stride=2)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """[N, C, H, W] -> [N, C, size, size] as TensorFlow 1's resize_bilinear: no antialiasing, corners not aligned.

    Output pixel i reads the input at i * H / size, without the half-pixel offset of later conventions.
    """
    rows, columns = (torch.from_numpy(_bilinear_matrix(length, size)).to(images) for length in images.shape[2:])
    return rows @ images @ columns.T


def _bilinear_matrix(length: int, size: int) -> NDArray[np.float32]:
    """[size, length]: every row holds the two weights of one output position."""
    position = np.arange(size, dtype=np.float32) * np.float32(length / size)
    low = np.floor(position).astype(np.int64)
    high, weight = np.minimum(low + 1, length - 1), position - low
    matrix = np.zeros((size, length), np.float32)
    np.add.at(matrix, (np.arange(size), low), 1 - weight)
    np.add.at(matrix, (np.arange(size), high), weight)
    return matrix


def load_inception(path: Path) -> InceptionV3:
    """The network with the weights of the published file. Raises CheckpointError for any other file."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; --inception wants the file known as {FILE}")
    if file_sha256(path) != SHA256:
        raise CheckpointError(
            f"{path} is not {FILE} (its sha256 does not begin with {SHA256[:8]}); distances in the features of another "
            "file would not be FID"
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read as a dictionary of tensors ({error})") from error
    return inception_from(weights)


def inception_from(weights: dict[str, Tensor]) -> InceptionV3:
    """The network with these weights, in eval mode. Raises CheckpointError when they have another layout."""
    network = InceptionV3()
    expected = {
        name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    given = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    wrong = sorted(expected.keys() ^ given.keys()) or [n for n, t in expected.items() if given[n].shape != t.shape]
    if wrong:
        raise CheckpointError(
            f"these weights are not laid out as {FILE}: {len(wrong)} entries differ, first {wrong[0]}"
        )
    network.load_state_dict(given, strict=False)  # batch norm's counters of training steps are of no use here
    return network.eval().requires_grad_(False)
