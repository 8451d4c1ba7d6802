"""The check API of one standalone node, field by field and header by header (contract, section 2).

Rules refill once a day wherever refill would blur a count, so that counts are compared with `==`.
"""

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.harness import Answer, HttpClient, NodeProcess, check, check_body, get_json, request

RULES: dict[str, Any] = {
    "rules": {
        "api": {
            "rate": "100/s",
            "burst": 200,
            "segments": {"premium": {"rate": "1000/s", "burst": 2000}, "free": {"rate": "10/s"}},
        },
        "daily": {"rate": "1/d", "burst": 500},
        "bulk": {"rate": "1/d", "burst": 2000},
        "fast": {"rate": "2000/s", "burst": 2000},
        "slow": {"rate": "5/s", "burst": 1},
        "steady": {"rate": "50/s", "burst": 5},
        "shadowed": {"rate": "1/d", "burst": 2, "shadow": True},
        "tiered": {
            "rate": "1/d",
            "burst": 100,
            "segments": {"large": {"rate": "1/d", "burst": 1000}, "small": {"rate": "1/d", "burst": 10}},
        },
        "per-minute": {"rate": "7/m"},
        "per-30s": {"rate": "10/30s"},
        "per-hour": {"rate": "49/h"},
        "per-2d": {"rate": "5/2d"},
        "thirds": {"rate": "3/s", "burst": 10},
        "r" * 64: {"rate": "1/d", "burst": 5},
        "guarded": {"rate": "1/d", "burst": 100, "backend": "orders"},
    },
    "backends": {"stock": {}},
    "keys": {
        "vip": {"segment": "large"},
        "own-numbers": {"rules": {"tiered": {"rate": "1/d", "burst": 7}}},
    },
}
VERDICT_FIELDS = {"allowed", "rule", "limit", "remaining", "reset_after", "retry_after", "degraded"}
ROUNDING_S = 1e-5  # a time in the body may have been rounded after its header was made

_keys = count()


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    with NodeProcess("check-api", rules=RULES) as running:
        yield running


@pytest.fixture
def key() -> str:
    return f"client:{next(_keys)}"


def ask(node: NodeProcess, method: str, **fields: Any) -> Answer:
    if method == "GET":
        return request(node.http, "GET", "/v1/check?" + urlencode(fields))
    return request(node.http, "POST", "/v1/check", json.dumps(fields))


def post(node: NodeProcess, body: str | bytes, path: str = "/v1/check", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request(node.http, "POST", path, body, named)


def batch(node: NodeProcess, checks: list[Any]) -> list[Any]:
    answer = post(node, json.dumps({"checks": checks}), "/v1/check/batch")
    assert answer.status == 200, answer
    assert set(answer.body) == {"results"}
    results: list[Any] = answer.body["results"]
    return results


def remaining(node: NodeProcess, key: str, rule: str = "daily", segment: str | None = None) -> int:
    """Peek: what the key has left, spending nothing."""
    left: int = check(node, rule, key, cost=0, segment=segment).body["remaining"]
    return left


def whole_seconds(seconds: float) -> set[str]:
    return {str(math.ceil(seconds + slip)) for slip in (-ROUNDING_S, ROUNDING_S)}


def assert_headers_say_what_the_body_says(answer: Answer, window_s: int) -> None:
    body, headers = answer.body, answer.headers
    rule, limit, left = body["rule"], body["limit"], body["remaining"]
    assert headers["content-type"].partition(";")[0] == "application/json"
    assert headers["ratelimit-policy"] == f'"{rule}";q={limit};w={window_s}'
    assert headers["x-ratelimit-limit"] == str(limit)
    assert headers["x-ratelimit-remaining"] == str(left)
    assert headers["x-ratelimit-reset"] in whole_seconds(body["reset_after"])
    assert headers["ratelimit"] == f'"{rule}";r={left};t={headers["x-ratelimit-reset"]}'
    if body["allowed"] or body["retry_after"] is None:
        assert "retry-after" not in headers
    else:
        assert headers["retry-after"] in whole_seconds(max(body["retry_after"], 0.5))


def assert_problem(answer: Answer, status: int, *mentioned: str) -> None:
    assert answer.status == status, answer
    assert answer.headers["content-type"].partition(";")[0] == "application/problem+json"
    assert {"type", "title", "status", "detail"} <= set(answer.body)
    assert answer.body["status"] == status
    assert isinstance(answer.body["title"], str)
    assert answer.body["title"]
    for word in mentioned:
        assert word in answer.body["detail"], answer.body


# Verdicts and headers


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_first_check_of_a_key_is_answered_as_in_the_contract(node: NodeProcess, key: str, method: str) -> None:
    answer = ask(node, method, rule="api", key=key)
    assert answer.status == 200
    assert answer.body == {
        "allowed": True,
        "rule": "api",
        "limit": 200,
        "remaining": 199,
        "reset_after": pytest.approx(0.01, abs=0.001),
        "retry_after": 0.0,
        "degraded": False,
    }
    assert answer.headers["ratelimit-policy"] == '"api";q=200;w=2'
    assert answer.headers["ratelimit"] == '"api";r=199;t=1'
    assert answer.headers["x-ratelimit-limit"] == "200"
    assert answer.headers["x-ratelimit-remaining"] == "199"
    assert answer.headers["x-ratelimit-reset"] == "1"
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_denied_check_is_429_with_the_time_to_come_back(node: NodeProcess, key: str, method: str) -> None:
    check(node, "daily", key, cost=500)
    answer = ask(node, method, rule="daily", key=key)
    assert answer.status == 429
    assert set(answer.body) == VERDICT_FIELDS
    assert answer.body["allowed"] is False
    assert answer.body["degraded"] is False
    assert answer.body["limit"] == 500
    assert answer.body["remaining"] == 0
    assert 86_390 < answer.body["retry_after"] <= 86_400
    assert 500 * 86_400 - 10 < answer.body["reset_after"] <= 500 * 86_400
    assert_headers_say_what_the_body_says(answer, window_s=43_200_000)


@pytest.mark.parametrize(
    ("rule", "segment", "limit", "window_s"),
    [
        ("api", None, 200, 2),
        ("api", "premium", 2000, 2),
        ("api", "free", 10, 1),
        ("daily", None, 500, 43_200_000),
        ("fast", None, 2000, 1),
        ("per-minute", None, 7, 60),
        ("per-30s", None, 10, 30),
        ("per-hour", None, 49, 3600),
        ("per-2d", None, 5, 172_800),
        ("thirds", None, 10, 4),
        ("r" * 64, None, 5, 432_000),
    ],
)
def test_headers_of_every_plan_agree_with_the_body(
    node: NodeProcess, key: str, rule: str, segment: str | None, limit: int, window_s: int
) -> None:
    first = check(node, rule, key, segment=segment)
    assert (first.status, first.body["limit"], first.body["remaining"]) == (200, limit, limit - 1)
    assert_headers_say_what_the_body_says(first, window_s)
    over = check(node, rule, key, cost=limit, segment=segment)
    if over.status == 429:  # a fast plan may have filled up in between
        assert_headers_say_what_the_body_says(over, window_s)
    never = check(node, rule, key, cost=limit + 1, segment=segment)
    assert never.status == 429
    assert_headers_say_what_the_body_says(never, window_s)


def test_retry_after_is_at_least_one_second_in_the_header_and_exact_in_the_body(node: NodeProcess, key: str) -> None:
    assert check(node, "slow", key).status == 200
    denied = check(node, "slow", key)
    assert denied.status == 429
    assert 0 < denied.body["retry_after"] <= 0.2
    assert denied.headers["retry-after"] == "1"


def test_a_denied_key_is_allowed_again_when_it_was_told_and_not_before(node: NodeProcess, key: str) -> None:
    with HttpClient(node.http) as client:
        client.check("slow", key)
        sent_s = time.monotonic()
        denied = client.check("slow", key)
        assert denied.status == 429
        told_s, told_from_s = denied.body["retry_after"], time.monotonic()
        status, asked_s = 429, told_from_s
        while status == 429:
            # The node's clock read the denial between `sent_s` and `told_from_s`.
            assert asked_s < told_from_s + told_s + ROUNDING_S, "still denied when it should be allowed"
            asked_s = time.monotonic()
            status = client.check("slow", key).status
        assert time.monotonic() >= sent_s + told_s - ROUNDING_S, "allowed before its time"


def test_what_is_granted_over_time_is_the_burst_and_the_rate(node: NodeProcess, key: str) -> None:
    granted = 0
    with HttpClient(node.http) as client:
        began_s = time.monotonic()
        granted += client.check("steady", key).status == 200
        first_answered_s = time.monotonic()
        last_asked_s = first_answered_s
        while last_asked_s < began_s + 0.5:
            last_asked_s = time.monotonic()
            granted += client.check("steady", key).status == 200
        ended_s = time.monotonic()
    assert granted <= 5 + 50 * (ended_s - began_s)
    assert granted > 5 + 50 * (last_asked_s - first_answered_s) - 2


def test_a_check_costs_one_unless_it_says_otherwise(node: NodeProcess, key: str) -> None:
    assert check(node, "daily", key).body["remaining"] == 499
    assert check(node, "daily", key, cost=1).body["remaining"] == 498
    assert check(node, "daily", key, cost=98).body["remaining"] == 400


def test_get_and_post_spend_from_the_same_bucket(node: NodeProcess, key: str) -> None:
    assert ask(node, "POST", rule="daily", key=key, cost=3).body["remaining"] == 497
    assert ask(node, "GET", rule="daily", key=key, cost=4).body["remaining"] == 493


def test_keys_and_rules_do_not_share_buckets(node: NodeProcess, key: str) -> None:
    check(node, "daily", key, cost=10)
    assert check(node, "daily", key + "x").body["remaining"] == 499
    assert check(node, "bulk", key).body["remaining"] == 1999


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_cost_zero_peeks_at_a_full_key_and_spends_nothing(node: NodeProcess, key: str, method: str) -> None:
    for _ in range(3):
        answer = ask(node, method, rule="daily", key=key, cost=0)
        assert answer.status == 200
        assert answer.body["remaining"] == 500
        assert answer.body["reset_after"] == 0
        assert answer.body["retry_after"] == 0
        assert_headers_say_what_the_body_says(answer, window_s=43_200_000)
    assert check(node, "daily", key).body["remaining"] == 499


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_cost_zero_says_what_cost_one_would_have_got(node: NodeProcess, key: str, method: str) -> None:
    check(node, "daily", key, cost=499)
    almost = ask(node, method, rule="daily", key=key, cost=0)
    assert (almost.status, almost.body["allowed"], almost.body["remaining"]) == (200, True, 1)
    check(node, "daily", key)
    empty = ask(node, method, rule="daily", key=key, cost=0)
    assert (empty.status, empty.body["allowed"], empty.body["remaining"]) == (429, False, 0)
    assert 86_390 < empty.body["retry_after"] <= 86_400
    assert_headers_say_what_the_body_says(empty, window_s=43_200_000)


def test_asking_for_more_than_is_left_spends_nothing(node: NodeProcess, key: str) -> None:
    steps = [
        (1000, 200, 1000),
        (1500, 429, 1000),
        (500, 200, 500),
        (400, 200, 100),
        (100, 200, 0),
        (1, 429, 0),
    ]
    for cost, status, left in steps:
        answer = check(node, "bulk", key, cost=cost)
        assert (answer.status, answer.body["remaining"]) == (status, left), cost


def test_a_large_cost_can_be_asked_of_a_fast_rule(node: NodeProcess, key: str) -> None:
    assert check(node, "fast", key, cost=2000).status == 200
    denied = check(node, "fast", key, cost=2000)
    assert denied.status == 429
    assert 0 < denied.body["retry_after"] <= 1
    assert denied.headers["retry-after"] == "1"


def test_the_whole_burst_can_be_spent_at_once_and_not_one_more(node: NodeProcess, key: str) -> None:
    assert check(node, "daily", key, cost=501).status == 429
    assert check(node, "daily", key, cost=500).body["remaining"] == 0


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("cost", [501, 10**6, 2**31, 2**53, 10**18])
def test_a_cost_above_capacity_is_never_allowed_and_says_so(
    node: NodeProcess, key: str, method: str, cost: int
) -> None:
    answer = ask(node, method, rule="daily", key=key, cost=cost)
    assert answer.status == 429
    assert answer.body["retry_after"] is None
    assert answer.body["remaining"] == 500
    assert_headers_say_what_the_body_says(answer, window_s=43_200_000)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("cost", [2**63, 2**64, 10**30, 10**400])
def test_a_cost_beyond_any_machine_integer_is_refused_one_way_or_the_other(
    node: NodeProcess, key: str, method: str, cost: int
) -> None:
    answer = ask(node, method, rule="daily", key=key, cost=cost)
    if answer.status == 429:
        assert answer.body["retry_after"] is None
    else:
        assert_problem(answer, 400, "cost")
    assert remaining(node, key) == 500


def test_concurrent_checks_of_one_key_are_granted_exactly_the_burst(node: NodeProcess, key: str) -> None:
    def hammer(_: int) -> int:
        with HttpClient(node.http) as client:
            return sum(client.check("daily", key).status == 200 for _ in range(100))

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(hammer, range(8))) == 500


# deny_status


@pytest.mark.parametrize("status", [401, 403, 503])
def test_deny_status_replaces_429_and_changes_nothing_else(node: NodeProcess, key: str, status: int) -> None:
    allowed = ask(node, "GET", rule="daily", key=key, cost=500, deny_status=status)
    assert allowed.status == 200
    denied = ask(node, "GET", rule="daily", key=key, deny_status=status)
    assert denied.status == status
    assert set(denied.body) == VERDICT_FIELDS
    assert denied.body["allowed"] is False
    assert_headers_say_what_the_body_says(denied, window_s=43_200_000)
    never = ask(node, "GET", rule="daily", key=key, cost=501, deny_status=status)
    assert never.status == status
    assert "retry-after" not in never.headers


@pytest.mark.parametrize("status", ["200", "404", "500", "", "abc", "403.0"])
def test_any_other_deny_status_is_refused(node: NodeProcess, key: str, status: str) -> None:
    answer = ask(node, "GET", rule="daily", key=key, deny_status=status)
    assert_problem(answer, 400, "deny_status", "401", "403", "503")
    assert remaining(node, key) == 500


# Form decoding


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a+b{}", "a b{}"),
        ("a%20b{}", "a b{}"),
        ("a%2Bb{}", "a+b{}"),
        ("%61%62{}", "ab{}"),
        ("caf%C3%A9{}", "café{}"),
        ("caf%c3%a9{}", "café{}"),
        ("%F0%9F%8D%A3{}", "🍣{}"),
        ("user%3A42%2Fx%3Fy%26z%3D{}", "user:42/x?y&z={}"),
        ("user:42/x?y{}", "user:42/x?y{}"),
        ("100%25{}", "100%{}"),
        ("a=b{}", "a=b{}"),
        ("%2541{}", "%41{}"),
    ],
)
def test_a_query_is_decoded_as_a_form(node: NodeProcess, written: str, meant: str) -> None:
    tag = f".{next(_keys)}"
    by_get = request(node.http, "GET", f"/v1/check?rule=daily&key={written.format(tag)}&cost=7")
    assert by_get.status == 200
    assert remaining(node, meant.format(tag)) == 493


def test_every_parameter_of_a_query_is_decoded(node: NodeProcess, key: str) -> None:
    answer = request(node.http, "GET", f"/v1/check?%72ule=tiere%64&k%65y={quote(key)}&cos%74=%37&segment=l%61rge")
    assert (answer.status, answer.body["rule"], answer.body["remaining"]) == (200, "tiered", 993)


def test_parameters_may_come_in_any_order(node: NodeProcess, key: str) -> None:
    answer = request(node.http, "GET", f"/v1/check?cost=7&key={quote(key)}&deny_status=403&rule=daily")
    assert (answer.status, answer.body["remaining"]) == (200, 493)


@pytest.mark.parametrize(
    ("query", "mentioned"),
    [
        ("rule=daily&key=KEY%", "key"),
        ("rule=daily&key=KEY%4", "key"),
        ("rule=daily&key=KEY%zz", "key"),
        ("rule=daily&key=KEY%ff", "key"),
        ("rule=daily&key=KEY%C3", "key"),
        ("rule=daily&key=KEY%ED%A0%80", "key"),
        ("rule=daily&key=KEY%C0%AF", "key"),
        ("rule=daily&key=KEY&key=KEY", "key"),
        ("rule=daily&rule=daily&key=KEY", "rule"),
        ("rule=daily&key=KEY&cost=1&cost=1", "cost"),
        ("rule=daily&key=KEY&segment=a&segment=a", "segment"),
        ("rule=daily&key=KEY&deny_status=403&deny_status=403", "deny_status"),
        ("rule=daily&key=KEY&colour=red", "colour"),
        ("rule=daily&key=KEY&Cost=1", "Cost"),
        ("rule=daily", "key"),
        ("key=KEY", "rule"),
        ("rule=daily&key=", "key"),
        ("rule=&key=KEY", "rule"),
        ("rule=daily&key", "key"),
        ("", "rule"),
    ],
)
def test_a_query_that_cannot_be_read_is_refused_naming_the_parameter(
    node: NodeProcess, key: str, query: str, mentioned: str
) -> None:
    answer = request(node.http, "GET", "/v1/check?" + query.replace("KEY", key))
    assert_problem(answer, 400, mentioned)
    assert remaining(node, key) == 500


def test_a_query_left_out_altogether_is_refused(node: NodeProcess) -> None:
    assert_problem(request(node.http, "GET", "/v1/check"), 400)


@pytest.mark.parametrize(
    "cost", ["", "-1", "1.0", "1e3", "0x10", "abc", "1_0", "%D9%A1", "NaN", "null", "1%00", "true"]
)
def test_a_cost_in_a_query_is_decimal_digits(node: NodeProcess, key: str, cost: str) -> None:
    answer = request(node.http, "GET", f"/v1/check?rule=daily&key={key}&cost={cost}")
    assert_problem(answer, 400, "cost")
    assert remaining(node, key) == 500


# Segments


def test_a_segment_chooses_the_numbers(node: NodeProcess, key: str) -> None:
    for segment, limit in [("premium", 2000), ("free", 10), ("default", 200), ("gold", 200)]:
        answer = check(node, "api", f"{key}.{segment}", segment=segment)
        assert (answer.status, answer.body["limit"], answer.body["remaining"]) == (200, limit, limit - 1)


def test_segments_share_the_bucket_and_moving_keeps_what_was_spent(node: NodeProcess, key: str) -> None:
    assert check(node, "tiered", key, cost=5).body["remaining"] == 95
    large = check(node, "tiered", key, segment="large")
    assert (large.body["limit"], large.body["remaining"]) == (1000, 994)
    assert remaining(node, key, "tiered", "small") == 4
    assert check(node, "tiered", key, cost=4, segment="unlisted").body["remaining"] == 90
    empty = check(node, "tiered", key, segment="small")
    assert (empty.status, empty.body["limit"], empty.body["remaining"]) == (429, 10, 0)
    assert check(node, "tiered", key, segment="large").body["remaining"] == 989


def test_what_is_spent_beyond_a_smaller_segment_is_not_forgotten(node: NodeProcess, key: str) -> None:
    check(node, "tiered", key, cost=900, segment="large")
    for segment, limit in [("small", 10), ("default", 100)]:
        denied = check(node, "tiered", key, segment=segment)
        assert (denied.status, denied.body["limit"], denied.body["remaining"]) == (429, limit, 0)
        assert denied.body["retry_after"] > 86_400
    assert remaining(node, key, "tiered", "large") == 100


def test_a_key_with_its_own_segment_uses_it_unless_the_request_names_one(node: NodeProcess) -> None:
    assert check(node, "tiered", "vip", cost=0).body["limit"] == 1000
    assert check(node, "tiered", "vip", cost=0, segment="small").body["limit"] == 10
    assert check(node, "daily", "vip", cost=0).body["limit"] == 500


def test_numbers_given_for_a_key_come_before_any_segment(node: NodeProcess) -> None:
    assert check(node, "tiered", "own-numbers", cost=0).body["limit"] == 7
    assert check(node, "tiered", "own-numbers", cost=0, segment="large").body["limit"] == 7
    assert check(node, "daily", "own-numbers", cost=0).body["limit"] == 500


@pytest.mark.parametrize("segment", ["", "s" * 65, "two words", "a/b", "é", "a\n"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_segment_that_is_no_name_is_refused(node: NodeProcess, key: str, method: str, segment: str) -> None:
    assert_problem(ask(node, method, rule="daily", key=key, segment=segment), 400, "segment")
    assert remaining(node, key) == 500


# Shadow


def test_a_rule_in_shadow_mode_always_allows_and_says_what_it_would_have_done(node: NodeProcess, key: str) -> None:
    verdicts = [check(node, "shadowed", key) for _ in range(4)]
    assert [answer.status for answer in verdicts] == [200] * 4
    assert [answer.body["allowed"] for answer in verdicts] == [True] * 4
    assert [answer.body["shadow"] for answer in verdicts] == [True] * 4
    assert [answer.body["would_allow"] for answer in verdicts] == [True, True, False, False]
    assert [answer.body["remaining"] for answer in verdicts] == [1, 0, 0, 0]
    for answer in verdicts:
        assert set(answer.body) == VERDICT_FIELDS | {"shadow", "would_allow"}


def test_shadow_is_absent_from_the_verdicts_of_other_rules(node: NodeProcess, key: str) -> None:
    assert set(check(node, "daily", key).body) == VERDICT_FIELDS


# Batch


def test_a_batch_answers_in_order_and_in_the_words_of_single_checks(node: NodeProcess, key: str) -> None:
    results = batch(
        node,
        [
            {"rule": "daily", "key": key, "cost": 100},
            {"rule": "api", "key": key, "segment": "premium"},
            {"rule": "bulk", "key": key, "cost": 2001},
            {"rule": "shadowed", "key": key, "cost": 3},
            {"rule": "daily", "key": key, "cost": 0},
        ],
    )
    assert [result["rule"] for result in results] == ["daily", "api", "bulk", "shadowed", "daily"]
    assert [result["allowed"] for result in results] == [True, True, False, True, True]
    assert [result["remaining"] for result in results] == [400, 1999, 2000, 2, 400]
    assert results[2]["retry_after"] is None
    assert results[3]["would_allow"] is False
    for result in results:
        assert set(result) - {"shadow", "would_allow"} == VERDICT_FIELDS


def test_a_key_repeated_in_a_batch_is_counted_exactly(node: NodeProcess, key: str) -> None:
    same = {"rule": "daily", "key": key, "cost": 200}
    results = batch(node, [same, same, same, {**same, "cost": 100}, {**same, "cost": 1}])
    assert [(result["allowed"], result["remaining"]) for result in results] == [
        (True, 300),
        (True, 100),
        (False, 100),
        (True, 0),
        (False, 0),
    ]


def test_one_bad_item_of_a_batch_does_not_fail_the_others(node: NodeProcess, key: str) -> None:
    good = {"rule": "daily", "key": key}
    results = batch(
        node,
        [
            good,
            {"rule": "no-such-rule", "key": key},
            {**good, "cost": -1},
            {**good, "cost": None},
            {**good, "cost": 1.0},
            {**good, "colour": "red"},
            {**good, "key": ""},
            {**good, "segment": "two words"},
            {"key": key},
            {"rule": "daily"},
            "check",
            None,
            [],
            good,
        ],
    )
    assert [results[0]["remaining"], results[-1]["remaining"]] == [499, 498]
    errors = [result["error"] for result in results[1:-1]]
    assert [error["status"] for error in errors] == [404] + [400] * 11
    assert errors[0]["title"] == "unknown rule"
    assert "no-such-rule" in errors[0]["detail"]
    mentioned = ["cost", "cost", "cost", "colour", "key", "segment", "rule", "key"]
    for error, field in zip(errors[1:9], mentioned, strict=True):
        assert field in error["detail"]
    assert all({"status", "title", "detail"} <= set(error) for error in errors)


def test_a_batch_of_a_thousand_is_served(node: NodeProcess, key: str) -> None:
    results = batch(node, [{"rule": "bulk", "key": key}] * 1000)
    assert [result["remaining"] for result in results] == list(range(1999, 999, -1))


@pytest.mark.parametrize(
    "body",
    [
        '{"checks": []}',
        "{}",
        "[]",
        '{"checks": null}',
        '{"checks": {}}',
        '{"checks": "x"}',
        '{"checks": [{"rule": "daily", "key": "KEY"}], "colour": "red"}',
        '{"checks": [{"rule": "daily", "key": "KEY"}]',
        "",
    ],
)
def test_a_malformed_batch_is_refused_whole(node: NodeProcess, key: str, body: str) -> None:
    assert_problem(post(node, body.replace("KEY", key), "/v1/check/batch"), 400)
    assert remaining(node, key) == 500


def test_a_batch_of_more_than_a_thousand_is_refused_whole(node: NodeProcess, key: str) -> None:
    body = json.dumps({"checks": [{"rule": "daily", "key": key}] * 1001})
    assert_problem(post(node, body, "/v1/check/batch"), 400, "checks")
    assert remaining(node, key) == 500


# Atomic batches and refunds


def atomic(node: NodeProcess, checks: list[Any]) -> tuple[bool, list[Any]]:
    answer = post(node, json.dumps({"atomic": True, "checks": checks}), "/v1/check/batch")
    assert answer.status == 200, answer
    assert set(answer.body) == {"allowed", "results"}
    return answer.body["allowed"], answer.body["results"]


def test_an_atomic_batch_takes_all_or_nothing(node: NodeProcess, key: str) -> None:
    checks = [{"rule": "daily", "key": key, "cost": 300}, {"rule": "bulk", "key": key, "cost": 300}]
    is_allowed, results = atomic(node, checks)
    assert (is_allowed, [result["remaining"] for result in results]) == (True, [200, 1700])
    assert all(set(result) == VERDICT_FIELDS for result in results)
    is_allowed, (denied, held_back) = atomic(node, checks)
    assert (is_allowed, denied["allowed"], denied["remaining"]) == (False, False, 200)
    assert denied["retry_after"] > 0
    assert "reason" not in denied
    assert (held_back["allowed"], held_back["reason"], held_back["remaining"]) == (False, "batch", 1700)
    assert held_back["retry_after"] == 0
    assert (remaining(node, key), remaining(node, key, "bulk")) == (200, 1700)


def test_an_atomic_batch_with_a_bad_item_spends_nothing_and_says_which(node: NodeProcess, key: str) -> None:
    good = {"rule": "daily", "key": key}
    for bad, status in (({"rule": "no-such-rule", "key": key}, 404), ({**good, "cost": -1}, 400), (None, 400)):
        is_allowed, (first, second) = atomic(node, [good, bad])
        assert not is_allowed
        assert (first["allowed"], first["reason"]) == (False, "batch")
        assert second["error"]["status"] == status
    assert_problem(post(node, json.dumps({"checks": [good], "atomic": "yes"}), "/v1/check/batch"), 400, "atomic")
    assert remaining(node, key) == 500


def test_a_refund_gives_back_what_was_spent(node: NodeProcess, key: str) -> None:
    check(node, "daily", key, cost=20)
    answer = post(node, json.dumps({"rule": "daily", "key": key, "cost": 5}), "/v1/refund")
    assert answer.status == 200
    assert answer.body | {"reset_after": 0} == {
        "refunded": 5,
        "rule": "daily",
        "limit": 500,
        "remaining": 485,
        "reset_after": 0,
    }
    # Of the fifteenth token a little has been refilled meanwhile, so that it is not given back whole.
    assert post(node, json.dumps({"rule": "daily", "key": key, "cost": 100}), "/v1/refund").body["refunded"] == 14
    assert post(node, json.dumps({"rule": "daily", "key": key}), "/v1/refund").body["refunded"] == 0
    assert remaining(node, key) == 500
    assert_problem(post(node, json.dumps({"rule": "no-such-rule", "key": key}), "/v1/refund"), 404)
    assert_problem(post(node, json.dumps({"rule": "daily", "key": key, "cost": 0}), "/v1/refund"), 400, "cost")


# Unknown rules, paths, methods and content types


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_rule_is_404_naming_it(node: NodeProcess, key: str, method: str) -> None:
    answer = ask(node, method, rule="no-such-rule", key=key)
    assert_problem(answer, 404, "no-such-rule")
    assert answer.body["title"] == "unknown rule"


@pytest.mark.parametrize(("policy", "status", "allowed"), [("allow", 200, True), ("deny", 429, False)])
def test_an_unknown_rule_can_be_allowed_or_denied(policy: str, status: int, allowed: bool) -> None:
    with NodeProcess("lenient", rules=RULES, args=["--on-unknown-rule", policy]) as lenient:
        for method in ("GET", "POST"):
            answer = ask(lenient, method, rule="no-such-rule", key="a")
            assert (answer.status, answer.body["allowed"]) == (status, allowed)
            assert ("retry-after" in answer.headers) is bool(answer.body["retry_after"])
        items = batch(lenient, [{"rule": "no-such-rule", "key": "a"}])
        assert [item["allowed"] for item in items] == [allowed]
        by_proxy = ask(lenient, "GET", rule="no-such-rule", key="a", deny_status=403)
        assert by_proxy.status == (200 if allowed else 403)
        assert ask(lenient, "POST", rule="daily", key="a").body["remaining"] == 499
        assert_problem(ask(lenient, "POST", rule="no name", key="a"), 400, "rule")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/check", {"GET", "POST"}),
        ("PUT", "/v1/check", {"GET", "POST"}),
        ("PATCH", "/v1/check", {"GET", "POST"}),
        ("GET", "/v1/check/batch", {"POST"}),
        ("DELETE", "/v1/check/batch", {"POST"}),
    ],
)
def test_a_wrong_method_is_405_and_lists_the_right_ones(
    node: NodeProcess, method: str, path: str, allowed: set[str]
) -> None:
    answer = request(node.http, method, path)
    assert_problem(answer, 405)
    assert allowed <= {name.strip() for name in answer.headers["allow"].split(",")}
    assert method not in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chec", "/v1/checks", "/v2/check", "/v1/check/batch/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404(node: NodeProcess, method: str, path: str) -> None:
    assert_problem(request(node.http, method, path, "{}" if method == "POST" else None), 404)


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "application/xml; charset=application/json",
        "multipart/form-data; boundary=x",
        "json",
    ],
)
@pytest.mark.parametrize("path", ["/v1/check", "/v1/check/batch"])
def test_a_body_of_another_content_type_is_415(node: NodeProcess, key: str, path: str, content_type: str) -> None:
    answer = post(node, check_body("daily", key), path, Content_Type=content_type)
    assert_problem(answer, 415)
    assert remaining(node, key) == 500


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "Application/JSON",
    ],
)
def test_json_is_json_with_or_without_parameters(node: NodeProcess, key: str, content_type: str) -> None:
    answer = post(node, check_body("daily", key), Content_Type=content_type)
    assert (answer.status, answer.body["remaining"]) == (200, 499)


# Names, keys and types


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("name", ["", "r" * 65, "two words", "a/b", "naïve", "a\n", "a\x00", "rule?"])
def test_a_rule_that_is_no_name_is_refused(node: NodeProcess, key: str, method: str, name: str) -> None:
    assert_problem(ask(node, method, rule=name, key=key), 400, "rule")


@pytest.mark.parametrize("name", ["r", "R" * 64, "AZaz09._-", "-", "."])
def test_a_proper_name_of_no_rule_is_only_unknown(node: NodeProcess, key: str, name: str) -> None:
    assert_problem(ask(node, "POST", rule=name, key=key), 404, name)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "value",
    [
        "x",
        "k" * 512,
        "é" * 256,
        "🍣" * 128,
        " ",
        "a b",
        "/",
        "%",
        "..",
        "{}",
        '"',
        "\\",
        "\u00a0",
        "\u2028",
        "ﷺ",
    ],
)
def test_a_key_is_any_text_of_up_to_512_bytes(node: NodeProcess, method: str, value: str) -> None:
    before = remaining(node, value)
    answer = ask(node, method, rule="daily", key=value)
    assert (answer.status, answer.body["remaining"]) == (200, before - 1)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "k" * 513,
        "é" * 256 + "k",
        "🍣" * 129,
        "\x00",
        "a\nb",
        "a\tb",
        "\x1f",
        "\x7f",
        "\x80",
        "a\x85",
        "\x9f",
    ],
)
def test_a_key_that_is_too_long_or_has_control_characters_is_refused(
    node: NodeProcess, method: str, value: str
) -> None:
    assert_problem(ask(node, method, rule="daily", key=value), 400, "key")


@pytest.mark.parametrize(
    ("body", "mentioned"),
    [
        ('{"rule": "daily", "key": "KEY", "cost": null}', "cost"),
        ('{"rule": "daily", "key": "KEY", "cost": 1.0}', "cost"),
        ('{"rule": "daily", "key": "KEY", "cost": 0.5}', "cost"),
        ('{"rule": "daily", "key": "KEY", "cost": "1"}', "cost"),
        ('{"rule": "daily", "key": "KEY", "cost": true}', "cost"),
        ('{"rule": "daily", "key": "KEY", "cost": false}', "cost"),
        ('{"rule": "daily", "key": "KEY", "cost": -1}', "cost"),
        ('{"rule": "daily", "key": "KEY", "cost": -0.0}', "cost"),
        ('{"rule": "daily", "key": "KEY", "cost": 1e30}', "cost"),
        ('{"rule": "daily", "key": "KEY", "cost": 1e2}', "cost"),
        ('{"rule": "daily", "key": "KEY", "cost": [1]}', "cost"),
        ('{"rule": "daily", "key": "KEY", "cost": {}}', "cost"),
        ('{"rule": "daily", "key": "KEY", "segment": 1}', "segment"),
        ('{"rule": "daily", "key": "KEY", "segment": ["a"]}', "segment"),
        ('{"rule": "daily", "key": "KEY", "colour": "red"}', "colour"),
        ('{"rule": "daily", "key": "KEY", "Cost": 1}', "Cost"),
        ('{"rule": "daily", "key": 7}', "key"),
        ('{"rule": "daily", "key": null}', "key"),
        ('{"rule": "daily", "key": ["KEY"]}', "key"),
        ('{"rule": "daily"}', "key"),
        ('{"rule": 7, "key": "KEY"}', "rule"),
        ('{"rule": null, "key": "KEY"}', "rule"),
        ('{"key": "KEY"}', "rule"),
        ("{}", "rule"),
    ],
)
def test_a_wrong_field_is_refused_by_name_and_spends_nothing(
    node: NodeProcess, key: str, body: str, mentioned: str
) -> None:
    assert_problem(post(node, body.replace("KEY", key)), 400, mentioned)
    assert remaining(node, key) == 500


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"null",
        b"[]",
        b'"check"',
        b"7",
        b"rule=daily&key=KEY",
        b'{"rule": "daily", "key": "KEY", "cost": NaN}',
        b'{"rule": "daily", "key": "KEY", "cost": Infinity}',
        b'{"rule": "daily", "key": "KEY", "cost": 01}',
        b'{"rule": "daily", "key": "KEY",}',
        b"{'rule': 'daily', 'key': 'KEY'}",
        b'{"rule": "daily", "key": "KEY"} {"rule": "daily", "key": "KEY"}',
        b'{"rule": "daily", "key": "KEY\xff"}',
        b'{"rule": "daily", "key": "KEY\xed\xa0\x80"}',
        b'{"rule": "daily", "key": "KEY\\ud800"}',
        b'{"rule": "daily", "key": "KEY\n"}',
        b'{"rule": "daily", "key": "KEY\\u0000"}',
        b'{"rule": "daily", "key": "KEY", "segment": ' + b"[" * 100_000,
        b"[" * 500_000,
    ],
    ids=range(21),
)
def test_a_body_that_is_no_check_is_refused_and_spends_nothing(node: NodeProcess, key: str, body: bytes) -> None:
    assert_problem(post(node, body.replace(b"KEY", key.encode())), 400)
    assert remaining(node, key) == 500


def test_escapes_in_json_are_the_characters_they_stand_for(node: NodeProcess, key: str) -> None:
    answer = post(node, f'{{"rule": "dai\\u006cy", "key": "\\ud83c\\udf63{key}", "cost": 7}}')
    assert (answer.status, answer.body["rule"]) == (200, "daily")
    assert remaining(node, f"🍣{key}") == 493


# Reports


def report(node: NodeProcess, backend: Any, *outcomes: Any, **more: Any) -> Answer:
    return post(node, json.dumps({"backend": backend, "outcomes": list(outcomes), **more}), "/v1/report")


def rejected(node: NodeProcess, backend: str) -> int:
    """Reports of a backend that were no good; without a name, those of backends that are none."""
    page = request(node.admin, "GET", "/metrics").body
    start = f'limiter_backend_rejected_signals_total{{backend="{backend}"}} '
    return next((round(float(line.removeprefix(start))) for line in page.splitlines() if line.startswith(start)), 0)


@pytest.mark.parametrize("backend", ["orders", "stock"], ids=["named by a rule", "with an entry"])
def test_a_report_is_accepted_and_tells_how_old_the_signal_is(node: NodeProcess, backend: str) -> None:
    answer = report(
        node,
        backend,
        {"latency_ms": 12.5, "status": 200},
        {"latency_ms": 3, "status": 503, "count": 4},
        {"status": "error"},
        {"status": "timeout"},
    )
    assert (answer.status, answer.body) == (202, {"accepted": 4})
    assert get_json(node.admin, "/v1/status")["backends"][backend]["signal_age"] < 5


def test_a_report_of_10000_outcomes_is_accepted_and_one_more_is_not(node: NodeProcess) -> None:
    outcomes = [{"latency_ms": 1, "status": 200}] * 10_001
    assert report(node, "stock", *outcomes[1:]).status == 202
    assert_problem(report(node, "stock", *outcomes), 400, "outcomes: 10001 outcomes", "1 to 10000")


GOOD_OUTCOME = {"latency_ms": 1, "status": 200}


@pytest.mark.parametrize(
    ("outcomes", "more", "mentioned"),
    [
        ([], {}, "outcomes: 0 outcomes"),
        ([{"latency_ms": 1}], {}, "status: is required"),
        ([{"status": 200}], {}, "latency_ms: is required"),
        ([GOOD_OUTCOME, {**GOOD_OUTCOME, "status": "fine"}], {}, "status: 'fine' in outcome 1"),
        ([{**GOOD_OUTCOME, "latency_ms": -1}], {}, "latency_ms: "),
        ([{**GOOD_OUTCOME, "count": 0}], {}, "count: "),
        ([GOOD_OUTCOME], {"rule": "api"}, "rule: unknown field"),
    ],
)
def test_a_report_with_a_wrong_field_is_refused_whole_by_its_name_and_counted(
    node: NodeProcess, outcomes: list[Any], more: dict[str, Any], mentioned: str
) -> None:
    before = rejected(node, "orders")
    assert_problem(report(node, "orders", *outcomes, **more), 400, mentioned)
    assert rejected(node, "orders") == before + 1
    assert get_json(node.admin, "/v1/status")["backends"]["orders"]["fault"].startswith(f"report: {mentioned}")


def test_a_report_of_a_backend_that_nobody_knows_is_a_404_and_counted(node: NodeProcess) -> None:
    before = rejected(node, "")
    assert_problem(report(node, "unknown", GOOD_OUTCOME), 404, "unknown")
    assert_problem(report(node, "no name", GOOD_OUTCOME), 400, "backend: 'no name' is not allowed")
    assert_problem(report(node, 7, GOOD_OUTCOME), 400, "backend: ")
    assert_problem(post(node, "[]", "/v1/report"), 400, "body: ")
    assert rejected(node, "") == before + 4
    assert "unknown" not in get_json(node.admin, "/v1/status")["backends"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_report_is_posted(node: NodeProcess, method: str) -> None:
    answer = request(node.http, method, "/v1/report")
    assert_problem(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_a_report_is_json_without_a_query(node: NodeProcess) -> None:
    body = json.dumps({"backend": "stock", "outcomes": [GOOD_OUTCOME]})
    assert_problem(post(node, body, "/v1/report", Content_Type="text/plain"), 415, "application/json")
    assert_problem(post(node, body, "/v1/report?backend=stock"), 400, "query")
    assert post(node, body, "/v1/report", Content_Type="application/json").status == 202


def test_a_bad_report_leaves_the_connection_usable(node: NodeProcess) -> None:
    with HttpClient(node.http) as client:
        assert client.request("POST", "/v1/report", "{}").status == 400
        assert client.request("POST", "/v1/report", '{"backend": "unknown", "outcomes": [1]}').status == 400
        assert client.check("guarded", "a").status == 200
