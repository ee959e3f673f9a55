"""Our server, on an engine whose stages a test holds or breaks while it runs.

    python -m tests.server.controlled_server FOLDER --model fashion --port 0

FOLDER/plan.json is the plan, read at every stage; FOLDER/calls gets a line with the process id as each network call
begins. Everything else is `python -m server`: what it loads and calls is wrapped before it is imported.
"""

import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import export.engine
import fewstep.pixels
import server.http.pictures

PLAN, CALLS = "plan.json", "calls"
POLL_S = 0.001


@dataclass(frozen=True)
class Plan:
    """What the stages do from now on. serial: makes two plans of the same content two plans."""

    serial: int = 0
    calls: int | None = None  # network calls that may be made; the next one waits for another plan. None: all
    sleep_s: float = 0.0  # that a network call takes longer
    network: str = ""  # "nan": its output is; else the error it raises, such as "MemoryError"
    encoder: str = ""  # the error it raises
    decoder: str = ""


def read_plan(folder: Path) -> Plan:
    return Plan(**json.loads((folder / PLAN).read_text("utf-8")))


def break_if(error: str) -> None:
    """Raises the built-in error of that name; nothing for an empty one."""
    if error:
        raise {"MemoryError": MemoryError, "RuntimeError": RuntimeError}[error]("as planned")


class ControlledEngine:
    """An engine whose network follows the plan; in all else the one that was loaded."""

    def __init__(self, engine: Any, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.parent = os.getppid()
        self.serial = -1
        self.made = 0  # calls under the present plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def network(self, *arguments: NDArray[np.float32]) -> NDArray[np.float32]:
        with (self.folder / CALLS).open("a", encoding="utf-8") as calls:
            calls.write(f"{os.getpid()}\n")
        plan = self.permitted()
        threading.Event().wait(plan.sleep_s)
        break_if(plan.network.replace("nan", ""))
        output = self.engine.network(*arguments)
        return np.full_like(output, np.nan) if plan.network == "nan" else output

    def permitted(self) -> Plan:
        """The plan, once it lets this call through."""
        tick = threading.Event()
        while os.getppid() == self.parent:
            plan = read_plan(self.folder)
            if plan.serial != self.serial:
                self.serial, self.made = plan.serial, 0
            if plan.calls is None or self.made < plan.calls:
                self.made += 1
                return plan
            tick.wait(POLL_S)
        sys.exit("the server is gone, and no plan will come")


def control(folder: Path) -> None:
    """Wrap the loading of engines, the encoder and the decoder."""
    load, decode = export.engine.load_engine, server.http.pictures.decode
    encode, encode_pngs = fewstep.pixels.encode, fewstep.pixels.encode_pngs

    def controlled_load(*arguments: Any, **options: Any) -> ControlledEngine:
        return ControlledEngine(load(*arguments, **options), folder)

    def controlled_encode(*arguments: Any, **options: Any) -> bytes:
        break_if(read_plan(folder).encoder)
        return encode(*arguments, **options)

    def controlled_pngs(*arguments: Any, **options: Any) -> list[bytes]:
        break_if(read_plan(folder).encoder)
        return encode_pngs(*arguments, **options)

    def controlled_decode(*arguments: Any, **options: Any) -> fewstep.pixels.Pixels:
        break_if(read_plan(folder).decoder)
        return decode(*arguments, **options)

    export.engine.load_engine = controlled_load  # pyright: ignore[reportAttributeAccessIssue]
    fewstep.pixels.encode, fewstep.pixels.encode_pngs = controlled_encode, controlled_pngs
    server.http.pictures.decode = controlled_decode


def main(arguments: Sequence[str]) -> int:
    folder, *flags = arguments
    control(Path(folder))
    from server.__main__ import main as serve

    return serve(flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
