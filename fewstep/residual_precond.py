"""The preconditioning of a network that enlarges images: F out of a network U of what the enlarged image lacks.

With m the enlarged image of low resolution, x0 - m has a mean near 0 and a deviation s that is a fraction of the
image's. U is preconditioned for it as Karras et al. 2022 do for images, with s for sigma_data:

    D = m + c_skip (x - m) + c_out U(c_in (x - m), c_noise)

Ours is D = c_skip x + c_out F with the same factors: solved for F, since 1 - c_skip = sigma^2 c_in^2 and c_out = sigma
s c_in,

    F = U(c_in x - c_in m, c_noise) + (sigma c_in / s) m

The means of squares of the large image are the small one, y, and so those of D shall be. With R for these means and E
for an image in which every pixel of its argument fills a square, R E is the identity and E R an orthogonal projection:

    D' = D + E (y - R D)

is the image nearest to D whose means are y, and nearer to every such image than D is, the true one among them. Solved
for F again, F' = F + E (y - R D) / c_out.
"""

from torch import Tensor
from torch.nn import functional


def centred(x: Tensor, enlarged: Tensor, c_noise: Tensor, sigma_data: float) -> Tensor:
    """What U sees: c_in x - c_in m of x [B, C, H, W] as F takes it, m [B, C, H, W] and c_noise = ln(sigma) / 4 [B]."""
    return x - (_c_in(c_noise, sigma_data)[:, None, None, None] * enlarged).to(x.dtype)


def with_enlarged(output: Tensor, enlarged: Tensor, c_noise: Tensor, sigma_data: float) -> Tensor:
    """F [B, C, H, W] of the output of U."""
    share = (4 * c_noise).exp() * _c_in(c_noise, sigma_data) / sigma_data
    return output + (share[:, None, None, None] * enlarged).to(output.dtype)


def with_means(output: Tensor, x: Tensor, low: Tensor, c_noise: Tensor, sigma_data: float) -> Tensor:
    """F' [B, C, H, W] of F: D' has the means of squares low [B, C, h, w]. x [B, C, H, W]: as F takes it."""
    c_in = _c_in(c_noise, sigma_data)
    kept, c_out = sigma_data**2 * c_in, sigma_data * (4 * c_noise).exp() * c_in  # c_skip / c_in
    denoised = kept[:, None, None, None] * x + c_out[:, None, None, None] * output
    factor = x.shape[2] // low.shape[2], x.shape[3] // low.shape[3]
    missing = (low - functional.avg_pool2d(denoised, factor)) / c_out[:, None, None, None]
    return output + functional.interpolate(missing, scale_factor=(float(factor[0]), float(factor[1])), mode="nearest")


def _c_in(c_noise: Tensor, sigma_data: float) -> Tensor:
    return ((8 * c_noise).exp() + sigma_data**2).rsqrt()
