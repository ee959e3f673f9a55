"""Train a Fashion-MNIST feature extractor and freeze its reference statistics.

    python benchmarks/classifier.py --train fashion.zip --test fashion-test.zip --out models/fashion/classifier
    python benchmarks/classifier.py --train fashion-b.zip --test fashion-test.zip --out models/fashion/classifier-b

The first is `fashion128`, of all training images; the second `fashion128-b`, of half b alone, which the panel uses
(`fewstep trainer data fashion --half b --out fashion-b.zip`). Each was run once, with these defaults; the shipped
files are its output and are never retrained in place, because published distances are relative to them.
"""

from fewstep import extras

extras.name_missing()

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from benchmarks.harness import new_folder
from export.to_onnx import strip_traces
from fewstep.card import write_atomically
from fewstep.metrics.extractors.fashion128 import FORMAT, load_extractor
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.ranges import whole
from trainer.data.format import ImageSet, read_image_set

FEATURES = 128
FLOOR_COUNTS = (250, 500, 1000, 2000, 5000, 10000)


class Classifier(nn.Module):
    """pixels uint8 [N, H, W, 1] -> (features [N, 128], logits [N, 10]). About 0.3 M parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        plan = [(1, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2), (64, FEATURES, 1), (FEATURES, FEATURES, 2)]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b, stride in plan
            )
        )
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        features = self.blocks(images).mean(dim=(2, 3))
        return features, self.head(functional.dropout(features, 0.2, self.training))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="data set to train on")
    parser.add_argument("--test", type=Path, required=True, help="data set to measure accuracy on")
    parser.add_argument("--out", type=new_folder, required=True, help="folder to make, for the classifier")
    parser.add_argument(
        "--epochs", type=whole(1), default=10, help="passes over the training images (default %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        help="of the initial weights and the order of the images (default %(default)s)",
    )
    args = parser.parse_args()
    if (args.out / "extractor.onnx").exists():
        sys.exit(
            f"error: {args.out} already holds an extractor; published distances depend on it, so choose another folder"
        )
    data, held_out = read_image_set(args.train), read_image_set(args.test)
    network = fit(data, args.epochs, args.seed)
    export(network, args.out)
    freeze_statistics(args.out, data, held_out, {"epochs": args.epochs, "seed": args.seed})


def fit(data: ImageSet, epochs: int, seed: int, batch: int = 128) -> Classifier:
    """Adam with a one-cycle rate; random shifts of up to two pixels. No mirroring: shoes all face left."""
    torch.manual_seed(seed)
    network = Classifier(len(data.class_names))
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    total = epochs * (len(data.images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=total)
    order = np.random.default_rng(seed)
    network.train()
    with tqdm(total=total, unit="batch") as bar:
        for _ in range(epochs):
            for index in np.array_split(order.permutation(len(data.images)), len(data.images) // batch):
                shift = tuple(order.integers(-2, 3, 2))
                pixels = torch.from_numpy(np.roll(data.images[index], shift, axis=(1, 2)))  # the border is empty
                with torch.autocast("cpu", torch.bfloat16):
                    _, logits = network(pixels)
                labels = torch.from_numpy(data.labels[index].astype(np.int64))
                loss = functional.cross_entropy(logits.float(), labels, label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    return network.eval()


def export(network: Classifier, out: Path) -> None:
    pixels = torch.zeros(2, 32, 32, 1, dtype=torch.uint8)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        network, (pixels,), dynamo=True, opset_version=20, verbose=False,
        input_names=["pixels"], output_names=["features", "logits"], dynamic_shapes=({0: batch},),
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    strip_traces(model)
    write_atomically(out / "extractor.onnx", model.SerializeToString(deterministic=True))


def freeze_statistics(out: Path, data: ImageSet, held_out: ImageSet, training: dict) -> None:
    """reference.npz of the training images, and extractor.json with accuracy and noise floors of the held-out ones."""
    digest = hashlib.sha256((out / "extractor.onnx").read_bytes()).hexdigest()
    name = f"fashion128{data.name.removeprefix('fashion')}"  # fashion-b gives fashion128-b
    facts = {"format": FORMAT, "name": name, "network_sha256": digest, "floors": {}}
    write_atomically(out / "extractor.json", json.dumps(facts).encode())
    np.savez(out / "reference.npz", mean=np.zeros(FEATURES), covariance=np.eye(FEATURES), count=0)
    extractor = load_extractor(out)

    reference = Moments.of(extractor(data.images)[0])
    np.savez(out / "reference.npz", mean=reference.mean, covariance=reference.covariance, count=reference.count)
    features, predicted = extractor(held_out.images)
    shuffled = features[np.random.default_rng(0).permutation(len(features))]
    floors = {}
    for count in FLOOR_COUNTS:
        chunks = [shuffled[i : i + count] for i in range(0, len(shuffled) - count + 1, count)]
        floors[count] = float(np.mean([frechet_distance(Moments.of(chunk), reference) for chunk in chunks]))
    facts |= {
        "accuracy": float((predicted == held_out.labels).mean()),
        "floors": floors,
        "input": "uint8 NHWC, 32x32 gray, scaled to [-1, 1]",
        "precision": "fp32",
        "reference": {"sha256": data.sha256(), "images": len(data.images), "licence": data.licence},
        "held_out": {"sha256": held_out.sha256(), "images": len(held_out.images)},
        "training": training,
    }
    write_atomically(out / "extractor.json", (json.dumps(facts, indent=2) + "\n").encode())
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
