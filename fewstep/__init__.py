"""fewstep: few-step image samplers distilled from EDM diffusion models.

The words used everywhere in this project:

sigma       noise level; a noisy image is x = x0 + sigma * eps. sigma_data is the data's standard deviation
denoiser    D(x, sigma, labels): predicts the clean image; D = c_skip * x + c_out * F(c_in * x, c_noise, onehot)
network     F, the raw U-Net inside the denoiser; the exported artefact
teacher     an EDM diffusion model: its denoiser is the conditional mean E[x0 | x]
student     a DPDM: one weight-shared denoiser whose output distribution matches the data at every level
auxiliary   the diffusion model fitted online to the student's own outputs
levels      the student's sigmas for k steps, high to low; its card holds one list per k
step        one network call plus one re-noising
NFE         network function evaluations per image
card        card.json beside model.safetensors: what the weights are and where they come from
engine      a directory with engine.json, the exported network and its proof of parity
chain       a stochastic sampler whose steps are Gaussian, so that trajectories have a density
posterior   a sampler of p(x) r(x) / Z: a model's images p, tilted by a reward r
adapter     low-rank weights beside those of a network, stored apart
slot        one image in flight inside the server

Only `network`, `checkpoint`, `adapters` and `noise_torch` import torch. Everything else runs on numpy arrays as well as
on torch tensors, which is what lets a server start in a second.
"""

__version__ = "0.1.0"
