"""Queries and bodies to checks; whatever is wrong is told with its field and what is allowed."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.model import COST_MAX, Check, Op
from limiter_node.edge.answers import Problem
from limiter_node.edge.requests import (
    ALLOWED,
    BATCH_MAX,
    check_or_problem,
    decode_batch,
    decode_check,
    decode_plain_batch,
    decode_refund,
    decoded,
    parse_query,
    require_json,
    to_check,
)

ONE = {"rule": "api", "key": "user:42"}


def body_of(document: Any) -> bytes:
    return json.dumps(document).encode()


def check_of(body: bytes) -> Check:
    """What `POST /v1/check` makes of a body."""
    return to_check(decoded(body, decode_check))


def refusal_of_query(query: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        parse_query(query)
    return caught.value


def refusal_of_body(body: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        check_of(body)
    return caught.value


# Queries.


@pytest.mark.parametrize(
    ("query", "check", "deny_status"),
    [
        (b"rule=api&key=user:42", Check("api", "user:42"), 429),
        (b"key=k&rule=api&cost=5&segment=free", Check("api", "k", 5, "free"), 429),
        (b"rule=api&key=k&cost=0", Check("api", "k", 0), 429),
        (b"rule=api&key=k&cost=007", Check("api", "k", 7), 429),
        (b"rule=api&key=k&deny_status=401", Check("api", "k"), 401),
        (b"rule=api&key=k&deny_status=403", Check("api", "k"), 403),
        (b"deny_status=503&rule=api&key=k", Check("api", "k"), 503),
        (b"rule=api&key=a+b", Check("api", "a b"), 429),
        (b"rule=api&key=a%2Bb%20c%26d%3De%25", Check("api", "a+b c&d=e%"), 429),
        (b"rule=api&key=a=b", Check("api", "a=b"), 429),
        (b"%72ule=api&key=%c3%A9", Check("api", "é"), 429),
        (b"rule=api&key=\xc3\xa9", Check("api", "é"), 429),
        (b"&rule=api&&key=k&", Check("api", "k"), 429),
        (b"rule=api&key=k&cost=" + b"0" * 100 + b"9", Check("api", "k", 9), 429),
    ],
)
def test_a_query_is_form_decoded_into_a_check(query: bytes, check: Check, deny_status: int) -> None:
    assert parse_query(query) == (check, deny_status, False)


@pytest.mark.parametrize("digits", [16, 17, 18, 19, 25, 5_000])
def test_a_huge_cost_is_clamped_above_every_burst(digits: int) -> None:
    assert parse_query(b"rule=api&key=k&cost=" + b"9" * digits)[0].cost == min(COST_MAX, 10**digits - 1)


@pytest.mark.parametrize(
    ("query", "field", "what"),
    [
        (b"", "rule", "is required"),
        (b"key=k", "rule", "is required"),
        (b"rule=api", "key", "is required"),
        (b"rule=api&key=", "key", "is empty"),
        (b"rule=api&key=k&key=l", "key", "given twice"),
        (b"rule=api&key=k&cost=-1", "cost", "'-1' is not allowed"),
        (b"rule=api&key=k&cost=1.0", "cost", "'1.0' is not allowed"),
        (b"rule=api&key=k&cost=", "cost", "'' is not allowed"),
        (b"rule=api&key=k&cost=+1", "cost", "' 1' is not allowed"),
        (b"rule=api&key=k&cost=1e3", "cost", "'1e3' is not allowed"),
        (b"rule=api&key=k&cost=1_0", "cost", "'1_0' is not allowed"),
        (b"rule=api&key=k&cost=%D9%A1", "cost", "'\u0661' is not allowed"),
        (b"rule=api&key=k&cost=%C2%B2", "cost", "'²' is not allowed"),
        (b"rule=api&key=k&deny_status=429", "deny_status", "'429' is not allowed"),
        (b"rule=api&key=k&deny_status=", "deny_status", "'' is not allowed"),
        (b"rule=api&key=k&color=red", "color", "unknown parameter"),
        (b"rule=api&key=k&=", "", "unknown parameter"),
        (b"rule=api&key=%", "key", "a percent sign without two hex digits"),
        (b"rule=api&key=%4", "key", "a percent sign without two hex digits"),
        (b"rule=api&key=%zz", "key", "a percent sign without two hex digits"),
        (b"rule=api&key=k&%q=1", "parameter", "a percent sign without two hex digits"),
        (b"rule=api&key=%ff", "key", "is not UTF-8"),
        (b"rule=api&key=\xff", "key", "is not UTF-8"),
        (b"rule=api&key=%ed%a0%80", "key", "is not UTF-8"),
        (b"rule=api&key=a%00b", "key", "has a control character"),
        (b"rule=api&key=a%0Ab", "key", "has a control character"),
        (b"rule=api&key=" + b"k" * 513, "key", "is 513 bytes long"),
        (b"rule=api&key=" + b"%C3%A9" * 257, "key", "is 514 bytes long"),
    ],
)
def test_a_query_that_is_no_good_is_told_which_field_and_what_is_allowed(query: bytes, field: str, what: str) -> None:
    problem = refusal_of_query(query)
    assert problem.status == 400
    assert problem.detail.startswith(f"{field}: {what}")
    assert "; allowed: " in problem.detail


@given(st.binary(max_size=60))
def test_any_query_is_a_check_or_a_problem(query: bytes) -> None:
    for attempt in (query, b"rule=api&key=" + query, b"rule=api&key=k&cost=" + query):
        with suppress(Problem):
            check, _, _ = parse_query(attempt)
            assert 0 <= check.cost <= COST_MAX
            assert 1 <= len(check.key.encode()) <= 512


# Single bodies.


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({}, Check("api", "user:42")),
        ({"cost": 5}, Check("api", "user:42", 5)),
        ({"cost": 0}, Check("api", "user:42", 0)),
        ({"cost": 2**53}, Check("api", "user:42", COST_MAX)),
        ({"cost": 2**53 + 1}, Check("api", "user:42", COST_MAX)),
        ({"cost": 2**63}, Check("api", "user:42", COST_MAX)),
        ({"segment": "premium"}, Check("api", "user:42", 1, "premium")),
        ({"key": "é" * 256}, Check("api", "é" * 256)),
        ({"key": "a" * 512}, Check("api", "a" * 512)),
    ],
)
def test_a_body_is_a_check(change: dict[str, Any], check: Check) -> None:
    assert check_of(body_of({**ONE, **change})) == check


@pytest.mark.parametrize(
    ("body", "field", "what"),
    [
        (b"", "body", "is empty"),
        (b"{", "body", "not JSON"),
        (b"rule=api&key=k", "body", "not JSON"),
        (b'{"rule": "api", "key": "k"} x', "body", "not JSON"),
        (b'{"rule": "api", "key": "\xff"}', "body", "not JSON"),
        (b'{"rule": "api", "key": "\\ud800"}', "key", "has half of a surrogate pair"),
        (b'{"rule": "api", "key": "a\\udc00b"}', "key", "has half of a surrogate pair"),
        (b'{"rule": "\\ud800x", "key": "k"}', "rule", "has half of a surrogate pair"),
        (b'{"rule": "api", "key": "\xed\xa0\x80"}', "key", "has half of a surrogate pair"),
        (b'{"rule": "api", "key": "k", "\\udfff": 1}', r"\udfff", "has half of a surrogate pair"),
        (b'{"rule": "api", "key": "k", "key": "l"}', "key", "given twice"),
        (b'{"rule":"api","key":"k","cost":1,"cost":1}', "cost", "given twice"),
        (b'{"rule":"api","rule":"api","key":"\\u0022\\u0022\\u0022\\u0022"}', "rule", "given twice"),
        (b'{"rule":"api","key":"k","\\u006bey":"k"}', "key", "given twice"),
        (b'{"rule": "api", "key": "k", "cost": NaN}', "body", "not JSON"),
        (b"[]", "body", "expected object"),
        (b"null", "body", "expected object"),
        (b"5", "body", "expected object"),
        (b"{}", "rule", "is required"),
        (body_of({"rule": "api"}), "key", "is required"),
        (body_of({**ONE, "rule": 5}), "rule", "expected str, got int"),
        (body_of({**ONE, "rule": None}), "rule", "expected str, got null"),
        (body_of({**ONE, "key": 42}), "key", "expected str, got int"),
        (body_of({**ONE, "key": ""}), "key", "is empty"),
        (body_of({**ONE, "key": "a\nb"}), "key", "has a control character"),
        (body_of({**ONE, "key": "k" * 513}), "key", "is 513 bytes long"),
        (body_of({**ONE, "cost": -1}), "cost", "expected int >= 0"),
        (body_of({**ONE, "cost": 1.5}), "cost", "expected int, got float"),
        (body_of({**ONE, "cost": 1.0}), "cost", "expected int, got float"),
        (body_of({**ONE, "cost": "1"}), "cost", "expected int, got str"),
        (body_of({**ONE, "cost": None}), "cost", "expected int, got null"),
        (body_of({**ONE, "cost": True}), "cost", "expected int, got bool"),
        (body_of({**ONE, "segment": None}), "segment", "expected str, got null"),
        (body_of({**ONE, "segment": 1}), "segment", "expected str, got int"),
        (body_of({**ONE, "color": "red"}), "color", "unknown field"),
        (body_of({**ONE, "max-cost": 1}), "max-cost", "unknown field"),
        (body_of({**ONE, "cost ": 1}), "cost ", "unknown field"),
        (body_of({**ONE, "größe": 1}), "größe", "unknown field"),
    ],
)
def test_a_body_that_is_no_good_is_told_which_field_and_what_is_allowed(body: bytes, field: str, what: str) -> None:
    problem = refusal_of_body(body)
    assert problem.status == 400
    assert problem.detail.startswith(f"{field}: {what}")
    assert "; allowed: " in problem.detail
    if field in ALLOWED and what.startswith("expected"):
        assert problem.detail.endswith(ALLOWED[field])


@pytest.mark.parametrize("key", ['"', '"":"', "\\", '\\"', "é", '","key":"', '\\u0022"'])
@pytest.mark.parametrize("is_escaped", [True, False])
@pytest.mark.parametrize("separators", [(",", ":"), (" , ", " : ")])
def test_what_a_key_holds_gives_no_field_twice(key: str, is_escaped: bool, separators: tuple[str, str]) -> None:
    document = {**ONE, "key": key, "cost": 1, "segment": "free", "explain": False}
    text = json.dumps(document, ensure_ascii=is_escaped, separators=separators)
    assert check_of(text.encode()) == Check("api", key, 1, "free")


@given(st.binary(max_size=60))
def test_any_body_is_a_check_or_a_problem(body: bytes) -> None:
    for attempt in (body, b'{"rule":"api","key":"k",' + body, b'{"rule":"api","key":"' + body + b'"}'):
        with suppress(Problem):
            assert 1 <= len(check_of(attempt).key.encode()) <= 512


# Batches.


def batch_of(body: bytes) -> list[Check | Problem]:
    return [check_or_problem(item) for item in decode_batch(body)[0]]


def test_a_batch_is_checks_in_their_order() -> None:
    body = body_of({"checks": [ONE, {**ONE, "cost": 3}, {**ONE, "key": "other", "segment": "free"}]})
    assert batch_of(body) == [
        Check("api", "user:42"),
        Check("api", "user:42", 3),
        Check("api", "other", 1, "free"),
    ]


@pytest.mark.parametrize(
    ("bad", "detail"),
    [
        ({**ONE, "key": ""}, "key: is empty"),
        ({**ONE, "cost": -1}, "cost: expected int >= 0"),
        ({**ONE, "cost": 1.0}, "cost: expected int, got float"),
        ({"rule": "api"}, "key: is required"),
        ({**ONE, "color": "red"}, "color: unknown field; allowed: rule, key, cost, segment"),
        ({**ONE, "max-cost": 1}, "max-cost: unknown field; allowed: rule, key, cost, segment"),
        (None, "body: expected object, got null"),
        ([], "body: expected object, got array"),
    ],
)
def test_one_bad_check_of_a_batch_is_a_problem_in_its_place(bad: Any, detail: str) -> None:
    first, middle, last = batch_of(body_of({"checks": [ONE, bad, {**ONE, "cost": 2}]}))
    assert (first, last) == (Check("api", "user:42"), Check("api", "user:42", 2))
    assert isinstance(middle, Problem)
    assert middle.status == 400
    assert middle.detail.startswith(detail)


TWICE = '{"rule": "api", "key": "k", "cost": 1, "cost": 1}'


@pytest.mark.parametrize("other", [ONE, {**ONE, "cost": 1}, {**ONE, "cost": 2}, {**ONE, "key": "é"}])
def test_a_field_given_twice_in_one_check_of_a_batch_is_a_problem_in_its_place(other: dict[str, Any]) -> None:
    """Whatever else is in it: neither way to decode a batch may take either of the two values."""
    body = f'{{"checks": [{TWICE}, {json.dumps(other, ensure_ascii=False)}]}}'.encode()
    assert decode_plain_batch(body) is None
    twice, second = batch_of(body)
    assert isinstance(twice, Problem)
    assert twice.detail == "cost: given twice; allowed: once"
    assert second == check_of(body_of(other))


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"checks": [], "checks": [{"rule": "api", "key": "k"}]}', "checks: given twice; allowed: once"),
        (b'{"checks":[{"rule":"api","key":"k"}],"atomic":true,"atomic":false}', "atomic: given twice; allowed: once"),
        (
            b'{"checks":[{"rule":"api","key":"\\ud800"}]}',
            "key: has half of a surrogate pair; allowed: whole characters",
        ),
    ],
)
def test_a_batch_whose_text_is_no_good_is_told_why(body: bytes, detail: str) -> None:
    assert decode_plain_batch(body) is None
    with pytest.raises(Problem) as caught:
        decode_batch(body)
    assert (caught.value.status, caught.value.detail) == (400, detail)


@pytest.mark.parametrize("change", [{}, {"cost": 1}])
@pytest.mark.parametrize("around", [{}, {"atomic": False}])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_batch_of_plain_checks_is_plain(
    change: dict[str, Any], around: dict[str, Any], separators: tuple[str, str]
) -> None:
    body = json.dumps({"checks": [{**ONE, **change}] * 3, **around}, separators=separators).encode()
    plain = decode_plain_batch(body)
    assert plain is not None
    assert [(check.rule, check.key) for check in plain] == [("api", "user:42")] * 3


@pytest.mark.parametrize("size", [1, BATCH_MAX])
def test_a_batch_has_up_to_1000_checks(size: int) -> None:
    assert batch_of(body_of({"checks": [ONE] * size})) == [Check("api", "user:42")] * size


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "body: is empty; allowed: a JSON object"),
        (b"[]", "body: expected object, got array; allowed: a JSON object"),
        (b"{", "body: not JSON: "),
        (b"{}", "checks: is required; allowed: an array of 1 to 1000 checks"),
        (b'{"checks": []}', "checks: 0 checks; allowed: an array of 1 to 1000 checks"),
        (body_of({"checks": [ONE] * 1_001}), "checks: 1001 checks; allowed: an array of 1 to 1000 checks"),
        (body_of({"checks": [None] * 1_001}), "checks: 1001 checks; allowed: an array of 1 to 1000 checks"),
        (b'{"checks": 5}', "checks: expected array, got int; allowed: an array of 1 to 1000 checks"),
        (b'{"checks": {}}', "checks: expected array, got object; allowed: an array of 1 to 1000 checks"),
        (body_of({"checks": [ONE], "rule": "api"}), "rule: unknown field; allowed: checks, atomic"),
        (body_of({"checks": [ONE], "atomic": 1}), "atomic: expected bool, got int; allowed: true or false"),
        (body_of({"checks": [ONE], "atomic": None}), "atomic: expected bool, got null; allowed: true or false"),
    ],
)
def test_a_batch_that_is_no_good_as_a_whole_is_told_why(body: bytes, detail: str) -> None:
    with pytest.raises(Problem) as caught:
        decode_batch(body)
    assert caught.value.status == 400
    assert caught.value.detail.startswith(detail)


def test_a_batch_is_atomic_when_it_says_so() -> None:
    for atomic, is_atomic in (({}, False), ({"atomic": False}, False), ({"atomic": True}, True)):
        assert decode_batch(body_of({"checks": [ONE], **atomic})) == (
            decode_batch(body_of({"checks": [ONE]}))[0],
            is_atomic,
        )
        assert decode_batch(body_of({"checks": [ONE, None], **atomic}))[1] is is_atomic


@pytest.mark.parametrize(
    ("body", "check"),
    [
        (ONE, Check("api", "user:42", op=Op.REFUND)),
        ({**ONE, "cost": 3, "segment": "free"}, Check("api", "user:42", 3, "free", Op.REFUND)),
    ],
)
def test_a_refund_is_read(body: Any, check: Check) -> None:
    assert decode_refund(body_of(body)) == check


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({**ONE, "cost": 0}, "cost: expected int >= 1; allowed: an integer of 1 or more"),
        ({**ONE, "cost": 1.5}, "cost: expected int, got float; allowed: an integer of 1 or more"),
        ({"rule": "api"}, "key: is required; allowed: a string of 1 to 512 bytes"),
        ({**ONE, "key": ""}, "key: is empty"),
        ({**ONE, "tokens": 3}, "tokens: unknown field; allowed: rule, key, cost, segment"),
    ],
)
def test_a_refund_that_is_no_good_is_told_why(body: Any, detail: str) -> None:
    with pytest.raises(Problem) as caught:
        decode_refund(body_of(body))
    assert (caught.value.status, caught.value.detail[: len(detail)]) == (400, detail)


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"checks":' + DEEP, id="open"),
        pytest.param(b'{"checks":[' + DEEP + b"]" * 100_000 + b"]}", id="closed"),
        pytest.param(b'{"checks":[{"rule":"api","key":' + DEEP, id="in a check"),
    ],
)
def test_a_batch_nested_too_deep_is_a_problem_and_not_a_crash(body: bytes) -> None:
    with pytest.raises(Problem):
        decode_batch(body)


@pytest.mark.parametrize("start", [b"", b'{"rule":', b'{"color":', b'{"rule":"api","key":"k","segment":'])
def test_a_check_nested_too_deep_is_a_problem_and_not_a_crash(start: bytes) -> None:
    assert refusal_of_body(start + DEEP).status == 400


# Around the body.


@pytest.mark.parametrize(
    "content_type",
    [None, b"application/json", b"Application/JSON", b"application/json; charset=utf-8", b" application/json "],
)
def test_json_and_no_content_type_are_taken_as_json(content_type: bytes | None) -> None:
    require_json(content_type, b"")


@pytest.mark.parametrize(
    "content_type", [b"", b"text/plain", b"application/jsonp", b"application/x-www-form-urlencoded", b"\xff"]
)
def test_any_other_content_type_is_not_supported(content_type: bytes) -> None:
    with pytest.raises(Problem) as caught:
        require_json(content_type, b"")
    assert caught.value.status == 415
    assert caught.value.detail.endswith("; allowed: application/json")


def test_a_post_has_no_query() -> None:
    with pytest.raises(Problem) as caught:
        require_json(b"application/json", b"rule=api")
    assert caught.value.status == 400
    assert caught.value.detail.startswith("query: ")
