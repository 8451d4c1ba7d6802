"""The ledger: every bucket of the fleet as it ought to be, kept from what nodes were told and what they decided.

One account per rule and key, held by the node that decided last and counted on that node's clock; one more per node
for each place where it had to decide alone, at its share. A change of numbers closes a stretch: what was refilled
before it counts at the old rate.

It keeps the books and judges nothing but single decisions: `settle` says what is wrong with one, or None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.documents import OWN, Documents
from tests.sim.meter import TOLERANCE, UNIT, Meter, Numbers

if TYPE_CHECKING:
    from limiter_node.core.model import Check, Verdict
    from tests.sim.node import SimNode


class Account:
    """A bucket as it ought to be, at the place where it was used last, divided into `parts`."""

    __slots__ = ("holder", "key", "meter", "parts", "place", "rule", "true_ns")

    def __init__(self, holder: SimNode, check: Check, place: str, parts: int) -> None:
        self.holder = holder
        self.rule = check.rule
        self.key = check.key
        self.place = place
        self.parts = parts
        self.meter = Meter(holder.now_ns)
        self.true_ns = holder.world.now_ns

    def advance(self, now: Numbers) -> None:
        """Bring the account to the present at the numbers in force since it was last touched."""
        self.meter.advance(self.holder.now_ns, now.slope)
        self.true_ns = self.holder.world.now_ns

    def hand_to(self, node: SimNode, now: Numbers) -> None:
        """Another node decides from now on; the stretch before counts in true time, which nobody could know better."""
        elapsed_ns = node.world.now_ns - self.true_ns
        self.meter.local_ns = node.now_ns - elapsed_ns
        self.holder = node
        self.advance(now)


class Ledger:
    """All accounts. `bad_values` are documents that every node must refuse."""

    def __init__(self) -> None:
        self.bad_values: set[bytes] = set()
        self._documents: dict[str, Documents] = {}  # by node
        self._accounts: dict[tuple[str, str], Account] = {}  # by rule and key
        self._shares: dict[tuple[str, str, str, str], Account] = {}  # by node, rule, key and place
        # Into how many parts a node divides a plan: by node, rule, place and, for numbers of its own, key.
        self._parts: dict[tuple[str, str, str, str | None], int] = {}

    def born(self, node: SimNode) -> None:
        """A node that begins a life knows no rules and has no buckets."""
        self._documents[node.name] = Documents()
        self._accounts = {mark: account for mark, account in self._accounts.items() if account.holder is not node}
        self._shares = {mark: share for mark, share in self._shares.items() if mark[0] != node.name}

    def knows(self, node: SimNode, rule: str) -> bool:
        """Whether the node has been told of the rule."""
        return rule in self._documents[node.name].rules

    def learned(self, node: SimNode, key: str, value: bytes | None) -> None:
        """Close the stretch of every account on the node, then put the change in force."""
        if value in self.bad_values:
            return
        documents = self._documents[node.name]
        for account in self._held_by(node):
            account.advance(self._numbers(account))
        documents.take(key, value)
        kind, _, name = key.partition("/")
        if kind == "rules" and value is None:
            self._drop(node, name, None, None)
        for account in self._held_by(node):
            if account.place == OWN and not documents.has_own(account.rule, account.key):
                account.place = documents.place_without_own(account.rule, account.key)
                self._drop_own_share(node, account)

    def forgot(self, node: SimNode, rule: str, key: str) -> None:
        """The bucket is full again."""
        self._accounts.pop((rule, key), None)
        for mark in [mark for mark in self._shares if mark[:3] == (node.name, rule, key)]:
            del self._shares[mark]

    def settle(self, node: SimNode, check: Check, verdict: Verdict) -> str | None:
        """Book an owner's decision."""
        place = self._documents[node.name].place(check.rule, check.key, check.segment)
        account = self._accounts.get((check.rule, check.key))
        if account is None:
            account = self._accounts[check.rule, check.key] = Account(node, check, place, 1)
        elif account.holder is node:
            account.advance(self._numbers(account))
        else:
            account.hand_to(node, self._numbers(account, node))
        account.place = place
        return _book(account, self._numbers(account), check, verdict)

    def settle_share(self, node: SimNode, check: Check, parts: int, verdict: Verdict) -> str | None:
        """Book a decision that a node made alone, against its share."""
        place = self._documents[node.name].place(check.rule, check.key, check.segment)
        self._divide(node, check, place, parts)
        mark = node.name, check.rule, check.key, place
        share = self._shares.get(mark)
        if share is None:
            share = self._shares[mark] = Account(node, check, place, parts)
        share.advance(self._numbers(share))
        return _book(share, self._numbers(share), check, verdict)

    def policy(self, node: SimNode, rule: str) -> str:
        """What a node does that must decide alone."""
        return str(self._documents[node.name].rules[rule].get("on_unreachable", "local"))

    def _divide(self, node: SimNode, check: Check, place: str, parts: int) -> None:
        """A node divides a plan otherwise from now on: that closes a stretch for all its shares of the plan."""
        key = check.key if place == OWN else None
        if self._parts.get((node.name, check.rule, place, key)) == parts:
            return
        self._parts[node.name, check.rule, place, key] = parts
        for mark, share in self._shares.items():
            if mark[:2] == (node.name, check.rule) and mark[3] == place and key in (None, mark[2]):
                share.advance(self._numbers(share))
                share.parts = parts

    def _held_by(self, node: SimNode) -> list[Account]:
        accounts = [account for account in self._accounts.values() if account.holder is node]
        return accounts + [share for mark, share in self._shares.items() if mark[0] == node.name]

    def _numbers(self, account: Account, node: SimNode | None = None) -> Numbers:
        documents = self._documents[(node or account.holder).name]
        place = account.place
        if place == OWN and not documents.has_own(account.rule, account.key):
            place = documents.place_without_own(account.rule, account.key)
        return documents.numbers(account.rule, account.key, place, account.parts)

    def _drop(self, node: SimNode, rule: str, key: str | None, place: str | None) -> None:
        """Forget accounts of a rule on a node: of all keys, or of one key at one place alone."""
        if key is None:
            kept = {m: a for m, a in self._accounts.items() if not (a.holder is node and a.rule == rule)}
            self._accounts = kept
        self._shares = {
            mark: share
            for mark, share in self._shares.items()
            if not (mark[:2] == (node.name, rule) and key in (None, mark[2]) and place in (None, mark[3]))
        }

    def _drop_own_share(self, node: SimNode, account: Account) -> None:
        self._drop(node, account.rule, account.key, OWN)


def _book(account: Account, now: Numbers, check: Check, verdict: Verdict) -> str | None:
    """Compare one decision with the account; returns what is wrong with it."""
    meter, capacity = account.meter, now.capacity
    is_allowed = verdict.allowed if verdict.would_allow is None else verdict.would_allow
    tokens = check.cost or 1
    if is_allowed and not meter.fits(tokens, capacity, TOLERANCE):
        excess = (meter.level + tokens * UNIT - capacity) / UNIT
        return f"granted {excess:.6f} tokens too many"
    if not is_allowed and meter.fits(tokens, capacity, -TOLERANCE):
        return f"denied {tokens} with {meter.left(capacity, 0)} tokens left"
    if is_allowed:
        meter.level += check.cost * UNIT
    if verdict.limit != capacity // UNIT:
        return f"says limit {verdict.limit}, is {capacity // UNIT}"
    least, most = meter.left(capacity, -TOLERANCE), meter.left(capacity, TOLERANCE)
    if not least <= verdict.remaining <= most:
        return f"says {verdict.remaining} remaining, are {most}"
    return None
