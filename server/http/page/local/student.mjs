// The student's sampler for one image: DPDM, Algorithm 2, with the preconditioning of Karras et al. 2022, Table 1.

import { normals } from "./philox.mjs";

// facts: channels, resolution, classes, sigma_data and levels, as engine.json has them. network: ({x, c_noise, onehot}) ->
// Promise of its output, all Float32Array. seed: BigInt. onCall: gets the denoised image of each call, and its number from 1.
// Returns the image, C x H x W values, nominally in [-1, 1].
export async function sample(facts, network, seed, label, steps, onCall = () => {}) {
  const levels = facts.levels[String(steps)];
  if (!levels) throw new RangeError(`${steps} steps: this model has ${Object.keys(facts.levels).join(", ")}`);
  if (seed < 0n || seed >= 1n << 63n) throw new RangeError(`seed ${seed}: 0 to ${(1n << 63n) - 1n}`);
  const onehot = new Float32Array(facts.classes);
  if (facts.classes) {
    if (!(label >= 0 && label < facts.classes)) throw new RangeError(`class ${label}: 0 to ${facts.classes - 1}`);
    onehot[label] = 1;
  }
  const count = facts.channels * facts.resolution ** 2;
  const data = facts.sigma_data;
  let image = new Float32Array(count);
  for (const [step, sigma] of levels.entries()) {
    const noise = normals(seed, step, count);
    const total = sigma ** 2 + data ** 2;
    const noisy = image.map((value, at) => value + sigma * noise[at]);
    const x = noisy.map((value) => value / Math.sqrt(total));
    const output = await network({ x, c_noise: Float32Array.of(Math.log(sigma) / 4), onehot });
    const [skip, out] = [data ** 2 / total, (sigma * data) / Math.sqrt(total)];
    image = noisy.map((value, at) => skip * value + out * output[at]);
    onCall(image, step + 1);
  }
  return image;
}

// [C, H, W] in [-1, 1] -> RGBA bytes [H, W, 4], as a canvas takes them.
export function toRgba(image, channels, resolution) {
  const pixels = resolution ** 2;
  const rgba = new Uint8ClampedArray(4 * pixels);
  for (let at = 0; at < pixels; at += 1) {
    for (let c = 0; c < 3; c += 1) {
      const value = image[(channels === 3 ? c : 0) * pixels + at] * 127.5 + 128;
      rgba[4 * at + c] = Math.floor(Math.min(Math.max(value, 0), 255));
    }
    rgba[4 * at + 3] = 255;
  }
  return rgba;
}
