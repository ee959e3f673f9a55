"""Logging of every process of the server: lines for people, or one JSON object per line."""

import json
import logging
import sys
import time

from server.settings.settings import Settings


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


def configure(settings: Settings) -> None:
    """Send the log to stderr. JSON always has the requests; text has them at --log-level info and below."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextLines("%(asctime)s %(levelname)s %(processName)s %(message)s")
    handler.setFormatter(JsonLines() if settings.log_format == "json" else text)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    if settings.log_format == "json":
        logging.getLogger("fewstep.access").setLevel(logging.INFO)
