"""Rules, key entries and multipliers written with etcdctl while three real nodes run (contract, sections 2 and 4): the
good ones take effect everywhere and forget nothing, the bad ones change nothing and are named by every node.

One fleet for the whole module; every test has rules and keys of its own. Rules refill once a day, so that counts are
compared with `==`.
"""

import json
import time
from collections.abc import Iterator
from itertools import cycle
from urllib.parse import urlencode

import pytest

from tests.etcd_process import EtcdProcess
from tests.fleet import PATIENT, Fleet, daily, limit, metric, remaining, say
from tests.harness import check, eventually, get_json, key_path, request


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with EtcdProcess() as etcd, Fleet(etcd, args=PATIENT) as running:
        yield running


@pytest.fixture(autouse=True)
def no_problem_is_left_behind(fleet: Fleet) -> Iterator[None]:
    yield
    assert fleet.problems() == [[], [], []]


# Rules


def test_a_changed_burst_keeps_what_was_spent(fleet: Fleet) -> None:
    one, two, three = fleet.nodes
    fleet.put("rules/changed", daily(100))
    assert [remaining(one, "changed", "k"), remaining(two, "changed", "k")] == [99, 98]
    fleet.put("rules/changed", daily(10))
    assert [remaining(three, "changed", "k"), remaining(one, "changed", "k")] == [7, 6]
    fleet.put("rules/changed", daily(200))
    assert remaining(two, "changed", "k") == 195


def test_a_change_reaches_every_node_in_under_a_second(fleet: Fleet) -> None:
    latencies = []
    for burst in range(101, 111):
        began = time.monotonic()
        fleet.etcd.etcdctl("put", "/limiter/rules/quick", json.dumps(daily(burst)))
        while {rules.get("quick", {}).get("burst") for rules in fleet.rules()} != {burst}:
            assert time.monotonic() < began + 5.0, f"burst {burst} has not reached every node"
        latencies.append(time.monotonic() - began)
        assert {limit(node, "quick", "k") for node in fleet.nodes} == {burst}
    latencies.sort()
    say(f"etcdctl to every node: median {latencies[5] * 1e3:.0f} ms, worst {latencies[-1] * 1e3:.0f} ms")
    assert latencies[-1] < 1.0


def test_a_rule_is_listed_with_its_defaults_filled_in_on_every_node(fleet: Fleet) -> None:
    revision = fleet.put("rules/plain", {"rate": "7/m"})
    for node in fleet.nodes:
        document = get_json(node.admin, "/v1/rules")
        rule = document["rules"]["plain"]
        assert document["revision"] == revision
        assert (rule["rate"], rule["burst"], rule["algorithm"]) == ("7/m", 7, "token_bucket")
        assert (rule["on_unreachable"], rule["durability"], rule["shadow"]) == ("local", "async", False)


def test_a_deleted_rule_is_unknown_and_comes_back_with_full_buckets(fleet: Fleet) -> None:
    fleet.put("rules/mortal", daily(10))
    keys = [fleet.owned_by(owner, 1)[0] for owner in fleet.nodes]
    for key in keys:
        assert [remaining(node, "mortal", key) for node in fleet.nodes] == [9, 8, 7]
    fleet.delete("rules/mortal")
    for node in fleet.nodes:
        assert {check(node, "mortal", key).status for key in keys} == {404}
        batch = request(node.http, "POST", "/v1/check/batch", json.dumps({"checks": [{"rule": "mortal", "key": "k"}]}))
        assert (batch.status, batch.body["results"][0]["error"]["status"]) == (200, 404)
        assert request(node.admin, "GET", key_path("mortal", keys[0])).status == 404
        assert "mortal" not in get_json(node.admin, "/v1/rules")["rules"]
    fleet.put("rules/mortal", daily(10))
    assert [remaining(fleet.nodes[0], "mortal", key) for key in keys] == [9, 9, 9]


# Bad values


BAD_RULES = {
    "no JSON": '{"rate": "10/s"',
    "two documents": '{"rate": "10/s"} {"rate": "10/s"}',
    "nothing": "",
    "no UTF-8": '{"rate": "10/s", "backend": "\udcff"}',
    "a list": "[]",
    "null": "null",
    "no rate": '{"burst": 5}',
    "an unknown field": '{"rate": "10/s", "brust": 5}',
    "a negative rate": '{"rate": "-10/s"}',
    "a rate that is a number": '{"rate": -10}',
    "a rate of zero": '{"rate": "0/s"}',
    "a period of zero": '{"rate": "10/0s"}',
    "no capacity": '{"rate": "10/s", "burst": 0}',
    "half a token": '{"rate": "10/s", "burst": 1.5}',
    "no number": '{"rate": "10/s", "burst": NaN}',
    "an unknown algorithm": '{"rate": "10/s", "algorithm": "leaky_cauldron"}',
    "an unknown policy": '{"rate": "10/s", "on_unreachable": "panic"}',
    "a bad segment": '{"rate": "10/s", "segments": {"premium": {"rate": "many/s"}}}',
    "a bad segment name": '{"rate": "10/s", "segments": {"pre mium": {"rate": "1/s"}}}',
}


def see_problem(fleet: Fleet, key: str) -> None:
    """Every node names this key, says something about it, and has it in a metric."""
    assert fleet.problems() == [[key]] * 3
    assert all(status["config"]["problems"][0]["error"] for status in fleet.statuses())
    assert [metric(node, "limiter_config_problems") for node in fleet.nodes] == [1, 1, 1]


def see_no_problem(fleet: Fleet) -> None:
    assert fleet.problems() == [[], [], []]
    assert [metric(node, "limiter_config_problems") for node in fleet.nodes] == [0, 0, 0]


@pytest.mark.parametrize("value", BAD_RULES.values(), ids=BAD_RULES.keys())
def test_a_bad_rule_leaves_the_last_good_one_in_force_until_it_is_mended(fleet: Fleet, value: str) -> None:
    fleet.put("rules/careful", daily(10))
    request(fleet.nodes[0].admin, "DELETE", key_path("careful", "k"))
    good = fleet.rules()
    assert remaining(fleet.nodes[0], "careful", "k") == 9
    fleet.put("rules/careful", value)
    see_problem(fleet, "rules/careful")
    assert fleet.rules() == good
    assert [remaining(node, "careful", "k") for node in fleet.nodes] == [8, 7, 6]
    fleet.put("rules/careful", daily(20))
    see_no_problem(fleet)
    assert [remaining(node, "careful", "k") for node in fleet.nodes] == [15, 14, 13]


def test_a_rule_that_was_never_good_is_unknown_and_deleting_it_ends_the_problem(fleet: Fleet) -> None:
    for name in ("stillborn", "bad name", "a/b", "", "x" * 65):
        key = f"rules/{name}"
        fleet.put(key, "{" if name == "stillborn" else daily(5))
        see_problem(fleet, key)
        assert all(name not in rules for rules in fleet.rules())
        fleet.delete(key)
        see_no_problem(fleet)
    assert check(fleet.nodes[0], "stillborn", "k").status == 404


def test_deleting_a_rule_whose_value_is_bad_ends_the_rule_and_the_problem(fleet: Fleet) -> None:
    fleet.put("rules/spoilt", daily(5))
    fleet.put("rules/spoilt", "{")
    see_problem(fleet, "rules/spoilt")
    fleet.delete("rules/spoilt")
    see_no_problem(fleet)
    assert {check(node, "spoilt", "k").status for node in fleet.nodes} == {404}


@pytest.mark.parametrize(
    "value",
    [
        "{",
        "[]",
        '{"segmnt": "premium"}',
        '{"segment": 5}',
        '{"segment": "pre mium"}',
        '{"rules": {"entered": {"rate": "-1/s"}}}',
        '{"rules": {"entered": {"rate": "1/s", "color": "red"}}}',
        '{"rules": {"entered": 7}}',
    ],
)
def test_a_bad_key_entry_leaves_the_last_good_one_in_force_until_it_is_mended(fleet: Fleet, value: str) -> None:
    fleet.put("rules/entered", daily(10, segments={"premium": daily(100)}))
    fleet.put("keys/vip", {"segment": "premium"})
    fleet.put("keys/vip", value)
    see_problem(fleet, "keys/vip")
    assert [limit(node, "entered", "vip") for node in fleet.nodes] == [100] * 3
    fleet.put("keys/vip", {"rules": {"entered": daily(7)}})
    see_no_problem(fleet)
    assert [limit(node, "entered", "vip") for node in fleet.nodes] == [7] * 3
    fleet.delete("keys/vip")
    assert [limit(node, "entered", "vip") for node in fleet.nodes] == [10] * 3


@pytest.mark.parametrize(
    "value",
    ["{", "0.5", "{}", '{"multiplier": 0}', '{"multiplier": -0.5}', '{"multiplier": 1.01}', '{"multiplier": "0.5"}'],
)
def test_a_bad_multiplier_leaves_the_last_good_one_in_force_until_it_is_mended(fleet: Fleet, value: str) -> None:
    fleet.put("rules/scaled-badly", daily(100, backend="shaky"))
    fleet.put("multipliers/shaky", {"multiplier": 0.5, "pinned": True})
    fleet.put("multipliers/shaky", value)
    see_problem(fleet, "multipliers/shaky")
    assert [limit(node, "scaled-badly", "k") for node in fleet.nodes] == [50] * 3
    fleet.put("multipliers/shaky", {"multiplier": 0.25, "pinned": True})
    see_no_problem(fleet)
    assert [limit(node, "scaled-badly", "k") for node in fleet.nodes] == [25] * 3
    fleet.delete("multipliers/shaky")
    assert [limit(node, "scaled-badly", "k") for node in fleet.nodes] == [100] * 3


@pytest.mark.parametrize("value", ["{", "[]", "{}", '{"peer": "nowhere"}', '{"peer": "127.0.0.1:0"}', '{"peer": 5}'])
def test_a_bad_node_entry_changes_no_ring(fleet: Fleet, value: str) -> None:
    before = fleet.members()
    fleet.put("nodes/ghost", value)
    see_problem(fleet, "nodes/ghost")
    assert fleet.members() == before
    fleet.delete("nodes/ghost")
    see_no_problem(fleet)


def test_a_node_whose_own_entry_is_overwritten_stays_and_registers_again_once_that_is_deleted(fleet: Fleet) -> None:
    fleet.put("rules/steady", daily(100))
    keys = fleet.owned_by(fleet.nodes[1], 3)
    fleet.put("nodes/n2", "{")
    see_problem(fleet, "nodes/n2")
    assert fleet.members() == [["n1", "n2", "n3"]] * 3
    assert [remaining(fleet.nodes[0], "steady", key) for key in keys] == [99] * 3
    fleet.delete("nodes/n2")
    eventually(
        lambda: fleet.etcd.etcdctl("get", "--print-value-only", "/limiter/nodes/n2").startswith("{"),
        what="n2 registered again",
    )
    see_no_problem(fleet)
    assert fleet.members() == [["n1", "n2", "n3"]] * 3
    assert [remaining(fleet.nodes[0], "steady", key) for key in keys] == [98] * 3


def test_a_node_says_when_another_is_registered_under_its_id(fleet: Fleet) -> None:
    fleet.put("nodes/n2", {"peer": "127.0.0.1:1"})
    eventually(
        lambda: any(
            (event["event"], event.get("peer")) == ("another node is registered under this id", "127.0.0.1:1")
            for event in fleet.nodes[1].log_events
        ),
        what="n2 says that it is not the registered one",
    )
    fleet.delete("nodes/n2")
    fleet.wait_members(fleet.nodes)


# Segments and keys of their own


def test_the_keys_own_numbers_come_first_then_the_segment_asked_for_then_the_keys_own(fleet: Fleet) -> None:
    segments = {"premium": daily(100), "free": daily(3)}
    fleet.put("rules/tiered", daily(10, segments=segments))
    fleet.put("rules/tiered-too", daily(20, segments=segments))
    fleet.put("keys/subscriber", {"segment": "premium"})
    fleet.put("keys/special", {"segment": "premium", "rules": {"tiered": daily(7)}})
    fleet.put("keys/stray", {"segment": "unlisted"})
    table = [
        # rule, key, segment asked for, limit
        ("tiered", "anyone", None, 10),
        ("tiered", "anyone", "default", 10),
        ("tiered", "anyone", "premium", 100),
        ("tiered", "anyone", "free", 3),
        ("tiered", "anyone", "unlisted", 10),
        ("tiered", "subscriber", None, 100),
        ("tiered", "subscriber", "free", 3),
        ("tiered", "subscriber", "default", 10),
        ("tiered", "subscriber", "unlisted", 10),
        ("tiered", "special", None, 7),
        ("tiered", "special", "premium", 7),
        ("tiered", "special", "free", 7),
        ("tiered-too", "special", None, 100),
        ("tiered-too", "special", "free", 3),
        ("tiered", "stray", None, 10),
        ("tiered", "stray", "premium", 100),
    ]
    for node in fleet.nodes:
        found = [(rule, key, segment, limit(node, rule, key, segment)) for rule, key, segment, _ in table]
        assert found == table


def test_a_key_moved_to_other_numbers_keeps_what_it_has_spent(fleet: Fleet) -> None:
    fleet.put("rules/moving", daily(10, segments={"premium": daily(100)}))
    for owner in fleet.nodes:
        key = fleet.owned_by(owner, 1, "moved")[0]
        nodes = cycle(fleet.nodes)
        assert [remaining(next(nodes), "moving", key) for _ in range(3)] == [9, 8, 7]
        fleet.put(f"keys/{key}", {"segment": "premium"})
        assert remaining(next(nodes), "moving", key) == 96
        fleet.put(f"keys/{key}", {"segment": "premium", "rules": {"moving": daily(6)}})
        assert remaining(next(nodes), "moving", key) == 1
        assert remaining(next(nodes), "moving", key, segment="premium") == 0
        fleet.delete(f"keys/{key}")
        assert remaining(next(nodes), "moving", key) == 3
        # A segment of the request alone moves it too, and back.
        assert remaining(next(nodes), "moving", key, segment="premium") == 92
        assert remaining(next(nodes), "moving", key) == 1


@pytest.mark.parametrize(
    "key",
    [
        "user/42/device",
        "/leading",
        "trailing/",
        "a//b",
        "/",
        "kundė:日本語/🦊",
        "a b+c%2Fd?e=f&g#h",
        "rules/x",
        "..",
        "é",
    ],
)
def test_key_entries_take_any_client_key(fleet: Fleet, key: str) -> None:
    fleet.put("rules/any-key", daily(10, segments={"premium": daily(100)}))
    fleet.put(f"keys/{key}", {"segment": "premium"})
    assert [remaining(node, "any-key", key) for node in fleet.nodes] == [99, 98, 97]
    for left, node in zip((96, 95, 94), fleet.nodes, strict=True):
        target = "/v1/check?" + urlencode({"rule": "any-key", "key": key})
        assert request(node.http, "GET", target).body["remaining"] == left
    for node in fleet.nodes:
        bucket = fleet.bucket("any-key", key, node)
        assert (bucket["key"], bucket["segment"], bucket["remaining"]) == (key, "premium", 94)
    assert check(fleet.nodes[0], "any-key", key + "~", cost=0).body["limit"] == 10
    fleet.delete(f"keys/{key}")
    assert [remaining(node, "any-key", key) for node in fleet.nodes[:3]] == [3, 2, 1]


def test_patterns_stand_for_keys_the_best_one_wins_and_no_change_forgets(fleet: Fleet) -> None:
    fleet.put("rules/wide", daily(10, segments={"premium": daily(100)}))
    patterns = {
        "172.16.0.0/12": {"rules": {"wide": daily(20)}},
        "172.16.5.0/24": {"segment": "premium"},
        "172.16.*": {"rules": {"wide": daily(30)}},
        "2001:db8:77::/48": {"rules": {"wide": daily(40)}},
        "tenant-a:*": {"rules": {"wide": daily(50)}},
        "172.16.5.9": {"rules": {"wide": daily(60)}},
    }
    for name, document in patterns.items():
        fleet.put(f"keys/{name}", document)
    keys = {
        "172.16.0.1": 20,
        "172.31.255.255": 20,
        "172.32.0.0": 10,
        "172.16.5.1": 100,
        "172.16.5.9": 60,
        "172.16.x": 30,
        "2001:db8:77:1::5": 40,
        "2001:db8:78::5": 10,
        "tenant-a:42": 50,
        "tenant-b:42": 10,
    }
    for key, burst in keys.items():
        assert [remaining(node, "wide", key) for node in fleet.nodes] == [burst - 1, burst - 2, burst - 3], key
    fleet.put("keys/172.16.0.0/12", {"rules": {"wide": daily(25)}})
    fleet.delete("keys/172.16.5.0/24")
    fleet.delete("keys/tenant-a:*")
    fleet.delete("keys/172.16.5.9")
    changed = {"172.16.0.1": 25, "172.31.255.255": 25, "172.16.5.1": 25, "172.16.5.9": 25, "tenant-a:42": 10}
    for key, burst in (keys | changed).items():
        assert [remaining(node, "wide", key) for node in fleet.nodes] == [burst - 4, burst - 5, burst - 6], key
    fleet.etcd.etcdctl("put", "/limiter/keys/172.16.1.1/12", "{}")
    eventually(lambda: fleet.problems() == [["keys/172.16.1.1/12"]] * 3)
    for name in ("172.16.1.1/12", *patterns):
        fleet.delete(f"keys/{name}")


# Multipliers


def test_a_pinned_multiplier_scales_the_limit_and_keeps_what_was_spent(fleet: Fleet) -> None:
    fleet.put("rules/orders", daily(100, backend="orders", segments={"premium": daily(1000)}))
    fleet.put("rules/elsewhere", daily(100, backend="billing"))
    nodes = cycle(fleet.nodes)
    assert [remaining(next(nodes), "orders", "k") for _ in range(10)][-1] == 90
    for multiplier, expected in ((0.3, 30), (0.29, 29), (0.999, 99), (0.155, 15), (0.0001, 1), (0.5, 50), (1, 100)):
        fleet.put("multipliers/orders", {"multiplier": multiplier, "pinned": True})
        for node in fleet.nodes:
            peek = check(node, "orders", "k", cost=0)
            assert (peek.body["limit"], peek.body["remaining"]) == (expected, max(0, expected - 10)), multiplier
            assert peek.status == (200 if expected > 10 else 429)
            assert limit(node, "elsewhere", "k") == 100
        assert [status["backends"]["orders"]["multiplier"] for status in fleet.statuses()] == [multiplier] * 3
    fleet.put("multipliers/orders", {"multiplier": 0.3, "pinned": True})
    assert {limit(node, "orders", "k", "premium") for node in fleet.nodes} == {300}
    assert remaining(next(nodes), "orders", "k") == 19
    fleet.delete("multipliers/orders")
    assert [remaining(node, "orders", "k") for node in fleet.nodes] == [88, 87, 86]


def test_a_pinned_multiplier_scales_the_rate(fleet: Fleet) -> None:
    fleet.put("rules/slow", {"rate": "1/100s", "burst": 1, "backend": "tape"})
    assert remaining(fleet.nodes[0], "slow", "k") == 0
    waits = []
    for multiplier in (0.1, 0.5, 1):
        fleet.put("multipliers/tape", {"multiplier": multiplier, "pinned": True})
        denied = check(fleet.nodes[1], "slow", "k")
        assert (denied.status, denied.body["limit"]) == (429, 1)
        waits.append(denied.body["retry_after"])
    fleet.delete("multipliers/tape")
    assert 980 < waits[0] <= 1000
    assert 190 < waits[1] <= 200
    assert 90 < waits[2] <= 100
