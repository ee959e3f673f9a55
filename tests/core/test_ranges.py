"""A number has a range, and what is out of it is said in a sentence."""

import argparse
import math
from dataclasses import dataclass

import pytest

from fewstep.ranges import SEED, SHARE, Range, RangeError, check_ranges, number, whole


@pytest.mark.parametrize(
    ("allowed", "sentence"),
    [
        (Range(1, whole=True), "a whole number from 1 up"),
        (Range(0, above=True), "a number above 0"),
        (Range(0, 1, above=True), "a number above 0 and at most 1"),
        (Range(0.5, 10_000), "a number from 0.5 to 10,000"),
        (SEED, "a whole number from 0 to 9,223,372,036,854,775,807"),
    ],
)
def test_a_range_reads_as_a_phrase(allowed, sentence):
    assert str(allowed) == sentence


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", 1.5])
def test_what_is_no_such_number_is_in_no_range(value):
    assert value not in Range(0, 100, whole=True)


def test_ends_belong_to_a_range_unless_it_says_above():
    assert 0 in SHARE and 1 in SHARE and 1.001 not in SHARE
    assert 0 not in Range(0, above=True)


@dataclass(frozen=True)
class Settings:
    rate: float | None
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(self, rate=Range(0, 1, above=True), levels=Range(0, above=True))


def test_a_field_out_of_range_is_named_with_what_was_given():
    Settings(None)
    Settings(1.0, (0.1,))
    with pytest.raises(RangeError, match=r"--rate must be a number above 0 and at most 1, not -1"):
        Settings(-1)
    with pytest.raises(RangeError, match=r"--levels must be a number above 0, not 0"):
        Settings(1, (0.1, 0))


@pytest.mark.parametrize(
    ("kind", "text"), [(whole(1), "0"), (whole(1), "1.5"), (whole(1), "x"), (number(SHARE), "nan")]
)
def test_a_flag_out_of_range_is_refused_with_the_range(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text}'? is not a"):
        kind(text)


def test_a_whole_number_of_any_length_is_in_or_out_of_a_range():
    huge = 10**400
    assert huge not in Range(1, 10**12, whole=True) and huge in Range(1, whole=True) and -huge not in Range(0)
