"""Which answers of a server the fuzzer excuses."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests
import schemathesis

from benchmarks.load.fuzz import HURRIED, PATIENT, Tally, patient


@pytest.mark.parametrize(
    ("given", "sent"),
    [(0.001, 10.0), (9.9, 10.0), (10, 10), (60, 60), (None, None), (0.0001, 0.0001), ("1", "1"), (True, True)],
)
def test_a_patient_body_keeps_all_but_a_short_valid_time_limit(given: Any, sent: Any):
    assert patient({"timeout_s": given, "n": 9}) == {"timeout_s": sent, "n": 9}
    assert patient({"n": 9}) == {"n": 9} and patient([given]) == [given]


@pytest.mark.parametrize(
    ("phase", "answer", "body", "counts"),
    [
        (HURRIED, (504, "timeout"), {"timeout_s": 0.001}, (1, 0)),
        (HURRIED, (504, "timeout"), {"timeout_s": 10}, (0, 1)),
        (HURRIED, (504, "timeout"), {}, (0, 1)),
        (HURRIED, (504, "proxy"), {"timeout_s": 0.001}, (0, 1)),
        (HURRIED, (503, "timeout"), {"timeout_s": 0.001}, (0, 1)),
        (PATIENT, (504, "timeout"), {"timeout_s": 0.001}, (0, 1)),
        (PATIENT, (500, "internal_error"), {}, (0, 1)),
    ],
)
def test_only_a_short_deadline_that_was_asked_for_excuses_an_answer_of_5xx(
    phase: str, answer: tuple[int, str], body: dict[str, Any], counts: tuple[int, int]
):
    """Case and answer are stand-ins: a server at rest cannot be made to miss a deadline, or to fail, at will."""
    response = requests.Response()
    response.status_code = answer[0]
    response._content = json.dumps({"error": {"code": answer[1]}}).encode()
    case = SimpleNamespace(
        method="POST", path="/v1/generate", body=dict(body), call=lambda **_: response,
        validate_response=lambda *_, **__: None, as_curl_command=lambda: "curl",
    )  # fmt: skip
    tally = Tally(phase)
    tally.add(cast(schemathesis.Case, case), requests.Session(), "positive")
    assert (tally.deadlines_missed, len(tally.server_errors)) == counts
    assert tally.clean == (counts[1] == 0)
