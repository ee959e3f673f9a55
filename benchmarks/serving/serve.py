"""Load at a rate on a running server: ours, or any with OpenAI's Images API.

    fewstep bench serve --base-url http://127.0.0.1:8000 --rate 25 --mix 1:.5,4:.5 --slo 200ms
    fewstep bench serve --base-url http://127.0.0.1:8000 --rate search --p99 200ms --mix 4
    fewstep bench serve --base-url https://HOST/v1 --model NAME --key-env NAME_API_KEY --prompt "a cat" --rate 0.5

An open loop: requests leave when they are due, by Poisson arrivals of a seed, whether or not the last answer is there,
and latency counts from the moment a request was due. Seeds of images differ, so that no cache answers. What is sent
is printed; --extra adds fields. --rate search finds the highest rate whose 99th percentile is within --p99; with
--confirm 10m it is then played for ten minutes, and lower ones after it, until one is kept: that figure can be quoted.
"""

from fewstep import extras

extras.name_missing()

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.harness import result_file, table, write_result
from benchmarks.load.open_loop import Record
from benchmarks.serving.figures import COLUMNS, QUOTED_S, good, own, peers, rows
from benchmarks.serving.mix import Kind, Mix, described, parse_mix
from benchmarks.serving.offering import Load, ServeError, Watch, offer, schedule
from benchmarks.serving.plan import argument
from benchmarks.serving.reachable import CHECK_S, check
from benchmarks.serving.search import FACTOR, Trial, confirm, search
from benchmarks.serving.target import Target, checked_url, extra_field
from benchmarks.serving.told import Told
from benchmarks.serving.units import RATES, seconds, seconds_from_zero, shown
from fewstep.ranges import Range, number, whole
from fewstep.subcommands import Parser, refuse

SEARCH_DURATION_S, DURATION_S = 10.0, 30.0
SHARES = Range(0, 1, above=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="fewstep bench serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args = _options(parser).parse_args(arguments)
    try:
        return asyncio.run(_run(args))
    except (ServeError, ValueError) as error:
        refuse(str(error))


async def _run(args: argparse.Namespace) -> int:
    target, load = _target(args), _load(args)
    target, alone_s = await check(target, max(args.timeout, CHECK_S))
    example = json.dumps(target.fields(schedule(replace(load, count=1), target.mix)[0]))
    print(f"POST {target.base_url.removesuffix(target.prefix)}{target.path} {example}")
    trials: list[Trial] = []
    if args.rate == "search":
        trials = await search(target, load, args.p99, 0.5 / alone_s, args.timeout)
        best = max((trial for trial in trials if trial.kept), key=lambda trial: trial.rate)
        load = replace(load, rate=best.rate)
        print(f"the highest rate with p99 within {shown(args.p99)}: {best.rate:.4g} requests/s, to {FACTOR - 1:.0%}")
        if args.confirm:
            rate, seed = args.share * best.rate, load.seed + len(trials)
            load = replace(load, rate=rate, duration_s=args.confirm, count=None, seed=seed)
            trials += await confirm(target, load, args.p99, args.timeout)
            best = trials[-1]
            load = replace(load, rate=best.rate)
            print(f"kept for {shown(args.confirm)}: {best.rate:.4g} requests/s")
        records, told = best.records, best.told
    else:
        print(
            f"{load.rate:g} requests/s for {shown(load.length_s)}, Poisson of seed {load.seed}: {described(target.mix)}"
        )
        watch = Watch(target)
        records, told = await offer(target, load, watch, args.timeout), watch.told
    slo_s = args.slo or args.p99
    _show(records, target.mix, slo_s, load)
    if args.json:
        _write(args, target, load, records, slo_s, trials, told, alone_s)
    return 0


def _show(records: Sequence[Record], mix: Mix, slo_s: float | None, load: Load) -> None:
    lines = rows(records, mix, slo_s)
    columns = {key: heading for key, heading in COLUMNS.items() if key != "slo_attainment_rate" or slo_s}
    print(table(lines, columns))
    all_, ours = peers(records, slo_s), own(records, mix)
    calls = "" if ours["network_calls"] is None else f", {ours['network_calls']:,} network calls"
    print(f"{all_['throughput_qps']:.4g} requests/s and {ours['images_per_s']:.4g} images/s answered{calls}")
    for code, count in sorted(ours["errors"].items()):
        print(f"failed: {count} with {code}")
    if not ours["on_time"]:
        print(f"The generator fell behind its schedule: 1 % of the requests left {ours['lag_p99_ms']:.0f} ms late or "
              "later. These figures are partly its own; lower the rate, or run it on another machine.")  # fmt: skip
    elif load.length_s < QUOTED_S:
        print(f"A run of {shown(load.length_s)}. Ten minutes (--duration 10m, of a search --confirm 10m) make a figure "
              "to quote.")  # fmt: skip


def _write(
    args: argparse.Namespace,
    target: Target,
    load: Load,
    records: Sequence[Record],
    slo_s: float | None,
    trials: Sequence[Trial],
    told: Told,
    alone_s: float,
) -> None:
    ours = own(records, target.mix)
    tried: list[dict[str, Any]] = [
        {"rate": each.rate, "kept": each.kept, "on_time": each.on_time, "answered": sum(map(good, each.records))}
        for each in trials
    ]
    settings = {
        "base_url": target.base_url, "api": target.api, "model": target.model, "prompt": target.prompt,
        "extra": dict(target.extra), "mix": [asdict(kind) for kind in target.mix], "rate": load.rate,
        "search_p99_s": args.p99, "duration_s": load.length_s, "requests": load.count, "warmup_s": load.warmup_s,
        "seed": load.seed, "confirm_s": args.confirm, "confirm_share": args.share, "timeout_s": args.timeout,
        "request": target.fields(schedule(load, target.mix)[0]),
        "alone_s": alone_s,
    }  # fmt: skip
    write_result(
        args.json, "serve", settings, rows(records, target.mix, slo_s), **peers(records, slo_s),
        **told.figures(), **ours, quotable=ours["on_time"] and load.length_s >= QUOTED_S, trials=tried,
    )  # fmt: skip
    print(f"wrote {args.json}")


def _target(args: argparse.Namespace) -> Target:
    key = None
    if args.key_env:
        key = os.environ.get(args.key_env)
        if not key:
            raise ServeError(f"--key-env {args.key_env}: there is no such variable, or it is empty")
        if not key.isascii() or not key.isprintable():
            raise ServeError(f"--key-env {args.key_env}: an API key has printable ASCII characters only")
    mix = args.mix or (Kind(None),)
    if args.size:
        mix = tuple(replace(kind, size=kind.size or args.size) for kind in mix)
    if args.api == "native" and any(kind.size for kind in mix):
        raise ServeError("--api native has no sizes: a model makes images of one size; leave --size out")
    return Target(args.base_url, args.api, mix, args.model, key, args.prompt, dict(args.extra))


def _load(args: argparse.Namespace) -> Load:
    if args.rate == "search" and args.p99 is None:
        raise ServeError("--rate search needs --p99: the bound of the 99th percentile, such as 50ms")
    if args.rate != "search" and args.p99 is not None:
        raise ServeError("--p99 is of --rate search; --slo 50ms counts what a given rate answers in time")
    if args.rate != "search" and args.confirm:
        raise ServeError("--confirm is of --rate search; a given rate is played for --duration")
    if args.share != 1 and not args.confirm:
        raise ServeError("--share is of --confirm: the share of the rate found that is played for so long")
    if args.requests and args.duration:
        raise ServeError("give --requests or --duration, not both")
    duration_s = args.duration or (SEARCH_DURATION_S if args.rate == "search" else DURATION_S)
    rate = 1.0 if args.rate == "search" else args.rate
    return Load(rate, duration_s, args.requests, args.warmup, args.seed)


def rate_or_search(text: str) -> float | str:
    """A rate above 0, or "search". Raises ValueError with a sentence."""
    return text if text == "search" else number(RATES)(text)


def _options(parser: Parser) -> Parser:
    add = parser.add_argument
    add("--base-url", type=argument(checked_url), required=True, metavar="URL", help="of the server, such as "
        "http://127.0.0.1:8000; /v1 follows where it has no path")  # fmt: skip
    add("--rate", type=rate_or_search, required=True, metavar="R", help="requests a second, or search")
    add("--mix", type=argument(parse_mix), metavar="MIX", help="STEPS:SHARE,..., such as 1:.5,4:.5; 4x8:.1 for 8 "
        "images of 4 steps; 4x8b:.1 for batch priority; or the JSON list that vLLM-Omni's and SGLang's benchmarks "
        "take. With --api openai, steps are sent as num_inference_steps, with a seed (default: one image, no "
        "steps)")  # fmt: skip
    add("--api", choices=("openai", "native"), default="openai", help="POST /v1/images/generations, or fewstep's "
        "/v1/generate (default: openai)")  # fmt: skip
    add("--model", metavar="NAME", help="default: the first of the server's list")
    add("--key-env", metavar="NAME", help="the environment variable with the API key; none is sent without it")
    add("--prompt", default="", metavar="TEXT", help='of --api openai (default: "")')
    add("--size", metavar="WxH", help="of --api openai; not sent without it")
    add("--extra", type=argument(extra_field), action="append", default=[], metavar="NAME=VALUE", help="another field "
        "of every request; {seed}, {steps} and {images} stand for its numbers; may be given several times")  # fmt: skip
    add("--duration", type=argument(seconds), metavar="TIME", help="default: 30s, of each rate of a search 10s")
    add("--requests", type=whole(1, 10**7), metavar="N", help="in place of --duration")
    add("--warmup", type=argument(seconds_from_zero), default=2.0, metavar="TIME", help="at the same rate, not counted "
        "(default: 2s)")  # fmt: skip
    add("--p99", type=argument(seconds), metavar="TIME", help="of --rate search: the bound")
    add("--confirm", type=argument(seconds), metavar="TIME", help="of --rate search: play the rate for so long, and "
        "lower ones until one is kept; 10m for a figure that is quoted (default: not)")  # fmt: skip
    add("--share", type=number(SHARES), default=1.0, metavar="S", help="of --confirm: begin with this share of the "
        "rate that the search found, such as 0.8 (default: 1)")  # fmt: skip
    add("--slo", type=argument(seconds), metavar="TIME", help="the share of requests answered within it is reported")
    add("--timeout", type=argument(seconds), default=60.0, metavar="TIME", help="of a request (default: 60s)")
    add("--seed", type=whole(0), default=0, help="of the arrivals and the images (default: 0)")
    add("--json", type=result_file, metavar="FILE", help="write the figures here, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
