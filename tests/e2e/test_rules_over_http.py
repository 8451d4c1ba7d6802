"""What rules of every algorithm and of several limits look like to callers: verdicts, buckets, explanations."""

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from tests.etcd_process import EtcdProcess
from tests.fleet import Fleet
from tests.harness import Answer, NodeProcess, check, get_json, key_path, request

RULES: dict[str, Any] = {
    "rules": {
        "leaky": {"rate": "1/h", "burst": 3, "algorithm": "leaky_bucket"},
        "quota": {"rate": "10000/month", "timezone": "Europe/Berlin"},
        "joint": {"limits": [{"rate": "10/d"}, {"rate": "4/month", "algorithm": "fixed_window"}]},
        "tiers": {"rate": "100/d", "segments": {"premium": {"rate": "1000/d", "priority": 2}}, "backend": "orders"},
        "quiet": {"rate": "1/d", "shadow": True},
    },
    "keys": {"alice": {"segment": "premium"}, "10.1.0.0/16": {"rules": {"tiers": {"rate": "5/d"}}}},
    "backends": {"orders": {}},
}
HOUR_S = 3_600.0

_keys = count()


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    with NodeProcess("alone", rules=RULES) as running:
        yield running


@pytest.fixture
def key() -> str:
    return f"client:{next(_keys)}"


def ask(node: NodeProcess, **fields: Any) -> Answer:
    return request(node.http, "POST", "/v1/check", json.dumps(fields))


def test_a_leaky_bucket_tells_how_long_to_hold_back(node: NodeProcess, key: str) -> None:
    waits = [check(node, "leaky", key).body["wait_ms"] for _ in range(3)]
    assert waits == pytest.approx([0, 3_600_000, 7_200_000], abs=10_000)
    denied = check(node, "leaky", key)
    assert denied.status == 429
    assert "wait_ms" not in denied.body
    assert denied.body["retry_after"] == pytest.approx(HOUR_S, abs=10)


def test_a_quota_says_when_it_resets(node: NodeProcess, key: str) -> None:
    answer = check(node, "quota", key)
    assert (answer.status, answer.body["limit"], answer.body["remaining"]) == (200, 10_000, 9_999)
    assert 0 < answer.body["reset_after"] <= 31 * 86_400 + HOUR_S


def test_several_limits_are_all_told_and_the_tightest_is_in_the_headers(node: NodeProcess, key: str) -> None:
    answer = check(node, "joint", key, cost=3)
    assert [
        (limit["rate"], limit["algorithm"], limit["limit"], limit["remaining"]) for limit in answer.body["limits"]
    ] == [
        ("10/d", "token_bucket", 10, 7),
        ("4/month", "fixed_window", 4, 1),
    ]
    assert (answer.body["limit"], answer.body["remaining"]) == (4, 1)
    assert answer.headers["ratelimit-policy"] == '"joint";q=4;w=2592000'
    assert answer.headers["ratelimit"].startswith('"joint";r=1;t=')
    denied = check(node, "joint", key, cost=2)
    assert (denied.status, [limit["remaining"] for limit in denied.body["limits"]]) == (429, [7, 1])
    assert denied.body["limits"][0]["retry_after"] == 0
    bucket = get_json(node.admin, key_path("joint", key))
    assert (bucket["algorithm"], bucket["limit"], bucket["used"], bucket["remaining"]) == ("fixed_window", 4, 3, 1)
    assert [limit["remaining"] for limit in bucket["limits"]] == [7, 1]


def test_an_explained_check_says_what_led_to_its_verdict(node: NodeProcess, key: str) -> None:
    answer = ask(node, rule="tiers", key=key, segment="premium", explain=True)
    explained = answer.body.pop("explain")
    assert (answer.status, answer.body["remaining"]) == (200, 999)
    reset_after = explained["limits"][0].pop("reset_after")
    assert reset_after == pytest.approx(86.4, abs=1)
    assert explained == {
        "rule": "tiers",
        "key": key,
        "segment": "premium",
        "segment_from": "request",
        "limits_from": "rules/tiers segments.premium",
        "multiplier": 1.0,
        "backend": "orders",
        "priority": 2,
        "used": 1,
        "owner": node.node_id,
        "replica": None,
        "decided_by": node.node_id,
        "limits": [
            {"rate": "1000/d", "algorithm": "token_bucket", "limit": 1000, "remaining": 999, "retry_after": 0.0}
        ],
    }


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("alice", ("premium", "keys/alice", "rules/tiers segments.premium", 2)),
        ("10.1.2.3", ("default", "default", "keys/10.1.0.0/16", 5)),
        ("somebody", ("default", "default", "rules/tiers", 5)),
    ],
)
def test_an_explanation_alone_spends_nothing(
    node: NodeProcess, client: str, expected: tuple[str, str, str, int]
) -> None:
    for _ in range(2):
        answer = request(node.http, "GET", f"/v1/explain?rule=tiers&key={client}")
        explained = answer.body["explain"]
        assert answer.status == 200
        found = explained["segment"], explained["segment_from"], explained["limits_from"], explained["priority"]
        assert found == expected
        assert (explained["used"], answer.body["remaining"]) == (0, answer.body["limit"])


def test_a_shadow_rule_explains_what_it_would_have_done(node: NodeProcess, key: str) -> None:
    answers = [request(node.http, "GET", f"/v1/check?rule=quiet&key={key}&explain=true") for _ in range(2)]
    assert [(answer.status, answer.body["would_allow"]) for answer in answers] == [(200, True), (200, False)]
    assert answers[1].body["explain"]["limits"][0]["retry_after"] == pytest.approx(86_400, abs=10)


@pytest.mark.parametrize(
    ("target", "status", "detail"),
    [
        ("/v1/explain?rule=nope&key=k", 404, "rule: 'nope' does not exist"),
        ("/v1/explain?rule=tiers", 400, "key: is required"),
        ("/v1/check?rule=tiers&key=k&explain=yes", 400, "explain: 'yes' is not allowed; allowed: true or false"),
    ],
)
def test_what_cannot_be_explained_is_a_problem(node: NodeProcess, target: str, status: int, detail: str) -> None:
    answer = request(node.http, "GET", target)
    assert (answer.status, answer.body["detail"][: len(detail)]) == (status, detail)


def test_explain_must_be_a_boolean_and_stands_in_no_batch(node: NodeProcess, key: str) -> None:
    assert (
        ask(node, rule="tiers", key=key, explain=1)
        .body["detail"]
        .startswith("explain: expected `bool`".replace("`", ""))
    )
    checks = [{"rule": "tiers", "key": key, "explain": True}]
    results = request(node.http, "POST", "/v1/check/batch", json.dumps({"checks": checks})).body["results"]
    assert results[0]["error"]["detail"].startswith("explain: unknown field")


def test_any_node_explains_as_the_owner_decides() -> None:
    with EtcdProcess() as etcd, Fleet(etcd, args=("--drain-delay", "0.1")) as fleet:
        fleet.put("rules/joint", RULES["rules"]["joint"])
        owner = fleet.nodes[2]
        (key,) = fleet.owned_by(owner, 1)
        for spent, node in enumerate(fleet.nodes, start=1):
            answer = ask(node, rule="joint", key=key, explain=True)
            explained = answer.body["explain"]
            assert (explained["decided_by"], explained["owner"], explained["used"]) == (
                owner.node_id,
                owner.node_id,
                spent,
            )
            assert [limit["remaining"] for limit in explained["limits"]] == [10 - spent, 4 - spent]
