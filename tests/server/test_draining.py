"""What the HTTP process does after a stop signal, without the process."""

import asyncio
import signal

import pytest
import uvicorn

from server.admission import Admission
from server.draining import DrainingServer
from server.engine_client import EngineClient
from tests.server.stage import Stage, play


def draining_server(client: EngineClient, grace_s: float) -> DrainingServer:
    async def app(scope, receive, send) -> None: ...

    return DrainingServer(uvicorn.Config(app), client, grace_s)


def test_nobody_waiting_means_nothing_to_wait_for():
    server = draining_server(EngineClient(["tiny"], 1, Admission(4), lambda: None), grace_s=30)
    assert asyncio.run(server.on_tick(0)) is False
    server.handle_exit(signal.SIGTERM, None)
    assert server.client.draining and asyncio.run(server.on_tick(1)) is True


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_only_a_second_interrupt_ends_the_grace_period(second: signal.Signals):
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        await stage.taken()
        server = draining_server(stage.client, grace_s=30)
        server.handle_exit(signal.SIGINT, None)
        assert await server.on_tick(1) is False
        server.handle_exit(second, None)
        assert await server.on_tick(2) is (second == signal.SIGINT)
        waiting = [entry.future.done() for entry in stage.client.pending.values()]
        assert waiting == [second == signal.SIGINT]
        stage.left.set()
        await asyncio.wait([task])
        task.exception()
        assert await server.on_tick(3) is True

    play(scenario)
