"""From a multipart form to the fields of a dialect, each in the type that its field has, and the form's pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from server.http.fields import kinds_of, typed
from server.http.multipart import media_type_of, parts_of
from server.scheduler.refusal import Refusal, invalid, shown

MEDIA_TYPE = "multipart/form-data"


@dataclass(frozen=True)
class Form:
    """What a dialect takes as a form.

    pictures: name of a part -> name of its picture. nested: the field, if any, that is an object whose entries may also
    come as parts NESTED[NAME]. A field that may be a list is JSON in one part, or has a part for each entry.
    """

    model: type[BaseModel]
    pictures: Mapping[str, str]
    nested: str = ""

    def read(self, body: bytes, content_type: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The fields and the pictures by name. Raises Refusal for what is no form, for a part of another name, and for
        a part that comes twice and is no entry of a list."""
        texts: dict[str, list[str]] = {}
        entries: dict[str, Any] = {}
        pictures: dict[str, bytes] = {}
        for part in parts_of(body, content_type):
            name, entry = self.pictures.get(part.name, part.name), self._entry_name(part.name)
            if name in pictures or entry in entries or (name in texts and not self._entry_kinds(name)):
                reason = "one picture is what images begin at" if name == "image" else "send it once"
                raise _more_than_once(name, reason)
            if part.name in self.pictures:
                pictures[name] = part.content
            elif entry is not None:
                entries[entry] = self.typed(entry, part.text())
            elif name in self.model.model_fields:
                texts.setdefault(name, []).append(part.text())
            else:
                raise self._unknown(name)
        return self._with_entries({name: self._value(name, texts[name]) for name in texts}, entries), pictures

    def typed(self, name: str, text: str) -> Any:
        """The value of a text by the type of its field; the text itself where there is no such field."""
        field = self.model.model_fields.get(name)
        return text if field is None else typed(text, kinds_of(field.annotation))

    def _value(self, name: str, texts: list[str]) -> Any:
        """Of a field, from its parts."""
        value = self.typed(name, texts[0])
        single = [kind for kind in kinds_of(self.model.model_fields[name].annotation) if get_origin(kind) is not list]
        if len(texts) == 1 and (isinstance(value, list) or single != [NoneType]):
            return value
        return [typed(text, self._entry_kinds(name)) for text in texts]

    def _entry_kinds(self, name: str) -> tuple[Any, ...]:
        """The types of a list's entries; none where the field is never a list."""
        kinds = kinds_of(self.model.model_fields[name].annotation)
        return next((kinds_of(get_args(kind)[0]) for kind in kinds if get_origin(kind) is list), ())

    def _entry_name(self, name: str) -> str | None:
        """NAME of NESTED[NAME]; None of any other."""
        opening = f"{self.nested}["
        return name[len(opening) : -1] if self.nested and name.startswith(opening) and name.endswith("]") else None

    def _with_entries(self, data: dict[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
        """The fields with the parts NESTED[NAME] in their object. Raises Refusal."""
        whole = data.get(self.nested) or {}
        if not entries or not isinstance(whole, dict):  # what is no object is refused with the other fields
            return data
        for name in entries:
            if name in whole:
                raise _more_than_once(f"{self.nested}[{name}]", "send it once")
        return {**data, self.nested: {**whole, **entries}}

    def _unknown(self, name: str) -> Refusal:
        fields = ", ".join(dict.fromkeys((*self.pictures, *self.model.model_fields)))
        message = f"{shown(name)} is not a field of this form; the fields are {fields}"
        return invalid(message, code="unknown_field", param=name)


def is_form(content_type: str) -> bool:
    """Whether a body of this Content-Type is a form."""
    return media_type_of(content_type) == MEDIA_TYPE


def _more_than_once(name: str, reason: str) -> Refusal:
    return invalid(f"the form has {shown(name)} more than once; {reason}", code="malformed_form", param=name)
