"""`fewstep cluster`: the server on a Ray cluster; and what Ray imports of it by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from fewstep import application as code


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    from server.hosts import ray

    return ray.main(arguments)


def middlewares() -> list[Any]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH: a request whose replica dies is made again by another one."""
    code.put_on_path()
    from server.hosts.ray_replay import middlewares

    return middlewares()


def application(args: Mapping[str, Any]) -> Any:
    """The Ray Serve application of a serve configuration: import_path: fewstep.commands.cluster:application.

    args: the flags of `fewstep cluster` without dashes, such as {"model": "fashion", "max_replicas": 4}; a list for a
    flag that is given several times. Raises ValueError in a sentence.
    """
    code.put_on_path()
    from server.hosts import ray

    flags = [
        word
        for name, value in args.items()
        for each in (value if isinstance(value, list) else [value])
        for word in (f"--{name.replace('_', '-')}", str(each))
    ]
    settings, manifests, plan, _ = ray.understood(flags)
    return ray.build(settings, manifests, plan)
