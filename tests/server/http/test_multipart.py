"""Bodies of multipart/form-data: those of a real client are read as they were meant, broken ones refused."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.multipart import MAX_HEAD_BYTES, MAX_PARTS, Part, parts_of
from server.scheduler.refusal import Refusal

TYPE = "multipart/form-data; boundary=frontier"
NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126, blacklist_characters='"%'), min_size=1, max_size=9)


@given(
    st.dictionaries(NAMES, st.text(st.characters(codec="utf-8"), max_size=9), max_size=4),
    st.lists(st.tuples(NAMES, st.binary(max_size=40)), min_size=1, max_size=4),
)
def test_what_a_client_encodes_is_read_back(fields: dict[str, str], files: list[tuple[str, bytes]]):
    request = httpx.Request("POST", "http://host", data=fields, files=[(n, ("a;b.png", c)) for n, c in files])
    parts = parts_of(request.read(), request.headers["content-type"])
    assert [(part.name, part.text()) for part in parts[: len(fields)]] == list(fields.items())
    assert [(part.name, part.content) for part in parts[len(fields) :]] == files


def form(*sections: str, end: str = "--frontier--\r\n") -> bytes:
    return "".join(f"--frontier\r\n{section}\r\n" for section in sections).encode() + end.encode()


SEED = 'Content-Disposition: form-data; name="seed"\r\n\r\n7'


def test_what_the_standard_allows_around_boundaries_is_allowed():
    spaced = form(SEED).replace(b"--frontier\r", b"--frontier \t\r")
    for body in (form(SEED), b"preamble\r\n" + form(SEED) + b"epilogue", spaced, form(SEED, end="--frontier--")):
        assert parts_of(body, TYPE) == [Part("seed", b"7")]
    for media_type in (
        'Multipart/Form-Data;charset=utf-8; boundary="frontier"',
        r'multipart/form-data; note="; boundary=\"other"; boundary = frontier',
        "multipart/form-data;; boundary=frontier;",
    ):
        assert parts_of(form(SEED), media_type) == [Part("seed", b"7")], media_type
    assert parts_of(form(SEED.replace("7", "--frontiers")), TYPE) == [Part("seed", b"--frontiers")]


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("Content-Disposition: form-data; name=image; filename=a.png", "image"),
        ("CONTENT-DISPOSITION:form-data;name=image", "image"),
        ("content-disposition : Form-Data ; NAME = image ; filename = my photo (1).png", "image"),
        ('Content-Disposition: form-data; filename="name=mask; a.png"; name="image"', "image"),
        ('Content-Disposition: form-data;\r\n  name="image";\r\n\tfilename="a.png"', "image"),
        ('Content-Type: image/png\r\nContent-Disposition: form-data; name="image"\r\nX-Other: 1', "image"),
        (r'Content-Disposition: form-data; name="a\"b"; filename="c"', 'a"b'),
        (r'Content-Disposition: form-data; name="a\\b"', r"a\b"),
        (r'Content-Disposition: form-data; name="a\b"', r"a\b"),  # browsers escape no backslash
        ("Content-Disposition: form-data; name=\"\u00e9\"; filename*=UTF-8''a.png;", "\u00e9"),
        ('Content-Disposition: form-data; name=""', ""),
    ],
)
def test_a_name_is_a_quoted_string_or_a_token_and_a_header_may_be_folded(head: str, name: str):
    assert parts_of(form(f"{head}\r\n\r\n7"), TYPE) == [Part(name, b"7")]


def test_the_head_of_a_part_is_bounded():
    """The second body took 44 s with a regular expression of quadratic time."""
    fits = "X: ".ljust(MAX_HEAD_BYTES - len(SEED.partition("\r\n")[0]) - 2, "x")
    assert parts_of(form(f"{fits}\r\n{SEED}"), TYPE) == [Part("seed", b"7")]
    for head in (f"{fits}x\r\n", "content-disposition:form-data;" * 6_300 + "\r\n\r\n"):
        with pytest.raises(Refusal, match=f"more than {MAX_HEAD_BYTES} bytes") as caught:
            parts_of(form(head + SEED), TYPE)
        assert caught.value.code == "malformed_form"


@pytest.mark.parametrize(
    "value", [";" * 10**6, '"' * 10**6, '"' + "\\\\" * 10**6, "; a" * 10**6, " " * 10**6, "; a=b" * 10**6]
)
def test_parameters_are_read_in_linear_time(value: str):
    """A quadratic search would take hours."""
    for media_type in (f"multipart/form-data; x={value}", f"multipart/form-data{value}"):
        with pytest.raises(Refusal, match="with a boundary"):
            parts_of(b"", media_type)


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
        (form("Content-Disposition: attachment; name=seed\r\n\r\n7"), TYPE, "malformed_form", "Content-Disposition"),
        (form('Content-Disposition: form-data; name="seed\r\n\r\n7'), TYPE, "malformed_form", "Content-Disposition"),
        (form("Content-Disposition: form-data; name=a; name=b\r\n\r\n7"), TYPE, "malformed_form", "no header"),
        (form(SEED), "multipart/form-data; boundary=" + "x" * 71, "unsupported_media_type", "with a boundary"),
        (form(*[SEED] * (MAX_PARTS + 1)), TYPE, "malformed_form", f"more than {MAX_PARTS} parts"),
    ],
)  # fmt: skip
def test_a_broken_form_is_refused_in_a_sentence(body: bytes, media_type: str, code: str, words: str):
    with pytest.raises(Refusal, match=words) as caught:
        parts_of(body, media_type)
    assert caught.value.code == code


def test_a_field_that_is_no_text_is_refused():
    with pytest.raises(Refusal, match="not UTF-8"):
        Part("prompt", b"\xff").text()
