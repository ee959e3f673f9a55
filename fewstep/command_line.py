"""Command lines from frozen dataclasses, by tyro: a flag for each field, with the docstring under it as its help.

The range of a field (fewstep.ranges) stands in the help, too. tyro reads the arguments and prints --help; what it
refuses is said here, in one line on stderr with exit status 2.
"""

import ast
import contextlib
import difflib
import functools
import inspect
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, TypedDict, TypeVar, Union, cast, get_args, get_type_hints

import tyro
from tyro import _errors as events  # not public: pyproject.toml pins the version whose events are tested
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
    UnsupportedTypeAnnotationError,
)

from fewstep.ranges import Range, ranges_of
from fewstep.subcommands import refuse, refuse_empty

Command = TypeVar("Command")
Value = TypeVar("Value")
REGISTRY = ConstructorRegistry()
T = TypeVar("T")
Switch = tyro.conf.FlagCreatePairsOff  # a flag without its --no- form
Positional = tyro.conf.Positional
Hidden = tyro.conf.Suppress  # no flag
arg = tyro.conf.arg
_FLAT = object()
_EXCLUSIVE = "At most one argument can be overridden."  # tyro's words, of `exclusive` flags
Flat = Annotated[T, _FLAT]  # a dataclass whose fields have flags among those of the dataclass it is a field of


def exclusive(title: str) -> Any:
    """For the annotations of flags of which at most one may be given."""
    return tyro.conf.create_mutex_group(required=False, title=title)


def parse(
    command: type[Command],
    arguments: Sequence[str],
    prog: str,
    description: str = "",
    earlier: Mapping[str, str] | None = None,
) -> Command:
    """The dataclass that the arguments describe.

    earlier: what is to be said of flags and values of earlier versions. --help ends the process with status 0; what
    cannot be read, or what the dataclass refuses with a ValueError, with 2.
    """
    refuse_empty(arguments)
    said = io.StringIO()  # in which tyro draws no boxes
    try:
        with contextlib.redirect_stdout(said):
            return _parse(command, arguments, prog)
    except _Refused as refused:
        flags = functools.partial(_flags, command, prog)
        refuse(sentence(refused.event, flags, earlier or {}))
    except SystemExit:  # --help, or a script for the shell (--tyro-write-completion)
        text = said.getvalue()
        _print(_plain(text, description) if text.startswith("usage:") else text)
        raise


def _plain(text: str, description: str) -> str:
    """tyro's help without rules and trailing spaces, and with the description in its own lines."""
    lines = text.replace(_EXCLUSIVE, "Give one of them at most.").splitlines()
    usage, *rest = (line.rstrip() for line in lines if not re.fullmatch(r" *-{4,} *", line))
    return "\n".join([usage, "", *([description.strip(), ""] if description else []), *rest[1:]])


def _print(text: str) -> None:
    try:
        print(text.rstrip(), flush=True)
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def value_of(read: Callable[[str], Value], metavar: str, show: Callable[[Value], str] = str) -> Any:
    """For an annotation: one argument, read by a function that raises ValueError with a sentence. show: its inverse."""
    return PrimitiveConstructorSpec(
        nargs=1, metavar=metavar, instance_from_str=lambda texts: read(texts[0]), is_instance=lambda _: True,
        str_from_instance=lambda value: [] if value is None else [show(value)],
    )  # fmt: skip


def one_of(choices: tuple[str, ...]) -> Any:
    """For an annotation of a string: one of these."""
    return replace(value_of(str, f"{{{','.join(choices)}}}"), choices=choices)


def duration(text: str) -> float:
    """A time with a unit, above 0, in seconds: 90s, 30m or 6h. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match or not float(match[1]):
        raise ValueError(f"{text!r} is not a duration above 0; write 90s, 30m or 6h")
    if not match[2]:
        raise ValueError(f"{text!r} has no unit; write {text}s, {text}m or {text}h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def show_duration(seconds: float) -> str:
    return f"{seconds / 60:g}m" if seconds >= 60 else f"{seconds:g}s"


DURATION = value_of(duration, "TIME", show_duration)


def whole_numbers(allowed: Range, example: str) -> Any:
    """For an annotation: whole numbers in a range, with commas between, as a tuple."""

    def read(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if not all(part.isdecimal() and int(part) in allowed for part in parts):
            raise ValueError(f"{text!r} is not a list of numbers, each {allowed}; write {example}")
        return tuple(map(int, parts))

    return value_of(read, "N,N,...", lambda numbers: ",".join(map(str, numbers)))


@dataclass(frozen=True)
class FlagsOf:
    """For an annotation of a dict: flags for these fields of a dataclass. The dict holds those that are given.

    defaults: the fields' own are in force, so the help shows them. values: how some fields are read (`value_of`).
    """

    config: type
    names: tuple[str, ...]
    defaults: bool = False
    values: Mapping[str, Any] | None = None


# How tyro sees our types


@REGISTRY.primitive_rule
def _number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if info.type not in (int, float):
        return None
    kind, name, metavar = (int, "a whole number", "N") if info.type is int else (float, "a number", "X")

    def read(texts: list[str]) -> float:
        with contextlib.suppress(ValueError):
            if abs(value := kind(texts[0])) != float("inf"):
                return value
        raise ValueError(f"{texts[0]!r} is not {name}")

    return PrimitiveConstructorSpec(
        nargs=1, metavar=metavar, instance_from_str=read, is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [str(value) if isinstance(value, int) else f"{value:g}"],
    )  # fmt: skip


@REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | UnsupportedTypeAnnotationError | None:
    """`X | None` is read as X: None cannot be given, and is no part of what the help shows."""
    if info.type_origin not in (Union, UnionType) or NoneType not in get_args(info.type):
        return None
    (kind,) = (option for option in get_args(info.type) if option is not NoneType)
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    if isinstance(spec, UnsupportedTypeAnnotationError):
        return spec
    return replace(
        spec, is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: [] if value is None else spec.str_from_instance(value),
    )  # fmt: skip


@REGISTRY.struct_rule
def _dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
    if not is_dataclass(info.type):
        return None
    config = cast(type, info.type)
    return StructConstructorSpec(functools.partial(_made, config), tuple(_flat_fields(config)))


def _flat_fields(config: type) -> Iterator[StructFieldSpec]:
    """The fields of a dataclass, and in place of those that are `Flat` their own."""
    documented, hints, ranges = docstrings(config), get_type_hints(config, include_extras=True), ranges_of(config)
    for field in fields(config):
        kind, text = hints[field.name], documented.get(field.name, "")
        notes = getattr(kind, "__metadata__", ())
        written = any(isinstance(note, PrimitiveConstructorSpec) for note in notes)  # in a form of its own
        allowed = None if written else ranges.get(field.name)
        subset = next((note for note in notes if isinstance(note, FlagsOf)), None)
        if _FLAT in notes:
            yield from _flat_fields(get_args(kind)[0])
        elif subset:
            yield StructFieldSpec(field.name, _given(subset), MISSING_NONPROP, text)
        else:
            default = MISSING_NONPROP if field.default is MISSING else field.default
            if default is MISSING_NONPROP and field.default_factory is not MISSING:
                default = field.default_factory()
            text, said = _parted(text)
            if default is MISSING_NONPROP and allowed:  # no hint stands behind what is required
                text = f"{text} ({_phrase(allowed)})"
            hint = functools.partial(_hint, allowed, default, said)
            yield StructFieldSpec(field.name, _annotated(kind, help_behavior_hint=hint), default, text)


def _made(config: type[T], /, **values: Any) -> T:
    """The dataclass with the values of its fields and of the fields of those that are `Flat`."""
    hints, own = get_type_hints(config, include_extras=True), {}
    for field in fields(cast(Any, config)):
        if _FLAT in getattr(hints[field.name], "__metadata__", ()):
            own[field.name] = _made(get_args(hints[field.name])[0], **values)
        elif field.name in values:
            own[field.name] = values[field.name]
    return config(**own)


_SWITCH = get_args(Switch[bool])[1]
# A switch without a default, as in `_given`: tyro would make its --no- form alone.
_GIVEN = PrimitiveConstructorSpec(
    nargs=0, metavar="", instance_from_str=lambda _: True, is_instance=lambda _: True, str_from_instance=lambda _: [],
)  # fmt: skip


def _given(flags: FlagsOf) -> Any:
    """A TypedDict without required keys: tyro fills in what is given, and nothing else."""
    documented, hints = docstrings(flags.config), get_type_hints(flags.config, include_extras=True)
    ranges, values, kinds = ranges_of(flags.config), flags.values or {}, {}
    for name in flags.names:
        default = flags.config.__dataclass_fields__[name].default if flags.defaults else None
        text, said = _parted(documented.get(name, ""))
        allowed = None if name in values else ranges.get(name)
        hint = _hint(allowed, default, said, _shown(default, values.get(name)))
        switch = _SWITCH in getattr(hints[name], "__metadata__", ())
        kind = tyro.conf.FlagConversionOff[hints[name]] if switch else hints[name]
        note = _GIVEN if switch else values.get(name)
        kind = Annotated[kind, note] if note else kind
        kinds[name] = _annotated(kind, help=text, help_behavior_hint=hint)
    return Annotated[TypedDict(flags.config.__name__, kinds, total=False), tyro.conf.OmitArgPrefixes]  # pyright: ignore


def _annotated(kind: Any, **how: Any) -> Any:
    return Annotated[kind, tyro.conf.arg(**how)]


def _parted(text: str) -> tuple[str, str]:
    """The help of a flag, and the default that it says in words: "Cores (default: all)." is "Cores." and "all"."""
    match = re.fullmatch(r"(.*?) \(default: (.+)\)\.", text)
    return (f"{match[1]}.", match[2]) if match else (text, "")


def _hint(allowed: Range | None, default: object, said: str, shown: str) -> str:
    """What stands behind the help of a flag: its range and its default. said: the default in words, or ""."""
    parts = [_phrase(allowed)] if allowed else []
    if said or not (default is None or default is False or default in ("", ())):
        parts.append(f"default: {said or shown}")
    return f"({'; '.join(parts)})" if parts else ""


def _phrase(allowed: Range) -> str:
    return str(allowed).replace(",", "")  # tyro breaks lines at the comma of 1,000


def _shown(default: object, spec: PrimitiveConstructorSpec[Any] | None) -> str:
    if spec and default is not None:
        return spec.str_from_instance(default)[0]
    return f"{default:g}" if isinstance(default, float) else str(default)


def docstrings(config: type) -> dict[str, str]:
    """The string literals that stand under the fields of a class, as one line each."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


# Sentences


class _Refused(Exception):  # noqa: N818 - an event of tyro
    def __init__(self, event: events.ParseErrorEvent) -> None:
        self.event = event


def _parse(command: type[Command], arguments: Sequence[str], prog: str) -> Command:
    def stop(event: events.ParseErrorEvent) -> None:
        raise _Refused(event)

    with events.on_parse_error(stop):
        return tyro.cli(
            command, prog=prog, description="", args=arguments, registry=REGISTRY, config=(tyro.conf.DisallowNone,),
        )  # fmt: skip


def _flags(command: type, prog: str) -> list[str]:
    """Every flag of a command, as its help names them."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        _parse(command, ["--help"], prog)
    return re.findall(r"--[a-z][\w-]*", said.getvalue())


def sentence(event: events.ParseErrorEvent, flags: Callable[[], list[str]], earlier: Mapping[str, str]) -> str:
    """What is wrong with the arguments, and what to do. flags: those that exist."""
    lists = f"`{event.prog} --help` lists the flags"
    if isinstance(event, events.MissingArgs):
        unknown = [token for token in event.unrecognized_tokens if token.startswith("-")]
        if unknown:
            return _unknown(unknown[0], flags(), earlier, lists)
        names = [_name(missing.arg) for missing in event.missing_arguments]
        *first, last = names
        return f"{', '.join(first)} and {last} are required; {lists}" if first else f"{last} is required; {lists}"
    if isinstance(event, events.UnrecognizedArgs):
        unknown = [token for token in event.tokens if token.startswith("-")]
        return _unknown((unknown or event.tokens)[0], flags(), earlier, lists)
    if isinstance(event, events.MutexConflict):
        return f"{event.first_token} and {event.second_token} exclude each other; give one of them"
    if isinstance(event, events.InvalidChoice):
        if event.value in earlier:
            return f"{_name(event.argument)} {event.value} {earlier[event.value]}"
        return f"{_name(event.argument)}: {event.value!r} is none of {', '.join(event.choices)}"
    if isinstance(event, events.BadValue):
        return f"{_name(event.argument)} needs a value; {lists}"
    if isinstance(event, events.InstantiationFailure):
        return f"{_name(event.argument)}: {event.message}" if event.argument else event.message
    return f"these arguments cannot be read ({type(event).__name__}); {lists}"


def _unknown(token: str, flags: Sequence[str], earlier: Mapping[str, str], lists: str) -> str:
    if not token.startswith("-"):
        return f"{token!r} belongs to no flag; {lists}"
    flag = token.partition("=")[0]
    if flag in earlier:
        return f"{flag} {earlier[flag]}"
    near = difflib.get_close_matches(flag, flags, n=1)
    return f"there is no flag {flag}; " + (f"did you mean {near[0]}?" if near else lists)


def _name(argument: Any) -> str:
    return argument.lowered.metavar if argument.is_positional() else argument.lowered.name_or_flags[-1]
