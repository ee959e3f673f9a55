"""Messages as bytes: every type arrives as it was sent, however the stream is cut."""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.pixels import FORMATS
from server.processes.messages import Loading, MessageReader, Ready, encode
from server.scheduler.events import Failed, Finished, Health, Progress
from server.scheduler.model import ModelInfo
from server.scheduler.request import Cancel, Edit, ImageRequest, Submit
from server.scheduler.stats import ModelStats, Stats

EDITS = st.builds(
    Edit, st.tuples(*[st.integers(1, 4)] * 3), st.binary(max_size=30), st.one_of(st.none(), st.binary(max_size=9))
)
SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3).map(tuple)
SECONDS = st.floats(0, 1e9)
IMAGE_FORMATS = st.sampled_from([*FORMATS, "pixels"])
REQUESTS = st.builds(
    ImageRequest,
    st.text(max_size=9),
    st.integers(1, 8),
    SEEDS,
    st.lists(st.integers(-1, 9), max_size=3).map(tuple),
    st.lists(st.floats(0.001, 80), min_size=1, max_size=8).map(tuple),
    IMAGE_FORMATS,
    st.one_of(st.none(), EDITS),
    st.sampled_from(["none", "steps", "images"]),
)
IDS = st.integers(0, 2**53)
INFOS = st.builds(
    ModelInfo,
    SECONDS,
    st.integers(1, 128),
    st.lists(st.integers(1, 128), max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
COUNTS = st.integers(0, 2**40)
STATS = st.builds(
    ModelStats,
    st.dictionaries(st.tuples(COUNTS, COUNTS), COUNTS, max_size=3),
    st.dictionaries(COUNTS, SECONDS, max_size=3),
    st.dictionaries(st.sampled_from(["waiting", "running"]), COUNTS),
    *[COUNTS] * 4,
)
NAMES = st.text(max_size=6)
MESSAGES = st.one_of(
    st.builds(Submit, IDS, REQUESTS, SECONDS, SECONDS),
    st.builds(Cancel, IDS),
    st.builds(Loading, NAMES),
    st.builds(Ready, st.dictionaries(NAMES, INFOS, max_size=2), SECONDS),
    st.builds(Health, NAMES, st.booleans()),
    st.builds(Stats, st.dictionaries(NAMES, STATS, max_size=2), COUNTS),
    st.builds(Progress, IDS, COUNTS, COUNTS, COUNTS, IMAGE_FORMATS, st.one_of(st.none(), st.binary(max_size=9))),
    st.builds(Finished, IDS, IMAGE_FORMATS, st.lists(st.binary(max_size=9), max_size=3).map(tuple), *[SECONDS] * 3),
    st.builds(
        Failed,
        *(IDS, st.sampled_from(["failed", "unavailable", "timeout"]), NAMES, NAMES),
        *(st.one_of(st.none(), NAMES), st.one_of(st.none(), COUNTS)),
    ),
)


@given(st.lists(MESSAGES, max_size=6), st.randoms())
def test_however_the_bytes_are_cut_the_same_messages_arrive_in_order(messages: list[Any], random: random.Random):
    stream = b"".join(map(encode, messages))
    cuts = sorted(random.randint(0, len(stream)) for _ in range(random.randint(0, 8)))
    reader = MessageReader()
    arrived = [
        message
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        for message in reader.feed(stream[start:end])
    ]
    assert arrived == messages and [type(each) for each in arrived] == [type(each) for each in messages]
    assert not reader.rest


def test_what_numpy_counts_is_no_message():
    """A worker would end with it; so what the loop sends holds Python's own numbers (tests/server/scheduler)."""
    with pytest.raises(TypeError):
        encode(Cancel(np.int64(3)))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: b"\xff" + frame[1:],  # a length of 4 GB
        lambda frame: frame[:4] + b"\x63" + frame[5:],  # no kind of message
        lambda frame: frame[:5] + b"\xc1" + frame[6:],  # no MessagePack
        lambda frame: frame[:5] + b"\x01" + frame[6:],  # no object
        lambda frame: encode(Cancel(1))[:4] + encode(Loading("a"))[4:],  # cut short
    ],
)
def test_anything_else_is_an_error_and_never_waited_for(change: Callable[[bytes], bytes]):
    with pytest.raises((ValueError, msgspec.DecodeError)):
        MessageReader().feed(change(encode(Cancel(1))))
