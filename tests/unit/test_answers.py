"""Verdicts and problems as bytes: the body of contract 2, the rate limit headers, RFC 9457."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from limiter_node.core.model import NEVER, Verdict
from limiter_node.edge.answers import (
    STATUS_LINES,
    TITLES,
    Problem,
    UsualAnswers,
    json_answer,
    problem_answer,
    problem_document,
    verdict_answer,
    verdict_json,
)
from limiter_node.edge.tally import Series

S = 1_000_000_000
ALLOWED = Verdict(True, 200, 199, S // 100, 0, 2)
DENIED = Verdict(False, 200, 0, 2 * S, S // 100, 2)
DATE = "Date: Sun, 01 Jan 2034 00:00:00 GMT\r\n"
CLOSE = "Connection: close\r\n"


def parts(answer: bytes) -> tuple[str, dict[str, str], Any]:
    """Status line, headers and JSON body of an answer whose framing is right."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert len(headers) == len(lines), "a header twice"
    assert headers["Content-Length"] == str(len(body))
    return status, headers, json.loads(body)


def test_an_allowed_check_is_the_example_of_the_contract() -> None:
    status, headers, body = parts(verdict_answer("api", ALLOWED, 429, DATE, ""))
    assert status == "HTTP/1.1 200 OK"
    assert headers == {
        "Content-Type": "application/json",
        "Date": "Sun, 01 Jan 2034 00:00:00 GMT",
        "RateLimit-Policy": '"api";q=200;w=2',
        "RateLimit": '"api";r=199;t=1',
        "X-RateLimit-Limit": "200",
        "X-RateLimit-Remaining": "199",
        "X-RateLimit-Reset": "1",
        "Content-Length": headers["Content-Length"],
    }
    assert body == {
        "allowed": True,
        "rule": "api",
        "limit": 200,
        "remaining": 199,
        "reset_after": 0.01,
        "retry_after": 0.0,
        "degraded": False,
    }


REDUCED = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"


@pytest.mark.parametrize(
    ("deny_status", "line"),
    [
        (429, "HTTP/1.1 429 Too Many Requests"),
        (401, "HTTP/1.1 401 Unauthorized"),
        (403, "HTTP/1.1 403 Forbidden"),
        (503, "HTTP/1.1 503 Service Unavailable"),
    ],
)
def test_a_denial_has_the_status_asked_for_and_says_when_to_retry(deny_status: int, line: str) -> None:
    status, headers, body = parts(verdict_answer("api", DENIED, deny_status, "", CLOSE))
    assert status == line
    assert headers["Retry-After"] == "1"
    assert headers["Connection"] == "close"
    assert (body["allowed"], body["retry_after"], body["reset_after"]) == (False, 0.01, 2.0)


@pytest.mark.parametrize(
    ("retry_ns", "retry_after"),
    [(1, "1"), (S, "1"), (S + 1, "2"), (59 * S + S // 2, "60"), (0, "1"), (10**19, "10000000000"), (NEVER, None)],
)
def test_retry_after_is_whole_seconds_rounded_up_at_least_1_and_absent_when_never(
    retry_ns: int, retry_after: str | None
) -> None:
    _, headers, body = parts(verdict_answer("api", replace(DENIED, retry_ns=retry_ns), 429, "", ""))
    assert headers.get("Retry-After") == retry_after
    assert body["retry_after"] == (None if retry_after is None else pytest.approx(retry_ns / S))


@pytest.mark.parametrize(
    ("reset_ns", "reset_s"), [(0, "0"), (1, "1"), (S, "1"), (S + 1, "2"), (10**20, "100000000000")]
)
def test_the_reset_header_is_whole_seconds_rounded_up(reset_ns: int, reset_s: str) -> None:
    _, headers, body = parts(verdict_answer("api", replace(ALLOWED, reset_ns=reset_ns), 429, "", ""))
    assert headers["X-RateLimit-Reset"] == reset_s
    assert headers["RateLimit"] == f'"api";r=199;t={reset_s}'
    assert body["reset_after"] == pytest.approx(reset_ns / S)


def test_a_verdict_without_a_rule_has_no_policy() -> None:
    _, headers, _ = parts(verdict_answer("gone", Verdict(True, 0, 0, 0, 0, 0), 429, "", ""))
    assert "RateLimit-Policy" not in headers


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({}, {}),
        ({"degraded": True}, {"degraded": True}),
        ({"would_allow": False}, {"shadow": True, "would_allow": False}),
        ({"would_allow": True}, {"shadow": True, "would_allow": True}),
        ({"reason": "unreachable", "degraded": True}, {"reason": "unreachable", "degraded": True}),
        ({"reason": "backend_overload"}, {"reason": "backend_overload", "type": REDUCED}),
    ],
)
def test_fields_of_a_verdict_are_there_when_they_say_something(change: dict[str, Any], fields: dict[str, Any]) -> None:
    plain = json.loads(verdict_json("api", DENIED))
    assert plain.keys() == {"allowed", "rule", "limit", "remaining", "reset_after", "retry_after", "degraded"}
    assert json.loads(verdict_json("api", replace(DENIED, **change))) == {**plain, **fields}


def test_a_shadow_verdict_is_a_200_without_retry_after() -> None:
    verdict = replace(DENIED, allowed=True, retry_ns=0, would_allow=False)
    status, headers, body = parts(verdict_answer("api", verdict, 429, "", ""))
    assert status == "HTTP/1.1 200 OK"
    assert "Retry-After" not in headers
    assert (body["allowed"], body["shadow"], body["would_allow"]) == (True, True, False)


def test_a_problem_is_an_rfc_9457_document() -> None:
    problem = Problem(405, "allowed: GET, POST", headers="Allow: GET, POST\r\n")
    status, headers, body = parts(problem_answer(problem, DATE, CLOSE))
    assert status == "HTTP/1.1 405 Method Not Allowed"
    assert headers["Content-Type"] == "application/problem+json"
    assert (headers["Allow"], headers["Connection"]) == ("GET, POST", "close")
    assert body == {
        "type": "urn:limiter-node:problem:method-not-allowed",
        "title": "method not allowed",
        "status": 405,
        "detail": "allowed: GET, POST",
    }


def test_a_problem_may_have_a_title_of_its_own_and_any_text_as_detail() -> None:
    problem = Problem(404, 'rule: "\r\n\x00é', title="unknown rule")
    assert problem.document() == {"status": 404, "title": "unknown rule", "detail": 'rule: "\r\n\x00é'}
    assert problem_document(problem)["type"] == "urn:limiter-node:problem:unknown-rule"
    assert parts(problem_answer(problem, "", ""))[2]["detail"] == 'rule: "\r\n\x00é'


@pytest.mark.parametrize("status", TITLES)
def test_every_kind_of_problem_has_a_status_line(status: int) -> None:
    line, _, body = parts(problem_answer(Problem(status, "why"), "", ""))
    assert line == STATUS_LINES[status].strip()
    assert body["status"] == status


def test_a_json_body_is_a_200() -> None:
    status, headers, body = parts(json_answer(b'{"results":[]}', DATE, CLOSE))
    assert (status, body) == ("HTTP/1.1 200 OK", {"results": []})
    assert headers["Content-Type"] == "application/json"


# What the usual checks get is put together another way.


def test_the_usual_answers_are_byte_for_byte_those_of_a_verdict() -> None:
    usual = UsualAnswers("api", Series("api", "default"))
    later = DATE.replace("00:00:00", "00:00:01")
    for limit, window_s, remaining, reset_ns, date in (
        (200, 2, 199, S // 100, DATE),
        (200, 2, 199, S // 100, DATE),  # the same again
        (200, 2, 199, S // 100, later),
        (200, 2, 199, S // 100 + 1, later),
        (200, 2, 198, S // 100 + 1, later),
        (300, 2, 198, S // 100 + 1, later),  # the rule has changed
        (300, 9, 198, S // 100 + 1, later),
        (10**12, 10**6, 10**12 - 1, 2**63 - 1, later),
        (10_001, 10_000, 10_000, 9_999 * S, later),
        (10_001, 10_000, 9_999, 9_999 * S + 1, later),
        (1, 1, 0, 1, DATE),
    ):
        grant = ((limit, window_s), remaining, reset_ns)
        verdict = Verdict(True, limit, remaining, reset_ns, 0, window_s)
        assert usual.result(grant) == verdict_json("api", verdict)
        assert usual.answer(grant, date) == verdict_answer("api", verdict, 429, date, "")
        assert usual.result(grant) == verdict_json("api", verdict)
