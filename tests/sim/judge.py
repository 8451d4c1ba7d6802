"""The judge: what a fleet promises, checked at every step; a broken promise ends the run.

Safety, always: a node decides as owner only for keys that its ring gives to it; no key is granted more than its numbers
allow, by its owner or from what that has lent; none is denied while they allow it, by its owner or by whom the owner
has promised that (where tokens were lent, some may be lost); a node that decides alone stays within its share 1/N; what
callers get was decided by somebody; every check gets exactly one outcome, in time, on every node that lives.
Liveness, once the faults have ended and the fleet has had time to settle: every check is decided by its owner; all
nodes agree on the ring, on the rules and on what is wrong with them; nothing waits anywhere.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from limiter_node.core.errors import BadRule
from limiter_node.core.links import LinkState
from limiter_node.core.model import (
    NEVER,
    Bucket,
    Check,
    Forgotten,
    Op,
    Outcome,
    Refunded,
    UnknownRule,
    Unreachable,
    Verdict,
)
from limiter_node.core.promises import longest_ns
from limiter_node.core.rules import decode_json, parse_rule
from tests.sim.batches import Batches, is_set_aside
from tests.sim.ledger import Ledger
from tests.sim.node import PEER_TIMEOUT_NS, TICK_NS
from tests.sim.world import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.sim.etcd import SimEtcd
    from tests.sim.node import SimNode
    from tests.sim.scenario import Expect
    from tests.sim.world import World

OUTCOME_WITHIN_NS = 4 * (PEER_TIMEOUT_NS + TICK_NS) + NS_PER_MS
"""The owner, two helpers and one re-route, each late at the next tick, and a millisecond for clocks that run slow."""

OUTCOMES: dict[Op, tuple[type, ...]] = {
    Op.CHECK: (Verdict, UnknownRule),
    Op.INSPECT: (Bucket, UnknownRule, Unreachable),
    Op.FORGET: (Forgotten, Unreachable),
    Op.REFUND: (Refunded, UnknownRule, Unreachable),
}

PROMISED_NS = longest_ns(PEER_TIMEOUT_NS) + NS_PER_MS
"""Longest time from an owner's denial to the last one that goes by it, and a millisecond for clocks that run slow."""


class Violation(AssertionError):
    """A promise was broken."""


class Ticket:
    """A check that a node has taken and not answered yet."""

    __slots__ = ("awake_ns", "begun_ns", "check", "life", "node", "outcome")

    def __init__(self, node: SimNode, check: Check) -> None:
        self.node = node
        self.check = check
        self.life = node.lives
        self.begun_ns = node.world.now_ns
        self.awake_ns = node.awake_ns
        self.outcome: Outcome | None = None


class Judge:
    """Sees everything, knows the true time, and stops the run at the first broken promise (a `node.Witness`)."""

    def __init__(self, world: World, expect: Expect, *, calm_ns: int, is_reachable: Callable[[str, int], bool]) -> None:
        within_ms = expect.delivers_within_ms
        self.ledger = Ledger(is_reachable, delivers_within_ns=within_ms and within_ms * NS_PER_MS)
        self.granted: Counter[tuple[str, str]] = Counter()  # tokens, by rule and key, owners' verdicts only
        self.batches = Batches(world, self._broken, is_strict=expect.is_all_or_nothing)
        self.outcomes: Counter[str] = Counter()
        self._world = world
        self._expect = expect
        self._calm_ns = calm_ns
        self._open: dict[Ticket, None] = {}
        # Verdicts made and not yet delivered; those of asks whose answer was lost stay.
        self._made: Counter[tuple[Check, Verdict]] = Counter()
        self._denied: dict[Check, tuple[int, int]] = {}  # when an owner last denied it, and how far clocks had jumped

    # What nodes do (node.Witness).

    def born(self, node: SimNode) -> None:
        self.ledger.born(node)

    def learned(self, node: SimNode, key: str, value: bytes | None) -> None:
        self.ledger.learned(node, key, value)

    def lost(self, node: SimNode) -> None:
        self.batches.lost(node)
        self.ledger.lost(node)

    def found(self, node: SimNode) -> None:
        self.ledger.found(node)

    def decides(self, node: SimNode, check: Check) -> None:
        self.ledger.decides(node, check.rule, check.key)

    def decided(self, node: SimNode, check: Check, verdict: Verdict | UnknownRule) -> None:
        holders = node.router.ring.holders(check.key)
        if node.name not in holders:
            raise self._broken(node, check, f"decided as owner, but in its ring the holders are {holders}")
        if not self._is_known(node, check, verdict):
            return
        assert isinstance(verdict, Verdict)
        self._made[check, verdict] += 1
        if verdict.degraded:
            raise self._broken(node, check, "an owner's verdict is degraded")
        if is_set_aside(check, verdict):
            self.batches.reserved(check)
        elif not verdict.allowed:
            self._denied[check] = self._world.now_ns, self._world.jumped_ns
        elif verdict.would_allow is not False:
            self.granted[check.rule, check.key] += check.cost
        if wrong := self.ledger.settle(node, check, verdict):
            raise self._broken(node, check, wrong)

    def decided_alone(self, node: SimNode, check: Check, parts: int, verdict: Verdict | UnknownRule) -> None:
        if not self._is_known(node, check, verdict):
            return
        assert isinstance(verdict, Verdict)
        self._made[check, verdict] += 1
        wrong: str | None = None
        real = verdict.allowed if verdict.would_allow is None else verdict.would_allow
        policy = self.ledger.policy(node, check.rule)
        if policy == "local" and check.op is Op.RESERVE:
            policy = "deny"  # nothing of a share can be set aside
        if not verdict.degraded:
            wrong = "decided alone, but the verdict is not degraded"
        elif parts != max(1, len(node.router.ring.members)):
            wrong = f"decided alone with 1/{parts} of the plan in a fleet of {len(node.router.ring.members)}"
        elif policy == "local":
            wrong = self.ledger.settle_share(node, check, parts, verdict)
        elif real != (policy == "allow"):
            wrong = f"on_unreachable is {policy}, but allowed is {real}"
        if wrong:
            raise self._broken(node, check, f"alone: {wrong}")

    def denied_at_edge(self, node: SimNode, check: Check, verdict: Verdict) -> None:
        self._made[check, verdict] += 1
        self.outcomes["denied at the edge"] += 1
        denied_ns, jumped_ns = self._denied.get(check, (-PROMISED_NS, 0))
        age_ns = self._world.now_ns - denied_ns
        has_jumped = self._world.jumped_ns != jumped_ns  # the owner may be ahead of its promise now
        wrong = None if has_jumped else self.ledger.judge_denial(node, check, PROMISED_NS)
        if age_ns > PROMISED_NS:
            wrong = f"by a promise that is {age_ns / NS_PER_MS} ms old"
        elif verdict.remaining or (verdict.retry_ns <= 0 and verdict.retry_ns != NEVER):
            wrong = f"says {verdict}"
        if wrong:
            raise self._broken(node, check, f"denied at the edge: {wrong}")

    def lent(self, node: SimNode, check: Check, tokens: int) -> None:
        self.outcomes["leases"] += 1
        self.ledger.lent(node, check, tokens)

    def granted_under_lease(self, node: SimNode, check: Check, verdict: Verdict) -> None:
        self._made[check, verdict] += 1
        self.outcomes["granted under a lease"] += 1
        self.granted[check.rule, check.key] += check.cost
        if wrong := self.ledger.granted_under_lease(check):
            raise self._broken(node, check, f"under a lease: {wrong}")

    def forgot(self, node: SimNode, rule: str, key: str) -> None:
        self.ledger.forgot(node, rule, key)

    def refunded(self, node: SimNode, check: Check) -> None:
        if self.ledger.knows(node, check.rule):
            self.ledger.refunded(node, check)

    def ended(self, node: SimNode, check: Check, tokens: int) -> None:
        if not self.ledger.knows(node, check.rule):
            return
        is_spent = tokens > 0 and self.batches.ended(node, check)
        if is_spent:
            self.granted[check.rule, check.key] += tokens
        if wrong := self.ledger.ended(node, check, tokens, is_spent=is_spent):
            raise self._broken(node, check, wrong)

    # What callers see.

    def begin(self, node: SimNode, check: Check) -> Ticket:
        """A node takes a check."""
        ticket = Ticket(node, check)
        self._open[ticket] = None
        self._world.after(OUTCOME_WITHIN_NS, "judge", lambda: self._due(ticket))
        return ticket

    def end(self, ticket: Ticket, outcome: Outcome) -> None:
        """The caller gets an outcome."""
        node, check = ticket.node, ticket.check
        if ticket.outcome is not None:
            raise self._broken(node, check, f"a second outcome: {outcome}, after {ticket.outcome}")
        ticket.outcome = outcome
        del self._open[ticket]
        if not isinstance(outcome, OUTCOMES[check.op]):
            raise self._broken(node, check, f"the outcome of {check.op.name} is {outcome}")
        is_alone = isinstance(outcome, Unreachable)
        if isinstance(outcome, Verdict):
            is_alone = outcome.degraded
            self._made[check, outcome] -= 1
            if self._made[check, outcome] < 0:
                raise self._broken(node, check, f"nobody decided {outcome}")
        self.outcomes["alone" if is_alone else type(outcome).__name__] += 1
        tolerant = self._expect.degraded_only_at
        if is_alone and tolerant is not None and node.name not in tolerant:
            raise self._broken(node, check, f"not decided by its owner: {outcome}")
        if is_alone and ticket.begun_ns >= self._calm_ns:
            raise self._broken(node, check, f"not decided by its owner, long after the last fault: {outcome}")
        waited_ms = (self._world.now_ns - ticket.begun_ns) / NS_PER_MS
        self._world.note(f"{node.name} {_brief(check, outcome)} after {waited_ms:.3f} ms")

    def finish(self, nodes: Iterable[SimNode], etcd: SimEtcd) -> None:
        """The run is over: judge what it has come to."""
        alive = {node.name: node for node in nodes if node.is_alive and not node.is_frozen}
        for node in alive.values():
            self._judge_ring(node, sorted(alive))
            self._judge_documents(node, etcd)
        self.batches.finish(alive.values())
        for mark, tokens in self._expect.granted.items():
            rule, _, key = mark.partition("/")
            if self.granted[rule, key] != tokens:
                raise Violation(f"{mark}: {self.granted[rule, key]} tokens granted, expected {tokens}")

    # How.

    def _is_known(self, node: SimNode, check: Check, verdict: Verdict | UnknownRule) -> bool:
        """Whether the rule of a decision is known to the node; its verdict must say the same."""
        is_known = self.ledger.knows(node, check.rule)
        if is_known != isinstance(verdict, Verdict):
            raise self._broken(node, check, f"the node {'knows' if is_known else 'does not know'} the rule: {verdict}")
        return is_known

    def _due(self, ticket: Ticket) -> None:
        node = ticket.node
        if ticket.outcome is not None:
            return
        if not node.is_alive or node.lives != ticket.life:
            del self._open[ticket]  # its caller's connection is gone
            return
        left_ns = OUTCOME_WITHIN_NS - (node.awake_ns - ticket.awake_ns)
        if left_ns <= 0:
            raise self._broken(node, ticket.check, f"no outcome in {OUTCOME_WITHIN_NS / NS_PER_MS} ms")
        self._world.after(max(left_ns, TICK_NS), "judge", lambda: self._due(ticket))

    def _judge_ring(self, node: SimNode, alive: list[str]) -> None:
        members = list(node.router.ring.members)
        if members != alive:
            raise Violation(f"{node.name}: its ring is {members}, alive are {alive}")
        if not node.is_ready:
            raise Violation(f"{node.name}: is not ready")
        for link in node.router.links.values():
            if link.state is not LinkState.UP:
                raise Violation(f"{node.name}: its link to {link.peer.id} is {link.state.value}")
            oldest_ns = min((frame[0].deadline_ns for frame in link.pending.values()), default=node.now_ns)
            if oldest_ns < node.now_ns - TICK_NS:
                raise Violation(f"{node.name}: a frame to {link.peer.id} waits past its deadline")

    def _judge_documents(self, node: SimNode, etcd: SimEtcd) -> None:
        bad = {key for key, entry in etcd.entries.items() if entry.value in self.ledger.bad_values}
        if node.book.problems.keys() != bad:
            raise Violation(f"{node.name}: its problems are {node.book.problems}, bad are {bad}")
        for key, entry in etcd.entries.items():
            kind, _, name = key.partition("/")
            if kind != "rules" or key in bad:
                continue
            try:
                rule = parse_rule(name, decode_json(entry.value))
            except BadRule as wrong:
                raise Violation(f"the scenario's own {key} is bad: {wrong}") from None
            if name not in node.engine.rules or node.engine.rules[name].rule != rule:
                raise Violation(f"{node.name}: {key} is not in force")

    def _broken(self, node: SimNode, check: Check | None, what: str) -> Violation:
        self._world.note(f"VIOLATION at {node.name}: {check}: {what}")
        return Violation(f"{node.name}: {check}: {what}")


def _brief(check: Check, outcome: Outcome) -> str:
    """A check and its outcome in a line of the trace."""
    what = f"{check.op.name} {check.cost} of {check.rule}/{check.key} ({check.segment or ''}):"
    if not isinstance(outcome, Verdict):
        return f"{what} {outcome}"
    would = "" if outcome.would_allow is None else f" would be {outcome.would_allow}"
    alone = " alone" if outcome.degraded else ""
    return f"{what} {'yes' if outcome.allowed else 'no'}{would}{alone}, {outcome.remaining}/{outcome.limit} left"
