"""Before a run: whether there is a server, which model it has, and whether it takes requests of every kind."""

import asyncio
import json
import time
from dataclasses import replace
from statistics import fmean

from benchmarks.load.arrivals import Arrival
from benchmarks.load.http_client import Answer, Pool
from benchmarks.serving.offering import SEEDS, ServeError
from benchmarks.serving.target import Target

CHECK_S = 60.0  # that the first requests may take at least; a model may still be loading
BUSY = (429, 503)  # statuses of servers that would take the request at another time


async def check(target: Target, patience_s: float = CHECK_S) -> tuple[Target, float]:
    """The target with its model's name, and the mean seconds of a request alone. Raises ServeError.

    patience_s: for one answer.
    """
    pool = Pool(target.base_url)
    try:
        target = await _with_model(target, pool, patience_s)
        taken = []
        for place, kind in enumerate([*target.mix, *target.mix]):
            index = place % len(target.mix)
            arrival = Arrival(0.0, kind.steps or 0, kind.images, SEEDS + 1000 * place, index)
            began = time.perf_counter()
            answer = await _fetched(pool, target.post(arrival), target, patience_s)
            if wrong := target.judge(arrival, answer):
                said = _message(answer)
                if answer.status in BUSY:
                    raise ServeError(f"the server is too busy for a request on its own: {wrong}{said}; try again later")
                fields = json.dumps(target.fields(arrival))
                raise ServeError(f"the server does not take a request of this kind: {wrong}{said}; it was {fields}")
            if place >= len(target.mix):
                taken.append(time.perf_counter() - began)
        return target, fmean(taken)
    finally:
        pool.close()


async def _fetched(pool: Pool, payload: bytes, target: Target, patience_s: float) -> Answer:
    try:
        return await asyncio.wait_for(pool.fetch(payload, patience_s), patience_s)
    except TimeoutError:
        raise ServeError(
            f"{target.base_url} has not answered in {patience_s:g} s; is it still loading? --timeout 10m waits longer"
        ) from None
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise ServeError(
            f"no server answers at {target.base_url} ({why}); is it running, and is the address right?"
        ) from None


async def _with_model(target: Target, pool: Pool, patience_s: float) -> Target:
    """Servers without a list of models are taken at the user's word."""
    answer = await _fetched(pool, target.get(f"{target.prefix}/models"), target, patience_s)
    if answer.status in (401, 403):
        do = "does not take the API key that --key-env names" if target.key else "wants an API key; name the variable "
        do += "" if target.key else "that holds it with --key-env NAME"
        raise ServeError(f"the server {do} ({answer.status}{_message(answer)})")
    try:
        names = [str(entry["id"]) for entry in json.loads(answer.body)["data"]] if answer.status == 200 else []
    except (ValueError, KeyError, TypeError):
        names = []
    if not names:
        return target
    if target.model is None:
        return replace(target, model=names[0])
    if target.model not in names:
        raise ServeError(f"the server has no model {target.model!r}; it has {', '.join(names[:20])}")
    return target


def _message(answer: Answer) -> str:
    """What an error answer says, behind a colon."""
    try:
        body = json.loads(answer.body)
        error = body.get("error") or body.get("detail")
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError, AttributeError):
        said = answer.body[:200].decode("latin-1").strip()
    return f": {str(said)[:300]}" if said and answer.status != 200 else ""
