"""EDM preconditioning: the arithmetic around the network F (Karras et al. 2022, Table 1). Numpy or torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from array_api_compat import array_namespace

Array = Any  # a numpy array or a torch tensor; both sides of every call are of one kind

# F(x_in, c_noise, onehot): x_in [B, C, H, W] of unit variance, c_noise [B], onehot [B, classes] -> [B, C, H, W]
Network = Callable[[Array, Array, Array], Array]


class Scalings(NamedTuple):
    """The four factors of D = c_skip * x + c_out * F(c_in * x, c_noise), shaped like sigma."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


def edm_scalings(sigma: Array, sigma_data: float) -> Scalings:
    """Karras et al. 2022, Table 1, column "Ours". sigma > 0, any shape."""
    xp = array_namespace(sigma)
    total = sigma**2 + sigma_data**2
    return Scalings(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / xp.sqrt(total),
        c_in=1 / xp.sqrt(total),
        c_noise=xp.log(sigma) / 4,
    )


def onehot(labels: Array, classes: int, like: Array) -> Array:
    """labels [B] int -> [B, classes] in the dtype of `like`. A negative label gives a row of zeros: no class."""
    xp = array_namespace(like)
    rows = labels[:, None] == xp.arange(classes, device=like.device)[None, :]
    return xp.astype(rows, like.dtype)


def with_inputs(network: Network, image: Array | None = None, features: Array | None = None) -> Network:
    """F with further inputs bound: image [B, extra, H, W] behind x, features [B, n] behind the classes."""

    def run(x: Array, c_noise: Array, onehot: Array) -> Array:
        xp = array_namespace(x)
        x = x if image is None else xp.concat([x, image], axis=1)
        onehot = onehot if features is None else xp.concat([onehot, features], axis=1)
        return network(x, c_noise, onehot)

    return run


@dataclass(frozen=True)
class Denoiser:
    """D(x, sigma, labels) around a network F. Works for a torch module and for an exported engine alike."""

    network: Network
    sigma_data: float
    classes: int = 0

    def __call__(self, x: Array, sigma: Array, labels: Array | None = None) -> Array:
        """x [B, C, H, W], sigma [B] > 0, labels [B] int or None -> denoised [B, C, H, W] in the dtype of x."""
        xp = array_namespace(x)
        scalings = edm_scalings(sigma, self.sigma_data)
        c_skip, c_out, c_in = (factor[:, None, None, None] for factor in scalings[:3])
        if labels is None:
            labels = xp.full((x.shape[0],), -1, device=x.device)
        output = self.network(c_in * x, scalings.c_noise, onehot(labels, self.classes, x))
        return c_skip * x + c_out * xp.astype(output, x.dtype)
