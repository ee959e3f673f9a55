"""`python -m server`, whose links break once as FILE says.

    python -m tests.server.processes.faulty_server FILE --engine DIR

The first process that comes by takes FILE away and does what it names; without it everything works.
"""

import sys
from pathlib import Path
from typing import Any

from server.processes.pipes import HttpLinks, WorkerLink

GARBAGE = b"\xff" * 64
FAULTS = (
    "garbage to one HTTP process",
    "garbage to every HTTP process",
    "an encoding thread raises",
    "garbage to the worker",
    "an HTTP process closes its link",
)


def install(file: Path) -> None:
    send_answers, send_message = HttpLinks.send, WorkerLink.send

    def due(*faults: str) -> str | None:
        """The fault, if it is one of these and has not happened yet."""
        try:
            fault = file.read_text("utf-8")
            if fault in faults:
                file.unlink()
                return fault
        except FileNotFoundError:
            pass
        return None

    def faulty_answers(self: HttpLinks, answers: Any) -> None:
        fault = due(*FAULTS[:3])
        if fault == FAULTS[2]:
            raise RuntimeError("as planned")
        if fault:
            for end in self.sockets if fault == FAULTS[1] else self.sockets[:1]:
                end.sendall(GARBAGE)
        send_answers(self, answers)

    def faulty_message(self: WorkerLink, message: Any) -> None:
        assert self.transport is not None
        fault = due(*FAULTS[3:])
        if fault == FAULTS[3]:
            self.transport.write(GARBAGE)
        elif fault:
            self.transport.abort()
        send_message(self, message)

    HttpLinks.send, WorkerLink.send = faulty_answers, faulty_message


if __name__ == "__main__":
    install(Path(sys.argv.pop(1)))
    from server.__main__ import main

    sys.exit(main())
