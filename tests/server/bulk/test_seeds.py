"""Lists of seeds."""

from hypothesis import given
from hypothesis import strategies as st

from server.bulk.seeds import parse_seeds


def test_seeds_keep_the_order_in_which_they_are_given():
    seeds = parse_seeds("40-42, 7,0-1")
    assert seeds.part(0, 6) == [40, 41, 42, 7, 0, 1] and seeds.count == 6 and seeds.largest == 42
    assert str(seeds) == "40-42,7,0-1"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 45), st.integers(0, 45))
def test_a_part_is_what_a_slice_of_all_of_them_is(lengths: list[int], first: int, count: int):
    text = ",".join(f"{10 * place}-{10 * place + length - 1}" for place, length in enumerate(lengths))
    everything = [seed for place, length in enumerate(lengths) for seed in range(10 * place, 10 * place + length)]
    assert parse_seeds(text).part(first, count) == everything[first : first + count]
