"""A plan: the numbers in force for one segment of a rule, or for one key of it, and the buckets that live by them.

Numbers are limits scaled by the backend's multiplier and, for a node that must decide alone, by that node's share
of the fleet. Which key is under which plan is the engine's business; a key that comes from another plan of
the same rule takes what it has spent along, limit by limit.

There are two kinds: `token_plan`, one token bucket, which nearly all rules are and which is written for speed; and
`joint_plan`, several limits taken together, or one that is no token bucket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from limiter_node.core.model import ANY_PERIOD, Entry, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from limiter_node.core.adaptive.gate import Gate
    from limiter_node.core.limits import Limit, Limits
    from limiter_node.core.model import Bucket, Check
    from limiter_node.core.table import Shards


Grant = tuple[tuple[int, int], int, int]
"""Of a check that was allowed: (`Plan.tokens`, `window_s`), the whole tokens left, the nanoseconds until it is full."""


class Kin(Protocol):
    """All plans of a rule: where a key that is new to one of them may have been before."""

    only: Plan | None
    """The plan, if there is one, to which no key can come from another: who is new there is new to the rule."""

    def places(self, key: str) -> Iterable[Plan]:
        """The plans that may hold a key's bucket; at most one does."""


class NoKin:
    """Of a plan whose keys come from nowhere else."""

    def __init__(self) -> None:
        self.only: Plan | None = None

    def places(self, key: str) -> Iterable[Plan]:
        """Nowhere else."""
        return ()


class Plan(Protocol):
    """Decides for the keys under it, at `limits` x `multiplier_ppm` / PPM / `parts`.

    `changed` are keys whose copies are to follow; it is shared, as is `kin`, and kept by the rule.
    """

    segment: str
    limits: Limits
    multiplier_ppm: int
    parts: int
    kin: Kin
    changed: set[str]
    share: Plan | None  # this plan at 1/parts, made when the node has to decide alone
    tokens: int  # of a full bucket: what a verdict calls `limit`
    window_s: int

    @property
    def table(self) -> Shards[Any]:
        """Where the buckets are."""

    def fits(self, limits: Limits) -> bool:
        """Whether `set_numbers` can go over to these limits."""

    def set_numbers(self, limits: Limits, multiplier_ppm: int, now_ns: int) -> None:
        """Other numbers from now on; every key keeps what it has spent."""

    def at_share(self, parts: int, now_ns: int) -> Plan:
        """A plan like this one at 1/`parts` of rate and burst, with buckets of its own."""

    def spend(self, key: str, cost: int, now_ns: int) -> Verdict:
        """Spend `cost` whole tokens of the key if they are there; a denial changes nothing, cost 0 is a peek."""

    def charge(self, key: str, cost: int, now_ns: int) -> None:
        """Spend `cost` whole tokens of the key that were granted before, even if that is more than it can hold now."""

    def refund(self, key: str, cost: int, now_ns: int) -> int:
        """Give back up to `cost` whole tokens that the key has spent; returns how many."""

    def bucket(self, key: str, now_ns: int) -> Bucket:
        """The key's bucket as it stands."""

    def has(self, key: str) -> bool:
        """Whether the key's bucket is here."""

    def account(self, key: str, now_ns: int) -> list[Entry]:
        """What the key has spent, for another plan or node; empty when that is nothing."""

    def credit(self, key: str, account: Sequence[Entry], now_ns: int) -> bool:
        """Have the key spent at least what an account says; returns whether that is news."""


class PlanBase:
    """What both kinds of plan keep besides their buckets."""

    __slots__ = ("changed", "kin", "limits", "multiplier_ppm", "parts", "segment", "share", "tokens", "window_s")
    limits: Limits
    multiplier_ppm: int
    tokens: int
    window_s: int

    def __init__(self, segment: str, *, kin: Kin, changed: set[str], parts: int) -> None:
        self.segment = segment
        self.kin = kin
        self.changed = changed
        self.parts = parts
        self.share: Plan | None = None


def pass_gate(
    plan: Plan, gate: Gate, check: Check, priority: int, verdict: Verdict, *, now_ns: int, is_shadow: bool
) -> Verdict:
    """Bring the verdict on a check, no peek, before the backend's gate; what it turns away has spent nothing."""
    gate.offer(priority)
    if not verdict.allowed:
        if is_shadow:
            gate.overrule()
        return verdict
    retry_ns = gate.admit(priority, now_ns, is_shadow=is_shadow)
    return turned_away(plan, check.key, check.cost, retry_ns, now_ns) if retry_ns else verdict


def turned_away(plan: Plan, key: str, cost: int, retry_ns: int, now_ns: int) -> Verdict:
    """Undo what has just been granted: the backend takes no more for now."""
    plan.refund(key, cost, now_ns)
    peeked = plan.spend(key, 0, now_ns)
    return Verdict(
        False, peeked.limit, peeked.remaining, peeked.reset_ns, retry_ns, peeked.window_s, reason="backend_overload"
    )


def share_of(plan: Plan, parts: int, now_ns: int) -> Plan:
    """The plan for a node that decides alone, as one of `parts`."""
    share = plan.share
    if share is None:
        share = plan.share = plan.at_share(parts, now_ns)
    if (share.parts, share.multiplier_ppm, share.limits) != (parts, plan.multiplier_ppm, plan.limits):
        share.parts = parts
        share.set_numbers(plan.limits, plan.multiplier_ppm, now_ns)
    return share


def tables(plan: Plan) -> list[Shards[Any]]:
    """The plan's table and, if it ever decided alone, that of its share."""
    return [plan.table] if plan.share is None else [plan.table, plan.share.table]


def move(key: str, source: Plan, target: Plan, now_ns: int) -> bool:
    """Take what a key has spent along to another plan; returns whether it had spent anything."""
    account = source.account(key, now_ns)
    source.table.forget(key)
    return bool(account) and target.credit(key, account, now_ns)


def continued(limits: Limits, account: Sequence[Entry]) -> Iterator[tuple[Limit, Entry | None]]:
    """Each limit with the entry that it goes on from: of its algorithm and period, or of a lone one's algorithm.

    Of several that are alike the first goes on from the first; None where nothing of it counts.
    """
    left = list(account)
    is_lone = len(limits) == len(left) == 1
    for limit in limits:
        found = None
        for entry in left:
            if entry.algorithm == limit.algorithm and (is_lone or entry.period_s in (limit.period_s, ANY_PERIOD)):
                found = entry
                left.remove(entry)
                break
        yield limit, found if found and found.values else None
