"""Features of an untrained network: three layers of random convolutions. PyTorch, inference only.

Random filters were tuned on no image and no label, so neither a student nor a critic can have been fitted to them (Saxe
et al. 2011: random weights tell textures apart because of the architecture). The weights are drawn by `fewstep.noise`
from a fixed seed, so that they are the same on every machine and for ever.
"""

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.noise import noise_for

SEED = 2**40  # of the weights
WIDTHS = (32, 64, 128)  # channels of the layers; the side halves after each
FEATURES = 2 * sum(WIDTHS)


class RandomConvolutions(nn.Module):
    """pixels uint8 [N, H, W, 1 or 3] -> features float32 [N, 448]: mean and deviation over space of every channel."""

    def __init__(self) -> None:
        super().__init__()
        inputs = 3
        for layer, width in enumerate(WIDTHS):
            drawn = torch.from_numpy(noise_for([SEED], (width, inputs, 3, 3))(layer)[0])
            self.register_buffer(f"weight{layer}", drawn * math.sqrt(2 / (9 * inputs)))  # He et al. 2015
            inputs = width

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1) / 127.5 - 1
        found = []
        for layer in range(len(WIDTHS)):
            x = functional.relu(functional.conv2d(x, getattr(self, f"weight{layer}"), padding=1))
            found += [x.mean(dim=(2, 3)), x.flatten(2).std(dim=2, correction=0)]
            x = functional.avg_pool2d(x, 2, ceil_mode=True)
        return torch.cat(found, dim=1)

    def sha256(self) -> str:
        """Of the weights."""
        digest = hashlib.sha256()
        for layer in range(len(WIDTHS)):
            digest.update(getattr(self, f"weight{layer}").numpy().tobytes())
        return digest.hexdigest()
