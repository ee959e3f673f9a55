"""The parts of a multipart/form-data body (RFC 7578) that has been read as a whole."""

import re
from dataclasses import dataclass
from itertools import pairwise

from server.scheduler.refusal import Refusal, invalid, shown

MAX_PARTS = 64
BOUNDARY = re.compile(r'multipart/form-data\s*;(?:.*;)?\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.I)
NAME = re.compile(rb'content-disposition:[ \t]*form-data(?:;[^\r\n]*?)?;[ \t]*name="([^"\r\n]*)"', re.I)
FILE = re.compile(rb"content-disposition:[^\r\n]*;[ \t]*filename\*?=", re.I)


@dataclass(frozen=True)
class Part:
    """One field of a form. A file has a file name, which is of no interest here."""

    name: str
    content: bytes
    is_file: bool

    def text(self) -> str:
        """Raises Refusal unless the content is UTF-8."""
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            message = f"the part {shown(self.name)} of the form is not UTF-8 text"
            raise invalid(message, code="malformed_form", param=self.name) from error


def parts_of(body: bytes, content_type: str) -> list[Part]:
    """The parts in order. Raises Refusal for another media type and for what is no whole form."""
    found = BOUNDARY.match(content_type)
    if found is None:
        message = f"the body must be multipart/form-data with a boundary, not {shown(content_type)}"
        raise Refusal("unsupported", "unsupported_media_type", message)
    boundary = re.escape((found[1] or found[2]).encode("latin-1"))
    marks = list(re.finditer(rb"(?:^|\r\n)--" + boundary + rb"(--)?[ \t]*(?=\r\n|$)", body))
    ends = [number for number, mark in enumerate(marks) if mark[1]]
    if not ends:
        raise invalid("the form is cut off: its last boundary is missing", code="malformed_form")
    marks = marks[: ends[0] + 1]
    if len(marks) > MAX_PARTS + 1:
        raise invalid(f"the form has more than {MAX_PARTS} parts", code="malformed_form")
    return [_part(body[mark.end() : following.start()]) for mark, following in pairwise(marks)]


def _part(section: bytes) -> Part:
    """A part from the line break behind its boundary to the one before the next."""
    head, blank, content = section.partition(b"\r\n\r\n")
    name = NAME.search(head)
    if not blank or name is None:
        raise invalid(
            'a part of the form has no header Content-Disposition: form-data; name="..."', code="malformed_form"
        )
    return Part(name[1].decode("utf-8", "replace"), content, FILE.search(head) is not None)
