"""Autoguidance: a network pushed away from a worse version of itself (Karras et al. 2024, arXiv:2406.02507, Eq. 2)."""

from fewstep.precond import Array, Network


def guided(network: Network, guide: Network, weight: float) -> Network:
    """F that extrapolates from `guide` through `network`: guide + weight * (network - guide).

    Both take and return what `fewstep.precond.Network` says and share sigma_data, so that the denoised images around
    them extrapolate alike: the preconditioning is affine in F. weight 1 is `network` itself, and more undoes errors
    that the two make in the same direction, the guide more of them. It costs a call of each.
    """

    def run(x: Array, c_noise: Array, onehot: Array) -> Array:
        worse = guide(x, c_noise, onehot)
        return worse + weight * (network(x, c_noise, onehot) - worse)

    return run
