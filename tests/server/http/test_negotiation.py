"""Accept (RFC 9110, section 12.5.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.negotiation import named, preferred

PNG, WEBP, JSON = "image/png", "image/webp", "application/json"
OFFERS = (PNG, WEBP, JSON)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", PNG),
        ("*/*", PNG),
        ("image/*", PNG),
        ("image/webp", WEBP),
        ("IMAGE/WebP", WEBP),
        ("application/json", JSON),
        ("application/json;q=0", None),
        ("application/json;q=0, */*", PNG),
        ("application/jsonp", None),
        ("text/application/json", PNG),  # no media range: ignored, and nothing else is left
        ("image/png;q=0.5, application/json", JSON),
        ("image/png;q=0.5,application/json;q=0.4", PNG),
        ("image/*;q=0.1, image/png;q=0", WEBP),  # the more specific range decides
        ("image/png;q=0, image/*;q=0, */*;q=0.001", JSON),
        ("*/*;q=0", None),
        ("text/html", None),
        ("text/html, */*;q=0.8", PNG),
        ("application/json, text/plain, */*", JSON),  # named
        ("text/html,application/xhtml+xml,image/avif,image/webp,*/*;q=0.8", WEBP),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", PNG),  # Java's
        ("application/json; charset=utf-8", JSON),
        ("application/json;charset=utf-8;q=0.2, image/webp;q=0.3", WEBP),
        ("application/json ; Q=0 , image/webp", WEBP),
        ("image/webp;q=0, image/webp", WEBP),
        ('text/plain;x="a, application/json;q=1", image/webp', WEBP),
        ("application/json;q=nan, image/webp;q=0.1", WEBP),  # a quality that cannot be read: the part is ignored
        ("application/json;q=2, image/webp;q=0.1", WEBP),
        ("application/json;q=-1", PNG),
        (",,image/webp,,", WEBP),
        ("garbage", PNG),
        ("image/webp;q=1.000, application/json;q=0.999", WEBP),
        ("image/webp;q=\u0661", PNG),  # not an ASCII digit
    ],
)
def test_the_best_offer_that_accept_allows(accept: str, chosen: str | None):
    assert preferred(accept, OFFERS) == chosen


@pytest.mark.parametrize(
    ("accept", "by_name"),
    [
        ("image/*, Application/JSON;q=0.1", True),
        ("application/json", True),
        ("application/*", False),
        ("*/*", False),
        ("", False),
        ("application/json;q=x", False),
    ],
)
def test_a_type_is_named_or_only_in_a_range(accept: str, by_name: bool):
    assert named(accept, JSON) is by_name


@given(st.text(alphabet=st.sampled_from('aimgepn/*;,q=0.19" \\\tx'), max_size=40) | st.text())
def test_any_header_gives_an_offer_or_none(accept: str):
    assert preferred(accept, OFFERS) in (*OFFERS, None)


def test_a_header_of_quotes_that_do_not_close_is_read_in_linear_time():
    """A quadratic search would take hours."""
    for accept in ('"' * 1_000_001, '"\\' * 1_000_000, "a" * 1_000_000 + '"', 'a"' * 1_000_000, ",;" * 1_000_000):
        assert preferred(accept, OFFERS) == PNG
