"""Server settings. One field of Settings holds a setting's default, allowed values and help; all else is derived."""

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_address, ip_network
from math import inf
from pathlib import Path
from socket import inet_aton, inet_ntoa
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from export.manifest import BACKENDS

MODELS = Path(__file__).resolve().parents[2] / "models"  # the students that ship with the checkout

Mode = Literal["fast", "exact"]
PolicyName = Literal["fifo", "deadline", "shortest"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
Group = Literal["server", "engines", "scheduling", "limits", "security", "logs"]
Value = TypeVar("Value")

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # goes into logs, labels of metrics and file names
# As browsers write it: in lower case, without the default port of the scheme.
ORIGIN = re.compile(r"(http(?!.*:80$)|https(?!.*:443$))://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?|\*")
HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\*")
PATH = re.compile("[^\0\ud800-\udfff]+")  # what files can have and a settings file can name
HOST = re.compile(r"[^\s*]+")  # whether there is such a host, the system says
AUTO = "auto"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
MIN_KEY_CHARACTERS = 16
# Of onnxruntime-web, as its browsers ask for them: for WebAssembly, then for WebGPU.
RUNTIME_FILES = (
    "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
)  # fmt: skip
RUNTIME_HOW = "name the folder dist of the npm package onnxruntime-web 1.30 (docs/page.md says how to get it)"
YES_NO = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
# How a flag or a variable is read, by the type of its value, and what it should be.
READ: Mapping[type, Callable[[str], Any]] = {
    int: int, float: float, str: str, bool: lambda text: YES_NO[text.casefold()],
}  # fmt: skip
ENTRIES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 100


class SettingsError(ValueError):
    """Settings the server cannot start with; the message says why and what to do."""


@dataclass(frozen=True)
class Option:
    """What a setting is. The same word is the flag, the environment variable and the key of the settings file."""

    group: Group
    help: str
    unset: str = ""  # what the default means, where its value does not say it
    choices: tuple[str, ...] = ()
    low: float = 0  # smallest number
    high: float = inf  # largest number
    off: bool = False  # whether 0 is allowed below `low`
    auto: bool = False  # whether 0 is also the word "auto"
    form: Callable[[str], Any] = bool  # whether a text is allowed, by its truth
    what: str = ""  # what an allowed text is
    name: str = ""
    entry: type = str  # of the value, or of each entry where it has many: int, float, bool or str
    many: bool = False
    default: Any = None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "FEWSTEP_" + self.name.upper()

    @property
    def default_text(self) -> str:
        return self.unset or str(self.default).removesuffix(".0").lower()

    @property
    def range(self) -> str:
        """The allowed numbers, in words."""
        return f"{'auto, or ' if self.auto else '0, or ' * self.off}from {self.low} to {self.high}"

    def from_text(self, text: str, where: str) -> Any:
        """The value of a flag or a variable. where: how the user knows it. Raises SettingsError."""
        if self.auto and text.strip().casefold() == AUTO:
            return 0
        parts = text.split(",") if self.many else [text]
        try:
            values = [READ[self.entry](part.strip()) for part in parts if part.strip() or not self.many]
        except (ValueError, KeyError) as error:
            what = "whole numbers with commas between them" if self.many else ENTRIES[self.entry]
            raise SettingsError(f"{where} must be {what}, not {shown(text)}") from error
        return self.checked(tuple(values) if self.many else values[0], where)

    def from_toml(self, value: Any, where: str) -> Any:
        """The value of a key in the settings file. Raises SettingsError."""
        if self.auto and value == AUTO:
            return 0
        entries = value if self.many else [value]
        kinds = (int, float) if self.entry is float else (self.entry,)
        if not isinstance(entries, list) or any(type(entry) not in kinds for entry in entries):
            what = f"a list of {ENTRIES[self.entry][2:]}s" if self.many else ENTRIES[self.entry]
            raise SettingsError(f"{where} must be {what}, not {shown(value)}")
        return self.checked(tuple(value) if self.many else value, where)

    def checked(self, value: Any, where: str) -> Any:
        """The value, a float where fractions are allowed. Raises SettingsError for one that is not allowed."""
        for entry in value if self.many else (value,):
            if entry is None:
                continue
            if self.choices and entry not in self.choices:
                raise SettingsError(f"{where} must be one of {', '.join(self.choices)}, not {shown(entry)}")
            if self.entry is str and not self.form(entry):
                raise SettingsError(f"{where}: {shown(entry)} is not {self.what}")
            if self.entry is not str and not (self.low <= entry <= self.high or (self.off and entry == 0)):
                raise SettingsError(f"{where} must be {self.range}, not {shown(entry)}")
        if self.name == "devices" and len(set(value)) < len(value):
            raise SettingsError(f"{where} names a GPU twice; --workers sets how many processes share one")
        return float(value) if self.entry is float else value


def shown(value: Any) -> str:
    """A wrong value in a sentence, of bounded length."""
    try:
        return SHORT.repr(value)
    except ValueError:  # Python writes no number of thousands of digits; TOML reads one in hexadecimal
        return "a number of that many digits"


def _setting(default: Value, group: Group, help: str, **rest: Any) -> Value:
    """A field of Settings, described by an Option."""
    return field(default=default, metadata={"option": Option(group, help, **rest)})


def _is_network(text: str) -> bool:
    try:
        return bool(ip_network(text))
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return bool(HOST_NAME.fullmatch(text)) or (":" in bare and "/" not in bare and _is_network(bare))


def comparable(host: str) -> str:
    """A host name or address, with or without brackets, in the one form in which two of them are compared."""
    name = host.strip("[]").removesuffix(".").casefold()
    if ":" in name:
        with suppress(ValueError):
            return str(ip_address(name))
    return name


@dataclass(frozen=True)
class Settings:
    """Raises SettingsError for a value that is not allowed."""

    engines: Mapping[str, Path]  # name of the model -> engine directory; the first is the default model
    api_keys: tuple[str, ...] = field(default=(), repr=False)  # empty: no key is needed

    # fmt: off
    host: str = _setting("127.0.0.1", "server", "address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for "
        "all IPv4 addresses, :: for all IPv4 and IPv6 addresses", form=HOST.fullmatch, what="an address or a host name")
    port: int = _setting(8000, "server", "TCP port; 0 takes a free one and prints it", high=65_535)
    api_processes: int = _setting(1, "server", "HTTP processes that share the port", low=1, high=64)
    keep_alive_s: float = _setting(75.0, "server", "seconds an idle connection stays open; a proxy in front must close "
        "its own earlier", low=1, high=3_600)
    drain_s: float = _setting(5.0, "server", "seconds a stopping server keeps its port open, answering 503", high=3_600)
    grace_s: float = _setting(30.0, "server", "seconds a stopping server lets accepted requests finish", high=3_600)
    page_runtime: str | None = _setting(None, "server", "folder with the files of onnxruntime-web (`dist` of the npm "
        "package): the page then offers to make images in the browser, and whoever may ask for images may download "
        "the networks", unset="none", form=PATH.fullmatch,
        what="a path in UTF-8")

    backend: str | None = _setting(None, "engines", "what runs the networks", unset="the engine's, or OpenVINO where "
        "that is installed and measured to be faster; never OpenVINO with mode exact", choices=BACKENDS)
    devices: tuple[int, ...] = _setting((), "engines", "GPUs by number, such as 0,1", unset="the first GPU, or the CPU",
        high=1_024)
    workers: int = _setting(1, "engines", "engine processes on each device; auto measures call times, once for each "
        "machine and engine, and chooses workers, threads and capacity", low=1, high=64, off=True, auto=True)
    threads: int = _setting(0, "engines", "cores one network call may use; 0: all, or an equal share for each of "
        "several workers", high=1_024)
    restart_limit: int = _setting(5, "engines", "worker restarts a minute before the server gives up", high=1_000)
    stall_s: float = _setting(30.0, "engines", "seconds a worker that owes answers may be silent before it is "
        "replaced, longer than any network call; 0: no limit", low=1, high=86_400, off=True)
    load_timeout_s: float = _setting(600.0, "engines", "seconds a worker may take to load one model before it is "
        "replaced; 0: no limit", low=1, high=86_400, off=True)

    mode: Mode = _setting("fast", "scheduling", "fast: few images make a small batch; exact: every batch has the full "
        "size, and an image the same bytes in each", choices=get_args(Mode))
    policy: PolicyName = _setting("fifo", "scheduling", "the request that gets the next slot: the first, the one "
        "with the earliest deadline, or the one with the least work (images times steps, less its credit for waiting)",
        choices=get_args(PolicyName))
    ageing: float = _setting(15.0, "scheduling", "for policy shortest: network calls that a second of waiting counts "
        "for; the more, the closer to fifo", low=0.01, high=1_000_000)
    batch_delay_s: float = _setting(10.0, "scheduling", "a request of priority batch gets its slots as if it had come "
        "so many seconds later", high=86_400)
    capacity: int = _setting(0, "scheduling", "images of a model in one network call; 0: 8 in exact mode, else 24 or "
        "more, chosen from call times that are measured at start-up", high=4_096)

    max_queue: int = _setting(256, "limits", "images that may wait for a slot; beyond, 429", high=1_000_000)
    max_images: int = _setting(64, "limits", "images one request may ask for", low=1, high=256)
    max_body_bytes: int = _setting(0, "limits", "largest request body; beyond, 413; 0: what an image and a mask need, "
        "at least 5242880", low=1_024, high=2**30, off=True)
    body_share: float = _setting(0.25, "limits", "share of the room for request bodies that one address may hold; "
        "beyond, 429; 1: all of it, as behind a proxy that is not in trusted_proxies", low=1 / 32, high=1)
    url_bytes: int = _setting(67_108_864, "limits", "bytes of images that are kept for response_format url; 0: no "
        "urls, as behind a proxy that spreads requests over several servers", low=1_048_576, high=2**34, off=True)
    url_s: float = _setting(300.0, "limits", "seconds for which the url of an image is valid", low=1, high=86_400)
    timeout_s: float = _setting(60.0, "limits", "seconds a request may take, and the most it may ask for; beyond, 504",
        low=0.1, high=86_400)

    metrics_public: bool = _setting(False, "security", "/metrics answers without an API key")
    cors_origins: tuple[str, ...] = _setting((), "security", "web origins whose pages may use the server; * for all",
        unset="none", form=ORIGIN.fullmatch,
        what="an origin as browsers send it, such as https://example.org or http://localhost:3000 (in lower case, "
        "without the default port, a path or a slash at the end)")
    allowed_hosts: tuple[str, ...] = _setting((), "security", "host names to answer to, such as example.org or "
        "*.example.org; * for all", unset="loopback's names on loopback, else all", form=_is_host,
        what="a host name such as example.org or *.example.org, or an address such as [::1] (no scheme, no port)")
    trusted_proxies: tuple[str, ...] = _setting((), "security", "addresses or networks whose X-Forwarded-For and "
        "X-Forwarded-Proto are used", unset="none", form=_is_network,
        what="an address or network such as 127.0.0.1 or 10.0.0.0/8")

    log_level: LogLevel = _setting("warning", "logs", "the least severe messages that go to stderr",
        choices=get_args(LogLevel))
    log_format: LogFormat = _setting("text", "logs", "json: one object per line, and a line for every request",
        choices=get_args(LogFormat))
    # fmt: on

    def __post_init__(self) -> None:
        for name, folder in self.engines.items():
            if not MODEL_NAME.fullmatch(name):
                raise SettingsError(
                    f"a model cannot be served as {shown(name)}: a name has 1 to 64 letters, digits, dots, hyphens "
                    "or underscores and begins with a letter or digit; give it one with --engine NAME=DIR"
                )
            checked_path(str(folder), "--engine")
        if not self.engines:
            raise SettingsError("there is no model to serve; name one with --model NAME or --engine DIR")
        for option in OPTIONS:
            option.checked(getattr(self, option.name), option.flag)
        for number, key in enumerate(self.api_keys, start=1):  # a sentence about a key must not contain it
            if len(key) < MIN_KEY_CHARACTERS or not (key.isascii() and key.isprintable()) or " " in key:
                raise SettingsError(
                    f"API key {number} cannot be used: a key has at least {MIN_KEY_CHARACTERS} ASCII characters and "
                    "no spaces. Make one with: openssl rand -hex 32"
                )
        room = self.capacity * max(1, self.workers) * max(1, len(self.devices)) + self.max_queue
        if self.capacity and self.max_images > room:
            raise SettingsError(
                f"--max-images {self.max_images} could never be admitted: "
                f"--capacity of every worker and --max-queue add up to {room}"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server; of the names of hosts, only localhost is known to be so."""
        host = self.host.casefold().rstrip(".")
        with suppress(OSError):
            host = inet_ntoa(inet_aton(host))  # a short form, such as 127.1
        try:
            address = ip_address(host)
        except ValueError:
            return host == "localhost"
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names a Host header may carry; ("*",) for any.

        On loopback only loopback's: a page of another site can point its own name at 127.0.0.1 (DNS rebinding),
        but its requests then still carry that name.
        """
        if self.allowed_hosts:
            return tuple(map(comparable, self.allowed_hosts))
        return tuple(dict.fromkeys((*LOOPBACK_HOSTS, comparable(self.host)))) if self.loopback else ("*",)


def _options() -> Iterator[Option]:
    hints = get_type_hints(Settings)
    for each in fields(Settings):
        if "option" in each.metadata:
            hint, many = hints[each.name], get_origin(hints[each.name]) is tuple
            entry = get_args(hint)[0] if many else hint if hint in ENTRIES else str
            yield replace(each.metadata["option"], name=each.name, entry=entry, many=many, default=each.default)


OPTIONS = tuple(_options())


def checked_path(text: str, where: str) -> str:
    """The path, if a file can have it and a settings file can name it. Raises SettingsError."""
    if not PATH.fullmatch(text):
        raise SettingsError(f"{where} must be a path in UTF-8, not {shown(text)}")
    return text


def check_runtime(settings: Settings) -> None:
    """Raises SettingsError where page_runtime lacks a file that a browser would ask for."""
    if settings.page_runtime is None:
        return
    folder = Path(settings.page_runtime)
    if not folder.is_dir():
        raise SettingsError(f"--page-runtime: there is no folder {shown(str(folder))}; {RUNTIME_HOW}")
    if missing := [name for name in RUNTIME_FILES if not (folder / name).is_file()]:
        raise SettingsError(f"--page-runtime: {shown(str(folder))} lacks {', '.join(missing)}; {RUNTIME_HOW}")
