"""Logging of every process of the server: lines for people, or one JSON object per line."""

import json
import logging
import os
import select
import sys
import time
from typing import TextIO

from server.settings.settings import Settings

WAIT_S = 1.0


class JsonLines(logging.Formatter):
    """{"time", "level", "process", "logger", "message", ...}; the `fields` of a record come beside these."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": record.processName,
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        entry |= fields if fields is not None else {"message": record.getMessage()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str).replace("\x7f", "\\u007f")


class TextLines(logging.Formatter):
    """Lines for people. Only ours begin at the margin, and none holds a control sequence for the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        first, *rest = super().format(record).split("\n")
        return "\n    ".join(map(printable, [first, *rest]))


def printable(text: str) -> str:
    """Control characters, surrogates and marks of writing direction as escapes; letters of any language stay."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class BoundedHandler(logging.Handler):
    """Writes to a stream of this process, and waits for its reader at most `wait_s`, once until it reads again.

    A pipe that is full, because a log collector hangs, or a terminal that is paused would otherwise stop the event loop
    within a log line: no request would be answered, and no stop signal noticed. Lines that find no room are lost, and
    counted in the log as soon as there is some.
    """

    def __init__(self, stream: TextIO, wait_s: float = WAIT_S) -> None:
        super().__init__()
        self.stream = stream
        self.wait_s = wait_s
        self.lost = 0  # lines since the last one that was written
        self.cut = False  # the last one has no end
        self.room = select.poll()
        self.room.register(stream, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self.format(record) + "\n"
            if self.lost:
                message = f"{self.lost} lines are missing here: nobody read the log, and there was no room for them"
                gap = logging.makeLogRecord({"name": __name__, "levelname": "WARNING", "msg": message})
                lines = "\n" * self.cut + f"{self.format(gap)}\n{lines}"
            written = self._write(lines.encode(errors="backslashreplace"))
            self.lost = 0 if written else self.lost + 1
        except Exception:
            self.handleError(record)

    def _write(self, data: bytes) -> bool:
        """False: there was no room, or not for all of it. poll says whether there is room for PIPE_BUF bytes."""
        wait_s = 0.0 if self.lost else self.wait_s
        for first in range(0, len(data), select.PIPE_BUF):
            if not self.room.poll(1000 * wait_s):
                self.cut |= first > 0
                return False
            os.write(self.stream.fileno(), data[first : first + select.PIPE_BUF])
        self.cut = False
        return True


def _has_descriptor(stream: TextIO) -> bool:
    """False for a stream that a program has put in the place of stderr; writing to it waits for no reader."""
    try:
        stream.fileno()
    except (AttributeError, OSError):  # io.UnsupportedOperation is an OSError
        return False
    return True


def configure(settings: Settings) -> None:
    """Send the log to stderr. JSON always has the requests; text has them at --log-level info and below."""
    handler = BoundedHandler(sys.stderr) if _has_descriptor(sys.stderr) else logging.StreamHandler(sys.stderr)
    text = TextLines("%(asctime)s %(levelname)s %(processName)s %(message)s")
    handler.setFormatter(JsonLines() if settings.log_format == "json" else text)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    if settings.log_format == "json":
        logging.getLogger("fewstep.access").setLevel(logging.INFO)
