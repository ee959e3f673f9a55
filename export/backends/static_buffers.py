"""The buffers of a DeviceNetwork whose library takes addresses: contiguous, at the full capacity."""

import torch

from export.half import DTYPES
from export.manifest import Manifest


class StaticBuffers:
    """x, c_noise, onehot and output for `capacity` rows; a bucket is the first rows of each."""

    def __init__(self, manifest: Manifest, buckets: tuple[int, ...], device: torch.device) -> None:
        self.device = device
        self.dtype = DTYPES[manifest.dtype]
        self.buckets = buckets
        self.capacity = buckets[-1]
        self.classes = manifest.classes
        options = {"dtype": self.dtype, "device": device}
        self.x = torch.zeros((self.capacity, *manifest.input_shape), **options)
        self.c_noise = torch.zeros(self.capacity, device=device)
        self.onehot = torch.zeros((self.capacity, manifest.classes), **options)
        self.output = torch.zeros((self.capacity, *manifest.image_shape), **options)

    def inputs(self) -> dict[str, torch.Tensor]:
        """The inputs that the exported network has, by name."""
        conditional = {"onehot": self.onehot} if self.classes else {}
        return {"x": self.x, "c_noise": self.c_noise, **conditional}
