"""Where settings come from: flags, then environment, then one TOML file, then defaults. The first that has one wins."""

import argparse
import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, get_args

from export.manifest import (
    ADAPTER_NAME,
    BETWEEN,
    ENGINE_FILE,
    Manifest,
    read_manifest,
    read_student,
    served_models,
)
from server.settings.settings import (
    MODEL_NAME,
    MODELS,
    OPTIONS,
    Group,
    Option,
    Settings,
    SettingsError,
    checked_path,
    shown,
)

DEFAULT_MODELS = ("fashion", "earth")  # the first is the default of requests
# Settings that are not fields of Settings: what they name is read, and its content becomes one.
NAMED = ("model", "engine", "api_keys_file")
KEYS_VARIABLE = "FEWSTEP_API_KEYS"  # a key on a command line would be seen by every user of the machine
METAVARS = {int: "N", float: "X", str: "TEXT", bool: "true|false"}
MAX_FILE_BYTES = 2**20  # of a settings or key file


@dataclass(frozen=True)
class Resolved:
    """Settings, and for each field where its value came from."""

    settings: Settings
    sources: Mapping[str, str]  # field -> "default", "--port", "FEWSTEP_PORT" or "port in FILE"
    keys_file: Path | None
    check: bool  # only say whether the server could start


@dataclass(frozen=True)
class _Source:
    """What one source says. given: setting -> text, or what TOML made of it. label: what the user calls a setting."""

    given: Mapping[str, Any]
    label: Callable[[str], str]
    named: Sequence[tuple[str, str | None, str]]  # "model" or "engine", the name if it stands apart, the text
    file: Path | None = None  # the settings file; relative paths begin there

    @classmethod
    def of_texts(
        cls, given: Mapping[str, Any], label: Callable[[str], str], named: Sequence[tuple[str, str]]
    ) -> "_Source":
        return cls(given, label, [(kind, None, text.strip()) for kind, text in named])

    def values(self) -> dict[str, Any]:
        read = Option.from_toml if self.file else Option.from_text
        given = [option for option in OPTIONS if option.name in self.given]
        return {option.name: read(option, self.given[option.name], self.label(option.name)) for option in given}

    def path(self, name: str, text: Any = None) -> Path:
        """What is given for `name`, or this part of it. Raises SettingsError for what is no path."""
        text = self.given[name] if text is None else text
        if not isinstance(text, str):
            raise SettingsError(f"{self.label(name)} must be a string, not {shown(text)}")
        return (self.file.parent if self.file else Path()) / checked_path(text, self.label(name))

    def engines(self) -> dict[str, Path]:
        """Name -> engine directory. Raises SettingsError or CheckpointError."""
        engines: dict[str, Path] = {}
        for kind, name, text in self.named:
            if kind == "model":
                name, folder = text, model_engine(text)
            else:
                first, equals, directory = text.partition("=")  # a directory with an equals sign is written ./a=b
                if name is None and equals and MODEL_NAME.fullmatch(first):
                    name, text = first, directory
                folder = self.path(kind, text)
                name = read_manifest(folder).name if name is None else name
            if name in engines:
                raise SettingsError(f"two models are called {name!r}; give one another name with --engine NAME=DIR")
            engines[name] = folder
        return engines


def resolve(
    arguments: Sequence[str] | None = None,
    environment: Mapping[str, str] = os.environ,
    prog: str = "fewstep serve",
    further: Sequence[str] = (),
) -> Resolved:
    """Settings and their sources. Raises SettingsError or CheckpointError; --help exits with 0.

    prog: the command, for its errors. further: flags that it has read already.
    """
    given = vars(_parser(prog, further).parse_args(arguments))
    flags = {name: value for name, value in given.items() if value is not None}
    flags |= {option.name: ",".join(flags[option.name]) for option in OPTIONS if option.many and option.name in flags}
    variables = _variables(environment)
    named = [(kind, part) for kind in NAMED[:2] for part in variables.get(kind, "").split(",") if part.strip()]
    by_rank = [
        _Source.of_texts(flags, lambda name: "--" + name.replace("_", "-"), flags["engines"]),
        _Source.of_texts(variables, lambda name: f"FEWSTEP_{name.upper()}", named),
    ]
    if config := next((source.path("config") for source in by_rank if "config" in source.given), None):
        by_rank.append(_settings_file(config))
    values: dict[str, Any] = {}
    sources = {field.name: "default" for field in fields(Settings)}
    engines, keys_file = _Source({}, str, [("model", None, name) for name in DEFAULT_MODELS]), None
    for source in reversed(by_rank):
        found = source.values()
        values |= found
        sources |= {name: source.label(name) for name in found}
        if source.named:
            engines = source
            sources["engines"] = " and ".join(dict.fromkeys(source.label(kind) for kind, *_ in source.named))
        if "api_keys_file" in source.given:
            keys_file = source.path("api_keys_file")
    keys = _listed_keys(environment)
    if keys or keys_file:
        sources["api_keys"] = " and ".join([KEYS_VARIABLE] * bool(keys) + [str(keys_file)] * bool(keys_file))
    keys += _keys_in(keys_file) if keys_file else []
    settings = Settings(engines.engines(), tuple(dict.fromkeys(keys)), **values)
    for gpu in settings.devices:
        visible_gpu(gpu, environment)
    return Resolved(settings, sources, keys_file, flags["check"])


def visible_gpu(gpu: int, environment: Mapping[str, str]) -> str:
    """What names this GPU for CUDA_VISIBLE_DEVICES. Raises SettingsError when the environment hides it."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(gpu)
    listed = [entry.strip() for entry in visible.split(",")]
    ends = [place for place, entry in enumerate(listed) if entry in ("", "NoDevFiles") or entry.startswith("-")]
    listed = listed[: min(ends, default=None)]  # CUDA ignores what follows an entry that is no GPU
    if gpu >= len(listed):
        raise SettingsError(f"there is no GPU {gpu}: CUDA_VISIBLE_DEVICES={visible} hides it")
    return listed[gpu]


class _Once(argparse.Action):
    """Of a flag that names a file: of two, the first would be ignored in silence."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            raise SettingsError(f"{option_string} is given twice; name one file")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    further: Sequence[str] = ()  # flags that exist and are read elsewhere

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; {self.prog} --help lists the flags")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # pyright: ignore[reportIncompatibleMethodOverride]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]  # never the value: it may be a secret
            if not flag.startswith("-"):
                raise SettingsError(f"{flag!r} is not expected here; every setting has a flag, see --help")
            known = [*self.further, *(name for action in self._actions for name in action.option_strings)]
            near = difflib.get_close_matches(flag, known, n=1)
            what = f"the nearest is {near[0]}" if near else f"`{self.prog} --help` lists the flags"
            raise SettingsError(f"there is no flag {flag}; {what}")
        return parsed


def _parser(prog: str, further: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description="Serve students over HTTP. Each flag is also an environment variable (--max-queue:\n"
        "FEWSTEP_MAX_QUEUE) and a key of the file that --config names (max_queue); flags win\n"
        "over the environment, which wins over the file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--check", action="store_true", help="say what would be served with which settings, and exit")
    parser.add_argument("--config", action=_Once, metavar="FILE", help="a TOML file with settings")
    groups = {group: parser.add_argument_group(group) for group in get_args(Group)}
    models = {"action": "append", "dest": "engines", "default": []}
    groups["engines"].add_argument(
        "--model", type=lambda name: ("model", name), metavar="NAME", **models,
        help="a model that ships with fewstep, such as fashion; repeatable, the first is the default of requests "
        f"(default: {' and '.join(DEFAULT_MODELS)})",
    )  # fmt: skip
    groups["engines"].add_argument(
        "--engine", type=lambda folder: ("engine", folder), metavar="[NAME=]DIR", **models,
        help="an engine directory, served under its own name or this one; repeatable",
    )  # fmt: skip
    groups["security"].add_argument(
        "--api-keys-file", action=_Once, metavar="FILE", help="API keys, one per line (default: none)"
    )
    parser.further = further
    for option in OPTIONS:
        how: dict[str, Any] = {"nargs": "?", "const": "true"} if option.entry is bool else {}
        how |= {"action": "append"} if option.many else {}  # given several times, a list has all of it
        metavar = "TEXT" if option.many else METAVARS[option.entry]
        metavar = "SECONDS" if option.flag.endswith("-s") else metavar
        help = f"{option.help} (default: {option.default_text})"
        groups[option.group].add_argument(option.flag, metavar="|".join(option.choices) or metavar, help=help, **how)
    return parser


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are ours, by setting; an empty one is absent. Raises SettingsError for unknown ones."""
    known = {f"FEWSTEP_{name.upper()}" for name in (*(option.name for option in OPTIONS), *NAMED, "config")}
    found: dict[str, str] = {}
    for variable, text in environment.items():
        if not variable.startswith("FEWSTEP_") or variable == KEYS_VARIABLE or not text.strip():
            continue
        if variable not in known:
            raise SettingsError(
                f"the environment variable {variable} is not a setting; the nearest is "
                f"{nearest(variable, known | {KEYS_VARIABLE})}"
            )
        found[variable.removeprefix("FEWSTEP_").lower()] = text.strip()
    return found


def _settings_file(path: Path) -> _Source:
    text = _read(path, f"the settings file {path}")
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        known = isinstance(error, tomllib.TOMLDecodeError)
        reason = error if known else "it nests too deeply, or holds a number of too many digits"
        raise SettingsError(f"the settings file {path} is not valid TOML: {reason}") from error
    known = [*(option.name for option in OPTIONS), *NAMED]
    for key in data:
        if key == "api_keys":
            raise SettingsError(
                f"{path} holds api_keys: put them into a file of their own, one per line, that only the server may "
                f"read, and name it as api_keys_file; or into the environment variable {KEYS_VARIABLE}"
            )
        if key not in known:
            raise SettingsError(f"{shown(key)} in {path} is not a setting; the nearest is {nearest(key, known)}")
    named = [(key, *entry) for key in data if key in NAMED[:2] for entry in _engines_in(key, data[key], path)]
    return _Source(data, lambda name: f"{name} in {path}", named, path)


def _engines_in(key: str, value: Any, path: Path) -> list[tuple[str | None, str]]:
    """model = "a" or ["a", "b"]; engine = "DIR", ["DIR", "NAME=DIR"], or a table [engine] of NAME = "DIR"."""
    if key == "engine" and isinstance(value, dict) and all(isinstance(folder, str) for folder in value.values()):
        return list(value.items())
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
        raise SettingsError(f"{key} in {path} must be a string or a list of strings, not {shown(value)}")
    return [(None, entry) for entry in listed]


def model_engine(name: str, models: Path = MODELS) -> Path:
    """The engine directory of a shipped model. Raises SettingsError naming the models there are."""
    names = sorted(folder.parent.name for folder in models.glob("*/engine") if folder.is_dir())
    if name in names:
        return models / name / "engine"
    known = f"the models with an engine are: {', '.join(names)}" if names else f"no folder in {models} has an engine"
    raise SettingsError(f"there is no model {shown(name)}; {known}. --engine DIR serves an engine from anywhere")


def named_engine(text: str) -> tuple[Path, Manifest]:
    """The engine that a person means: a directory, that of a model's folder, or a shipped model's; and the manifest of
    what it serves: its own, or behind a colon that of one of its adapters.

    Raises SettingsError or CheckpointError.
    """
    backbone, between, adapter = text.rpartition(BETWEEN)
    if not between or not ADAPTER_NAME.fullmatch(adapter) or Path(checked_path(text, "--model")).exists():
        backbone, adapter = text, ""
    folder, engine = _named_backbone(backbone)
    served = served_models(engine)
    name = engine.name + (BETWEEN + adapter if adapter else "")
    if name not in served:
        raise SettingsError(f"{folder} serves no {shown(name)}; it serves {', '.join(served)}")
    return folder, served[name]


def _named_backbone(text: str) -> tuple[Path, Manifest]:
    for folder in (Path(checked_path(text, "--model")), Path(text, "engine")):
        if (folder / ENGINE_FILE).is_file():
            return folder, read_student(folder, read_manifest(folder).name)
    if "/" in text:
        read_manifest(Path(text))  # says what is missing there
    folder = model_engine(text)
    return folder, read_student(folder, text)


def _listed_keys(environment: Mapping[str, str]) -> list[str]:
    text = environment.get(KEYS_VARIABLE, "").strip()
    keys = [key.strip() for key in text.split(",") if key.strip()]
    if text and not keys:
        raise SettingsError(f"{KEYS_VARIABLE} holds no API key; leave it empty to need none")
    return keys


def _keys_in(path: Path) -> list[str]:
    lines = [line.strip() for line in _read(path, f"the file of API keys {path}").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"{path} holds no API key: write one per line, for example from: openssl rand -hex 32")
    return keys


def _read(path: Path, what: str) -> str:
    """A small UTF-8 file, without the byte-order mark that some editors put first, and with \\n as its line ends."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{what} cannot be read: {reason}") from error
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(f"{what} cannot be read: it has more than {MAX_FILE_BYTES} bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like this one."""
    return difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.0)[0]
