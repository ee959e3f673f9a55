"""What `python -m server` can be told, and what it refuses. Standard library only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal

MODELS = Path(__file__).resolve().parents[2] / "models"  # the students that ship with the checkout

Mode = Literal["fast", "exact"]
PolicyName = Literal["fifo", "deadline"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # goes into logs, labels of metrics and file names
ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-fA-F:]+\](:\d{1,5})?|\*")
HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[?[0-9a-fA-F:]+\]?|\*")
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
MIN_KEY_CHARACTERS = 16


class SettingsError(ValueError):
    """Settings the server cannot start with; the message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """One field per flag, environment variable and key of the settings file, all of the same name."""

    engines: Mapping[str, Path]  # name of the model -> engine directory; the first is the default model
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free port
    backend: str | None = None  # None: the one each engine's manifest names
    mode: Mode = "fast"
    policy: PolicyName = "fifo"
    # Slots: images of one model that share a network call; on a CPU more of them only make it longer.
    capacity: int = 8  # 0: chosen at start-up at the knee of the measured time of a call
    threads: int = 0  # cores one network call may use; 0: all
    devices: tuple[int, ...] = ()  # GPUs by number; empty: the first one, or the CPU
    workers: int = 1  # engine processes on each device
    restart_limit: int = 5  # restarts of a worker within a minute before the server gives up
    stall_s: float = 30.0  # how long a worker that owes answers may be silent before it is replaced; 0: for ever
    load_timeout_s: float = 600.0  # how long a worker may take to load one model before it is replaced; 0: for ever
    max_queue: int = 256  # images that may wait for a slot
    max_images: int = 64  # images one request may ask for
    max_body_bytes: int = 0  # 0: what the largest edit of a served model needs, and never less than 65536
    timeout_s: float = 60.0  # the longest an accepted request may take
    drain_s: float = 5.0  # how long a stopping server still answers 503, so that load balancers notice
    grace_s: float = 30.0  # how long a stopping server lets its requests finish
    log_level: LogLevel = "warning"
    log_format: LogFormat = "text"
    api_keys: tuple[str, ...] = field(default=(), repr=False)  # empty: everybody may ask
    metrics_public: bool = False  # whether /metrics answers without a key; without keys it always does
    cors_origins: tuple[str, ...] = ()  # web origins whose pages may ask; empty: this server's own page only
    allowed_hosts: tuple[str, ...] = ()  # Host headers to answer; empty: loopback's names, or any beyond loopback
    trusted_proxies: tuple[str, ...] = ()  # addresses whose X-Forwarded-For is believed; empty: nobody's

    def __post_init__(self) -> None:
        self._check_engines()
        _within("--port", self.port, 0, 65_535)
        _within("--capacity", self.capacity, 0, 4_096)
        _within("--threads", self.threads, 0, 1_024)
        _within("--workers", self.workers, 1, 64)
        _within("--restart-limit", self.restart_limit, 0, 1_000)
        for flag, limit_s in (("--stall-s", self.stall_s), ("--load-timeout-s", self.load_timeout_s)):
            if limit_s != 0 and not 1 <= limit_s <= 86_400:  # a busy machine may well be silent for less
                raise SettingsError(f"{flag} must be 0, or from 1 to 86400, not {limit_s:g}")
        _within("--max-queue", self.max_queue, 0, 1_000_000)
        _within("--max-images", self.max_images, 1, 256)
        if self.max_body_bytes != 0:
            _within("--max-body-bytes", self.max_body_bytes, 1_024, 2**30)
        _within("--timeout-s", self.timeout_s, 0.1, 86_400)
        _within("--drain-s", self.drain_s, 0, 3_600)
        _within("--grace-s", self.grace_s, 0, 3_600)
        self._check_devices()
        self._check_access()
        room = self.capacity * self.workers * max(1, len(self.devices)) + self.max_queue
        if self.capacity and self.max_images > room:
            raise SettingsError(
                f"--max-images {self.max_images} could never be admitted: "
                f"--capacity of every worker and --max-queue add up to {room}"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host.casefold() == "localhost"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names a Host header may carry; ("*",) for any.

        On loopback only loopback's: a page of another site can point its own name at 127.0.0.1 (DNS rebinding),
        but its requests then still carry that name.
        """
        if self.allowed_hosts:
            return tuple(host.casefold().strip("[]") for host in self.allowed_hosts)
        return tuple(dict.fromkeys((*LOOPBACK_HOSTS, self.host.casefold()))) if self.loopback else ("*",)

    def _check_engines(self) -> None:
        if not self.engines:
            raise SettingsError("there is no model to serve; name one with --model NAME or --engine DIR")
        for name in self.engines:
            if not MODEL_NAME.fullmatch(name):
                raise SettingsError(
                    f"a model cannot be served as {name!r}: a name has 1 to 64 letters, digits, dots, hyphens or "
                    "underscores and begins with a letter or digit; give it one with --engine NAME=DIR"
                )

    def _check_devices(self) -> None:
        for device in self.devices:
            _within("--devices", device, 0, 1_024)
        if len(set(self.devices)) < len(self.devices):
            raise SettingsError("--devices names a GPU twice; --workers sets how many processes share one")

    def _check_access(self) -> None:
        for number, key in enumerate(self.api_keys, start=1):  # a sentence about a key must not contain it
            if len(key) < MIN_KEY_CHARACTERS or not (key.isascii() and key.isprintable()) or " " in key:
                raise SettingsError(
                    f"API key {number} cannot be used: a key has at least {MIN_KEY_CHARACTERS} ASCII characters and "
                    "no spaces. Make one with: openssl rand -hex 32"
                )
        for origin in self.cors_origins:
            if not ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"--cors-origins: {origin!r} is not an origin such as https://example.org or "
                    "http://localhost:3000 (no path, no slash at the end)"
                )
        for host in self.allowed_hosts:
            if not HOST_NAME.fullmatch(host):
                raise SettingsError(
                    f"--allowed-hosts: {host!r} is not a host name such as example.org or *.example.org "
                    "(no scheme, no port)"
                )
        for address in self.trusted_proxies:
            try:
                ip_network(address)
            except ValueError as error:
                raise SettingsError(
                    f"--trusted-proxies: {address!r} is not an address or network such as 127.0.0.1 or 10.0.0.0/8"
                ) from error


def _within(flag: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SettingsError(f"{flag} must be from {low} to {high}, not {value}")
