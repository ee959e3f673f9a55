"""The most a server gives: a fixed number of requests always outstanding. A figure for throughput, not for latency."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.load.arrivals import STEP_MIX
from benchmarks.load.http_client import Pool, generate


async def saturate(
    url: str,
    outstanding: int,
    warmup_s: float,
    duration_s: float,
    *,
    steps: Sequence[int] = STEP_MIX,
    images: int = 1,
    body: Callable[[Mapping[str, Any]], bytes] = generate,
) -> float:
    """Images per second answered with 200 between warmup_s and duration_s. Raises RuntimeError on another answer.

    body: the bytes of a request for these fields.
    """
    pool, wanted = Pool(url), _mix(steps)
    start = time.perf_counter()
    answered = 0

    async def user(index: int) -> None:
        nonlocal answered
        seed = index * 1_000_000
        while (now := time.perf_counter() - start) < duration_s:
            seed += images
            answer = await pool.fetch(body({"steps": next(wanted), "n": images, "seed": seed}))
            if answer.status != 200:
                raise RuntimeError(f"the server answered {answer.status} to one of {outstanding} outstanding requests")
            now = answer.done_s - start
            answered += images * (warmup_s <= now < duration_s)

    try:
        async with asyncio.TaskGroup() as group:
            for index in range(outstanding):
                group.create_task(user(index))
    except ExceptionGroup as group:  # all users meet the same
        raise group.exceptions[0] from None
    finally:
        pool.close()
    return answered / (duration_s - warmup_s)


def _mix(steps: Sequence[int]) -> Iterator[int]:
    """Step counts in equal shares: every len(steps) of them are a shuffle of the mix."""
    order = np.random.default_rng(0)
    while True:
        yield from order.permutation(steps).tolist()
