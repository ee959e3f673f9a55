"""From the bytes of a body to the fields of a dialect, or to one sentence: what was given, what is allowed."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from starlette.datastructures import Headers

from server.scheduler.refusal import Refusal, invalid, shown

TYPES: Mapping[type, str] = {
    int: "a whole number", float: "a number", str: "a string", bool: "true or false", list: "a list", dict: "an object",
}  # fmt: skip
SEPARATORS = (b",", b":", b"[", b"{")  # each value or name of JSON has one; base64 has none
MAX_VALUES = 100_000  # JSON of 4 MB that is all brackets would take seconds
NO_FORM = "send JSON, with pictures as base64"
NOT_SO_MANY = "no field needs as many"
MAX_EXACT_CHARACTERS = 400  # of a number with a point or an exponent that is read exactly
BOOLEANS: Mapping[str, bool] = {"true": True, "false": False}
NUMBER = re.compile(r"[+-]?\d{1,400}(\.\d{0,400})?([eE][+-]?\d{1,3})?", re.ASCII)
RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")

Body = TypeVar("Body", bound=BaseModel)


def parse(body: bytes, model: type[Body], instead_of_form: str = NO_FORM) -> Body:
    """JSON -> the fields of a dialect's model. An empty body means all defaults. instead_of_form: advice to who sends
    one. Raises Refusal."""
    return validated(decoded(body, instead_of_form), model)


def decoded(
    body: bytes,
    instead_of_form: str = NO_FORM,
    instead_of_many: str = NOT_SO_MANY,
) -> dict[str, Any]:
    """A JSON object; an empty body is an empty one. instead_of_...: advice to who sends a form, or too many values.
    Raises Refusal."""
    if not body:
        return {}
    _check_values(body, instead_of_many)
    try:
        data = DECODER.decode(body.decode(json.detect_encoding(body)))
    except (ValueError, RecursionError) as error:
        raise invalid(_not_json(body, error, instead_of_form), code="malformed_json") from error
    if not isinstance(data, dict):
        raise invalid('the body must be a JSON object such as {"steps": 4}', code="malformed_json")
    return data


def validated(data: dict[str, Any], model: type[Body]) -> Body:
    """Values by name -> the fields of a dialect's model. Raises Refusal."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _first(error, model, data) from None


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The types that a value of this annotation may have: those of a union, else the one."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def typed(text: str, kinds: Sequence[Any]) -> Any:
    """The value of a text in a form or a header, which has one of these types; the text itself where it is no such
    value. Objects and lists are JSON; true and false may have capitals. Raises Refusal for an object with a name twice,
    and for too many values."""
    if bool in kinds:
        return BOOLEANS.get(text.lower(), text)
    nested = [get_origin(kind) for kind in kinds]
    if dict in nested or (list in nested and text.lstrip().startswith("[")):
        _check_values(text.encode("utf-8", "surrogatepass"), NOT_SO_MANY)
        try:
            return DECODER.decode(text)
        except (ValueError, RecursionError):
            return text
    if str not in kinds and NUMBER.fullmatch(text):
        number = _number(text)
        return number if int in kinds or float in kinds else text
    return text


def _check_values(text: bytes, instead: str) -> None:
    """Raises Refusal for JSON that would take too long to read. instead: advice."""
    if len(text) > MAX_VALUES and sum(map(text.count, SEPARATORS)) > MAX_VALUES:
        message = f"the body has more than {MAX_VALUES} values or names; {instead}"
        raise invalid(message, code="malformed_json")


def only_value(headers: Headers, name: str) -> str | None:
    """The value of a header; None without one. Raises Refusal where it comes several times with different values."""
    given = [_header_text(value) for value in headers.getlist(name)]
    if len(set(given)) > 1:
        listed = " and ".join(map(shown, given[:2]))
        raise invalid(f"the header {name} comes with {listed}; send it once", code="conflict", param=name)
    return given[0] if given else None


def _header_text(value: str) -> str:
    """Of a header's bytes, which Starlette reads as Latin-1: clients that send other letters than ASCII send UTF-8."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a name that is there twice, JSON does not say which value counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise invalid(f"the body names {shown(twice)} more than once", code="malformed_json")
    return found


def _not_json(body: bytes, error: Exception, instead_of_form: str) -> str:
    if body.startswith(b"--"):
        return f"the body is multipart; {instead_of_form}"
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg} (line {error.lineno}, column {error.colno})"
    elif isinstance(error, RecursionError):
        reason = "it nests too deeply"
    else:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeError) else "it holds a number of too many digits"
    return f"the body is not valid JSON: {reason}"


def _number(text: str) -> int | float:
    """JSON has one kind of number: 4.0 is 4, and exactly so for a seed that is no float."""
    value = float(text)
    if not value.is_integer() or len(text) > MAX_EXACT_CHARACTERS:
        return value
    try:
        exact = Decimal(text)
        return int(exact) if exact == exact.to_integral_value() else value
    except InvalidOperation:  # an exponent of twenty digits
        return value


DECODER = json.JSONDecoder(parse_float=_number, object_pairs_hook=_object)


def _first(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any]) -> Refusal:
    """The first thing that is wrong; fields that do not exist come first, since a misspelling explains the rest."""
    unknown = next((name for name in data if name not in model.model_fields), None)
    if unknown is not None:
        message = f"{shown(unknown)} is not a field of this request; the fields are {', '.join(model.model_fields)}"
        return invalid(message, code="unknown_field", param=unknown)
    details = error.errors(include_url=False, include_context=False)
    name = str(details[0]["loc"][0])
    return _wrong(name, model.model_fields[name], details[0]["type"], data[name])


def _wrong(name: str, field: FieldInfo, kind: str, value: Any) -> Refusal:
    choices = _choices(field)
    if choices:
        message = f"{name} must be one of {', '.join(map(str, choices))}, not {shown(value)}"
        return invalid(message, code=f"unknown_{name}", param=name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    in_range = kind in RANGES and not isinstance(value, list | dict)  # of a list, an entry is out of range
    if in_range or (number and float in get_args(field.annotation)):  # an int that no float can hold, too
        return invalid(f"{name} must be {_range(field)}, not {shown(value)}", code="out_of_range", param=name)
    kinds = [each for each in get_args(field.annotation) if each not in (NoneType, bytes)]  # bytes: a file of a form
    allowed = " or ".join(map(_type_in_words, kinds))
    return invalid(f"{name} must be {allowed}, not {shown(value)}", code="wrong_type", param=name)


def _type_in_words(kind: Any) -> str:
    """Of a type that a field's annotation names."""
    if get_origin(kind) is not list:
        return TYPES[get_origin(kind) or kind]
    (entry,) = get_args(kind)
    names = [TYPES[get_origin(each) or each] for each in kinds_of(entry) if each is not NoneType]
    return f"a list with {' or '.join(names)} for each entry"


def _choices(field: FieldInfo) -> tuple[Any, ...]:
    """The values of a Literal field."""
    literals = [each for each in get_args(field.annotation) if get_origin(each) is Literal]
    return get_args(literals[0]) if literals else ()


def _range(field: FieldInfo) -> str:
    low = high = ""
    for bound in field.metadata:
        if isinstance(bound, Ge):
            low = f"at least {bound.ge}"
        elif isinstance(bound, Gt):
            low = f"above {bound.gt}"
        elif isinstance(bound, Le):
            high = f"at most {bound.le}"
        elif isinstance(bound, Lt):
            high = f"below {bound.lt}"
    return " and ".join(filter(None, (low, high))) or "a number between -1e308 and 1e308"
