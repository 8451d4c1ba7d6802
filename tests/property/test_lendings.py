"""Leases against the literal bound: whatever is lent, granted, given back, lost or told late, no window has too much.

The meter (`tests.sim.meter`) is a bucket's dumb twin: every grant is booked at the moment at which somebody gives it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from limiter_node.core.engine import Engine
from limiter_node.core.fence import ALWAYS_NS
from limiter_node.core.holds import Holds
from limiter_node.core.lendings import Lendings
from limiter_node.core.model import Check, Lent, Op, Verdict
from limiter_node.core.rules import parse_rule
from tests.sim.meter import TOLERANCE, UNIT, Meter, numbers

if TYPE_CHECKING:
    from limiter_node.core.outlet import Bucket

MS = 1_000_000
GRACE_NS = 100 * MS
COUNT, BURST = 500, 100

steps = st.lists(
    st.tuples(
        st.sampled_from(["check", "check", "lend", "lend", "grant", "grant", "grant", "give_back", "wait", "refund"]),
        st.integers(1, 60),
        st.sampled_from([0, 0, 1, MS, 5 * MS, 20 * MS, 60 * MS, 300 * MS]),
    ),
    max_size=80,
)


class Story:
    """An owner, and borrowers that keep to the time of their leases and to nothing else; each step is a method."""

    def __init__(self) -> None:
        self.engine = Engine(buckets_max=100)
        self.engine.set_rule("api", parse_rule("api", {"rate": f"{COUNT}/s", "burst": BURST}), 0)
        self.lendings = Lendings(self.engine, GRACE_NS, 1)
        self.meter = Meter(0)
        self.leases: list[list[Any]] = []  # id, left, granted, until
        self.now_ns = 0

    def book(self, tokens: int) -> None:
        assert self.meter.fits(tokens, numbers(COUNT, 1, BURST).capacity, TOLERANCE), "too many"
        self.meter.level += tokens * UNIT

    def step(self, what: str, tokens: int, pause_ns: int) -> None:
        self.now_ns += pause_ns
        self.meter.advance(self.now_ns, numbers(COUNT, 1, BURST).slope)
        self.lendings.tick(self.now_ns)
        getattr(self, what)(tokens)

    def check(self, tokens: int) -> None:
        verdict = self.engine.check(Check("api", "k", tokens), self.now_ns)
        assert isinstance(verdict, Verdict)
        if verdict.allowed:
            self.book(tokens)

    def lend(self, tokens: int) -> None:
        lent = self.lendings.lend(Check("api", "k", tokens, op=Op.LEND, hold=("b", 0)), ALWAYS_NS, self.now_ns)
        assert isinstance(lent, Lent)
        assert lent.tokens <= min(tokens, lent.left + lent.tokens)
        if lent.tokens:
            self.leases.append([lent.id, lent.tokens, 0, self.now_ns + lent.lasts_ns])

    def grant(self, tokens: int) -> None:
        for lease in self.leases:
            cost = min(tokens, lease[1])
            if self.now_ns < lease[3] and cost:
                lease[1] -= cost
                lease[2] += cost
                self.book(cost)

    def give_back(self, tokens: int) -> None:
        if self.leases:
            name, _, granted, _ = self.leases.pop(tokens % len(self.leases))
            for _ in range(2):  # a second time, it is known no more
                self.lendings.end(("api", "k"), name, granted, self.now_ns)

    def wait(self, tokens: int) -> None:
        """What nobody gives back is lost."""

    def refund(self, tokens: int) -> None:
        before = self.engine.rules["api"].default.account("k", self.now_ns)
        given = self.engine.refund("api", "k", tokens, self.now_ns)
        whole = UNIT * sum(entry.values[0] for entry in before) // 1_000_000 + TOLERANCE
        self.meter.level = max(0, self.meter.level - (tokens * UNIT if given == tokens else whole))


@given(steps)
def test_no_window_has_more_than_its_bound_whatever_becomes_of_leases(told: list[tuple[str, int, int]]) -> None:
    story = Story()
    for what, tokens, pause_ns in told:
        story.step(what, tokens, pause_ns)
    event(f"lent: {min(story.lendings.tokens // 20, 5)}")


class DebitingHolds(Holds):
    """Sets nothing aside for who has borrowed."""

    def lend(self, bucket: Bucket, tokens: int) -> None:
        pass


def test_tokens_that_are_lent_and_only_debited_are_too_many() -> None:
    """They would be refilled while they are out: a full bucket, and what is lent on top of it."""

    def play(story: Story) -> None:
        story.step("lend", 25, 0)
        story.step("grant", 25, 49 * MS)
        story.step("check", 100, 0)
        story.step("check", 75, 0)

    play(Story())
    broken = Story()
    broken.engine.holds = DebitingHolds()
    with pytest.raises(AssertionError, match="too many"):
        play(broken)
