"""Where settings come from: flags, then environment, then one TOML file, then defaults. The first to speak wins."""

import argparse
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from export.manifest import read_manifest
from server.settings.options import OPTIONS, from_text, from_toml
from server.settings.settings import MODEL_NAME, MODELS, Settings, SettingsError

DEFAULT_MODEL = "fashion"
# Settings that are not fields of Settings: what they name is read, and its content becomes one.
NAMED = ("model", "engine", "api_keys_file")
KEYS_VARIABLE = "FEWSTEP_API_KEYS"  # a key on a command line would be seen by every user of the machine
Which = tuple[str, str]  # ("model", NAME) or ("engine", [NAME=]DIR)


@dataclass(frozen=True)
class Resolved:
    """Settings, and for each field where its value came from."""

    settings: Settings
    sources: Mapping[str, str]  # field -> "default", "--port", "FEWSTEP_PORT" or "port in FILE"
    check: bool  # only say whether the server could start


@dataclass(frozen=True)
class _Given:
    """What one source says. engines: in the order in which they were named."""

    values: Mapping[str, Any]
    where: Mapping[str, str]
    engines: tuple[Which, ...]
    keys_file: Path | None


def resolve(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Resolved:
    """Settings and their sources. Raises SettingsError or CheckpointError; --help exits with 0."""
    flags = vars(_parser().parse_args(arguments))
    check = flags.pop("check")
    variables = _variables(environment)
    config = flags.pop("config") or variables.pop("config", None)
    given = [_from_flags(flags), _from_environment(variables)]
    if config:
        given.append(_from_file(Path(config)))
    values: dict[str, Any] = {}
    sources = {field.name: "default" for field in fields(Settings)}
    for source in reversed(given):
        values |= source.values
        sources |= source.where
    named = next((source for source in given if source.engines), None)
    values["engines"] = _engines(named.engines if named else (("model", DEFAULT_MODEL),))
    keys_file = next((source.keys_file for source in given if source.keys_file), None)
    keys = _listed_keys(environment)
    if keys_file:
        keys += _keys_in(keys_file)
    if keys:
        sources["api_keys"] = " and ".join(
            [KEYS_VARIABLE] * bool(_listed_keys(environment)) + [str(keys_file)] * bool(keys_file)
        )
    return Resolved(Settings(**values, api_keys=keys), sources, check)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; {self.prog} --help lists the flags")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # pyright: ignore[reportIncompatibleMethodOverride]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]  # never the value: it may be a secret
            if not flag.startswith("-"):
                raise SettingsError(f"{flag!r} is not expected here; every setting has a flag, see --help")
            known = [name for action in self._actions for name in action.option_strings]
            raise SettingsError(f"there is no flag {flag}; the nearest is {nearest(flag, known)}")
        return parsed


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m server",
        description="Serve students over HTTP. Each flag is also an environment variable (--max-queue: "
        "FEWSTEP_MAX_QUEUE) and a key of the file that --config names (max_queue); flags win over the "
        "environment, which wins over the file.",
        allow_abbrev=False,
    )
    parser.add_argument("--check", action="store_true", help="say what would be served with which settings, and exit")
    parser.add_argument("--config", metavar="FILE", help="a TOML file with settings")
    models = {"action": "append", "dest": "engines", "default": []}
    parser.add_argument(
        "--model", type=lambda name: ("model", name), metavar="NAME", **models,
        help=f"a model of this checkout, models/NAME/engine ({DEFAULT_MODEL}); repeatable, the first is the default",
    )  # fmt: skip
    parser.add_argument(
        "--engine", type=lambda folder: ("engine", folder), metavar="[NAME=]DIR", **models,
        help="an engine directory, served under its own name or this one; repeatable",
    )  # fmt: skip
    parser.add_argument("--api-keys-file", metavar="FILE", help="API keys, one per line (everybody may ask)")
    for option in OPTIONS:
        if option.kind == "yes_no":
            parser.add_argument(option.flag, nargs="?", const="true", metavar="true|false", help=option.help)
        else:
            metavar = "|".join(option.choices) or {"whole": "N", "number": "SECONDS"}.get(option.kind, "TEXT")
            parser.add_argument(option.flag, metavar=metavar, help=option.help)
    return parser


def _from_flags(flags: Mapping[str, Any]) -> _Given:
    given = [option for option in OPTIONS if flags[option.name] is not None]
    where = {option.name: option.flag for option in given}
    if flags["engines"]:
        where["engines"] = " ".join(dict.fromkeys(f"--{kind}" for kind, _ in flags["engines"]))
    return _Given(
        {option.name: from_text(option, flags[option.name], option.flag) for option in given},
        where,
        tuple(flags["engines"]),
        Path(flags["api_keys_file"]) if flags["api_keys_file"] else None,
    )


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are ours, by setting; an empty one says nothing. Raises SettingsError for unknown ones."""
    known = {option.variable for option in OPTIONS} | {f"FEWSTEP_{name.upper()}" for name in (*NAMED, "config")}
    found: dict[str, str] = {}
    for variable, text in environment.items():
        if not variable.startswith("FEWSTEP_") or variable == KEYS_VARIABLE or not text:
            continue
        if variable not in known:
            raise SettingsError(
                f"the environment variable {variable} is not a setting; the nearest is "
                f"{nearest(variable, known | {KEYS_VARIABLE})}"
            )
        found[variable.removeprefix("FEWSTEP_").lower()] = text
    return found


def _from_environment(variables: Mapping[str, str]) -> _Given:
    given = [option for option in OPTIONS if option.name in variables]
    where = {option.name: option.variable for option in given}
    named = [kind for kind in ("model", "engine") if kind in variables]
    if named:
        where["engines"] = " and ".join(f"FEWSTEP_{kind.upper()}" for kind in named)
    return _Given(
        {option.name: from_text(option, variables[option.name], option.variable) for option in given},
        where,
        tuple((kind, part.strip()) for kind in named for part in variables[kind].split(",") if part.strip()),
        Path(variables["api_keys_file"]) if "api_keys_file" in variables else None,
    )


def _from_file(path: Path) -> _Given:
    """Relative directories and files are relative to the settings file."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} is not valid TOML: {error}") from error
    options = {option.name: option for option in OPTIONS}
    for key in data:
        if key == "api_keys":
            raise SettingsError(
                f"{path} holds api_keys: put them into a file of their own, one per line, that only the server may "
                f"read, and name it as api_keys_file; or into the environment variable {KEYS_VARIABLE}"
            )
        if key not in options and key not in NAMED:
            raise SettingsError(
                f"{key!r} in {path} is not a setting; the nearest is {nearest(key, [*options, *NAMED])}"
            )
    engines = tuple(entry for key in data if key in ("model", "engine") for entry in _engines_in(key, data[key], path))
    where = {key: f"{key} in {path}" for key in data if key in options}
    if engines:
        where["engines"] = " and ".join(key for key in data if key in ("model", "engine")) + f" in {path}"
    keys_file = data.get("api_keys_file")
    if keys_file is not None and not isinstance(keys_file, str):
        raise SettingsError(f"api_keys_file in {path} must be a string, not {keys_file!r}")
    return _Given(
        {key: from_toml(options[key], data[key], where[key]) for key in data if key in options},
        where,
        engines,
        path.parent / keys_file if keys_file else None,
    )


def _engines_in(key: str, value: Any, path: Path) -> list[Which]:
    """model = "a" or ["a", "b"]; engine = "DIR", ["DIR", "NAME=DIR"], or a table [engine] of NAME = "DIR"."""
    listed = [value] if isinstance(value, str) else value
    if key == "engine" and isinstance(value, dict) and all(isinstance(folder, str) for folder in value.values()):
        return [(key, f"{name}={path.parent / folder}") for name, folder in value.items()]
    if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
        raise SettingsError(f"{key} in {path} must be a string or a list of strings, not {value!r}")
    if key == "model":
        return [(key, entry) for entry in listed]
    split = [_split(entry) for entry in listed]
    return [(key, f"{name}={path.parent / folder}" if name else str(path.parent / folder)) for name, folder in split]


def _engines(which: Iterable[Which]) -> dict[str, Path]:
    engines: dict[str, Path] = {}
    for kind, text in which:
        if kind == "model":
            name, folder = text, model_engine(text)
        else:
            name, directory = _split(text)
            folder = Path(directory)
            name = name or read_manifest(folder).name
        if name in engines:
            raise SettingsError(f"two models are called {name!r}; give one another name with --engine NAME=DIR")
        engines[name] = folder
    return engines


def _split(text: str) -> tuple[str | None, str]:
    """[NAME=]DIR. A directory whose name has an equals sign is written with a slash before it: ./a=b."""
    name, equals, directory = text.partition("=")
    return (name, directory) if equals and MODEL_NAME.fullmatch(name) else (None, text)


def model_engine(name: str, models: Path = MODELS) -> Path:
    """The engine directory of a shipped model. Raises SettingsError naming the models there are."""
    names = sorted(folder.parent.name for folder in models.glob("*/engine") if folder.is_dir())
    if name in names:
        return models / name / "engine"
    known = f"the models with an engine are: {', '.join(names)}" if names else f"no folder in {models} has an engine"
    raise SettingsError(f"there is no model {name!r}; {known}. --engine DIR serves an engine from anywhere")


def _listed_keys(environment: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",") if key.strip())


def _keys_in(path: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"the API keys in {path} cannot be read: {reason}") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise SettingsError(f"{path} holds no API key: write one per line, for example from: openssl rand -hex 32")
    return keys


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like this one."""
    return difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.0)[0]
