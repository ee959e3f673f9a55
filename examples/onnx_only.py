"""An image of an exported student with ONNX Runtime and numpy alone: nothing of fewstep is imported.

    python examples/onnx_only.py models/fashion/engine --seed 7 --label 9 --steps 4 --out boot.png

It is the image that the server makes of the same seed, class and steps, but for the last bit of a pixel now and then.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def philox(seed: int, step: int, blocks: int) -> np.ndarray:
    """Philox 4x32-10 (Salmon et al. 2011): words [blocks, 4] of the counter (block, step, 0, 1) and the 64-bit key."""
    mask, m0, m1 = 0xFFFFFFFF, np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    c0 = np.arange(blocks, dtype=np.uint64)
    c1, c2, c3 = (np.full(blocks, word, np.uint64) for word in (step, 0, 1))
    k0, k1 = seed & mask, seed >> 32 & mask
    for _ in range(10):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> 32) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = k0 + 0x9E3779B9 & mask, k1 + 0xBB67AE85 & mask
    return np.stack([c0, c1, c2, c3], axis=1)


def normals(seed: int, step: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Unit normals of one image, float32 [1, C, H, W], by Box and Muller's method."""
    count = int(np.prod(shape))
    uniform = ((philox(seed, step, -(-count // 4)) >> 9) + 0.5) / 2**23
    radius, angle = np.sqrt(-2 * np.log(uniform[:, 0::2])), 2 * np.pi * uniform[:, 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(-1)[:count].reshape(1, *shape).astype(np.float32)


def sample(engine: Path, seed: int, label: int, steps: int) -> np.ndarray:
    """The student's sampler (DPDM, Algorithm 2): predict the clean image, add less noise, repeat. [C, H, W]."""
    facts = json.loads((engine / "engine.json").read_text("utf-8"))
    if str(steps) not in facts["levels"] or not 0 <= label < max(facts["classes"], 1):
        raise SystemExit(f"--steps: {', '.join(facts['levels'])}; --label: 0 to {max(facts['classes'], 1) - 1}")
    network = onnxruntime.InferenceSession(engine / facts["network"], providers=["CPUExecutionProvider"])
    shape, data = (facts["channels"], facts["resolution"], facts["resolution"]), facts["sigma_data"]
    onehot = np.eye(facts["classes"], dtype=np.float32)[[label]]
    image = np.zeros((1, *shape), np.float32)
    for step, sigma in enumerate(facts["levels"][str(steps)]):
        noisy = image + np.float32(sigma) * normals(seed, step, shape)
        total = sigma**2 + data**2  # the preconditioning of Karras et al. 2022, Table 1
        inputs = {"x": noisy / np.float32(total**0.5), "c_noise": np.full(1, np.log(sigma) / 4, np.float32)}
        (output,) = network.run(None, {**inputs, "onehot": onehot} if facts["classes"] else inputs)
        image = np.float32(data**2 / total) * noisy + np.float32(sigma * data / total**0.5) * np.asarray(output)
    return image[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path, help="folder with engine.json and network.onnx")
    parser.add_argument("--seed", type=int, default=0, help="0 to 2^63 - 1 (default 0)")
    parser.add_argument("--label", type=int, default=0, help="number of the class (default 0)")
    parser.add_argument("--steps", type=int, default=4, help="network calls (default 4)")
    parser.add_argument("--out", type=Path, default=Path("image.png"), help="PNG to write (default image.png)")
    args = parser.parse_args()
    pixels = np.clip(sample(args.engine, args.seed, args.label, args.steps) * 127.5 + 128, 0, 255).astype(np.uint8)
    Image.fromarray(pixels.transpose(1, 2, 0).squeeze()).save(args.out)
