"""Batches of all kinds against their checks one by one: two nodes with the same past, of which one is asked in batches.

Whatever the batches, the answers are the same to the byte, and so are buckets, changes to be copied and counts.
"""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from limiter_node.core.engine import Engine
from limiter_node.core.model import Member
from limiter_node.core.ring import Ring
from limiter_node.core.router import Router
from limiter_node.core.rules import parse_key_entry, parse_rule
from limiter_node.edge.check_api import CheckApi
from limiter_node.edge.check_log import LoggedCheckApi
from limiter_node.edge.exchange import Slot
from limiter_node.edge.http import HttpConnection
from limiter_node.edge.http_server import HttpServer
from limiter_node.edge.tally import Tally

S = 1_000_000_000
KEYS = [f"k{number}" for number in range(4)]  # of two nodes
ODD_KEYS = ["", "k" * 513, "\u00e9", "k\n", "k\x7f", 7]

rules = st.builds(
    lambda rate, burst, extra: {"rate": rate, "burst": burst, "segments": {"free": {"rate": "1/s"}}, **extra},
    st.sampled_from(["1/s", "100/m", "10/7s"]),
    st.integers(1, 9),
    st.sampled_from([{}, {}, {}, {"shadow": True}, {"backend": "orders"}, {"durability": "sync"}]),
)
plain = st.builds(lambda rule, key: {"rule": rule, "key": key}, st.sampled_from(["api", "web"]), st.sampled_from(KEYS))
odd = st.builds(
    lambda check, more: {**check, **more},
    plain,
    st.one_of(
        st.builds(lambda cost: {"cost": cost}, st.sampled_from([0, 1, 2, 50, -1, 1.0, None])),
        st.builds(lambda segment: {"segment": segment}, st.sampled_from(["free", "none", "in valid", None])),
        st.builds(lambda key: {"key": key}, st.sampled_from(ODD_KEYS)),
        st.just({"rule": "nowhere"}),
        st.just({"unknown": 1}),
    ),
)
batches = st.one_of(
    st.lists(plain, min_size=1, max_size=12),
    st.lists(st.one_of(plain, plain, plain, odd), min_size=1, max_size=12),
)
events = st.one_of(
    st.tuples(st.just("batch"), batches, st.integers(0, 2 * S)),
    st.tuples(st.just("batch"), batches, st.integers(0, 2 * S)),
    st.tuples(st.just("entry"), st.sampled_from(["k0", "k*"]), st.sampled_from([None, {"segment": "free"}])),
    st.tuples(st.just("tick"), st.none(), st.integers(S, 9 * S)),
)


def member(name: str) -> Member:
    return Member(name, f"{name}:1")


class Node:
    """A node without sockets. A logged one takes no short way, and looks at the checks of a batch one by one."""

    def __init__(self, documents: dict[str, Any], *, is_logged: bool, has_peer: bool, on_unknown_rule: str) -> None:
        self.engine = Engine(buckets_max=10_000)
        for name, document in documents.items():
            self.engine.set_rule(name, parse_rule(name, document), 0)
        router = Router("a", self.engine, peer_timeout_ns=S // 10, open_link=lambda link: link)  # type: ignore[arg-type,return-value]
        router.set_ring(Ring(1, {"a": member("a")}), 0)
        if has_peer:  # which cannot be reached: what it owns is decided here, as a share of the rule
            router.ring = Ring(2, {"a": member("a"), "c": member("c")})
            self.engine.has_copies = True
        self.tally = Tally(self.engine, lambda: 0.5)
        self.api = (
            LoggedCheckApi(router, self.tally, on_unknown_rule=on_unknown_rule, fraction=0.0, random=lambda: 0.5)
            if is_logged
            else CheckApi(router, self.tally, on_unknown_rule=on_unknown_rule)
        )
        self.api.is_answering = True
        self.server = HttpServer(self.api)
        self.server.date = "Date: today\r\n"

    def play(self, event: tuple[str, Any, Any], now_ns: int) -> bytes | None:
        """Do what the event says; returns the answer to a batch."""
        match event:
            case "batch", checks, _:
                return self.post(json.dumps({"checks": checks}, ensure_ascii=False).encode(), now_ns)
            case "entry", name, document:
                self.engine.set_entry(name, document and parse_key_entry(name, document), now_ns)
            case "tick", _, _:
                self.engine.tick(now_ns)
        return None

    def post(self, body: bytes, now_ns: int) -> bytes | None:
        """Ask for a batch."""
        request = HttpConnection(self.server)
        request.method, request.target, request.body = b"POST", b"/v1/check/batch", body
        request.content_type = b"application/json"
        request.now_ns = now_ns
        answer = self.api.handle(request, Slot(request))
        assert answer is not None
        return answer

    @property
    def counts(self) -> dict[tuple[str, str], list[int]]:
        """What was counted, by rule and segment."""
        counts = {
            where: [series.allowed, series.denied, series.shadow_denied, series.degraded]
            for where, series in self.tally.series.items()
        }
        return {where: each for where, each in counts.items() if any(each)}


@settings(max_examples=200)  # cheap, and its corners are far apart
@given(
    documents=st.fixed_dictionaries({"api": rules, "web": rules}),
    trace=st.lists(events, max_size=20),
    has_peer=st.booleans(),
    on_unknown_rule=st.sampled_from(["error", "allow", "deny"]),
)
def test_a_batch_is_answered_as_its_checks_one_by_one(
    documents: dict[str, Any], trace: list[Any], has_peer: bool, on_unknown_rule: str
) -> None:
    short, long = (
        Node(documents, is_logged=is_logged, has_peer=has_peer, on_unknown_rule=on_unknown_rule)
        for is_logged in (False, True)
    )
    now_ns = 0
    for event in trace:
        if event[0] != "entry":
            now_ns += event[2]
        assert short.play(event, now_ns) == long.play(event, now_ns)
        assert short.engine.buckets == long.engine.buckets
        assert sorted(short.engine.take_changed()) == sorted(long.engine.take_changed())
    assert short.counts == long.counts
    assert short.tally.unknown_rule == long.tally.unknown_rule
