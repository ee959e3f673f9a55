"""`fewstep generate`: what an image costs beside network calls alone, and whether kill -9 loses or doubles a seed.

    python benchmarks/bulk.py             # ten minutes of one core
    python benchmarks/bulk.py --smoke     # a minute

Cost: the processor time of an image, of the whole command with all its threads and processes, is the difference between
two runs of different lengths over the difference of their images, so that the start does not count. Beside it the
processor time of as many network calls of the same batch and nothing else. share: of the second in the first, in
rounds in turn; on one core it is the share of the speed of calls back to back, also where other programs want the core.

Kills: the command makes WebDataset shards of many seeds and is killed after a random time, `KILLS` times; then it ends.
Every seed is counted in the shards (missing: not there, double: more than once), and the shards are compared with those
of a run that was not killed.
"""

from fewstep import extras

extras.name_missing()

import argparse
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, result_file, table, write_result
from export.engine import load_engine
from fewstep.ranges import whole

BATCH = 8  # images of a network call, the command's default
ENGINES = [ROOT / "models" / name / "engine" for name in ("fashion", "earth")]
KILLS = 10
PER_SHARD = 2048
STARTS = "chunk-*.npy", "written-*"  # what a run leaves in its journal once it makes images
TIMEOUT_S = 600.0


def command(engine: Path, seeds: int, steps: int, out: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "fewstep", "generate", "--model", str(engine), "--seeds", f"0-{seeds - 1}",
        "--steps", str(steps), "--threads", "1", "--out", str(out), *options,
    ]  # fmt: skip


def processor_s() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def generating_s(engine: Path, images: int, steps: int, folder: Path) -> float:
    """Processor seconds of one run of the command."""
    before = processor_s()
    out = folder / f"{images}.zip"
    subprocess.run(command(engine, images, steps, out), check=True, capture_output=True)
    out.unlink()
    return processor_s() - before


def calling_s(folder: Path, images: int, steps: int) -> float:
    """Processor seconds of the network calls of so many images."""
    engine = load_engine(folder, threads=1)
    manifest = engine.manifest
    x = np.random.default_rng(0).standard_normal((BATCH, *manifest.image_shape), np.float32)
    inputs = x, np.zeros(BATCH, np.float32), np.zeros((BATCH, manifest.columns), np.float32)
    engine.network(*inputs)
    before = time.process_time()
    for _ in range(images * steps // BATCH):
        engine.network(*inputs)
    return time.process_time() - before


def cost(engine: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    few, many, steps = args.images, 3 * args.images, args.steps
    generating, calling = [], []
    for _ in range(args.rounds):
        calling.append(calling_s(engine, many - few, steps) / (many - few))
        taken = generating_s(engine, many, steps, folder) - generating_s(engine, few, steps, folder)
        generating.append(taken / (many - few))
    shares = [one / other for one, other in zip(calling, generating, strict=True)]
    return {
        "engine": load_engine(engine).manifest.name, "steps": steps, "calls_ms": 1000 * median(calling),
        "command_ms": 1000 * median(generating), "share": median(shares), "shares": shares,
    }  # fmt: skip


def killed(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    options = ("--format", "webdataset", "--per-file", str(PER_SHARD))
    straight, broken, engine = folder / "straight", folder / "killed", args.engines[0]
    began = time.monotonic()
    subprocess.run(command(engine, args.seeds, 1, straight, *options), check=True, capture_output=True)
    longest = 0.3 * (time.monotonic() - began) / args.kills  # so that the run does not end before the last kill
    moments, kills = random.Random(0), 0
    for _ in range(args.kills):
        kills += killed_after(command(engine, args.seeds, 1, broken, *options), broken, moments.uniform(0, longest))
    subprocess.run(command(engine, args.seeds, 1, broken, *options), check=True, capture_output=True)
    counts = seeds_in(broken)
    same = [path.name for path in sorted(straight.iterdir())] == [
        path.name for path in sorted(broken.iterdir())
    ] and all(path.read_bytes() == (broken / path.name).read_bytes() for path in straight.iterdir())
    return {
        "seeds": args.seeds, "kills": kills, "missing": sum(seed not in counts for seed in range(args.seeds)),
        "double": sum(count > 1 for count in counts.values()), "same_bytes": same,
    }  # fmt: skip


def killed_after(argv: list[str], out: Path, seconds: float) -> bool:
    """Run a command, and kill it and its processes so long after the first image that it made. False: it had ended."""
    before = made(out)
    run = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    limit = time.monotonic() + TIMEOUT_S
    while made(out) == before and run.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(seconds)
    ended = run.poll() is not None
    if not ended:
        os.killpg(run.pid, 9)
    run.wait()
    return not ended


def made(out: Path) -> set[str]:
    """What the journal of an unfinished run names."""
    return {path.name for pattern in STARTS for path in (out / ".generate").glob(pattern)}


def seeds_in(folder: Path) -> Counter[int]:
    """How often each seed is in the shards."""
    found: Counter[int] = Counter()
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as archive:
            found.update(int(name.removesuffix(".png")) for name in archive.getnames() if name.endswith(".png"))
    return found


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        for engine in args.engines:
            rows.append(cost(engine, args, folder))
            print(rows[-1], flush=True)
        kills = killed(args, folder)
    settings = {"images": args.images, "rounds": args.rounds, "batch": BATCH, "kills": args.kills}
    write_result(args.out, "bulk", settings, rows, killed=kills)
    columns = {"engine": "engine", "steps": "steps", "calls_ms": "calls, ms", "command_ms": "command, ms",
               "share": "share"}  # fmt: skip
    print("\n" + table(rows, columns) + "\n\n" + table([kills], {name: name for name in kills}) + f"\n{args.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--engines", type=Path, nargs="+", default=ENGINES, metavar="DIR",
        help="of students that take noise and a class alone; the first makes the run that is killed (default: those of "
        "the shipped students)")  # fmt: skip
    add("--steps", type=whole(1, 8), default=4, help="network calls for an image (default %(default)s)")
    add("--images", type=whole(BATCH), default=128, help="of the shorter run; the longer has three times as many "
        "(default %(default)s)")  # fmt: skip
    add("--rounds", type=whole(1), default=5, help="of both, in turn (default %(default)s)")
    add("--seeds", type=whole(1), default=20_000, help="of the run that is killed (default %(default)s)")
    add("--kills", type=whole(1), default=KILLS, help="default %(default)s")
    add("--out", type=result_file, default=ROOT / "build" / "bulk.json", metavar="FILE.json",
        help="the JSON with the result (default %(default)s)")  # fmt: skip
    add("--smoke", action="store_true", help="one short round, and one kill of 500 seeds")
    args = parser.parse_args()
    if args.smoke:
        args.engines, args.images, args.rounds, args.seeds, args.kills = args.engines[:1], 16, 1, 500, 1
    return args


if __name__ == "__main__":
    main()
