"""Bodies of multipart/form-data: those of a real client are read as they were meant, broken ones refused."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.multipart import MAX_PARTS, Part, parts_of
from server.scheduler.refusal import Refusal

TYPE = "multipart/form-data; boundary=frontier"
NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126, blacklist_characters='"%\\'), min_size=1, max_size=9)


@given(
    st.dictionaries(NAMES, st.text(st.characters(codec="utf-8"), max_size=9), max_size=4),
    st.lists(st.tuples(NAMES, st.binary(max_size=40)), min_size=1, max_size=4),
)
def test_what_a_client_encodes_is_read_back(fields: dict[str, str], files: list[tuple[str, bytes]]):
    request = httpx.Request("POST", "http://host", data=fields, files=[(n, ("a;b.png", c)) for n, c in files])
    parts = parts_of(request.read(), request.headers["content-type"])
    assert [(part.name, part.content) for part in parts if part.is_file] == files
    assert [(part.name, part.text()) for part in parts if not part.is_file] == list(fields.items())


def form(*sections: str, end: str = "--frontier--\r\n") -> bytes:
    return "".join(f"--frontier\r\n{section}\r\n" for section in sections).encode() + end.encode()


SEED = 'Content-Disposition: form-data; name="seed"\r\n\r\n7'


def test_what_the_standard_allows_around_boundaries_is_allowed():
    spaced = form(SEED).replace(b"--frontier\r", b"--frontier \t\r")
    for body in (form(SEED), b"preamble\r\n" + form(SEED) + b"epilogue", spaced, form(SEED, end="--frontier--")):
        assert parts_of(body, TYPE) == [Part("seed", b"7", False)]
    assert parts_of(form(SEED), 'Multipart/Form-Data;charset=utf-8; boundary="frontier"') == [Part("seed", b"7", False)]
    assert parts_of(form(SEED.replace("7", "--frontiers")), TYPE) == [Part("seed", b"--frontiers", False)]


@pytest.mark.parametrize(
    ("body", "media_type", "code", "words"),
    [
        (form(SEED), "application/json", "unsupported_media_type", 'not "application/json"'),
        (form(SEED), "multipart/form-data", "unsupported_media_type", "with a boundary"),
        (form(SEED, end=""), TYPE, "malformed_form", "cut off"),
        (b"", TYPE, "malformed_form", "cut off"),
        (form("Content-Type: text/plain\r\n\r\n7"), TYPE, "malformed_form", "Content-Disposition"),
        (form('Content-Disposition: form-data; filename="a"\r\n\r\n7'), TYPE, "malformed_form", "Content-Disposition"),
        (form("7"), TYPE, "malformed_form", "Content-Disposition"),
        (form(*[SEED] * (MAX_PARTS + 1)), TYPE, "malformed_form", f"more than {MAX_PARTS} parts"),
    ],
)  # fmt: skip
def test_a_broken_form_is_refused_in_a_sentence(body: bytes, media_type: str, code: str, words: str):
    with pytest.raises(Refusal, match=words) as caught:
        parts_of(body, media_type)
    assert caught.value.code == code


def test_a_field_that_is_no_text_is_refused():
    with pytest.raises(Refusal, match="not UTF-8"):
        Part("prompt", b"\xff", False).text()
