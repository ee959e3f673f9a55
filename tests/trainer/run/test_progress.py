"""One line about a run, every two seconds from the first update on."""

import io

import pytest

from trainer.run.progress import Made, Progress, format_seconds, line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO) -> str:
    """What is written in five seconds, at an update a second of 10 of 100 images."""
    now = [0.0]
    progress = Progress("teacher", 100, stream, lambda: now[0])
    progress.begin(0.5, 50)
    for update in range(1, 6):
        now[0] = float(update)
        progress.update(0.5 + update / 10, 50 + 10 * update, lambda: {"loss": 0.25})
    progress.close()
    return stream.getvalue()


def test_a_line_after_the_first_update_then_every_two_seconds_and_at_the_end():
    lines = shown(io.StringIO()).splitlines()
    assert [text.split("%")[0].split()[-1] for text in lines] == ["60", "80", "100"]
    assert lines[1] == "teacher   80 %  80 of 100 images  10 images/s  2 s left  loss 0.25"


def test_a_terminal_keeps_one_line_and_ends_it():
    text = shown(Terminal())
    assert text.count("\r") == 3 and text.count("\n") == 1 and text.endswith("\n")


def test_a_run_of_unknown_length_names_no_total():
    assert line("t", 0.0, 64, None, Made(0.0, 64, 2.0), {}) == "t    0 %  64 images  32 images/s"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "3 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (7200, "2 h"), (12_000, "3 h 20 min")],
)
def test_durations_are_said_in_the_largest_unit_that_tells(seconds, said):
    assert format_seconds(seconds) == said
