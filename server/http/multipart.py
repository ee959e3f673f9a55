"""The parts of a multipart/form-data body (RFC 7578) that has been read as a whole."""

import re
from dataclasses import dataclass
from itertools import islice, pairwise

from server.scheduler.refusal import Refusal, invalid, shown

MAX_PARTS = 64
MAX_HEAD_BYTES = 8_192  # of the headers of a part
MAX_BOUNDARY = 70  # characters (RFC 2046, section 5.1.1)
# A parameter behind its semicolon, or none. No repetition gives back what it took: a header is read in linear time.
PARAMETER = re.compile(
    r';[ \t]*+(?:([^\s"(),/:;<=>?@\[\\\]{}]++)[ \t]*+=[ \t]*+(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)"[ \t]*+|([^";]*+)))?'
)
ESCAPED = re.compile(r'\\(["\\])')  # browsers escape neither, so that another backslash stands for itself
FOLD = re.compile(r"\r\n[ \t]+")


@dataclass(frozen=True)
class Part:
    """One field of a form; a file is one, too, whose file name is of no interest here."""

    name: str
    content: bytes

    def text(self) -> str:
        """Raises Refusal unless the content is UTF-8."""
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            message = f"the part {shown(self.name)} of the form is not UTF-8 text"
            raise invalid(message, code="malformed_form", param=self.name) from error


def parts_of(body: bytes, content_type: str) -> list[Part]:
    """The parts in order. Raises Refusal for another media type and for what is no whole form."""
    boundary = _parameters(content_type, "multipart/form-data").get("boundary", "")
    if not 1 <= len(boundary) <= MAX_BOUNDARY:
        message = f"the body must be multipart/form-data with a boundary, not {shown(content_type)}"
        raise Refusal("unsupported", "unsupported_media_type", message)
    between = re.escape(boundary.encode("latin-1", "replace"))
    found = re.finditer(rb"(?:^|\r\n)--" + between + rb"(--)?[ \t]*(?=\r\n|$)", body)
    marks = list(islice(found, MAX_PARTS + 2))
    parts = next((number for number, mark in enumerate(marks) if mark[1]), None)
    if parts is None and len(marks) < MAX_PARTS + 2:
        raise invalid("the form is cut off: its last boundary is missing", code="malformed_form")
    if parts is None or parts > MAX_PARTS:
        raise invalid(f"the form has more than {MAX_PARTS} parts", code="malformed_form")
    return [_part(body[mark.end() : following.start()]) for mark, following in pairwise(marks[: parts + 1])]


def media_type_of(header: str) -> str:
    """What a header such as Content-Type says before its parameters, in lower case."""
    return header.partition(";")[0].strip().lower()


def _part(section: bytes) -> Part:
    """A part from the line break behind its boundary to the one before the next."""
    end = section.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES + 6)
    if end < 0 and len(section) > MAX_HEAD_BYTES + 2:
        raise invalid(f"the headers of a part of the form have more than {MAX_HEAD_BYTES} bytes", code="malformed_form")
    name = None if end < 0 else _name(section[:end].decode("utf-8", "replace"))
    if name is None:
        raise invalid(
            'a part of the form has no header Content-Disposition: form-data; name="..."', code="malformed_form"
        )
    return Part(name, section[end + 4 :])


def _name(head: str) -> str | None:
    """The name of the field that these headers begin."""
    for line in FOLD.sub(" ", head).split("\r\n"):
        header, _, value = line.partition(":")
        if header.strip().lower() == "content-disposition":
            return _parameters(value, "form-data").get("name")
    return None


def _parameters(value: str, kind: str) -> dict[str, str]:
    """The parameters of a header by their names in lower case (RFC 9110, section 5.6.6). None where the header is not
    of this kind, is not well-formed, or has a parameter twice. Values without quotes may have any character of a file
    name but ; and the quotation mark."""
    if media_type_of(value) != kind:
        return {}
    found: dict[str, str] = {}
    at = value.find(";")
    while 0 <= at < len(value):
        match = PARAMETER.match(value, at)
        if match is None:
            return {}
        at = match.end()
        name, quoted, plain = match.groups()
        if name is None:
            continue
        if name.lower() in found:
            return {}
        found[name.lower()] = plain.strip() if quoted is None else ESCAPED.sub(r"\1", quoted)
    return found
