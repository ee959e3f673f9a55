"""What larger images cost: the network, the step around it, encoding, base64 and memory, at 32, 64, 128 and 256 pixels.

    python benchmarks/sizes.py                         # five minutes: a published network takes up to a minute a call
    python benchmarks/sizes.py --most-parameters 100   # two minutes: without those of more than 100 million parameters
    python benchmarks/sizes.py --smoke                 # half a minute; proves that it runs

All networks have random weights: time does not depend on them. "Ours" are the recipes of this project, at 128 and 256
pixels with a larger patch; the others have the shapes of EDM's and ADM's published networks. All run in eager PyTorch,
float32, on one thread, ours also in ONNX Runtime. Times are CPU times, so that other work on the machine counts little;
a network whose first call takes long is called only once or twice, and its row says how often. Images to encode are
photographs. Prints tables, writes JSON.
"""

from fewstep import extras

extras.name_missing()

import argparse
import base64
import ctypes
import dataclasses
import gc
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.busy import Watch
from benchmarks.harness import ROOT, WORK, forget_peak, need, peak_mb, result_file, table, write_result
from benchmarks.kernel_speed import numpy_step
from benchmarks.load.fixed_cost import Cost, FixedCostEngine
from export.backends.onnxruntime_cpu import open_session
from export.engine import Engine
from export.manifest import read_manifest
from export.to_onnx import network_to_onnx
from fewstep.network import UNet
from fewstep.pixels import Pixels, encode
from fewstep.ranges import POSITIVE, number, whole
from fewstep.unet_config import UNetConfig, adm, ddpmpp
from server.http.picture_files import from_base64
from server.http.pictures import decode
from server.scheduler.loading import slot_table
from trainer.recipes.photos import PHOTOS, PHOTOS_64

SIZES = (32, 64, 128, 256)
STEPS = 4  # network calls of the image whose time is divided up
MATTERS = 0.01  # of that time: what takes less does not
OURS, EAGER, ORT = "ours", "eager PyTorch", "ONNX Runtime"
FEW = 2  # calls of a network that is slow
COLUMNS = {
    "pixels": "pixels", "network": "network", "runtime": "runtime", "parameters_m": "M parameters", "batch": "batch",
    "calls": "calls", "cpu_ms": "CPU ms a call", "image_ms": "an image", "peak_mb": "peak MB", "step_ms": "step ms",
    "step_share": "step %",
}  # fmt: skip
FORM_COLUMNS = {"pixels": "pixels", "form": "form", "ms": "CPU ms", "kb": "kB", "base64_ms": "base64 ms",
                "base64_kb": "base64 kB", "read_ms": "reading ms"}  # fmt: skip
SHARE_COLUMNS = {"pixels": "pixels", "network": "network", "runtime": "runtime", "total_ms": "CPU ms in all",
                 "network_share": "network %", "step_share": "step %", "png_share": "PNG %", "webp_share": "WebP %",
                 "base64_share": "base64 %"}  # fmt: skip
BELOW_COLUMNS = {"networks": "networks", "runtime": "runtime", "sizes": "measured", "step": "step", "png": "PNG",
                 "webp": "WebP", "base64": "base64"}  # fmt: skip
MEMORY_COLUMNS = {"pixels": "pixels", "image_mb": "MB of an image", "held_mb": "MB held", "peak_mb": "MB in a call"}


class Shape(NamedTuple):
    """A network to be timed."""

    name: str
    config: UNetConfig
    published: bool


def shapes(pixels: int) -> list[Shape]:
    """Ours first. ADM's at 128 and 256 pixels are those of guided diffusion (Dhariwal & Nichol 2021, Table 11)."""
    ours = {
        32: dataclasses.replace(PHOTOS.network, channels=3),
        64: dataclasses.replace(PHOTOS_64.network, channels=3),
        128: dataclasses.replace(PHOTOS_64.network, channels=3, resolution=128, patch=4),
        256: dataclasses.replace(PHOTOS_64.network, channels=3, resolution=256, patch=8),
    }
    large = UNetConfig(
        pixels, 3, 1000, 256, (1, 1, 2, 3, 4) if pixels == 128 else (1, 1, 2, 2, 4, 4), 2, attention=(32, 16, 8),
        style="adm", head_width=64,
    )  # fmt: skip
    published = {
        32: [("DDPM++ of EDM's CIFAR-10", ddpmpp(32))],
        64: [("DDPM++ of EDM's FFHQ", ddpmpp(64)), ("ADM of EDM's ImageNet-64", adm(64))],
        128: [("ADM, 128 pixels", large)],
        256: [("ADM, 256 pixels", large)],
    }
    return [Shape(OURS, ours[pixels], False), *(Shape(name, config, True) for name, config in published[pixels])]


def main() -> None:
    args = parse_arguments()
    need("torch", "onnx", "psutil", "sklearn")
    torch.set_num_threads(1)
    watch, networks, forms, memory, left_out = Watch(), [], [], [], []
    settings = {"batches": args.batches, "seconds": args.seconds, "steps": STEPS, "threads": 1, "weights": "random"}

    def write() -> None:  # whatever ends this run leaves so much
        busy = watch.seen()
        rows = shares(networks, forms)
        write_result(
            args.out, "sizes", settings, networks, forms=forms, shares=rows, memory=memory, left_out=left_out,
            stops_mattering=stops_mattering(rows), busy={**vars(busy), "warning": busy.warning()},
        )  # fmt: skip

    for pixels in args.sizes:
        print(f"{pixels} pixels", file=sys.stderr, flush=True)
        forms += list(form_rows(pixels, args.seconds))
        memory.append(slot_memory(pixels))
        for shape in shapes(pixels):
            count = parameters(shape.config)
            if count > args.most_parameters * 1e6:
                left_out.append({"pixels": pixels, "network": shape.name, "parameters_m": count / 1e6})
                continue
            for row in network_rows(shape, count, args.batches, args.seconds):
                networks.append(row)
                print(
                    f"  {shape.name}, {row['runtime']}, batch {row['batch']}: {row['cpu_ms']:.3g} ms", file=sys.stderr
                )
                write()
    busy = watch.seen().warning()
    print("\n".join([*filter(None, [busy]), shown(networks, forms, memory, left_out)]))
    write()
    print(f"\nwrote {args.out}")


def parameters(config: UNetConfig) -> int:
    with torch.device("meta"):
        return sum(one.numel() for one in UNet(config).parameters())


def network_rows(shape: Shape, count: int, batches: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each runtime and batch size; larger batches are left out where a single image is slow."""
    torch.manual_seed(0)
    network = UNet(shape.config).eval()
    config, size = shape.config, (shape.config.channels, shape.config.resolution, shape.config.resolution)
    runtimes: dict[str, Callable[[int], Callable[[], object]]] = {EAGER: lambda batch: eager(network, config, batch)}
    if not shape.published:
        content = network_to_onnx(network, weights_dtype="float32")
        session = open_session(content, Path(shape.name), 1)
        runtimes[ORT] = lambda batch: exported(session, config, batch)
    for runtime, make in runtimes.items():
        for batch in batches:
            call = make(batch)
            give_back_memory()
            before = rss_mb()
            marked = forget_peak()
            taken = cpu_times(call, seconds)
            peak = peak_mb() - before if marked else None
            step = float(np.median(cpu_times(numpy_step(size, batch), min(seconds, 0.5))))
            median = float(np.median(taken))
            yield {
                "pixels": config.resolution, "network": shape.name, "published": shape.published, "runtime": runtime,
                "parameters_m": count / 1e6, "weights_mb": count * 4 / 2**20, "batch": batch, "calls": len(taken),
                "cpu_ms": median * 1000, "image_ms": median * 1000 / batch, "peak_mb": peak, "step_ms": step * 1000,
                "step_share": 100 * step / (step + median),
            }  # fmt: skip
            if median * batch > seconds * 4:
                break


def rows_of(config: UNetConfig, batch: int) -> tuple[NDArray[np.float32], ...]:
    """x, c_noise and onehot for a batch."""
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, config.channels, config.resolution, config.resolution), dtype=np.float32)
    return x, np.full(batch, 0.3, np.float32), np.zeros((batch, config.classes), np.float32)


def eager(network: UNet, config: UNetConfig, batch: int) -> Callable[[], object]:
    tensors = [torch.from_numpy(part) for part in rows_of(config, batch)]

    def call() -> None:
        with torch.inference_mode():
            network(*tensors)

    return call


def exported(session: Any, config: UNetConfig, batch: int) -> Callable[[], object]:
    names = [value.name for value in session.get_inputs()]
    given = dict(zip(("x", "c_noise", "onehot"), rows_of(config, batch), strict=True))
    return lambda: session.run(None, {name: given[name] for name in names})


def cpu_times(call: Callable[[], object], seconds: float) -> list[float]:
    """CPU seconds of some calls: after one that is not counted, as many as fit into the CPU seconds, FEW at least.

    Of a call that takes longer than all of them, the first counts, too, and there is but one more.
    """

    def once() -> float:
        began = time.process_time()
        call()
        return time.process_time() - began

    first = once()
    if first > 4 * seconds:
        return [first]
    taken = [first] if first > seconds else []
    while len(taken) < FEW or sum(taken) < seconds:
        taken.append(once())
    return taken


def photographs(pixels: int) -> list[Pixels]:
    """Squares of two photographs, uint8 [H, W, 3], each shrunk to the size from squares of 256 pixels and more."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    found = []
    for photo in load_sample_images().images:
        for left in (0, 128, 256):
            square = Image.fromarray(photo[64:384, left : left + 320])
            found.append(np.asarray(square.resize((pixels, pixels), Image.Resampling.LANCZOS)))
    return found


FORMS: Mapping[str, tuple[Any, int | None]] = {
    "PNG": ("png", None), "WebP, lossless": ("webp", None), "WebP, quality 90": ("webp", 90),
    "JPEG, quality 90": ("jpeg", 90), "array (.npy)": ("npy", None),
}  # fmt: skip


def form_rows(pixels: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Encoding, base64 and reading back of one photograph, mean over several, by form."""
    photos = photographs(pixels)
    for name, (form, quality) in FORMS.items():
        encoded = [encode(photo, form, quality) for photo in photos]
        texts = [base64.b64encode(data) for data in encoded]
        each = 1000 / len(photos)
        row = {
            "pixels": pixels, "form": name, "kb": float(np.mean([len(data) for data in encoded])) / 1000,
            "base64_kb": float(np.mean([len(text) for text in texts])) / 1000,
            "ms": each * median_of(lambda form=form, q=quality: [encode(photo, form, q) for photo in photos], seconds),
            "base64_ms": each * median_of(lambda all=encoded: [base64.b64encode(data) for data in all], seconds),
            "read_ms": None,
        }  # fmt: skip
        if form != "npy":
            decoded = [text.decode() for text in texts]
            read = lambda decoded=decoded: [decode(from_base64(text, pixels), pixels, 3) for text in decoded]  # noqa: E731
            row["read_ms"] = each * median_of(read, seconds)
        yield row


def median_of(call: Callable[[], object], seconds: float) -> float:
    return float(np.median(cpu_times(call, min(seconds, 0.3))))


def slot_memory(pixels: int) -> dict[str, Any]:
    """Bytes that a slot of the server adds, in its table and for the moment of a call, as tracemalloc counts them."""
    manifest = read_manifest(ROOT / "models" / "fashion" / "engine")
    manifest = dataclasses.replace(manifest, channels=3, resolution=pixels)
    held, peak = [], []
    few, many = 4, 12
    full_table(FixedCostEngine(manifest, Cost(0, 0)), many)[1]()  # what is imported and kept meanwhile is no slot's
    for capacity in (few, many):
        tracemalloc.start()
        loop_table, turn = full_table(FixedCostEngine(manifest, Cost(0, 0)), capacity)
        turn()
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.reset_peak()
        turn()
        peak.append(tracemalloc.get_traced_memory()[1])
        del loop_table, turn
        tracemalloc.stop()
    return {
        "pixels": pixels, "image_mb": 3 * pixels**2 * 4 / 2**20, "held_mb": (held[1] - held[0]) / (many - few) / 2**20,
        "peak_mb": (peak[1] - peak[0]) / (many - few) / 2**20,
    }  # fmt: skip


def full_table(engine: FixedCostEngine, capacity: int) -> tuple[object, Callable[[], object]]:
    """A slot table of so many slots, all taken, and a turn of it after which all stay."""
    from server.scheduler.slots import Image, ImageKey

    slots = slot_table(cast(Engine, engine), (capacity,))
    sigmas = tuple(engine.manifest.levels[8])
    slots.admit([Image(ImageKey(0, index), index, 0, sigmas) for index in range(capacity)])
    return slots, slots.tick


def shares(networks: Sequence[Mapping[str, Any]], forms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where the CPU time of one image of STEPS calls goes: alone, as PNG in base64; and WebP's share in PNG's place."""
    by = {(row["pixels"], row["form"]): row for row in forms}
    rows = []
    for row in networks:
        if row["batch"] != 1:
            continue
        png, webp = by[row["pixels"], "PNG"], by[row["pixels"], "WebP, lossless"]
        network, step = STEPS * row["cpu_ms"], STEPS * row["step_ms"]
        total = network + step + png["ms"] + png["base64_ms"]
        rows.append({
            "pixels": row["pixels"], "network": row["network"], "runtime": row["runtime"], "total_ms": total,
            "network_share": 100 * network / total, "step_share": 100 * step / total,
            "png_share": 100 * png["ms"] / total, "base64_share": 100 * png["base64_ms"] / total,
            "webp_share": 100 * webp["ms"] / (total - png["ms"] + webp["ms"]),
        })  # fmt: skip
    return rows


def stops_mattering(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By networks, ours or published, and runtime: the sizes at which a part takes less than MATTERS of an image."""
    found = []
    for ours, runtime in dict.fromkeys((row["network"] == OURS, row["runtime"]) for row in rows):
        some = [row for row in rows if (row["network"] == OURS, row["runtime"]) == (ours, runtime)]
        sizes = sorted({row["pixels"] for row in some})
        found.append({"networks": OURS if ours else "published", "runtime": runtime, "sizes": sizes} | {
            part: [
                size for size in sizes
                if all(row[f"{part}_share"] < 100 * MATTERS for row in some if row["pixels"] == size)
            ]
            for part in ("step", "png", "webp", "base64")
        })  # fmt: skip
    return found


def shown(
    networks: Sequence[Mapping[str, Any]], forms: Sequence[Mapping[str, Any]], memory: Sequence[Mapping[str, Any]],
    left_out: Sequence[Mapping[str, Any]],
) -> str:  # fmt: skip
    rows = shares(networks, forms)
    below = [
        {name: ", ".join(map(str, value)) or "-" if isinstance(value, list) else value for name, value in row.items()}
        for row in stops_mattering(rows)
    ]
    parts = {
        "Networks of random weights": table(networks, COLUMNS),
        "Forms of an image": table(forms, FORM_COLUMNS),
        f"One image of {STEPS} calls, as PNG in base64": table(rows, SHARE_COLUMNS),
        f"Pixels at which a part takes less than {MATTERS:.0%} of it": table(below, BELOW_COLUMNS),
        "Memory of a slot of the server": table(memory, MEMORY_COLUMNS),
    }
    text = "\n\n".join(f"{title}:\n{body}" for title, body in parts.items())
    return text + "".join(f"\nnot run: {row['network']}, {row['parameters_m']:.0f} M parameters" for row in left_out)


def give_back_memory() -> None:
    """Earlier calls' memory goes back to the system, so that a call's own is seen."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)


def rss_mb() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--sizes",
        type=whole(32, 256),
        nargs="+",
        choices=SIZES,
        default=list(SIZES),
        help="pixels of a side (default: all)",
    )
    add("--batches", type=whole(1), nargs="+", default=[1, 4, 8], metavar="N", help="images in a call (default 1 4 8)")
    add("--seconds", type=number(POSITIVE), default=3.0, help="CPU time of each network and batch size (default 3)")
    add("--most-parameters", type=number(POSITIVE), default=1000.0, metavar="MILLIONS",
        help="networks with more are not run (default 1000: all are)")  # fmt: skip
    add("--out", type=result_file, default=WORK / "build" / "sizes.json", help="JSON to write (default %(default)s)")
    add("--smoke", action="store_true", help="256 pixels, our network, one image")
    args = parser.parse_args()
    args.sizes, args.batches = sorted(set(args.sizes)), sorted(set(args.batches))
    if args.smoke:
        args.sizes, args.batches, args.seconds, args.most_parameters = [32], [1], 0.1, 10.0
    return args


if __name__ == "__main__":
    main()
