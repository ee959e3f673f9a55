"""Thousands of valid and invalid requests, made by schemathesis from the server's own /openapi.json.

    python benchmarks/load/fuzz.py --cases 5000 --out build/fuzz.json

Starts a server on a free port (or fuzzes --url), and sends the cases one after the other to an otherwise idle server,
in three phases.

"patient": --cases of them, none with a valid timeout_s below 10 s, which an idle server cannot miss; any 5xx is a
mistake. "hurried": a tenth as many, with any timeout_s; the only 5xx that is none is 504 with the deadline's code to a
request that gave less than 10 s. The answers of both are held to the document: status, media type, schema and, at
/v1/generate, refusal of what is invalid and of nothing else.

"apis": four tenths as many to the other APIs (benchmarks.load.fuzz_apis): OpenAI's, with edits, urls and streams, the
Open Inference Protocol with binary data, and streams of /v1/generate, some of whose clients leave. What is answered
with 200 must hold what it promises. An idle server should never answer 429.

Exits with 1 when there was a mistake, a broken promise of the document, an image left in a slot, or a server that is
no longer ready.
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.transport import Response
from schemathesis.specs.openapi import checks

from benchmarks.harness import ROOT, result_file, write_result
from benchmarks.load.fixed_cost import named_backend
from benchmarks.load.fuzz_apis import ApiRequest, api_requests, wrong
from benchmarks.load.fuzz_pictures import pngs
from fewstep.ranges import whole
from server.http.dialects.native_schema import MIN_TIMEOUT_S, PICTURE
from server.http.openapi import JSON

DEADLINE = (504, "timeout")  # status and code of the answer to a request whose timeout_s has passed
PATIENT, HURRIED, APIS = "patient", "hurried", "apis"
SHARE = {PATIENT: 1.0, HURRIED: 0.1, APIS: 0.4}  # of --cases
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.positive_data_acceptance,
    checks.negative_data_rejection,
]
EXACT = ("/v1/generate",)  # what other bodies may hold depends on the model, which their description does not say
LOOSE_CHECKS = CHECKS[:3]  # those that do not ask whether a request was valid
LOOSE_SHARE = 0.1  # of the cases of a phase, to other routes with a body or parameters
HELD = ("fewstep_admitted_images", "fewstep_active_slots", "fewstep_waiting_images", "fewstep_backlog_seconds")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")
UNHURRIED = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
EXAMPLES = 10  # of each kind of trouble, kept as curl commands
TIMEOUT_S = 90
PATIENT_S = 10.0  # a deadline of this length cannot be missed by an idle server


@dataclass
class Tally:
    """What came back in a phase."""

    phase: str
    cases: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    by_operation: Counter[str] = field(default_factory=Counter)  # "POST /v1/generate, negative"
    deadlines_missed: int = 0  # hurried: 504 to requests that carried a short timeout_s
    server_errors: list[str] = field(default_factory=list)  # any other 5xx, and requests without an answer
    turned_away: int = 0  # 429
    broken_promises: Counter[str] = field(default_factory=Counter)  # by check
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.server_errors or self.turned_away or self.broken_promises)

    def add_api(self, request: ApiRequest, url: str, session: requests.Session) -> None:
        """Send a request to another API and count its answer."""
        self.cases += 1
        self.by_operation[f"POST {request.path}"] += 1
        try:
            with request.send(url, session) as response:
                status = response.status_code
                problem = wrong(request, response, url, session)
        except requests.RequestException as error:
            self.server_errors.append(f"no answer: {type(error).__name__}")
            self.example(f"{error}: {request}")
            return
        self.statuses[str(status)] += 1
        self.turned_away += status == 429
        if status >= 500:
            self.server_errors.append(f"{status}: {problem}")
        elif problem:
            self.broken_promises[problem] += 1
        if problem:
            self.example(f"{problem}: {request}")

    def example(self, what: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(what[:2_000])

    def add(self, case: Case, session: requests.Session, mode: str) -> None:
        """Send one case and count its answer."""
        ordered = descending(case.body)
        if ordered is not case.body:  # to assign costs a case what is known of its validity
            case.body = ordered
        if self.phase == PATIENT and hurried(case.body):
            case.body = patient(case.body)
        self.cases += 1
        self.by_operation[f"{case.method} {case.path}, {mode}"] += 1
        try:
            response = case.call(session=session, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            self.server_errors.append(f"no answer: {type(error).__name__}")
            self.example(f"{error}: {case.as_curl_command()}")
            return
        status = response.status_code
        self.statuses[str(status)] += 1
        if self.phase == HURRIED and error_of(response) == DEADLINE and hurried(case.body):
            self.deadlines_missed += 1
        elif status >= 500:
            self.server_errors.append(f"{status}: {response.text[:200]}")
            self.example(f"{status}: {case.as_curl_command()}")
        self.turned_away += status == 429
        try:
            held_to = CHECKS if case.path in EXACT else LOOSE_CHECKS
            case.validate_response(response, checks=held_to, excluded_checks=[not_a_server_error])
        except (Failure, FailureGroup) as error:
            failures = error.exceptions if isinstance(error, FailureGroup) else [error]
            for failure in failures:
                self.broken_promises[type(failure).__name__] += 1
            self.example(f"{failures[0]}: {case.as_curl_command()}")


def descending(body: Any) -> Any:
    """A body with its sigmas in descending order, which the document asks for in words alone; any other as it is."""
    sigmas = body.get("sigmas") if isinstance(body, dict) else None
    if not isinstance(sigmas, list) or any(
        isinstance(each, bool) or not isinstance(each, int | float) for each in sigmas
    ):
        return body
    return {**body, "sigmas": sorted(sigmas, reverse=True)}


def hurried(body: Any) -> bool:
    """Whether a body gives a valid time limit that even an idle server may miss."""
    given = body.get("timeout_s") if isinstance(body, dict) else None
    if isinstance(given, bool) or not isinstance(given, int | float):
        return False
    return MIN_TIMEOUT_S <= given < PATIENT_S


def patient(body: Any) -> Any:
    """A hurried body with PATIENT_S for its answer; any other as it is."""
    return {**body, "timeout_s": PATIENT_S} if hurried(body) else body


def error_of(response: Response) -> tuple[int, str | None]:
    """Status and error code of an answer."""
    try:
        return response.status_code, response.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return response.status_code, None


def fuzz(url: str, phase: str, cases: int, number: int) -> Tally:
    """At least `cases` requests to the server at `url`; `number` seeds their generation."""
    tally, session = Tally(phase), requests.Session()
    document = only_json(requests.get(f"{url}/openapi.json", timeout=TIMEOUT_S).json())
    longest_s = longest_timeout_s(document)
    if longest_s < PATIENT_S:
        sys.exit(f"the server lets a request take {longest_s:g} s at most; give it --timeout-s {PATIENT_S:g} or more")
    schemathesis.openapi.format(PICTURE, pngs())
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    rejection = schema.config.checks.negative_data_rejection
    rejection.expected_statuses = [*rejection.expected_statuses, "413"]  # too long a text
    schema.validate()
    operations = [result.ok() for result in schema.get_all_operations()]  # pyright: ignore[reportAttributeAccessIssue]
    with_input = [operation for operation in operations if operation.path in EXACT]
    others = [each for each in operations if each.path not in EXACT and (each.body or each.query)]
    if phase == PATIENT:  # what has no time limit is asked once
        methods(url, operations, session, tally)
        for operation in operations:
            if not operation.body:
                send(operation, GenerationMode.POSITIVE, 1, number, session, tally)
        for operation in others:
            for mode in GenerationMode:
                share = math.ceil(LOOSE_SHARE * cases / (2 * len(others)))
                send(operation, mode, share, number, session, tally)
    round_number = 0
    while tally.cases < cases:
        left = cases - tally.cases
        for operation in with_input:
            for mode in GenerationMode:
                share = -(-left // (2 * len(with_input)))
                send(operation, mode, share, number + round_number, session, tally)
        round_number += 1
    return tally


def fuzz_apis(url: str, cases: int, number: int) -> Tally:
    """As many requests to the other APIs; `number` seeds their generation."""
    tally, session = Tally(APIS), requests.Session()
    model = requests.get(f"{url}/v1/models", timeout=TIMEOUT_S).json()["data"][0]

    @seed(number)
    @settings(
        max_examples=cases, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=UNHURRIED
    )
    @given(request=api_requests(model))
    def run(request: ApiRequest) -> None:
        tally.add_api(request, url, session)

    run()
    return tally


def only_json(document: dict[str, Any]) -> dict[str, Any]:
    """The document without the forms of exact routes, of which it does not say how each value is written; fuzz_apis
    makes those."""
    for path in EXACT:
        content = document["paths"][path]["post"]["requestBody"]["content"]
        document["paths"][path]["post"]["requestBody"]["content"] = {JSON: content[JSON]}
    return document


def longest_timeout_s(document: dict[str, Any]) -> float:
    """The most that a request may ask for, which is also what it gets when it does not."""
    schemas = document["components"]["schemas"].items()
    bodies = [schema for name, schema in schemas if name.startswith("GenerateRequest.")]
    return min(body["properties"]["timeout_s"]["maximum"] for body in bodies)


def send(
    operation: APIOperation, mode: GenerationMode, count: int, number: int, session: requests.Session, tally: Tally
) -> None:
    """`count` generated cases of an operation, or fewer if no more differ."""

    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=UNHURRIED
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Case) -> None:
        tally.add(case, session, mode.value)

    run()


def methods(url: str, operations: list[APIOperation], session: requests.Session, tally: Tally) -> None:
    """Every method on every path: one that is not described is answered with 405 and the methods that there are."""
    described = {(operation.method.upper(), operation.path) for operation in operations}
    for path in sorted({path for _, path in described}):
        for method in METHODS:
            if (method, path) in described or method == "HEAD":
                continue
            response = session.request(method, url + path, timeout=TIMEOUT_S)
            tally.cases += 1
            tally.by_operation["methods that are not described"] += 1
            tally.statuses[str(response.status_code)] += 1
            if response.status_code != 405 or "allow" not in response.headers:
                tally.broken_promises["Allow"] += 1
                tally.example(f"{method} {path} answered {response.status_code}")


@contextmanager
def server(arguments: list[str]) -> Iterator[str]:
    """The URL of a server that is ready."""
    command = [sys.executable, "-m", "server", "--port", "0", "--drain-s", "0", *arguments, *named_backend(arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                sys.exit("the server did not start")
            yield line.split()[-1]
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=whole(1), default=5_000, help="patient requests; hurried: a tenth (5000)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the cases (0)")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--out", type=result_file, help="JSON file with the counts")
    parser.add_argument("server", nargs="*", help="flags of the server, after --")
    options = parser.parse_args()
    if options.url:
        rows = measure(options.url, options.cases, options.seed)
    else:
        with server(options.server or ["--model", "fashion", "--max-images", "4"]) as url:
            rows = measure(url, options.cases, options.seed)
    print(json.dumps(rows, indent=2))
    if options.out:
        asked = {"cases": options.cases, "seed": options.seed, "server": options.server or ["--max-images", "4"]}
        write_result(options.out, "fuzz", asked, rows)
    sys.exit(not all(row["passed"] for row in rows))


def measure(url: str, cases: int, number: int) -> list[dict[str, Any]]:
    """Fuzz in all phases, and say what came of each."""
    return [_measure(url, phase, math.ceil(cases * share), number) for phase, share in SHARE.items()]


def _measure(url: str, phase: str, cases: int, number: int) -> dict[str, Any]:
    started_s = time.monotonic()
    tally = fuzz_apis(url, cases, number) if phase == APIS else fuzz(url, phase, cases, number)
    seconds = round(time.monotonic() - started_s, 1)
    held = left_behind(url)
    ready = requests.get(f"{url}/readyz", timeout=TIMEOUT_S).status_code == 200
    return {
        "phase": phase,
        "passed": tally.clean and ready and not held,
        "cases": tally.cases,
        "seconds": seconds,
        "by_status": dict(sorted(tally.statuses.items())),
        "by_operation": dict(tally.by_operation),
        "server_errors": len(tally.server_errors),
        "turned_away": tally.turned_away,
        "deadlines_missed": tally.deadlines_missed,
        "broken_promises": dict(tally.broken_promises),
        "examples": tally.examples,
        "left_behind": held,
        "ready_afterwards": ready,
    }


def left_behind(url: str) -> dict[str, float]:
    """What the server still holds once no request is open; it is given a few seconds to say that it is nothing."""
    held: dict[str, float] = {}
    for _ in range(50):
        page = requests.get(f"{url}/metrics", timeout=TIMEOUT_S).text
        lines = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith(HELD)]
        held = {name: float(value) for name, value in lines if float(value)}
        if lines and not held:
            return {}
        time.sleep(0.1)
    return held


if __name__ == "__main__":
    main()
