"""Numbers that several processes see."""

import os
import signal

from hypothesis import given, settings
from hypothesis import strategies as st

from server.processes.shared import SharedTable
from tests.server.processes.forks import exit_code, fork, forked

ROWS, COLUMNS = 3, 4
WRITES = st.lists(st.tuples(st.integers(0, COLUMNS - 1), st.floats(-1e9, 1e9)), max_size=20)


@settings(max_examples=20, deadline=None)
@given(st.lists(WRITES, min_size=ROWS, max_size=ROWS))
def test_each_process_writes_its_row_and_all_see_every_row_and_the_totals(writes: list[list[tuple[int, float]]]):
    table = SharedTable(ROWS, COLUMNS)

    def write(process: int) -> None:
        row = table.row(process)
        for column, value in writes[process]:
            row[column] = value

    assert forked(write, ROWS) == [0] * ROWS
    rows = [[dict(each).get(column, 0.0) for column in range(COLUMNS)] for each in writes]
    assert [list(table.row(process)) for process in range(ROWS)] == rows
    assert [table.total(column) for column in range(COLUMNS)] == [sum(column) for column in zip(*rows, strict=True)]


def test_processes_that_are_locked_out_wait_for_each_other():
    table = SharedTable(ROWS, 1)

    def count(process: int) -> None:
        first = table.row(0)  # all write the same cell, which only the lock makes safe
        for _ in range(500):
            with table.locked():
                first[0] += 1

    assert forked(count, ROWS) == [0] * ROWS
    assert table.total(0) == 500 * ROWS


def test_a_process_that_is_killed_in_the_lock_lets_go_of_it():
    table = SharedTable(ROWS, 1)
    reader, writer = os.pipe()

    def hold() -> None:
        with table.locked():
            os.write(writer, b"!")
            signal.pause()

    holder = fork(hold)
    os.read(reader, 1)
    os.kill(holder, signal.SIGKILL)
    assert exit_code(holder) == -signal.SIGKILL
    assert forked(lambda number: table.locked().__enter__(), 1) == [0]
    with table.locked():
        table.row(0)[0] = 1.0
    os.close(reader)
    os.close(writer)
