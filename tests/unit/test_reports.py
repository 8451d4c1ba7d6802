"""`POST /v1/report`: what callers tell of a backend, decoded, and what of it is no good."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.rules import NAME_ALLOWED
from limiter_node.edge.answers import Problem
from limiter_node.edge.requests import ALLOWED, OUTCOMES_MAX, decode_report, named_in_report

if TYPE_CHECKING:
    from limiter_node.core.adaptive.guard import Kind

GOOD: dict[str, Any] = {"latency_ms": 12.5, "status": 200}


def body_of(*outcomes: Any, **fields: Any) -> bytes:
    return json.dumps({"backend": "orders", "outcomes": list(outcomes), **fields}).encode()


def refusal_of(body: bytes) -> str:
    with pytest.raises(Problem) as caught:
        decode_report(body)
    assert caught.value.status == 400
    return caught.value.detail


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        ({"latency_ms": 12.5, "status": 200}, (12.5, "ok", 1)),
        ({"latency_ms": 0, "status": 100}, (0.0, "ok", 1)),
        ({"latency_ms": 3, "status": 404, "count": 7}, (3.0, "ok", 7)),
        ({"latency_ms": 3, "status": 499}, (3.0, "ok", 1)),
        ({"latency_ms": 3, "status": 429}, (3.0, "refused", 1)),
        ({"latency_ms": 3, "status": 503}, (3.0, "refused", 1)),
        ({"latency_ms": 3, "status": 500}, (3.0, "failed", 1)),
        ({"latency_ms": 3, "status": 599, "count": 10**9}, (3.0, "failed", 10**9)),
        ({"latency_ms": 3, "status": "timeout"}, (3.0, "timeout", 1)),
        ({"status": "timeout"}, (None, "timeout", 1)),
        ({"latency_ms": None, "status": "timeout"}, (None, "timeout", 1)),
        # How long it took to hear nothing of a backend says nothing of it.
        ({"latency_ms": 3, "status": "error"}, (None, "refused", 1)),
        ({"status": "error", "count": 2}, (None, "refused", 2)),
    ],
)
def test_an_outcome_is_what_its_status_means(outcome: dict[str, Any], kind: tuple[float | None, Kind, int]) -> None:
    assert decode_report(body_of(outcome)) == ("orders", [kind])


@given(st.integers(100, 599))
def test_every_http_status_is_a_kind(status: int) -> None:
    _, ((_, kind, _),) = decode_report(body_of({**GOOD, "status": status}))
    assert kind == ("refused" if status in (429, 503) else "failed" if status >= 500 else "ok")


@pytest.mark.parametrize("size", [1, OUTCOMES_MAX])
def test_a_report_has_up_to_10000_outcomes(size: int) -> None:
    assert decode_report(body_of(*[GOOD] * size)) == ("orders", [(12.5, "ok", 1)] * size)


@pytest.mark.parametrize(
    ("body", "field", "what"),
    [
        (body_of(), "outcomes", "0 outcomes"),
        (body_of(*[GOOD] * 10_001), "outcomes", "10001 outcomes"),
        (b'{"backend": "orders"}', "outcomes", "is required"),
        (b'{"backend": "orders", "outcomes": {}}', "outcomes", "expected array, got object"),
        (b'{"backend": "orders", "outcomes": null}', "outcomes", "expected array, got null"),
        (b'{"outcomes": [{"latency_ms": 1, "status": 200}]}', "backend", "is required"),
        (body_of(GOOD, backend=5), "backend", "expected str, got int"),
        (body_of(GOOD, backend=""), "backend", "'' is not allowed"),
        (body_of(GOOD, backend="no name"), "backend", "'no name' is not allowed"),
        (body_of(GOOD, backend="x" * 65), "backend", f"'{'x' * 65}' is not allowed"),
        (body_of({"latency_ms": 1}), "status", "is required"),
        (body_of({**GOOD, "status": None}), "status", "expected int | str, got null"),
        (body_of({**GOOD, "status": 200.0}), "status", "expected int | str, got float"),
        (body_of({**GOOD, "status": True}), "status", "expected int | str, got bool"),
        (body_of({**GOOD, "status": 99}), "status", "99 in outcome 0 is not allowed"),
        (body_of(GOOD, {**GOOD, "status": 600}), "status", "600 in outcome 1 is not allowed"),
        (body_of({**GOOD, "status": -200}), "status", "-200 in outcome 0 is not allowed"),
        (body_of({**GOOD, "status": "200"}), "status", "'200' in outcome 0 is not allowed"),
        (body_of({**GOOD, "status": "TIMEOUT"}), "status", "'TIMEOUT' in outcome 0 is not allowed"),
        (body_of({"status": 200}), "latency_ms", "is required in outcome 0"),
        (body_of(GOOD, GOOD, {"latency_ms": None, "status": 500}), "latency_ms", "is required in outcome 2"),
        (body_of({**GOOD, "latency_ms": -0.1}), "latency_ms", "expected float >= 0.0"),
        (body_of({**GOOD, "latency_ms": "12"}), "latency_ms", "expected float | null, got str"),
        (body_of({**GOOD, "count": 0}), "count", "expected int >= 1"),
        (body_of({**GOOD, "count": 10**9 + 1}), "count", "expected int <= 1000000000"),
        (body_of({**GOOD, "count": 1.5}), "count", "expected int, got float"),
        (body_of({**GOOD, "count": None}), "count", "expected int, got null"),
    ],
)
def test_every_bad_field_is_named_with_what_is_allowed(body: bytes, field: str, what: str) -> None:
    assert refusal_of(body) == f"{field}: {what}; allowed: {ALLOWED[field]}"


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_field_is_given_once(separators: tuple[str, str]) -> None:
    outcomes = [
        {"status": "error"},
        {"status": "timeout", "latency_ms": None},
        {**GOOD, "count": 1},
        {"status": "error"},
    ]
    body = json.dumps({"backend": "orders", "outcomes": outcomes}, separators=separators).encode()
    assert decode_report(body)[1] == [(None, "refused", 1), (None, "timeout", 1), (12.5, "ok", 1), (None, "refused", 1)]
    assert refusal_of(body.replace(b"}]", b',"count":1,"count":7}]')) == "count: given twice; allowed: once"


def test_what_is_allowed_is_what_the_contract_allows() -> None:
    assert ALLOWED["backend"] == NAME_ALLOWED
    assert ALLOWED["outcomes"] == "an array of 1 to 10000 outcomes"
    assert ALLOWED["status"] == 'an HTTP status of 100 to 599, "error" or "timeout"'


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (body_of(GOOD, rule="api"), "rule"),
        (body_of({**GOOD, "latency": 5}), "latency"),
        (body_of({**GOOD, "max-age": 5}), "max-age"),
    ],
)
def test_unknown_fields_are_named(body: bytes, field: str) -> None:
    allowed = "backend, outcomes; in an outcome latency_ms, status, count"
    assert refusal_of(body) == f"{field}: unknown field; allowed: {allowed}"


@pytest.mark.parametrize(
    ("body", "start"),
    [
        (b"", "body: is empty"),
        (b"{", "body: not JSON"),
        (b"[]", "body: expected object, got array"),
        (b'"orders"', "body: expected object, got str"),
        (b"\xff", "body: not JSON"),
        (body_of({"latency_ms": 1, "status": 200}).replace(b": 1,", b": NaN,"), "body: not JSON"),
        (body_of({"latency_ms": 1, "status": 200}).replace(b": 1,", b": 1e999,"), "latency_ms: number out of range"),
        (b'{"backend": "orders", "outcomes": ' + b"[" * 100_000, "outcomes: expected object, got array"),
    ],
)
def test_a_body_that_is_no_report_at_all_is_told_so(body: bytes, start: str) -> None:
    assert refusal_of(body).startswith(start)


@given(st.binary(max_size=80))
def test_random_bytes_are_a_problem_and_not_a_crash(body: bytes) -> None:
    refusal_of(body)
    assert isinstance(named_in_report(body), str)


# Whom a report that is no good was about.


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (body_of(), "orders"),
        (body_of({"status": "oops"}, more=1), "orders"),
        (b'{"backend": 5}', ""),
        (b"{}", ""),
        (b"[]", ""),
        (b"", ""),
        (b'{"backend": "orders"', ""),
        (b"[" * 100_000, ""),
    ],
)
def test_a_report_that_is_no_good_names_its_backend_if_it_can(body: bytes, name: str) -> None:
    assert named_in_report(body) == name
