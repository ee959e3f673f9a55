"""Ray Serve as the host: the same engines, policy and dialects, as replicas on a cluster.

    python -m server.hosts.ray --model fashion --min-replicas 1 --max-replicas 4 --gpus 1

joins the cluster at --address, or starts Ray on this machine, and serves until a stop signal. `fewstep cluster` is the
same. Where the application outlives this program, Ray builds it by fewstep.commands.cluster.application (KubeRay).

replica   an engine loop and the dialects (server.hosts.ray_replica); batches form in it, step by step
proxy     Ray's, one on each node: chooses the replica, and asks another one where it dies (ray_routing, ray_replay)
controller  Ray's: starts, replaces and counts replicas (ray_routing)
"""

import argparse
import http.client
import math
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from export.manifest import Manifest, read_student
from fewstep import application as code
from fewstep import extras
from fewstep.card import CheckpointError
from fewstep.ranges import Range, number, whole
from server.__main__ import bind
from server.hosts.forked import LOOPBACK, place
from server.scheduler.calibration import MAX_KNEE
from server.settings.settings import Settings, SettingsError
from server.settings.sources import resolve

if TYPE_CHECKING:
    from ray.serve import Application  # pyright: ignore[reportMissingImports]

NAME = "fewstep"  # of the application and its one deployment
EXIT_REFUSED = 2
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
MIDDLEWARES = "fewstep.commands.cluster.middlewares"
OTHERS = 64  # requests that make no images, and requests that are being refused, beside those that a replica accepts
MARGIN_S = 15.0  # Ray's limit for a request above ours: so long may a replica be looked for
HOST_PORT = re.compile(r"[^/]+:\d+")
REACHED_S = 5.0  # within which the head of a cluster must take a connection
STATS_S = 1.0  # how often a proxy hears how full the replicas are
# Ray does this itself, or no process of it knows the setting.
RAYS = {
    "api_processes": "Ray runs a proxy on each node",
    "devices": "Ray gives each replica its GPUs: --gpus",
    "workers": "--min-replicas and --max-replicas say how many",
    "restart_limit": "Ray replaces replicas as often as they die",
    "load_timeout_s": "Ray waits for replicas that load",
    "drain_s": "Ray takes a replica out of its proxies before it stops it",
    "trusted_proxies": "uvicorn in Ray's proxies reads FORWARDED_ALLOW_IPS",
    "url_bytes": "a url may lead to another replica, so there are none",
    "url_s": "a url may lead to another replica, so there are none",
}


@dataclass(frozen=True)
class Plan:
    """How many replicas, and what each has. Raises SettingsError for what is not allowed."""

    min_replicas: int = 1  # from 1
    max_replicas: int = 1
    cpus: float = 1.0  # cores of a replica; a network call uses as many, unless `threads` says otherwise
    gpus: float = 0.0  # of a replica: 0.5 puts two on a GPU
    images_per_slot: float = 1.0  # accepted images for each slot, above which there shall be more replicas
    upscale_s: float = 10.0  # so long must more replicas be wanted
    downscale_s: float = 300.0  # and fewer

    def __post_init__(self) -> None:
        if self.max_replicas < self.min_replicas:
            raise SettingsError(
                f"--max-replicas {self.max_replicas} is below --min-replicas {self.min_replicas}; give both the same "
                "number for a fixed number of replicas"
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise SettingsError(
                f"--gpus must be a whole number or at most 1, not {self.gpus:g}: Ray shares single GPUs"
            )


def build(
    settings: Settings, manifests: Mapping[str, Manifest], plan: Plan, prepare: Callable[[], None] | None = None
) -> "Application":
    """The application for Ray Serve. prepare: called in each replica before it loads its models."""
    from ray import serve  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from ray.serve.config import RequestRouterConfig  # pyright: ignore[reportMissingImports]

    from server.hosts.ray_replica import Replica
    from server.hosts.ray_routing import FreeSlotsRouter

    accepted = (settings.capacity or MAX_KNEE) * len(manifests) + settings.max_queue
    deployment = serve.deployment(Replica).options(
        name=NAME,
        max_ongoing_requests=accepted + OTHERS,  # the replica refuses what is too much, with 429; Ray would hold it
        graceful_shutdown_timeout_s=settings.grace_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=1.0,
        health_check_timeout_s=10.0,
        # A line for each request would be written twice; ours are those of --log-level info.
        logging_config={"enable_access_log": False, "log_level": settings.log_level.upper()},
        ray_actor_options={
            "num_cpus": plan.cpus,
            "num_gpus": plan.gpus,
            "runtime_env": {"env_vars": {"PYTHONPATH": python_path()}},
        },
        request_router_config=RequestRouterConfig(
            request_router_class=FreeSlotsRouter, request_routing_stats_period_s=STATS_S
        ),
        **(_scaled(plan) if plan.max_replicas > plan.min_replicas else {"num_replicas": plan.min_replicas}),
    )
    threads = settings.threads or max(1, math.ceil(plan.cpus))
    folders = {name: folder.resolve() for name, folder in settings.engines.items()}
    settings = replace(settings, threads=threads, engines=folders)
    return deployment.bind(settings, manifests, *([prepare] if prepare else []))


def _scaled(plan: Plan) -> dict[str, Any]:
    """The options of a deployment whose replicas are as many as the accepted images need."""
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy  # pyright: ignore[reportMissingImports]

    from server.hosts.ray_routing import ImagesPerSlot

    policy = AutoscalingPolicy(policy_function=ImagesPerSlot, policy_kwargs={"images_per_slot": plan.images_per_slot})
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=plan.min_replicas,
            max_replicas=plan.max_replicas,
            upscale_delay_s=plan.upscale_s,
            downscale_delay_s=plan.downscale_s,
            policy=policy,
        )
    }


def understood(arguments: Sequence[str] | None = None) -> tuple[Settings, dict[str, Manifest], Plan, str | None]:
    """What the flags, the environment and the settings file say; last, the address of the cluster, or None.

    Raises SettingsError or CheckpointError.
    """
    parser = _parser()
    chosen, others = parser.parse_known_args(arguments)
    own = [name for action in parser._actions for name in action.option_strings]
    resolved = resolve(others, prog=parser.prog, further=own)
    if resolved.check:
        raise SettingsError("--check is for one machine: fewstep serve --check tries the engines and ends")
    for name, why in RAYS.items():
        if resolved.sources[name] != "default":
            raise SettingsError(f"{resolved.sources[name]} has no effect on Ray: {why}; leave it out")
    given = {field.name: getattr(chosen, field.name) for field in fields(Plan)}
    plan = Plan(**{**given, "max_replicas": chosen.max_replicas or chosen.min_replicas})
    settings = resolved.settings
    if not settings.port:
        raise SettingsError("--port 0 would be another port on each node; name one")
    manifests = {name: read_student(folder, name) for name, folder in settings.engines.items()}
    return settings, manifests, plan, chosen.address


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; {self.prog} --help lists the flags")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fewstep cluster",
        description="Serve students on a Ray cluster. Beside these flags it takes those of `fewstep serve`: --model,\n"
        "--engine, --port, --capacity, --mode and so on.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default = Plan()
    add = parser.add_argument
    add("--address", metavar="HOST:PORT", help="the cluster; default: RAY_ADDRESS, else Ray is started on this machine")
    add("--min-replicas", type=whole(1, 4096), default=default.min_replicas, metavar="N", help="at least (default: 1)")
    add("--max-replicas", type=whole(1, 4096), default=None, metavar="N",
        help="at most, as the images that wait need them (default: --min-replicas)")  # fmt: skip
    add("--cpus", type=number(Range(0.1, 1024)), default=default.cpus, metavar="X",
        help="cores of a replica (default: 1)")  # fmt: skip
    add("--gpus", type=number(Range(0, 16)), default=default.gpus, metavar="X",
        help="GPUs of a replica; 0.5 puts two replicas on one (default: 0)")  # fmt: skip
    add("--images-per-slot", type=number(Range(0.1, 1000)), default=default.images_per_slot, metavar="X",
        help="accepted images for each slot of the replicas, above which more are started (default: 1)")  # fmt: skip
    add("--upscale-s", type=number(Range(0, 3600)), default=default.upscale_s, metavar="SECONDS",
        help="how long more replicas must be wanted before they are started (default: 10)")  # fmt: skip
    add("--downscale-s", type=number(Range(0, 86_400)), default=default.downscale_s, metavar="SECONDS",
        help="how long fewer must be wanted before some are stopped (default: 300)")  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 after an orderly stop, 2 (and a sentence on stderr) when it cannot start."""
    try:
        settings, manifests, plan, address = understood(arguments)
        with extras.named():
            return serve_until_stopped(settings, manifests, plan, address)
    except (SettingsError, CheckpointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_REFUSED


def serve_until_stopped(
    settings: Settings, manifests: Mapping[str, Manifest], plan: Plan, address: str | None = None
) -> int:
    """Join or start Ray, serve until SIGTERM or SIGINT, and take the application down. Returns the exit code.

    Raises SettingsError where the cluster is not there, or the replicas cannot start on it.
    """
    from ray import serve, shutdown  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    if not (address or os.environ.get("RAY_ADDRESS")):
        bind(settings).close()  # Ray would say in a log that the port is taken, and go on
    join(address)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has set its own
    try:
        try:
            start_proxies(settings)
            serve.run(build(settings, manifests, plan), name=NAME, route_prefix="/")
        except RuntimeError as error:  # Ray has given up, and logged why
            raise SettingsError(f"the replicas cannot start; Ray's log says why: {error}") from error
        where = place(settings.host, settings.port)
        if not proxies_replay(settings):
            print(REPLAYS_MISSING.format(where), file=sys.stderr, flush=True)
        print(f"serving {', '.join(manifests)} on {where} by Ray", flush=True)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return 0
    finally:
        try:
            serve.delete(NAME)  # answers what is accepted, for grace_s at most
        finally:
            shutdown()


REPLAYS_MISSING = (
    "warning: no proxy says at {} that it makes requests again: one whose replica dies may be answered 500. "
    f"Start Ray on every node with {CALLBACK}={MIDDLEWARES}"
)


def prepare_environment() -> None:
    """What a cluster that is started from here needs: its processes inherit it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send statistics to its makers
    os.environ.setdefault(CALLBACK, MIDDLEWARES)
    os.environ["PYTHONPATH"] = python_path()


def python_path() -> str:
    """Where a replica finds our packages: where this process has found them, in the same place on each node."""
    package = Path(code.__file__).parents[1]  # holds `fewstep`; in a wheel, the other folders are in code.ROOT
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join(dict.fromkeys([str(code.ROOT), str(package), *given]))


def join(address: str | None) -> None:
    """Connect to a cluster, of RAY_ADDRESS where None; start one on this machine where there is neither.

    Raises SettingsError.
    """
    from ray import init  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    prepare_environment()
    address = address or os.environ.get("RAY_ADDRESS") or None
    try:
        if address and HOST_PORT.fullmatch(address):  # without a listener there Ray tries for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), REACHED_S).close()
        init(address=address, namespace=NAME, include_dashboard=None if address else False, logging_level="WARNING")
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        where = f"at {address}" if address else "on this machine"
        raise SettingsError(f"Ray cannot be reached {where}: {error}; start it with: ray start --head") from error


def start_proxies(settings: Settings, *, everywhere: bool = True) -> None:
    """Ray's HTTP proxies, unless the cluster has them: then those keep their address and limits.

    everywhere: one on each node, else on the head alone.
    """
    from ray import serve  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from ray.serve.config import HTTPOptions  # pyright: ignore[reportMissingImports]

    options = HTTPOptions(
        host=settings.host,
        port=settings.port,
        request_timeout_s=settings.timeout_s + MARGIN_S,
        keep_alive_timeout_s=math.ceil(settings.keep_alive_s),
    )
    serve.start(proxy_location="EveryNode" if everywhere else "HeadOnly", http_options=options)


def proxies_replay(settings: Settings) -> bool:
    """Whether the proxy of this address has server.hosts.ray_replay."""
    from server.hosts.ray_replay import PROBE

    connection = http.client.HTTPConnection(LOOPBACK.get(settings.host, settings.host), settings.port, timeout=10)
    try:
        connection.request("GET", PROBE)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
