"""Leases between routers: a hot key is borrowed of, granted from without asking, given back, called back, and lost."""

from __future__ import annotations

from typing import Any

import pytest

from limiter_node.core.errors import BadRule
from limiter_node.core.forward import Forward
from limiter_node.core.leases import HOT_PER_TICK
from limiter_node.core.lendings import SLICE_MIN
from limiter_node.core.links import LinkState
from limiter_node.core.model import Ask, Bucket, Check, Forgotten, Op, Outcome, Refunded, Verdict
from limiter_node.core.ring import Ring
from limiter_node.core.rules import parse_rule
from limiter_node.core.shortcut import Shortcut
from limiter_node.core.token_plan import LEASE_MAX_NS
from tests.routers import TICK_NS, TIMEOUT_NS, Routers

BURST = 10_000
DAILY = {"rate": "1/d", "burst": BURST}


class Fleet(Routers):
    """Three routers, and a key of b's, which a and c are asked for."""

    def __init__(self, **rule: Any) -> None:
        super().__init__("a", "b", "c", api={**DAILY, **rule})
        (self.key,) = self.keys("b")
        self.granted = 0

    def check(self, name: str = "a", cost: int = 1) -> Verdict:
        outcome = self.ask(name, Check("api", self.key, cost))
        assert isinstance(outcome, Verdict)
        self.granted += cost * outcome.allowed
        return outcome

    def at_once(self, name: str = "a", cost: int = 1) -> Verdict | None:
        """What a node says without asking, if it does."""
        outcome = self[name].check(Check("api", self.key, cost), self.now_ns)
        if isinstance(outcome, Verdict):
            self.granted += cost * outcome.allowed
            return outcome
        assert isinstance(outcome, Forward)
        outcome.reply = self._count
        return None

    def _count(self, outcome: Outcome) -> None:
        assert isinstance(outcome, Verdict)
        self.granted += outcome.allowed

    def heat(self, *names: str) -> None:
        """Ask nodes often enough to borrow."""
        for name in names or ("a",):
            for _ in range(HOT_PER_TICK):
                self.at_once(name)
        self.talk()

    def lease(self, name: str = "a") -> int:
        """Tokens that a node has borrowed and not granted."""
        return sum(lease.tokens for lease in self[name].leases.known.values())

    @property
    def lent(self) -> int:
        return self["b"].engine.holds.lent.get(("api", self.key), 0)

    @property
    def spent(self) -> int:
        """Whole tokens, by the owner's book."""
        return BURST - self.remaining(self.key)


@pytest.fixture
def hot() -> Fleet:
    fleet = Fleet()
    fleet.heat()
    assert fleet.lease() > SLICE_MIN
    return fleet


def test_a_hot_key_is_granted_without_asking(hot: Fleet) -> None:
    asks = len(hot.asked)
    verdicts = [hot.at_once() for _ in range(20)]
    assert all(verdict and verdict.allowed and not verdict.degraded for verdict in verdicts)
    assert len(hot.asked) == asks


def test_remaining_is_the_owners_last_known_less_what_was_granted_here(hot: Fleet) -> None:
    told = [verdict.remaining for verdict in map(hot.at_once, ["a"] * 3) if verdict]
    assert told == [BURST - HOT_PER_TICK - 1 - granted for granted in range(3)]
    assert Shortcut(hot["a"]).check("api", hot.key, hot.now_ns) == (
        (BURST, BURST * 86_400),
        BURST - HOT_PER_TICK - 4,
        (HOT_PER_TICK + 4) * 86_400 * 10**9,
    )


def test_what_is_not_used_comes_back_when_it_is_over_and_is_known_to_be_spent_else(hot: Fleet) -> None:
    for _ in range(7):
        assert hot.at_once()
    assert hot.lent
    hot.let_pass(LEASE_MAX_NS + TICK_NS)
    assert (hot.lease(), hot.lent) == (0, 0)
    assert hot.spent == hot.granted == HOT_PER_TICK + 7
    assert hot["b"].keeper.commitments.lendings.lost == 0


def test_a_lease_that_is_nearly_spent_is_renewed_by_a_larger_one(hot: Fleet) -> None:
    first = hot.lease()
    while hot.lease() * 4 > first:
        assert hot.at_once()
    hot.talk()
    assert hot.lease() > first
    assert hot.lent == hot.lease()


def test_a_lease_that_nobody_tells_of_is_spent(hot: Fleet) -> None:
    lent = hot.lent
    hot.loses = lambda _, __, request: isinstance(request, Ask) and any(c.op is Op.RETURN for c in request.checks)
    hot.let_pass(LEASE_MAX_NS + TIMEOUT_NS + 2 * TICK_NS)
    hot.loses = lambda *_: False
    assert hot.spent == hot.granted + lent
    assert hot["b"].keeper.commitments.lendings.lost == lent


def test_slices_shrink_with_the_bucket_and_of_few_tokens_none_is_lent() -> None:
    slices = []
    for burst in (2_000, 400, 200, 60, 30):
        fleet = Fleet(burst=burst)
        fleet.heat("a", "c")
        slices.append((fleet.lease("a"), fleet.lease("c")))
    assert slices[0][0] == slices[0][1] > slices[2][0] > slices[2][1] > 0
    assert slices[-1] == (0, 0)


def test_the_last_tokens_can_be_had_at_any_node_within_a_round_trip() -> None:
    fleet = Fleet(burst=200)
    fleet.heat("a", "c")
    assert fleet.lent > 0
    began_ns = fleet.now_ns
    while fleet.granted < 200:
        assert fleet.check("b").allowed
    assert fleet.now_ns == began_ns  # frames alone
    assert fleet.lent == 0
    assert [fleet.check(name).allowed for name in "abc"] == [False, False, False]


def test_a_borrower_that_does_not_answer_holds_a_denial_up_for_less_than_a_peer_timeout() -> None:
    fleet = Fleet(burst=200)
    fleet.heat()
    fleet.dead.add("a")  # says no more; and nobody knows it yet
    began_ns, lent = fleet.now_ns, fleet.lent
    for _ in range(200 - HOT_PER_TICK - lent):
        assert fleet.check("b").allowed
    outcomes = fleet.begun("b", Check("api", fleet.key))
    assert outcomes == []
    while not outcomes:
        fleet.let_pass(TICK_NS)
    assert outcomes[0].allowed is False  # type: ignore[union-attr]
    assert fleet.now_ns - began_ns < TIMEOUT_NS


@pytest.mark.parametrize("op", [Op.REFUND, Op.FORGET, Op.INSPECT])
def test_who_gives_back_or_looks_sees_what_was_granted_elsewhere(hot: Fleet, op: Op) -> None:
    for _ in range(5):
        assert hot.at_once()
    (outcome,) = hot.begun("c", Check("api", hot.key, 5, op=op))
    left = BURST - HOT_PER_TICK
    match op:
        case Op.REFUND:
            assert outcome == Refunded(5, BURST, left, HOT_PER_TICK * 86_400 * 10**9)
        case Op.FORGET:
            assert outcome == Forgotten()
            assert hot.spent == 0
        case _:
            assert outcome == Bucket("default", "token_bucket", BURST, HOT_PER_TICK + 5, left - 5)
    assert hot.lease() == 0


def test_a_lease_called_back_before_it_has_come_is_given_back_at_once() -> None:
    fleet = Fleet()
    lease = Check("api", fleet.key, 0, op=Op.RECALL, hold=("1.1", 0))
    answers: list[Any] = []
    for _ in range(HOT_PER_TICK):
        fleet.at_once()
    fleet["a"].on_request("b", Ask(99, 7, [lease]), fleet.now_ns, answers.append)
    assert answers[0].results[0].granted == -1
    fleet.talk()
    assert fleet.lease() == 0
    assert fleet.lent == 0
    assert fleet.spent == fleet.granted


def test_a_peek_is_asked_of_the_owner_for_whom_what_is_lent_is_spent(hot: Fleet) -> None:
    assert hot.at_once(cost=0) is None
    assert hot.check(cost=0).remaining == BURST - HOT_PER_TICK - hot.lent
    assert hot.at_once(cost=hot.lease() + 1) is None


def test_who_was_refused_asks_no_more_for_a_while() -> None:
    fleet = Fleet(burst=60)
    fleet.heat()
    assert (fleet.lease(), len(fleet.asks(Op.LEND))) == (12, 1)
    fleet = Fleet(burst=30)
    for _ in range(3):
        fleet.heat()
        fleet.let_pass(TICK_NS)
    assert (fleet.lease(), len(fleet.asks(Op.LEND))) == (0, 1)


def test_nothing_is_borrowed_over_a_link_that_is_down(hot: Fleet) -> None:
    hot.let_pass(LEASE_MAX_NS + TICK_NS)
    hot["a"].links["b"].state = LinkState.DOWN
    hot.heat()
    assert hot.lease() == 0


def test_what_is_told_of_a_lease_of_another_life_or_twice_ends_none(hot: Fleet) -> None:
    lent = hot.lent
    for name in ("0.1", "1.2", "1", ""):
        hot.ask("a", Check("api", hot.key, 0, op=Op.RETURN, hold=(name, 0)))
    assert hot.lent == lent
    for _ in range(2):
        hot.ask("a", Check("api", hot.key, 0, op=Op.RETURN, hold=("1.1", 5)))
    assert hot.lent == 0
    assert hot.spent == HOT_PER_TICK + 5


@pytest.mark.parametrize("change", ["rule", "ring", "link"])
def test_whatever_it_goes_by_ends_it_when_it_changes(hot: Fleet, change: str) -> None:
    node = hot["a"]
    match change:
        case "rule":
            node.engine.set_rule("api", parse_rule("api", {**DAILY, "burst": 7_000}), hot.now_ns)
        case "ring":
            hot.ring = Ring(8, hot.ring.members)
            for each in hot.alive:
                each.set_ring(hot.ring, hot.now_ns)
        case _:
            node.on_down(node.links["b"], hot.now_ns)
            node.on_up(node.links["b"], hot.now_ns)
    assert hot.at_once() is None
    hot.let_pass(LEASE_MAX_NS + 2 * TICK_NS)
    assert hot.lent == 0
    assert hot.spent == hot.granted


def test_a_key_that_goes_to_another_owner_takes_what_is_lent_along_as_spent(hot: Fleet) -> None:
    for _ in range(5):
        assert hot.at_once()
    lent = hot.lent
    hot.ring = Ring(8, {name: member for name, member in hot.ring.members.items() if name != "b"})
    for node in hot.alive:
        node.set_ring(hot.ring, hot.now_ns)
    hot.let_pass(10 * TICK_NS)
    assert HOT_PER_TICK + 5 <= hot.spent <= HOT_PER_TICK + lent + 1


def test_a_replica_takes_what_is_lent_for_spent(hot: Fleet) -> None:
    lent = hot.lent
    hot.let_pass(2 * TICK_NS)
    hot.kill("b")
    hot.let_pass(2 * TICK_NS)
    assert hot.spent == HOT_PER_TICK + lent + 1  # and what could have been refilled meanwhile, rounded up


@pytest.mark.parametrize(
    "more",
    [
        {"lease": False},
        {"backend": "orders"},
        {"shadow": True},
        {"durability": "sync"},
        {"algorithm": "leaky_bucket"},
    ],
)
def test_not_every_rule_is_lent_of(more: dict[str, Any]) -> None:
    fleet = Fleet(**more)
    fleet.heat()
    assert fleet.lease() == 0
    assert not any(ask for ask in fleet.asks(Op.LEND))


def test_a_rule_that_says_so_is_lent_of_sooner() -> None:
    for lease, borrowed in ((True, True), ("auto", False)):
        fleet = Fleet(lease=lease)
        for _ in range(2):
            fleet.at_once()
        fleet.talk()
        assert bool(fleet.lease()) is borrowed


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"algorithm": "leaky_bucket"}, "only of a single token_bucket"),
        ({"segments": {"free": {"rate": "1/s", "algorithm": "fixed_window"}}}, "only of a single token_bucket"),
        ({"backend": "orders"}, "gate"),
        ({"durability": "sync"}, "sync"),
        ({"shadow": True}, "shadow"),
    ],
)
def test_a_rule_that_asks_for_what_cannot_be_is_refused(more: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRule, match=f"lease: .*{why}.*allowed here: false, auto"):
        parse_rule("api", {"rate": "1/s", "lease": True, **more})
    assert parse_rule("api", {"rate": "1/s", "lease": "auto", **more}).describe()["lease"] == "auto"
