"""Three real nodes on a real etcd behind a real nginx: one limit per key, whichever node is asked, and nodes that tell
the same of it (contract, sections 2, 3 and 5). Configuration is in `test_fleet_config`, outages in
`test_fleet_outages`.

One fleet for the whole module; every test has rules and keys of its own. Rules refill once a day, so that counts are
compared with `==`.
"""

import asyncio
import json
import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, cycle
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest

from tests.etcd_process import EtcdProcess
from tests.fleet import PATIENT, Fleet, daily, metric, remaining, say
from tests.harness import (
    HttpClient,
    NginxProcess,
    check,
    check_body,
    eventually,
    get_json,
    key_path,
    request,
    split_address,
)

CONNECTIONS = 64
ROUNDS = 40  # asks per connection
CONTENT_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with EtcdProcess() as etcd, Fleet(etcd, args=PATIENT) as running:
        yield running


@pytest.fixture(scope="module")
def nginx(fleet: Fleet) -> Iterator[NginxProcess]:
    with NginxProcess([node.http for node in fleet.nodes]) as running:
        yield running


class Reply(NamedTuple):
    status: int
    body: Any


def post(path: str, body: str) -> bytes:
    data = body.encode()
    return f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def post_check(rule: str, key: str, cost: int | None = None) -> bytes:
    return post("/v1/check", check_body(rule, key, cost))


def get_check(rule: str, key: str) -> bytes:
    return f"GET /v1/check?{urlencode({'rule': rule, 'key': key})} HTTP/1.1\r\nHost: t\r\n\r\n".encode()


def post_batch(checks: Sequence[dict[str, Any]]) -> bytes:
    return post("/v1/check/batch", json.dumps({"checks": checks}))


def seeded() -> random.Random:
    """Dice whose seed is shown; SEED in the environment repeats a run."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))
    say(f"SEED={seed}")
    return random.Random(seed)


async def converse(address: str, requests: Sequence[bytes]) -> list[Reply]:
    """Ask one after the other on one kept-alive connection."""
    reader, writer = await asyncio.open_connection(*split_address(address))
    replies = []
    try:
        for each in requests:
            writer.write(each)
            head = await reader.readuntil(b"\r\n\r\n")
            length = CONTENT_LENGTH.search(head)
            assert length, head
            body = await reader.readexactly(int(length[1]))
            replies.append(Reply(int(head.split(b" ", 2)[1]), json.loads(body)))
    finally:
        writer.close()
    return replies


def all_at_once(conversations: Sequence[tuple[str, Sequence[bytes]]]) -> list[Reply]:
    """Hold all conversations at the same time; the replies of all of them."""

    async def hold() -> list[Reply]:
        async with asyncio.timeout(60):
            return list(chain(*await asyncio.gather(*(converse(*each) for each in conversations))))

    return asyncio.run(hold())


# One limit for the whole fleet


def test_64_connections_through_nginx_get_exactly_what_one_key_holds(fleet: Fleet, nginx: NginxProcess) -> None:
    fleet.put("rules/hot", daily(500))
    asks = [post_check("hot", "one"), get_check("hot", "one")] * (ROUNDS // 2)
    began = time.monotonic()
    replies = all_at_once([(nginx.http, asks)] * CONNECTIONS)
    say(f"{len(replies)} checks of one key in {time.monotonic() - began:.2f} s")
    assert Counter(reply.status for reply in replies) == {200: 500, 429: CONNECTIONS * ROUNDS - 500}
    assert not any(reply.body["degraded"] for reply in replies)
    # One order for all: every number of tokens left is told exactly once.
    assert sorted(reply.body["remaining"] for reply in replies if reply.status == 200) == list(range(500))
    assert {reply.body["remaining"] for reply in replies if reply.status == 429} == {0}
    answered = [metric(node, "limiter_checks_total", rule="hot") for node in fleet.nodes]
    assert sum(answered) == len(replies)
    assert min(answered) > len(replies) / 6, "nginx should have asked all nodes about equally"


def test_50_keys_get_exactly_what_each_holds(fleet: Fleet, nginx: NginxProcess) -> None:
    fleet.put("rules/many", daily(20))
    keys = [f"key:{number}" for number in range(50)]
    rng = seeded()
    asked = [key for key in keys for _ in range(CONNECTIONS)]
    rng.shuffle(asked)
    granted: Counter[str] = Counter()
    shares = [asked[number::CONNECTIONS] for number in range(CONNECTIONS)]
    replies = all_at_once([(nginx.http, [post_check("many", key) for key in share]) for share in shares])
    # Replies come in the order of the conversations, and within one in order.
    for key, reply in zip([key for share in shares for key in share], replies, strict=True):
        assert (reply.status in {200, 429}, reply.body["degraded"]) == (True, False), reply
        granted[key] += reply.status == 200
    assert granted == dict.fromkeys(keys, 20)


def test_batches_asked_at_all_nodes_at_once_get_exactly_what_each_key_holds(fleet: Fleet) -> None:
    fleet.put("rules/batched", daily(100))
    costs = {f"cost{cost}:{number}": cost for cost in (1, 3, 7) for number in range(10)}
    # 4 conversations with each node x 3 batches x 5 rounds of the keys: 180 tokens asked at cost 1, more at others.
    one: list[dict[str, Any]] = [{"rule": "batched", "key": key, "cost": cost} for key, cost in costs.items()] * 5
    batches = [post_batch(one)] * 3
    replies = all_at_once([(node.http, batches) for node in fleet.nodes for _ in range(4)])
    assert {reply.status for reply in replies} == {200}
    granted: Counter[str] = Counter()
    for reply in replies:
        for item, verdict in zip(one, reply.body["results"], strict=True):
            assert verdict["degraded"] is False, verdict
            granted[item["key"]] += item["cost"] * verdict["allowed"]
    assert granted == {key: 100 // cost * cost for key, cost in costs.items()}


def test_a_rule_rewritten_again_and_again_under_load_grants_not_one_more(fleet: Fleet, nginx: NginxProcess) -> None:
    fleet.put("rules/restless", daily(400))

    async def rewrite_under_load() -> list[Reply]:
        asks = [post_check("restless", "k")] * (ROUNDS // 2)
        load = asyncio.gather(*(converse(nginx.http, asks) for _ in range(CONNECTIONS)))
        bursts = cycle((300, 400))
        while not load.done():
            await asyncio.to_thread(fleet.put, "rules/restless", daily(next(bursts)))
        return list(chain(*await load))

    replies = asyncio.run(rewrite_under_load())
    fleet.put("rules/restless", daily(400))
    replies += all_at_once([(node.http, [post_check("restless", "k")] * 150) for node in fleet.nodes])
    assert sum(reply.status == 200 for reply in replies) == 400


def test_the_numbers_go_on_whichever_node_is_asked(fleet: Fleet) -> None:
    fleet.put("rules/counted", daily(100))
    for owner in fleet.nodes:
        for key in fleet.owned_by(owner, 2):
            turns = [fleet.nodes[number % 3] for number in range(12)]
            assert [remaining(node, "counted", key) for node in turns] == list(range(99, 87, -1))
            assert [check(node, "counted", key, cost=0).body["remaining"] for node in fleet.nodes] == [88] * 3


# Admin


def test_every_node_names_the_same_owner_and_the_bucket_is_there(fleet: Fleet) -> None:
    fleet.put("rules/placed", daily(10))
    keys = [f"place:{number}" for number in range(60)]
    owners = [[get_json(node.admin, f"/v1/owner?key={quote(key)}") for key in keys] for node in fleet.nodes]
    assert owners[0] == owners[1] == owners[2]
    for placement in owners[0]:
        assert placement["owner"] in {"n1", "n2", "n3"}
        assert placement["replica"] in {"n1", "n2", "n3"} - {placement["owner"]}
    before = [status["keys"] for status in fleet.statuses()]
    for key, node in zip(keys, cycle(fleet.nodes), strict=False):
        remaining(node, "placed", key)
    holders = Counter(placement[role] for placement in owners[0] for role in ("owner", "replica"))
    wanted = [old + holders[f"n{number}"] for number, old in enumerate(before, 1)]
    eventually(
        lambda: [status["keys"] for status in fleet.statuses()] == wanted, what="each bucket at its owner and replica"
    )
    for placement in owners[0][:10]:
        for node in fleet.nodes:
            bucket = fleet.bucket("placed", placement["key"], node)
            assert (bucket["owner"], bucket["replica"]) == (placement["owner"], placement["replica"])


def test_a_bucket_is_seen_and_forgotten_through_any_node(fleet: Fleet) -> None:
    fleet.put("rules/watched", daily(10))
    for owner in fleet.nodes:
        key = fleet.owned_by(owner, 1, "watched")[0]
        for deleter in fleet.nodes:
            assert [remaining(node, "watched", key) for node in fleet.nodes] == [9, 8, 7]
            for node in fleet.nodes:
                bucket = fleet.bucket("watched", key, node)
                assert bucket.pop("replica") != owner.node_id
                assert bucket == {
                    "rule": "watched",
                    "key": key,
                    "segment": "default",
                    "algorithm": "token_bucket",
                    "limit": 10,
                    "used": 3,
                    "remaining": 7,
                    "owner": owner.node_id,
                }
            for _ in range(2):  # 204 whether or not it was there
                assert request(deleter.admin, "DELETE", key_path("watched", key)).status == 204


def test_the_status_of_every_node_has_every_field(fleet: Fleet) -> None:
    revision = fleet.put("rules/status", daily(10))
    for node, status in zip(fleet.nodes, fleet.statuses(), strict=True):
        assert status["node"] == node.node_id
        assert status["addresses"] == {"http": node.http, "admin": node.admin, "peer": node.peer}
        assert (status["standalone"], status["ready"]) == (False, True)
        assert status["etcd"]["connected"] is True
        assert status["etcd"]["revision"] >= revision
        assert status["config"]["revision"] >= revision
        assert status["config"]["rules"] == len(get_json(node.admin, "/v1/rules")["rules"])
        assert [member["id"] for member in status["ring"]["members"]] == ["n1", "n2", "n3"]
        assert [member["peer"] for member in status["ring"]["members"]] == [each.peer for each in fleet.nodes]
        assert sum(member["share"] for member in status["ring"]["members"]) == pytest.approx(1, abs=0.001)
        assert all(0.25 < member["share"] < 0.42 for member in status["ring"]["members"])
    assert len({status["ring"]["revision"] for status in fleet.statuses()}) == 1
    leaders = eventually(lambda: {status["leader"] for status in fleet.statuses()} - {None}, what="a leader")
    assert len(leaders) == 1


def test_forwarded_checks_are_counted_where_they_were_asked(fleet: Fleet) -> None:
    fleet.put("rules/forwarded", daily(100))
    owner, *others = fleet.nodes
    key = fleet.owned_by(owner, 1, "forwarded")[0]
    for asked in fleet.nodes:
        before = [metric(node, "limiter_forwarded_checks_total") for node in fleet.nodes]
        for _ in range(10):
            remaining(asked, "forwarded", key)
        after = [metric(node, "limiter_forwarded_checks_total") for node in fleet.nodes]
        grown = dict(zip(fleet.nodes, (new - old for old, new in zip(before, after, strict=True)), strict=True))
        assert grown == {node: 10 if node is asked and node in others else 0 for node in fleet.nodes}


# The peer port


def test_random_bytes_at_the_peer_port_break_nothing(fleet: Fleet) -> None:
    fleet.put("rules/besieged", daily(1_000))
    keys = [fleet.owned_by(owner, 1, "besieged")[0] for owner in fleet.nodes]
    rng = seeded()
    memory = [node.memory_bytes for node in fleet.nodes]
    held: list[socket.socket] = []
    asked = 0
    clients = [HttpClient(node.http) for node in fleet.nodes]
    for number in range(150):
        target = fleet.nodes[number % 3]
        attacker = socket.create_connection(split_address(target.peer), 5.0)
        held.append(attacker)
        hello = attacker.recv(65536)
        garbage = rng.randbytes(rng.choice((1, 4, 5, 64, 1_000, 70_000)))
        payload = rng.choice(
            (
                garbage,
                hello + garbage,  # a peer that goes mad after its hello
                _damaged(hello, rng),
                hello * 3,
                hello[: rng.randrange(1, len(hello))],
                b"\xff\xff\xff\xff" + garbage,
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            )
        )
        try:
            attacker.sendall(payload)
            if rng.random() < 0.5:
                held.pop().close()
        except (BrokenPipeError, ConnectionResetError):
            pass
        for client, key in zip(clients, keys, strict=True):
            answer = client.check("besieged", key)
            asked += 1
            assert (answer.status, answer.body["degraded"]) == (200, False), answer
    assert fleet.members() == [["n1", "n2", "n3"]] * 3
    assert all(set(status["links"].values()) == {"up"} for status in fleet.statuses())
    assert {fleet.bucket("besieged", key)["used"] for key in keys} == {asked // 3}
    for attacker in held:
        attacker.close()
    for client in clients:
        client.close()
    assert max(node.memory_bytes - old for node, old in zip(fleet.nodes, memory, strict=True)) < 50 << 20


def _damaged(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


# Several checks together


def test_an_atomic_batch_over_three_owners_takes_all_or_nothing_and_a_refund_gives_back(fleet: Fleet) -> None:
    fleet.put("rules/together", daily(10))
    keys = [fleet.owned_by(node, 1, "together")[0] for node in fleet.nodes]

    def ask(node: int, costs: Sequence[int]) -> tuple[bool, list[tuple[int, str | None]]]:
        checks = [{"rule": "together", "key": key, "cost": cost} for key, cost in zip(keys, costs, strict=True)]
        body = json.dumps({"atomic": True, "checks": checks})
        answer = request(fleet.nodes[node].http, "POST", "/v1/check/batch", body).body
        return answer["allowed"], [(result["remaining"], result.get("reason")) for result in answer["results"]]

    def lefts(node: int) -> list[int]:
        return [check(fleet.nodes[node], "together", key, cost=0).body["remaining"] for key in keys]

    assert ask(0, (3, 4, 5)) == (True, [(7, None), (6, None), (5, None)])
    assert lefts(1) == [7, 6, 5]
    assert ask(1, (1, 1, 6)) == (False, [(7, "batch"), (6, "batch"), (5, None)])
    assert lefts(2) == [7, 6, 5]
    body = json.dumps({"rule": "together", "key": keys[2], "cost": 2})
    refunded = request(fleet.nodes[0].http, "POST", "/v1/refund", body).body
    assert (refunded["refunded"], refunded["remaining"]) == (2, 7)
    assert ask(2, (1, 1, 6)) == (True, [(6, None), (5, None), (1, None)])
    eventually(lambda: lefts(0) == [6, 5, 1], what="all of it spent")


# Denials at the edge


def test_a_client_that_hammers_a_node_is_denied_there_and_granted_once_tokens_are_back(fleet: Fleet) -> None:
    fleet.put("rules/hammered", daily(3))
    asked, owner, other = fleet.nodes
    (key,) = fleet.owned_by(owner, 1, "hammered")
    assert check(owner, "hammered", key, cost=3).status == 200
    denied = all_at_once([(asked.http, [get_check("hammered", key)] * 200)] * 4)
    assert {(reply.status, reply.body["remaining"], reply.body["degraded"]) for reply in denied} == {(429, 0, False)}
    waits = [reply.body["retry_after"] for reply in denied]
    assert 86_400 - 60 < min(waits) <= max(waits) <= 86_400
    assert metric(asked, "limiter_edge_denials_total") >= 400
    refunded = request(other.http, "POST", "/v1/refund", json.dumps({"rule": "hammered", "key": key, "cost": 2})).body
    assert refunded["refunded"] == 2
    assert [check(node, "hammered", key).status for node in (asked, other, asked)] == [200, 200, 429]
    assert request(other.admin, "DELETE", key_path("hammered", key)).status == 204
    assert check(asked, "hammered", key).body["remaining"] == 2
