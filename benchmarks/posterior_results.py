"""What the benchmarks of posteriors share: their last options, stages that are kept, tables, the JSON, its picture."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.harness import ROOT, result_file, table, write_result
from fewstep.card import write_atomically
from fewstep.pixels import encode, grid, to_pixels
from trainer.run.sheet import add_titles

SHOWN = 64  # images of a method in the picture
ONE_MEASUREMENT = ("nfe", "cpu_s")  # no deviation is shown of these


def parsed(parser: argparse.ArgumentParser, name: str) -> argparse.Namespace:
    """The options, with --out and --smoke, which all of these benchmarks have."""
    add = parser.add_argument
    add("--out", type=result_file, default=ROOT / "build" / f"{name}.json", metavar="FILE.json",
        help="the JSON with the result (default %(default)s)")  # fmt: skip
    add("--smoke", action="store_true", help="a few updates of everything")
    return parser.parse_args()


def settings_of(args: argparse.Namespace, free: Collection[str] = ()) -> dict[str, Any]:
    """The options that decide the result. free: further ones that do not."""
    return {name: value for name, value in vars(args).items() if name not in ("out", "smoke", *free)}


def keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write what the parts of a run that are kept belong to. Ends the command where they belong to other settings."""
    if path.exists() and json.loads(path.read_text()) != settings:
        sys.exit(f"error: {path.parent} holds a run with other settings; repeat them, or give another --work")
    write_atomically(path, (json.dumps(settings, indent=2) + "\n").encode())


def kept(work: Path, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a stage: of its file in `work` where there is one. "cpu_s" says what they cost."""
    path = work / f"{name}.safetensors"
    if not path.exists():
        since = time.process_time()
        made = make()
        made["cpu_s"] = torch.tensor(time.process_time() - since)
        save_file({key: value.contiguous() for key, value in made.items()}, path)
        print(f"{name}: {float(made['cpu_s']):.0f} CPU s", flush=True)
    return load_file(path)


def told_every(updates: int) -> Callable[[int, float], None]:
    """Prints the loss of every so many updates."""

    def say(update: int, loss: float) -> None:
        if update % updates == 0:
            print(f"  update {update}: loss {loss:.4g}", flush=True)

    return say


def write_rows(
    args: argparse.Namespace, name: str, rows: list[dict[str, Any]], shown: Mapping[str, Tensor] | None = None,
    free: Collection[str] = (), **more: Any,
) -> None:  # fmt: skip
    """Write the JSON, and with images [N, C, H, W] by method their picture beside it. free: as of `settings_of`; more:
    further keys of the JSON."""
    write_result(args.out, name, settings_of(args, free), rows, **more)
    if shown:
        write_atomically(args.out.with_suffix(".png"), picture(shown))


def end(out: Path, *texts: str) -> None:
    """Print the tables, and where the JSON is."""
    for text in (*texts, f"wrote {out}"):
        print(f"\n{text}")


def said(text: str, began: float) -> None:
    print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means over seeds, their standard deviations (ddof 1; None for one seed) under "std", and every seed's numbers."""
    names = runs[0]
    deviation = {name: float(np.std([run[name] for run in runs], ddof=1)) if len(runs) > 1 else None for name in names}
    return {**{name: float(np.mean([run[name] for run in runs])) for name in names}, "std": deviation, "seeds": runs}


def with_deviations(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A table of `mean ± std`."""
    shown = []
    for row in rows:
        cells = {key: row.get(key) for key in columns}
        for key in cells:
            if (deviation := row["std"].get(key)) is not None and key not in ONE_MEASUREMENT:
                cells[key] = f"{row[key]:.3g} ± {deviation:.2g}"
        shown.append(cells)
    return table(shown, columns)


def picture(shown: Mapping[str, Tensor], columns: int = SHOWN, title: str = "") -> bytes:
    """The first images of the first seed of every method, without a choice: a row each. Each
    method has at least `columns` images; with fewer, rows would not stand beside their names."""
    sheet = grid(np.concatenate([to_pixels(images[:columns].numpy()) for images in shown.values()]), columns)
    side = next(iter(shown.values())).shape[-1]
    title = title or f"first {columns} images of the first seed"
    return encode(add_titles(sheet, side, title, [], list(shown)), "png")
