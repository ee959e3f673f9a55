"""Which of the media types that a route can make the client prefers (RFC 9110, section 12.5.1)."""

import re
from collections.abc import Mapping
from functools import lru_cache

# Up to a comma that no quotes enclose. A quote need not close: a search for the closing one would be quadratic.
PART = re.compile(r'(?:"(?:[^"\\]|\\.)*"?|[^",])+')
RANGE = re.compile(r"\*/\*|[!#$%&'+.^_`|~0-9a-z-]+/(?:\*|[!#$%&'+.^_`|~0-9a-z-]+)")
QUALITY = re.compile(r"0(?:\.[0-9]*)?|\.[0-9]+|1(?:\.0*)?")  # the standard has a digit before the point; Java has none


@lru_cache(maxsize=256)  # clients send few different ones
def preferred(accept: str, offers: tuple[str, ...]) -> str | None:
    """The offer of the highest quality; None: none is acceptable.

    The most specific range that matches an offer decides about it. Of equal qualities the offer that is named more
    specifically wins, then the first. Parameters other than q do not count, and a part that cannot be read is ignored;
    without a readable part everything is acceptable.
    """
    ranges = _ranges(accept) or {"*/*": 1.0}
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    return best if _quality(best, ranges)[0] > 0 else None


@lru_cache(maxsize=256)
def named(accept: str, media_type: str) -> bool:
    """Whether a readable part of Accept is this media type itself, at any quality: not a range that it matches."""
    return media_type in _ranges(accept)


def _quality(offer: str, ranges: Mapping[str, float]) -> tuple[float, int]:
    """In [0, 1], and how specific the range is that says so."""
    family = offer.partition("/")[0]
    for specific, name in ((2, offer), (1, f"{family}/*"), (0, "*/*")):
        if name in ranges:
            return ranges[name], specific
    return 0.0, 0


def _ranges(accept: str) -> dict[str, float]:
    """Media range -> quality. A range that is there twice has the higher one."""
    ranges: dict[str, float] = {}
    for part in PART.findall(accept.lower()):
        name, *parameters = (text.strip(" \t") for text in part.split(";"))
        name = "*/*" if name == "*" else name  # old Java clients
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        if RANGE.fullmatch(name) and QUALITY.fullmatch(quality):
            ranges[name] = max(ranges.get(name, 0.0), float(quality))
    return ranges
