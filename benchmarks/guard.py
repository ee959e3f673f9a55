"""Has the code become slower? Ratios of CPU times and counts of instructions, beside a committed baseline.

    python benchmarks/guard.py                # half a minute on a free machine
    python benchmarks/guard.py --smoke        # a few seconds; proves that it runs
    python benchmarks/guard.py --out FILE     # also a new baseline

The ratios divide CPU times that were measured in turns, so that neither the machine's speed nor other work on it
moves them much; counts of instructions depend on the versions of Python and numpy alone. Prints how far each is from
the baseline. The exit status says that everything ran, never that something was slow.
"""

from fewstep import extras

extras.name_missing()

import argparse
import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from benchmarks.busy import Watch
from benchmarks.harness import ROOT, machine, result_file, table, write_result
from benchmarks.instructions import counted, no_valgrind
from benchmarks.kernel_speed import numpy_step
from benchmarks.known_distances import INDEX
from benchmarks.load.hot_path import STEPS, serving
from benchmarks.loop_turns import back_to_back, through_the_loop
from export.engine import load_engine
from fewstep.ranges import POSITIVE, number

ENGINE = ROOT / "models" / "fashion" / "engine"
ROWS = 8  # of a network call
FEWEST_ROUNDS = 5
TURN_S = 0.05  # CPU seconds of each side of a round, at least
REQUESTS = 100  # of a round, one after the other
SHARES = {"step": 0.2, "loop": 0.25, "eager": 0.25, "http": 0.3}  # of the time
BEYOND = {"ratio": 0.15, "instructions": 0.02, "opcodes": 0.02}  # drifts that are never marked
COLUMNS = {"name": "what", "kind": "kind", "value": "now", "baseline": "baseline", "drift": "drift", "mark": ""}
Call = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """One figure of the guard. low and high: quartiles over its rounds, the value itself where it is a count."""

    name: str
    kind: str  # "ratio", "instructions" or "opcodes"
    value: float
    low: float
    high: float
    rounds: int

    @staticmethod
    def of(name: str, kind: str, values: Sequence[float]) -> "Figure":
        low, value, high = (float(np.percentile(values, percent)) for percent in (25, 50, 75))
        return Figure(name, kind, value, low, high, len(values))


def main() -> None:
    args = parse_arguments()
    seconds = 2.0 if args.smoke else args.seconds
    baseline = read_baseline(args.baseline)
    print("guard: measuring", file=sys.stderr, flush=True)
    watch = Watch()
    figures = [*ratios(seconds), *counts(args.smoke)]
    busy = watch.seen()
    if busy.warning():
        print(f"{busy.warning()} Here ratios move, too; counts do not.")
    print(table(beside(figures, baseline), COLUMNS))
    if note := other_machine(baseline):
        print(note)
    if args.out:
        settings = {"seconds": seconds, "rows": ROWS, "requests": REQUESTS, "steps": STEPS}
        rows = [asdict(figure) for figure in figures]
        write_result(args.out, "guard", settings, rows, busy={**vars(busy), "warning": busy.warning()})
        print(f"\nwrote {args.out}")


def ratios(seconds: float) -> Iterator[Figure]:
    """Ratios of CPU times, each within its share of the seconds."""
    engine = load_engine(ENGINE, threads=1)
    manifest = engine.manifest
    call = back_to_back(engine, ROWS)
    step = numpy_step(manifest.image_shape, ROWS)
    yield Figure.of(f"step over network call, {ROWS} rows", "ratio", paired(step, call, seconds * SHARES["step"]))
    turn = through_the_loop(engine, ROWS)
    yield Figure.of(
        f"turn of the engine loop over bare call, {ROWS} rows", "ratio", paired(turn, call, seconds * SHARES["loop"])
    )
    if find_spec("torch"):
        for rows in (1, ROWS):
            pair = eager_call(rows), back_to_back(engine, rows)
            found = paired(*pair, seconds * SHARES["eager"] / 2)
            yield Figure.of(f"eager PyTorch over ONNX Runtime, {rows} rows", "ratio", found)
    else:
        print("without eager PyTorch: torch is not installed ([train])", file=sys.stderr)
    yield from http_figures(seconds * SHARES["http"])


def paired(a: Call, b: Call, seconds: float) -> list[float]:
    """CPU time of a over that of b, round by round, for some seconds and FEWEST_ROUNDS at least."""
    times = [max(1, round(TURN_S / max(cpu_s(call, 3), 1e-7))) for call in (a, b)]
    began, found = time.monotonic(), []
    while len(found) < FEWEST_ROUNDS or time.monotonic() - began < seconds:
        order = (0, 1) if len(found) % 2 else (1, 0)
        spent = {side: cpu_s((a, b)[side], times[side]) for side in order}
        found.append(spent[0] / spent[1])
    return found


def cpu_s(call: Call, times: int) -> float:
    """CPU seconds of a call, mean over some."""
    began = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - began) / times


def eager_call(rows: int) -> Call:
    """The shipped student's network in PyTorch on one thread."""
    import torch

    from benchmarks.engine_variants import eager_variants

    torch.set_num_threads(1)
    variant = eager_variants(ENGINE.parent, rows)[0]
    return lambda: variant.call(rows)


def http_figures(seconds: float) -> Iterator[Figure]:
    """CPU of the server's processes for a request of one image, over that of a fixed loop of Python in this process.

    The network sleeps (benchmarks/load/fixed_cost.py), and requests come one after the other on one connection.
    """
    with serving(ROOT, 1) as (url, parent):
        front, *workers = parent.children()
        where = urlsplit(url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port)
        ask_for_images(connection, REQUESTS // 4)
        began, rounds = time.monotonic(), []
        while len(rounds) < FEWEST_ROUNDS or time.monotonic() - began < seconds:
            loop_s = cpu_s(calibration, 20)
            before = spent_s([front]), spent_s(workers)
            ask_for_images(connection, REQUESTS)
            after = spent_s([front]), spent_s(workers)
            loop_s = (loop_s + cpu_s(calibration, 20)) / 2
            rounds.append([(then - now) / REQUESTS / loop_s for now, then in zip(before, after, strict=True)])
        connection.close()
    for name, values in zip(("HTTP process", "worker"), zip(*rounds, strict=True), strict=True):
        yield Figure.of(f"{name} per request over the fixed loop", "ratio", values)


def ask_for_images(connection: http.client.HTTPConnection, count: int) -> None:
    body, headers = json.dumps({"steps": STEPS, "seed": 7}), {"Content-Type": "application/json"}
    for _ in range(count):
        connection.request("POST", "/v1/generate", body, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the server answered {answer.status}")


def calibration() -> int:
    """A loop of what an HTTP process does most: dictionaries, texts, small numbers."""
    total = 0
    for seed in range(1_000):
        entry = {"seed": seed, "label": seed % 10, "name": f"image {seed}"}
        total += len(entry["name"]) + sum(entry[key] for key in ("seed", "label"))
    return total


def spent_s(processes: Sequence[psutil.Process]) -> float:
    """CPU seconds of processes: in nanoseconds where Linux counts them (schedstat), else in ticks of 10 ms."""
    total = 0.0
    for process in processes:
        try:
            tasks = Path(f"/proc/{process.pid}/task").iterdir()
            total += sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        except OSError:
            total += sum(process.cpu_times()[:2])
    return total


def counts(smoke: bool) -> Iterator[Figure]:
    """Instructions of the hot paths, where valgrind is there and for a smoke run not, and Python's opcodes."""
    why = "a smoke run" if smoke else no_valgrind()
    for bytecode in (False, True):
        try:
            kind, found = counted(bytecode) if bytecode or not why else ("", {})
        except TimeoutError as error:  # a slow machine is no failure
            why, kind, found = str(error), "", {}
        if why and not bytecode:
            print(f"without machine instructions: {why}", file=sys.stderr)
        yield from (Figure.of(name, kind, [count]) for name, count in found.items())


def beside(figures: Sequence[Figure], baseline: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of the table: a figure, the baseline's, the drift in percent, and a mark where that is more than noise.

    Noise is what is within BEYOND, or where the quartiles of the two overlap.
    """
    known = {(row["kind"], row["name"]): row for row in (baseline or {"rows": []})["rows"]}
    rows = []
    for figure in figures:
        row = {**asdict(figure), "baseline": None, "drift": None, "mark": ""}
        if before := known.get((figure.kind, figure.name)):
            drift = figure.value / before["value"] - 1
            apart = figure.low > before["high"] or figure.high < before["low"]
            mark = ("more" if drift > 0 else "less") if apart and abs(drift) > BEYOND[figure.kind] else ""
            row |= {"baseline": before["value"], "drift": f"{drift:+.1%}", "mark": mark}
        rows.append(row)
    return rows


def read_baseline(file: Path | None) -> dict[str, Any] | None:
    """The given result, or the committed one; None where there is none. Raises SystemExit for another file."""
    if file is None:
        entries = json.loads(INDEX.read_text("utf-8")) if INDEX.is_file() else []
        names = [entry["file"] for entry in entries if entry["command"].startswith("python benchmarks/guard.py")]
        return json.loads((INDEX.parent / names[0]).read_text("utf-8")) if names else None
    try:
        found = json.loads(file.read_text("utf-8"))
        if found["benchmark"] != "guard":
            raise KeyError(found["benchmark"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {file} is no result of benchmarks/guard.py ({error!r})") from None
    return found


def other_machine(baseline: Mapping[str, Any] | None) -> str | None:
    """What of the baseline's machine is otherwise here; None where nothing is."""
    if baseline is None:
        return "There is no baseline yet: --out writes one."
    here, there = machine(), baseline["machine"]
    facts = {name: (there[name], here[name]) for name in ("cpu", "cpu_features", "python")}
    facts |= {name: (version, here["packages"].get(name)) for name, version in there["packages"].items()}
    other = [f"{name} {there} (here {here})" for name, (there, here) in facts.items() if there != here]
    return f"The baseline is of another machine: {', '.join(other)}." if other else None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--baseline", type=Path, metavar="JSON", help="an earlier result (default: the committed one)")
    add("--seconds", type=number(POSITIVE), default=16.0, help="of all ratios together, about (default 16)")
    add("--out", type=result_file, metavar="JSON", help="write the figures, as a baseline of later runs")
    add("--smoke", action="store_true", help="few rounds, no valgrind")
    return parser.parse_args()


if __name__ == "__main__":
    main()
