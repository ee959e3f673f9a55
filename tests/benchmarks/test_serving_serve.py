"""`fewstep bench serve` against a small server of another kind, whose answers are known, and against ours."""

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import ROOT
from benchmarks.load.arrivals import Arrival
from benchmarks.load.cores import Layout
from benchmarks.load.http_client import Answer, take_answer
from benchmarks.load.open_loop import Record
from benchmarks.load.servers import ours
from benchmarks.serving.figures import keeps_p99, own, peers, rows
from benchmarks.serving.mix import parse_mix
from benchmarks.serving.offering import Load, schedule
from benchmarks.serving.serve import main
from benchmarks.serving.target import Target, checked_url, extra_field
from benchmarks.serving.told import Told

LATENCY_S = 0.05
IMAGE = base64.b64encode(b"an image").decode()
KEY = "a-key-of-this-test"


class Other:
    """A server with OpenAI's Images API that makes an image in LATENCY_S, however many it makes at a time.

    status: of a request by its body; what is not 200 is an error. It answers in chunks, and knows no other fields.
    """

    def __init__(self, status: Callable[[dict[str, Any]], int] = lambda body: 200, fields: str = "prompt model n seed"):
        self.status, self.fields = status, {*fields.split()}
        self.bodies: list[dict[str, Any]] = []
        self.now = self.most = 0  # requests in the making

    async def answer(self, path: str, headers: str, body: dict[str, Any]) -> tuple[int, Any]:
        if f"authorization: bearer {KEY}" not in headers:
            return 401, {"detail": "no key"}
        if path == "/api/v1/models":
            return 200, {"data": [{"id": "other"}]}
        if path != "/api/v1/images/generations" or not set(body) <= self.fields:
            return 400, {"error": {"message": f"{path} takes no {sorted(body)}", "code": "unknown"}}
        self.bodies.append(body)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(LATENCY_S)
        self.now -= 1
        status = self.status(body)
        code = {"error": {"code": "busy"}}
        return status, {
            "data": [{"b64_json": IMAGE}] * body.get("n", 1),
            "peak_memory_mb": 7,
            "stage_durations": {"denoise": 0.5, "note": "none"},
        } if status == 200 else code

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                length = int(head.split("content-length:")[1].split()[0])
                body = json.loads(await reader.readexactly(length) or b"{}")
                status, said = await self.answer(head.split()[1], head, body)
                text = json.dumps(said).encode()
                writer.write(b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status)
                writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(text), text))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@contextmanager
def running(other: Other) -> Iterator[str]:
    """Its address, while it runs in a thread."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(other.serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", KEY)


def measured(url: str, out: Path, flags: str, *more: str) -> dict[str, Any]:
    assert main(["--base-url", url, "--key-env", "OTHER_KEY", "--json", str(out), *flags.split(), *more]) == 0
    return json.loads(out.read_text())


def test_another_server_gets_openais_fields_only_and_its_latency_is_what_it_takes(tmp_path: Path):
    other = Other(fields="prompt model")
    with running(other) as url:
        result = measured(url, tmp_path / "o.json", "--rate 100 --requests 100 --warmup 0 --prompt cat")
    assert all(body == {"prompt": "cat", "model": "other"} for body in other.bodies)
    assert (result["completed_requests"], result["failed_requests"], result["errors"]) == (100, 0, {})
    assert result["latency_p50"] == result["latency_median"] >= LATENCY_S
    assert result["latency_p50"] <= result["latency_p95"] <= result["latency_p99"]
    # M/D/infinity: rate times latency requests are in the making in the mean; a closed loop would have one.
    assert other.most >= 3
    assert result["peak_memory_mb_max"] == result["peak_memory_mb_mean"] == 7
    assert result["stage_durations_mean"] == result["stage_durations_p99"] == {"denoise": 0.5}
    assert result["quotable"] is False, "it took a second"
    assert result["network_calls"] is None and result["images_per_s"] == pytest.approx(result["throughput_qps"])
    assert result["format"] == 1 and result["settings"]["request"] == {"prompt": "cat", "model": "other"}


def test_failures_are_counted_by_kind_and_seeds_differ(tmp_path: Path):
    statuses = {0: 429, 1: 503}
    other = Other(lambda body: statuses.get(body["seed"] % 5, 200) if body["seed"] < 2**30 else 200)
    flags = "--rate 200 --requests 60 --warmup 0.1s --extra seed={seed} --slo 60s --mix"
    with running(other) as url:
        result = measured(url, tmp_path / "o.json", flags, '[{"weight": 1}]')
    seeds = [body["seed"] for body in other.bodies]
    assert len(set(seeds)) == len(seeds) >= 62
    expected = [statuses.get(seed % 5) for seed in sorted(seed for seed in seeds if seed < 2**30)[-60:]]
    counts = {f"{status} busy": expected.count(status) for status in (429, 503)}
    assert result["errors"] == counts and min(counts.values()) > 0
    assert result["failed_requests"] == sum(counts.values()) == 60 - result["completed_requests"]
    assert result["slo_attainment_rate"] == result["completed_requests"] / 60


def test_a_search_finds_the_rate_at_which_the_server_refuses_and_plays_it_for_longer_until_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What it refuses here is the arrivals of a rate, not a load: more than 300 requests/s, and for longer than the
    search's 20 requests more than 250."""
    monkeypatch.setattr("benchmarks.serving.search.MAX_LAG_S", 10.0)  # a busy machine may not end this search
    loads: list[Load] = []
    monkeypatch.setattr(
        "benchmarks.serving.search.schedule", lambda load, mix: loads.append(load) or schedule(load, mix)
    )

    def taken(load: Load) -> bool:
        return load.rate <= (300 if load.count else 250)

    other = Other(lambda body: 200 if not loads or taken(loads[-1]) else 429)
    with running(other) as url:
        flags = "--rate search --p99 20s --requests 20 --warmup 0 --confirm 100ms"
        result = measured(url, tmp_path / "o.json", flags)
    assert [trial["kept"] for trial in result["trials"]] == [taken(load) for load in loads]
    searched = [load.rate for load in loads if load.count]
    assert max(rate for rate in searched if rate <= 300) >= 300 / 1.06 and len(searched) < len(loads) - 1
    assert 250 / 1.06 <= loads[-1].rate == result["settings"]["rate"] <= 250 and loads[-1].duration_s == 0.1
    assert len({load.seed for load in loads}) == len(loads), "every trial has arrivals of its own"
    found = max(rate for rate in searched if rate <= 300)
    with running(other) as url:
        loads.clear()
        result = measured(url, tmp_path / "o.json", f"{flags} --share 0.5")
    assert loads[-1].rate == result["settings"]["rate"] == pytest.approx(found / 2, rel=0.2)
    assert [load.count for load in loads[-2:]] == [20, None], "half of the rate is kept at once"


def test_stages_are_read_of_a_header_or_of_the_body_and_what_is_no_number_is_left_out():
    told = Told()
    told.note(Answer(200, {"server-timing": 'queue;dur=12.5, miss, gpu;desc="all, of it";dur=3'}, b"{}", 0.0))
    told.note(Answer(200, {"server-timing": "queue;dur=7.5"}, b'{"stage_durations": {"vae": 2, "x": null}}', 0.0))
    for body in (b"\x89PNG", b'["peak_memory_mb"]', b'{"peak_memory_mb": "7"}', b'{"stage_durations": 3, '):
        told.note(Answer(200, {}, body, 0.0))
    assert told.figures() == {
        f"stage_durations_{name}": {"queue": pytest.approx(0.0125), "gpu": 0.003, "vae": 2.0}
        for name in ("mean", "p50", "p99")
    }


def test_a_busy_server_is_said_and_early_hints_are_no_answer(capsys: pytest.CaptureFixture[str]):
    with running(Other(lambda body: 429)) as url, pytest.raises(SystemExit):
        main(["--base-url", url, "--key-env", "OTHER_KEY", "--rate", "1"])
    said = capsys.readouterr().err
    assert said.startswith("error: the server is too busy for a request on its own: 429 busy") and "try again" in said
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    answer, left = take_answer(hints + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert answer and (answer.status, answer.body, left) == (200, b"ok", b"")
    assert take_answer(hints) == (None, b"")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--rate 1 --model sdxl", "the server has no model 'sdxl'; it has other"),
        ("--rate 1 --mix 4", "the server does not take a request of this kind: 400 unknown: /api/v1/images/generations "
         "takes no ['model', 'num_inference_steps', 'prompt', 'seed']; it was {"),
        ("--rate 1 --key-env EMPTY", "--key-env EMPTY: there is no such variable, or it is empty"),
        ("--rate 1 --key-env PATH", "the server does not take the API key that --key-env names (401: no key)"),
        ("--rate 0", "--rate: 0 is not a number from 0.001 to 1,000,000"),
        ("--rate search", "--rate search needs --p99"),
        ("--rate 1 --p99 5ms", "--p99 is of --rate search; --slo"),
        ("--rate 1 --confirm 5m", "--confirm is of --rate search"),
        ("--rate search --p99 1s --share .8", "--share is of --confirm"),
        ("--rate search --p99 1s --confirm 5m --share 1.2", "--share: 1.2 is not a number above 0 and at most 1"),
        ("--rate 1 --requests 2 --duration 2s", "give --requests or --duration, not both"),
        ("--rate 1 --api native --size 3x3", "--api native has no sizes"),
        ("--rate 0.001 --duration 10ms --warmup 0", "0.001 requests/s for 10 ms made no request; run longer"),
        ("--rate 1 --extra x={y}", "--extra: {y} in 'x={y}' stands for nothing"),
        ("--rate 1 --extra x", "--extra: 'x' is no field; write NAME=VALUE"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_said(flags: str, sentence: str, capsys: pytest.CaptureFixture[str]):
    with running(Other()) as url, pytest.raises(SystemExit) as end:
        main(["--base-url", url, "--key-env", "OTHER_KEY", *flags.split()])
    assert end.value.code == 2 and capsys.readouterr().err.startswith(f"error: {sentence}")


def test_a_missing_server_and_a_missing_key_are_said(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--base-url", "http://127.0.0.1:1", "--rate", "1"])
    assert "error: no server answers at http://127.0.0.1:1 (" in capsys.readouterr().err
    with running(Other()) as url, pytest.raises(SystemExit):
        main(["--base-url", url, "--rate", "1"])
    assert "error: the server wants an API key; name the variable that holds it with --key-env NAME (401: no key)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://u:p@a", "http://a/?q=1"])
def test_other_addresses_are_refused(url: str):
    with pytest.raises(ValueError, match="is no address of a server"):
        checked_url(url)


def test_the_native_api_and_the_extra_fields():
    mix = parse_mix("4x2b,1")
    native = Target("http://a", "native", mix, "fashion")
    arrival = Arrival(0.0, 4, 2, 9)
    assert native.path == "/v1/generate"
    assert native.fields(arrival) == {"model": "fashion", "n": 2, "seed": 9, "steps": 4, "priority": "batch"}
    extra = dict(map(extra_field, ("seed={seed}", "user=run {seed} of {images}", "quality=low", "f=1.5", "o={}")))
    asked = Target("http://a/v2/", "openai", mix, extra=extra)
    assert asked.path == "/v2/images/generations"
    assert asked.fields(Arrival(0.0, 1, 1, 8, kind=1)) == {
        "prompt": "", "num_inference_steps": 1, "seed": 8, "user": "run 8 of 1", "quality": "low", "f": 1.5, "o": {},
    }  # fmt: skip


def test_a_schedule_is_poisson_of_its_seed_and_its_image_seeds_are_distinct():
    load, mix = Load(200.0, 20.0, warmup_s=2.0, seed=4), parse_mix("1:.75,4x3:.25")
    arrivals = schedule(load, mix)
    assert arrivals == schedule(load, mix)
    due = np.array([arrival.due_s for arrival in arrivals])
    assert (np.diff(due) >= 0).all() and due[0] >= -2 and np.sum(due < 0) == pytest.approx(400, abs=80)
    assert np.std(np.diff(due)) == pytest.approx(1 / 200, rel=0.1)
    made = [arrival.seed + image for arrival in arrivals for image in range(arrival.images)]
    assert len(set(made)) == len(made) and max(made) < 2**31
    assert np.mean([arrival.kind for arrival in arrivals]) == pytest.approx(0.25, abs=0.03)
    assert sum(arrival.due_s >= 0 for arrival in schedule(Load(5.0, 0.0, count=17), mix)) == 17


def records(latencies_ms: list[float], late_ms: float = 0.0, **changes: Any) -> list[Record]:
    return [
        Record(**{"due_s": at, "sent_s": at + late_ms / 1000, "done_s": at + ms / 1000, "steps": 4, "images": 2,
                  "status": 200, **changes})
        for at, ms in enumerate(latencies_ms)
    ]  # fmt: skip


def test_figures_count_failures_against_the_bound_and_say_when_the_generator_was_late():
    mix = parse_mix("4x2")
    some = records([10.0] * 97 + [500.0, 600.0]) + records([1.0], status=500, code="500")
    assert peers(some, 0.1)["slo_attainment_rate"] == 0.97 and peers(some, None)["latency_mean"] < 0.03
    assert not keeps_p99(some, 0.55) and not keeps_p99(some, 0.4)
    assert keeps_p99(records([10.0] * 99 + [500.0]), 0.1) and not keeps_p99(records([10.0] * 98 + [500.0]), 0.1)
    assert own(some, mix)["network_calls"] == 99 * 8 and own(some, mix)["errors"] == {"500": 1}
    assert own(some, mix)["on_time"] and not own(records([50.0] * 20, late_ms=20.0), mix)["on_time"]
    failed = peers(records([1.0], status=500, code="500"), None)
    assert (failed["completed_requests"], failed["latency_p99"], failed["throughput_qps"]) == (0, None, 0)
    assert [row["kind"] for row in rows(some, mix, None)] == ["4x2"]


@pytest.mark.parametrize("api", ["openai", "native"])
def test_our_server_answers_every_kind(api: str, fast_server: str, tmp_path: Path):
    out = tmp_path / "o.json"
    flags = f"--rate 40 --requests 40 --warmup 0 --api {api} --mix 1:.5,4x3:.3,2b:.2 --json {out}"
    assert main(["--base-url", fast_server, *flags.split()]) == 0
    result = json.loads(out.read_text())
    assert (result["completed_requests"], result["failed_requests"]) == (40, 0)
    by_kind = {row["kind"]: row["requests"] for row in result["rows"]}
    assert by_kind.pop("all") == sum(by_kind.values()) == 40 and set(by_kind) == {"1", "4x3", "2b"}
    assert set(result["stage_durations_p99"]) == {"queue", "engine", "encode"}  # of the header Server-Timing
    assert result["network_calls"] == by_kind["1"] + 12 * by_kind["4x3"] + 2 * by_kind["2b"]


@pytest.fixture(scope="module")
def fast_server() -> Iterator[str]:
    """Ours, with network calls of 1 ms."""
    flags = ["--engine", str(ROOT / "models/fashion/engine"), "--capacity", "8"]
    with ours(flags, Layout((), ()), cost="1,0", pinned=False) as server:
        yield server.url
