"""EDM preconditioning: the arithmetic around the network F (Karras et al. 2022, Table 1). Numpy or torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from fewstep.conditions import Conditions

Array = Any  # a numpy array or a torch tensor; both sides of every call are of one kind

# F(x_in, c_noise, onehot, *conditions): x_in [B, C, H, W] of unit variance, c_noise [B], onehot [B, classes], and a
# tensor for each of the conditions that F takes, in their order -> [B, C, H, W]
Network = Callable[..., Array]
Values = Mapping[str, Array]  # conditions by name: [B, *shape] each


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

    def run(x: Array, c_noise: Array, onehot: Array, *conditions: Array) -> Array:
        xp = array_namespace(x)
        x = x if image is None else xp.concat([x, image], axis=1)
        onehot = onehot if features is None else xp.concat([onehot, features], axis=1)
        return network(x, c_noise, onehot, *conditions)

    return run


def arranged(conditions: Conditions, values: Values, like: Array) -> list[Array]:
    """The tensors that F takes for `conditions`, in their order, for rows of `like` [B, ...]; defaults where one is not
    given. Raises ValueError for a value that F does not take, that must be given, or of another shape."""
    if unknown := sorted(values.keys() - {condition.name for condition in conditions}):
        known = ", ".join(condition.name for condition in conditions) or "no conditions"
        raise ValueError(f"this network takes {known}, and not {', '.join(unknown)}")
    xp, rows, arrays = array_namespace(like), like.shape[0], []
    for condition in conditions:
        shape = (rows, *condition.shape)
        given = values.get(condition.name)
        if given is None:
            if condition.default is None:
                raise ValueError(f"this network needs {condition.name}, of shape {shape}; bind it before sampling")
            given = xp.full(shape, condition.default, dtype=xp.float32, device=like.device)
        if tuple(given.shape) != shape:
            raise ValueError(f"{condition.name} has the shape {tuple(given.shape)}; this network takes {shape}")
        arrays.append(given)
    return arrays


@dataclass(frozen=True)
class Denoiser:
    """D(x, sigma, labels) around a network F. Works for a torch module and for an exported engine alike.

    conditions: what F takes beside the class; bound: values of some of them, for every call.
    """

    network: Network
    sigma_data: float
    classes: int = 0
    conditions: Conditions = ()
    bound: Values = field(default_factory=dict)

    def given(self, **values: Array) -> "Denoiser":
        """The denoiser with these conditions [B, *shape] bound. Raises ValueError for one that F does not take."""
        known = {condition.name for condition in self.conditions}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"this network takes {', '.join(sorted(known)) or 'no conditions'}, not {unknown[0]}")
        return replace(self, bound={**self.bound, **values})

    def filled(self, like: Array) -> "Denoiser":
        """With every condition at its `fill`, for rows of `like` [B, ...]: for calls of which only the time matters."""
        xp, rows = array_namespace(like), like.shape[0]
        options = {"dtype": like.dtype, "device": like.device}
        return self.given(**{each.name: xp.full((rows, *each.shape), each.fill, **options) for each in self.conditions})

    def __call__(self, x: Array, sigma: Array, labels: Array | None = None) -> Array:
        """x [B, C, H, W], sigma [B] > 0, labels [B] int or None -> denoised [B, C, H, W] in the dtype of x.

        Raises ValueError where a condition is missing that has no default, or has other rows than x.
        """
        xp = array_namespace(x)
        scalings = edm_scalings(sigma, self.sigma_data)
        c_skip, c_out, c_in = (factor[:, None, None, None] for factor in scalings[:3])
        if labels is None:
            labels = xp.full((x.shape[0],), -1, device=x.device)
        given = arranged(self.conditions, self.bound, x)
        output = self.network(c_in * x, scalings.c_noise, onehot(labels, self.classes, x), *given)
        return c_skip * x + c_out * xp.astype(output, x.dtype)


def guided(denoiser: Denoiser, weight: Array | float) -> "Guided":
    """Classifier-free guidance (Ho & Salimans 2022, Eq. 6, as EDM2 writes its weight): of a denoiser whose labels were
    dropped in training, D_w = D(x; no class) + w (D(x; class) - D(x; no class)). weight: [B], or one for all rows;
    1 is the class alone."""
    return Guided(denoiser, weight)


@dataclass(frozen=True)
class Guided:
    """D_w(x, sigma, labels) of `guided`. Two network calls for one."""

    denoiser: Denoiser
    weight: Array | float

    def __call__(self, x: Array, sigma: Array, labels: Array | None = None) -> Array:
        """As `Denoiser.__call__`; rows without a class, and all rows without labels, are not guided."""
        told = self.denoiser(x, sigma, labels)
        if labels is None:
            return told
        alone = self.denoiser(x, sigma, None)
        weight = self.weight if isinstance(self.weight, float | int) else self.weight[:, None, None, None]
        return alone + weight * (told - alone)
