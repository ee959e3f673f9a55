"""The log: requests are answered when its reader hangs."""

import json
import logging
import os
import threading
from collections.abc import Iterator

import pytest

from server.logs import BoundedHandler, JsonLines

PIPE_BYTES = 65_536  # of a pipe on Linux


@pytest.fixture
def log() -> Iterator[tuple[int, logging.Logger, BoundedHandler]]:
    """The reading end of a pipe, a logger that writes to the other one, and its handler."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        handler = BoundedHandler(stream, wait_s=0.01)
        handler.setFormatter(JsonLines())
        logger = logging.Logger("tests")
        logger.addHandler(handler)
        yield reader, logger, handler
    os.close(reader)


def read(reader: int) -> list[str]:
    return [json.loads(line)["message"] for line in os.read(reader, PIPE_BYTES).decode().splitlines()]


def test_lines_that_find_no_room_are_lost_and_counted(log: tuple[int, logging.Logger, BoundedHandler]):
    reader, logger, handler = log
    for number in range(2_000):
        logger.warning("line %d, whose %s", number, "length" * 10)
    written, lost = 2_000 - handler.lost, handler.lost
    assert written > 100 and lost > 100
    assert read(reader)[-1].startswith(f"line {written - 1},")
    logger.warning("again")
    assert read(reader) == [
        f"{lost} lines are missing here: nobody read the log, and there was no room for them",
        "again",
    ]
    logger.warning("and again")
    assert read(reader) == ["and again"]


def test_a_line_longer_than_the_pipe_is_cut_off(log: tuple[int, logging.Logger, BoundedHandler]):
    reader, logger, handler = log
    logger.warning("x" * 2 * PIPE_BYTES)
    assert handler.lost == 1
    assert len(os.read(reader, PIPE_BYTES)) == PIPE_BYTES
    logger.warning("again")
    assert os.read(reader, PIPE_BYTES)[:2] == b"\n{", "a line of its own"


def test_a_slow_reader_gets_every_line(log: tuple[int, logging.Logger, BoundedHandler]):
    reader, logger, handler = log
    handler.wait_s = 30.0
    got = bytearray()

    def collect() -> None:
        while b"last" not in got:
            got.extend(os.read(reader, 1_000))

    thread = threading.Thread(target=collect)
    thread.start()
    for number in range(400):
        logger.warning("line %d %s", number, "length" * 20)
    logger.warning("last")
    thread.join(30.0)
    assert len(got.splitlines()) == 401 and not handler.lost


def test_a_closed_pipe_is_no_exception_of_who_logs(capfd: pytest.CaptureFixture[str]):
    reader, writer = os.pipe()
    os.close(reader)
    logger = logging.Logger("tests")
    with os.fdopen(writer, "w") as stream:
        logger.addHandler(BoundedHandler(stream))
        logger.warning("nobody")
    assert "BrokenPipeError" in capfd.readouterr().err
