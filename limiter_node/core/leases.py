"""Leases: tokens of other nodes' hot keys that this node has borrowed, and grants from without asking.

A key that is asked for often enough here is borrowed of (`lendings` has the whole story). A lease ends when it is spent
or its time is over, when a new one is there, when the owner calls it back, and at once when this node hears of a change
of the ring or of a rule, an entry or a multiplier, or when the connection to the owner breaks. Its owner is then told
what was granted, if it can be; who is not told takes all of it for granted.

Of a check granted so `remaining` is what was left at the owner when it lent, and what is left of the lease; what others
have taken from the owner since is not known here, nor what has been refilled, for 50 ms at most.

Invariant: no lease is granted from after its time, counted from before its owner had set it aside; it ends once, and
what is told of it is what was granted.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from limiter_node.core.denials import CLOCKS_SHARE
from limiter_node.core.links import LinkState
from limiter_node.core.model import Check, Lent, Op, Outcome, Returned, Verdict

if TYPE_CHECKING:
    from limiter_node.core.engine import Engine
    from limiter_node.core.forward import Forward
    from limiter_node.core.keeper import Keeper
    from limiter_node.core.links import Link
    from limiter_node.core.plan import Grant
    from limiter_node.core.ring import Ring

    Mark = tuple[str, str, str | None]  # rule, key, segment

HOT_PER_TICK = 10
"""Checks of a key, passed on within a tick of 10 ms, that make it hot: 1,000 a second."""

WARM_PER_TICK = 2
"""The same for a rule that says `"lease": true`."""

TICKS_PER_LEASE = 5
SPARE = 2
"""A lease is to last for its life at so many times the present demand."""

REFUSED_NS = 100_000_000
"""After a refusal, or a call back, for so long nothing is borrowed of the key."""

MARKS_MAX = 1_000
"""Keys that are borrowed of, or not for now."""


class Ways(Protocol):
    """The router, as far as leases need it."""

    node_id: str
    ring: Ring
    engine: Engine
    links: dict[str, Link]
    keeper: Keeper

    def ask_peer(self, link: Link, check: Check, now_ns: int) -> Forward:
        """Ask a peer, and nobody else."""


class Lease:
    """A lease as the borrower has it."""

    __slots__ = ("as_of", "began_ns", "granted", "is_renewing", "lent", "numbers", "owner", "tokens", "until_ns")

    def __init__(self, lent: Lent, owner: str, as_of: int, began_ns: int) -> None:
        self.lent = lent
        self.owner = owner
        self.as_of = as_of  # how often what it goes by had changed
        self.numbers = lent.limit, lent.window_s
        self.tokens = lent.tokens  # left
        self.granted = 0
        self.began_ns = began_ns
        self.until_ns = began_ns + lent.lasts_ns - lent.lasts_ns // CLOCKS_SHARE
        self.is_renewing = False


class Leases:
    """All of a node."""

    def __init__(self, router: Ways) -> None:
        self.known: dict[Mark, Lease] = {}
        self.granted = 0  # tokens
        self._router = router
        self._denials = router.engine.denials  # are cleared when anything changes that leases go by, too
        self._asked: dict[Mark, int] = {}  # checks passed on in this tick
        self._pending: set[Mark] = set()  # being borrowed of
        self._refused_ns: dict[Mark, int] = {}  # not before
        self._recalled: set[tuple[str, str, str]] = set()  # rule, key, lease: called back before they were here
        self._returned: list[tuple[Check, Outcome]] = []  # what came of this node's own calls
        router.keeper.commitments.recall = self._call_back

    # Granting.

    def take(self, rule: str, key: str, now_ns: int, cost: int = 1, segment: str | None = None) -> Grant | None:
        """Grant a check from a lease, if there is one that has enough."""
        mark = rule, key, segment
        lease = self.known.get(mark)
        if lease is None or now_ns >= lease.until_ns or lease.tokens < cost or lease.as_of != self._denials.clears:
            return None
        lease.tokens -= cost
        lease.granted += cost
        self.granted += cost
        lent = lease.lent
        if not lease.is_renewing and lease.tokens * 4 <= lent.tokens:
            lease.is_renewing = True
            self._renew(mark, lease, now_ns)
        reset_ns = max(0, lent.reset_ns - (now_ns - lease.began_ns)) + lease.granted * lent.token_ns
        return lease.numbers, lent.left + lease.tokens, reset_ns

    def grant(self, check: Check, now_ns: int) -> Verdict | None:
        """As `take`, for any check."""
        if check.op is not Op.CHECK or not check.cost:
            return None
        grant = self.take(check.rule, check.key, now_ns, check.cost, check.segment)
        if grant is None:
            return None
        (limit, window_s), remaining, reset_ns = grant
        return Verdict(True, limit, remaining, reset_ns, 0, window_s)

    # Borrowing.

    def note(self, check: Check, now_ns: int) -> None:
        """A check of another node's key is passed on: borrow of the key if that happens often."""
        mark, asked = (check.rule, check.key, check.segment), self._asked
        count = asked[mark] = asked.get(mark, 0) + 1
        if count in (WARM_PER_TICK, HOT_PER_TICK) and check.op is Op.CHECK:
            rule = self._router.engine.rules.get(check.rule)
            if rule is not None and rule.may_lend and (count == HOT_PER_TICK or rule.rule.lease is True):
                self._borrow(mark, count * TICKS_PER_LEASE * SPARE, now_ns)

    def _renew(self, mark: Mark, lease: Lease, now_ns: int) -> None:
        span_ns = max(1_000_000, now_ns - lease.began_ns)
        life_ns = max(1, lease.until_ns - lease.began_ns)
        self._borrow(mark, SPARE * max(lease.granted, lease.granted * life_ns // span_ns), now_ns)

    def _borrow(self, mark: Mark, tokens: int, now_ns: int) -> None:
        router, (rule, key, segment) = self._router, mark
        owner = router.ring.owner(key)
        link = router.links.get(owner) if owner is not None else None
        if link is None or link.state is not LinkState.UP or mark in self._pending or len(self._pending) >= MARKS_MAX:
            return
        if now_ns < self._refused_ns.get(mark, 0):
            return
        self._pending.add(mark)
        check = Check(rule, key, tokens, segment, Op.LEND, (router.node_id, 0))
        forward = router.ask_peer(link, check, now_ns)
        forward.reply = partial(self._on_lent, mark, link.peer.id, self._denials.clears, now_ns)

    def _on_lent(self, mark: Mark, owner: str, as_of: int, asked_ns: int, outcome: Outcome) -> None:
        self._pending.discard(mark)
        if not isinstance(outcome, Lent) or not outcome.tokens:
            if len(self._refused_ns) < MARKS_MAX:
                self._refused_ns[mark] = asked_ns + REFUSED_NS
            return
        lease = Lease(outcome, owner, as_of, asked_ns)
        if as_of != self._denials.clears or (mark[0], mark[1], outcome.id) in self._recalled:
            self._give_back(mark, lease, asked_ns)
            return
        before = self.known.pop(mark, None)
        if before is not None:
            self._give_back(mark, before, asked_ns)
        self.known[mark] = lease

    # The end of a lease.

    def _give_back(self, mark: Mark, lease: Lease, now_ns: int) -> None:
        """Tell the owner what was granted, if it can be told."""
        router, (rule, key, segment) = self._router, mark
        link = router.links.get(lease.owner)
        if link is not None and link.state is LinkState.UP:
            check = Check(rule, key, 0, segment, Op.RETURN, (lease.lent.id, lease.granted))
            router.ask_peer(link, check, now_ns)

    def recall(self, check: Check, now_ns: int) -> Returned:
        """The owner calls a lease back."""
        assert check.hold is not None
        mark, name = (check.rule, check.key, check.segment), check.hold[0]
        self._refused_ns[mark] = now_ns + REFUSED_NS
        lease = self.known.get(mark)
        if lease is not None and lease.lent.id == name:
            del self.known[mark]
            return Returned(lease.granted)
        self._recalled.add((check.rule, check.key, name))
        return Returned(-1)

    # As the owner.

    def _call_back(self, name: str, recall: Check, now_ns: int) -> None:
        """Call a lease back; where that does not work it ends by itself soon."""
        link = self._router.links.get(name)
        if link is not None and link.is_usable(now_ns):
            forward = self._router.ask_peer(link, recall, now_ns)
            forward.reply = lambda outcome: self._returned.append((recall, outcome))

    def go_on(self, now_ns: int) -> None:
        """Take back what has been called back."""
        if not self._returned:
            return
        keeper = self._router.keeper
        returned, self._returned = self._returned, []
        for recall, outcome in returned:
            assert recall.hold is not None
            if isinstance(outcome, Returned) and outcome.granted >= 0:
                keeper.commitments.take_back((recall.rule, recall.key), recall.hold[0], outcome.granted, now_ns)
        keeper.resume(now_ns)

    def tick(self, now_ns: int) -> None:
        """Give back what is over; begin to count anew."""
        self._asked.clear()
        for mark, lease in list(self.known.items()):
            if now_ns >= lease.until_ns or lease.as_of != self._denials.clears:
                del self.known[mark]
                self._give_back(mark, lease, now_ns)
        self._refused_ns = {mark: until_ns for mark, until_ns in self._refused_ns.items() if until_ns > now_ns}
        if not self._pending:
            self._recalled.clear()
