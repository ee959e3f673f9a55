"""Does a row of a network call depend on the other rows? Per backend: alone, among others, and in every bucket.

    python benchmarks/row_independence.py            # minutes
    python benchmarks/row_independence.py --quick    # seconds

Prints a table and writes JSON. "Same shape" is what exact mode needs: one batch size, another slot, other neighbours
or none; the bytes must be the same. "Buckets" is what fast mode allows: another batch size may choose another kernel.
The largest difference that makes, in F and in finished images, is what the table publishes beside the bound. A backend
that takes batches of any size is tried at every one up to the largest bucket, because a server calls it with every one.
"""

from fewstep import extras

extras.name_missing()

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.engine_variants import COLOUR, FASHION, Rows, checkpoint_of, example_rows, open_engines
from benchmarks.harness import ROOT, result_file, table, write_result
from export.engine import Engine
from export.manifest import BACKENDS
from export.verify import BOUNDS_OF
from fewstep.latent import with_latent
from fewstep.noise import latent_for, noise_for
from fewstep.pixels import to_pixels
from fewstep.ranges import whole
from fewstep.samplers import sample_dpdm
from server.scheduler.loading import takes_any_size

BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
QUICK = (1, 2, 4, 8)
SEEDS = 4  # images that are made in every bucket
COLUMNS = {
    "variant": "variant", "precision": "precision", "same_shape": "same shape", "buckets_equal": "equal buckets",
    "relative": "F, relative", "pixel": "pixel, 1/255", "bytes": "bytes differ", "bound": "bound", "within": "within",
}  # fmt: skip


def measure(name: str, engine: Engine, buckets: Sequence[int]) -> dict[str, Any]:
    manifest = engine.manifest
    if takes_any_size(engine):
        buckets = range(1, buckets[-1] + 1)
    rows = example_rows(manifest.input_shape, manifest.classes, buckets[-1])
    same = all(keeps_its_bytes(engine, Rows(*(part[:bucket] for part in rows))) for bucket in buckets)
    first = Rows(*(part[:1] for part in rows))
    outputs = {bucket: engine.network(*_among(rows, first, bucket))[0] for bucket in buckets}
    reference = outputs[buckets[-1]]
    images = {bucket: _images(engine, bucket) for bucket in buckets}
    expected = images[buckets[-1]]
    gaps = [float(np.abs(part - expected).max()) * 127.5 for part in images.values()]
    equal = sum(output.tobytes() == reference.tobytes() for output in outputs.values())
    furthest = max(float(np.abs(output - reference).max()) for output in outputs.values())
    bound = BOUNDS_OF[engine.facts["precision"]]["max"]
    differing = [float((to_pixels(part) != to_pixels(expected)).mean()) for part in images.values()]
    return {
        "variant": name,
        "precision": engine.facts["precision"],
        "same_shape": "identical" if same else "DIFFERS",
        "buckets_equal": f"{equal}/{len(buckets)}",
        "relative": furthest / float(np.abs(reference).max()),
        "pixel": max(gaps),
        "bytes": max(differing),
        "bound": bound,
        "within": max(gaps) <= bound,
        "facts": dict(engine.facts),
    }


def keeps_its_bytes(engine: Engine, rows: Rows) -> bool:
    """Another slot, other neighbours, none: at one batch size, a row's output must not notice."""
    batch = len(rows.x)
    expected = engine.network(*rows)
    order = np.random.default_rng(batch).permutation(batch)
    if engine.network(*(part[order] for part in rows)).tobytes() != expected[order].tobytes():
        return False
    for slot in {0, batch // 2, batch - 1}:
        alone = [np.zeros_like(part) for part in rows]
        for padded, part in zip(alone, rows, strict=True):
            padded[slot] = part[0]
        if engine.network(*alone)[slot].tobytes() != expected[0].tobytes():
            return False
    return True


def _among(rows: Rows, first: Rows, bucket: int) -> list[NDArray[np.float32]]:
    return [np.concatenate([mine, part[1:bucket]]) for mine, part in zip(first, rows, strict=True)]


def _images(engine: Engine, bucket: int) -> NDArray[np.float32]:
    """The images of seeds 0, 1, ... in as many steps as the student has levels for, each call padded to the bucket."""
    manifest = engine.manifest
    steps = max(manifest.levels)
    parts = []
    for first in range(0, SEEDS, bucket):
        seeds = [first + index for index in range(bucket)]  # those beyond SEEDS only fill the batch
        labels = np.array(seeds) % manifest.classes if manifest.classes else None
        denoiser = with_latent(engine.denoiser, latent_for(seeds, manifest.latent_shape), labels)
        sample = sample_dpdm(denoiser, noise_for(seeds, manifest.image_shape), manifest.levels[steps])
        parts.append(sample.images)
    return np.concatenate(parts)[:SEEDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=(FASHION, COLOUR), default=FASHION, help="colour: random weights, 32x32x3")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, metavar="B", help="default: all that run here")
    parser.add_argument("--threads", type=whole(0), default=0, help="0: as many as there are cores")
    parser.add_argument(
        "--out",
        type=result_file,
        default=ROOT / "build" / "row_independence.json",
        help="the JSON with the result (default %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help=f"buckets {QUICK}")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    buckets = QUICK if args.quick else BUCKETS
    settings = {"network": args.network, "buckets": buckets, "threads": args.threads, "seeds": list(range(SEEDS))}
    rows: list[dict[str, Any]] = []
    with checkpoint_of(args.network) as folder:
        engines = open_engines(folder, args.backends or [], args.threads, buckets)
        for name, engine in engines.items():
            rows.append(measure(name, engine, buckets))
            write_result(args.out, "row_independence", settings, rows)  # whatever ends this run leaves so much
            print(table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
    print(table(rows, COLUMNS))
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
