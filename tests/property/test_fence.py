"""The fence, several of them: nobody has the right to decide whom another member may hold for gone.

Each node of a small fleet has a fence. They ping each other in virtual time, over a network that delays, reorders and
loses, links that are cut one way or both, and nodes that freeze and die; after every step all pairs are looked at.
"""

import random
from itertools import permutations
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.fence import PINGS_PER_TIMEOUT, Fence
from limiter_node.core.model import Member
from limiter_node.core.ring import Ring

TIMEOUT_NS = 100
STEP_NS = 5
PING_EVERY_NS = TIMEOUT_NS // PINGS_PER_TIMEOUT
NAMES = "abcde"


class Ping(NamedTuple):
    sent_ns: int


class Pong(NamedTuple):
    asked_ns: int
    backs: bool
    silent: list[str]


class Node:
    """A fence that runs, stands still or is dead."""

    def __init__(self, name: str, ring: Ring) -> None:
        self.name = name
        self.fence = Fence(name, TIMEOUT_NS)
        self.fence.set_ring(ring, 0)
        self.pinged_ns = -TIMEOUT_NS
        self.frozen_ns: int | None = None
        self.dead_ns: int | None = None

    @property
    def runs(self) -> bool:
        return self.frozen_ns is None and self.dead_ns is None


class Fleet:
    """Fences, and what is under way between them."""

    def __init__(self, size: int, chance: random.Random) -> None:
        ring = Ring(1, {name: Member(name, f"{name}:8082") for name in NAMES[:size]})
        self.nodes = {name: Node(name, ring) for name in ring.members}
        self.chance = chance
        self.now_ns = 0
        self.cut: set[tuple[str, str]] = set()  # (from, to)
        self.loss = 0.0
        self.delay_max_ns = STEP_NS
        self.flying: list[tuple[int, str, str, Ping | Pong]] = []  # when it comes, from whom, to whom

    def send(self, sender: str, to: str, message: Ping | Pong) -> None:
        if (sender, to) not in self.cut and self.chance.random() >= self.loss:
            self.flying.append((self.now_ns + self.chance.randint(0, self.delay_max_ns), sender, to, message))

    def step(self) -> None:
        self.now_ns += STEP_NS
        for node in self.nodes.values():
            if node.runs:
                node.fence.reckon(self.now_ns)
                self.dial_the_dead(node)
                if self.now_ns - node.pinged_ns >= PING_EVERY_NS:
                    node.pinged_ns = self.now_ns
                    for peer in self.nodes.keys() - {node.name}:
                        self.send(node.name, peer, Ping(self.now_ns))
        # What a frozen node is sent waits until it runs.
        due = [one for one in self.flying if one[0] <= self.now_ns and self.nodes[one[2]].frozen_ns is None]
        self.flying = [one for one in self.flying if one not in due]
        self.chance.shuffle(due)
        for _, sender, to, message in due:
            if self.nodes[to].runs:
                self.deliver(sender, self.nodes[to], message)

    def dial_the_dead(self, node: Node) -> None:
        for peer in self.nodes.values():
            reaches = not {(node.name, peer.name), (peer.name, node.name)} & self.cut
            if peer.dead_ns is None or not reaches or self.chance.random() < 0.5:
                continue
            dialled_ns = self.chance.randint(max(peer.dead_ns, self.now_ns - self.delay_max_ns), self.now_ns)
            node.fence.refused(peer.name, dialled_ns, self.now_ns)

    def deliver(self, sender: str, node: Node, message: Ping | Pong) -> None:
        fence, now_ns = node.fence, self.now_ns
        if isinstance(message, Ping):
            backs, silent = fence.on_ping(sender, now_ns)
            self.send(node.name, sender, Pong(message.sent_ns, backs, silent))
        else:
            fence.on_pong(sender, message.asked_ns, now_ns, backs=message.backs, silent=message.silent)

    def freeze(self, name: str) -> None:
        if self.nodes[name].runs:
            self.nodes[name].frozen_ns = self.now_ns

    def thaw(self, name: str) -> None:
        node = self.nodes[name]
        if node.frozen_ns is not None:
            stalled_ns, node.frozen_ns = self.now_ns - node.frozen_ns, None
            if stalled_ns > 2 * PING_EVERY_NS:
                node.fence.pause(stalled_ns, self.now_ns)

    def kill(self, name: str) -> None:
        self.nodes[name].frozen_ns = None
        self.nodes[name].dead_ns = self.now_ns

    def suffer(self, fault: str, whom: Any) -> None:
        match fault:
            case "cut":
                self.cut |= {whom, whom[::-1]}
            case "cut one way":
                self.cut.add(whom)
            case "heal":
                self.cut -= {whom, whom[::-1]}
            case "heal all":
                self.cut.clear()
            case "isolate":
                self.cut |= {pair for pair in permutations(self.nodes, 2) if whom in pair}
            case "lose":
                self.loss = whom
            case "delay":
                self.delay_max_ns = whom
            case _:
                getattr(self, fault)(whom)

    def check(self) -> None:
        running = [node for node in self.nodes.values() if node.runs]
        for one, other in permutations(running, 2):
            decides = self.now_ns < one.fence.right_until_ns
            assert not (decides and other.fence.is_gone(one.name, self.now_ns)), (one.name, other.name)


def names(size: int) -> st.SearchStrategy[str]:
    return st.sampled_from(NAMES[:size])


def faults(size: int) -> st.SearchStrategy[list[tuple[str, Any, int]]]:
    """Each: what happens, to whom, and how many steps the fleet runs before the next."""
    pair = st.tuples(names(size), names(size)).filter(lambda pair: pair[0] != pair[1])
    steps = st.integers(0, 30)
    fault = st.one_of(
        st.tuples(st.sampled_from(["cut", "cut one way", "heal"]), pair, steps),
        st.tuples(st.sampled_from(["freeze", "thaw", "isolate"]), names(size), steps),
        st.tuples(st.just("kill"), names(size), steps),
        st.tuples(st.just("lose"), st.sampled_from([0.0, 0.2, 0.6]), steps),
        st.tuples(st.just("delay"), st.sampled_from([5, 40, 200]), steps),
        st.tuples(st.just("heal all"), st.none(), steps),
    )
    return st.lists(fault, max_size=15)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@given(st.data(), st.integers(0, 2**32 - 1))
def test_nobody_may_decide_whom_another_may_hold_for_gone(size: int, data: st.DataObject, seed: int) -> None:
    # Losses and delays are hundreds a run: drawn one by one they would take hypothesis ten times as long.
    fleet = Fleet(size, random.Random(seed))
    for fault, whom, steps in data.draw(faults(size)):
        fleet.suffer(fault, whom)
        for _ in range(steps):
            fleet.step()
            fleet.check()
