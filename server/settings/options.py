"""Every setting once: its name, what a value looks like, and one line of help.

The same word is the flag (--max-queue), the environment variable (FEWSTEP_MAX_QUEUE) and the key of the settings
file (max_queue).
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from export.manifest import BACKENDS
from server.settings.settings import LogFormat, LogLevel, Mode, PolicyName, SettingsError

Kind = Literal["text", "whole", "number", "yes_no", "words", "numbers"]
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Option:
    """One setting. `name` is a field of server.settings.settings.Settings."""

    name: str
    kind: Kind
    help: str
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "FEWSTEP_" + self.name.upper()


OPTIONS = (
    Option("host", "text", "address to listen on (127.0.0.1: this machine only)"),
    Option("port", "whole", "TCP port (8000); 0 takes a free one"),
    Option("backend", "text", "what runs the network (the one the engine names)", BACKENDS),
    Option(
        "mode",
        "text",
        "fast: small batches for few images (fast); exact: the same bytes in any company",
        get_args(Mode),
    ),
    Option("policy", "text", "who gets a free slot: fifo (default), or the earliest deadline", get_args(PolicyName)),
    Option("capacity", "whole", "images of a model in one network call (8); 0 measures and chooses at start-up"),
    Option("threads", "whole", "cores one network call may use (0: all)"),
    Option("devices", "numbers", "GPUs by number, such as 0,1 (the first)"),
    Option("workers", "whole", "engine processes on each device (1)"),
    Option("restart_limit", "whole", "worker restarts within a minute before the server gives up (5)"),
    Option("stall_s", "number", "seconds of silence from a busy worker before it is replaced (30); 0: never"),
    Option("load_timeout_s", "number", "seconds a worker may take to load a model (600); 0: never replaced for it"),
    Option("max_queue", "whole", "images that may wait for a slot before the answer is 429 (256)"),
    Option("max_images", "whole", "images one request may ask for (64)"),
    Option("max_body_bytes", "whole", "largest request body (0: what an image and a mask need, at least 65536)"),
    Option("timeout_s", "number", "seconds a request may take before the answer is 504 (60)"),
    Option("drain_s", "number", "seconds a stopping server answers 503 before it closes its port (5)"),
    Option("grace_s", "number", "seconds a stopping server lets its requests finish (30)"),
    Option("log_level", "text", "what goes to the log on stderr (warning)", get_args(LogLevel)),
    Option("log_format", "text", "text (default), or json: one line per request and message", get_args(LogFormat)),
    Option("metrics_public", "yes_no", "/metrics answers without an API key"),
    Option("cors_origins", "words", "web origins whose pages may ask, such as https://example.org (none)"),
    Option("allowed_hosts", "words", "host names to answer to (loopback's; any when listening beyond loopback)"),
    Option("trusted_proxies", "words", "addresses or networks whose X-Forwarded-For is believed (none)"),
)


def from_text(option: Option, text: str, where: str) -> Any:
    """The value of a flag or a variable. where: how the user knows it. Raises SettingsError."""
    if option.kind == "whole":
        return _number(int, text, where, "a whole number")
    if option.kind == "number":
        return _number(float, text, where, "a number")
    if option.kind == "yes_no":
        if text.casefold() not in YES + NO:
            raise SettingsError(f"{where} must be true or false, not {text!r}")
        return text.casefold() in YES
    if option.kind == "text":
        return _chosen(option, text, where)
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if option.kind == "numbers":
        return tuple(_number(int, word, where, "whole numbers with commas between them") for word in words)
    return words


def from_toml(option: Option, value: Any, where: str) -> Any:
    """The value of a key in the settings file. Raises SettingsError."""
    right = {
        "whole": (type(value) is int, "a whole number"),
        "number": (type(value) in (int, float), "a number"),
        "yes_no": (type(value) is bool, "true or false"),
        "text": (type(value) is str, "a string"),
        "words": (_all(value, str), "a list of strings"),
        "numbers": (_all(value, int), "a list of whole numbers"),
    }
    fits, what = right[option.kind]
    if not fits:
        raise SettingsError(f"{where} must be {what}, not {value!r}")
    if option.kind == "text":
        return _chosen(option, value, where)
    if option.kind == "number":
        return float(value)
    return tuple(value) if option.kind in ("words", "numbers") else value


def _chosen(option: Option, text: str, where: str) -> str:
    if option.choices and text not in option.choices:
        raise SettingsError(f"{where} must be one of {', '.join(option.choices)}, not {text!r}")
    return text


def _number(kind: type[int] | type[float], text: str, where: str, what: str) -> int | float:
    try:
        return kind(text)
    except ValueError as error:
        raise SettingsError(f"{where} must be {what}, not {text!r}") from error


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(entry) is kind for entry in value)
