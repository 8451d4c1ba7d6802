"""The ledger: every bucket of the fleet as it ought to be, kept from what nodes were told and what they decided.

One account per rule and key, held by the node that decided last and counted on that node's clock; one more per node
for each place where it had to decide alone, at its share. A change of numbers closes a stretch: what was refilled
before it counts at the old rate.

It keeps the books and judges nothing but single decisions: `settle` says what is wrong with one, or None.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from limiter_node.core.model import Bucket, Op
from limiter_node.core.token_plan import LEASE_MAX_NS
from tests.sim.documents import OWN, Documents
from tests.sim.meter import TOLERANCE, UNIT, Meter, Numbers
from tests.sim.world import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limiter_node.core.model import Check, Verdict
    from limiter_node.core.ring import Ring
    from tests.sim.node import SimNode


DRIFT_SHARE = 2_000
"""Clocks of random scenarios gain at most 1 in 5,000."""


class Account:
    """A bucket as it ought to be, at the place where it was used last, divided into `parts`."""

    __slots__ = (
        "fastest",
        "granted_ns",
        "held",
        "holder",
        "is_moved",
        "is_void",
        "jumped_ns",
        "key",
        "lag_units",
        "lapses",
        "life",
        "meter",
        "parts",
        "place",
        "rule",
        "slack",
        "true_ns",
        "untold",
    )

    def __init__(self, holder: SimNode, check: Check, place: str, parts: int) -> None:
        self.holder = holder
        self.rule = check.rule
        self.key = check.key
        self.place = place
        self.parts = parts
        self.meter = Meter(holder.now_ns)
        # Set aside for atomic batches, by batch and place: tokens, and the capacity that they were allowed by.
        self.held: dict[tuple[str, int], tuple[int, int]] = {}
        self.untold: list[tuple[int, int]] = []  # when (true ns) and how many tokens the holder granted untold
        self.lag_units = 0  # what copies may have refilled by numbers that were over
        self.slack = 0  # tokens that earlier holders granted and could not tell
        self.is_moved = False
        self.is_void = False  # nobody but the holder, which may be dead, is sure to know of it
        self.fastest = 0  # slope in force for this bucket on any node since it was last touched
        self.life = holder.lives
        self.lapses = holder.router.keeper.lapses
        self.true_ns = holder.world.now_ns
        self.granted_ns = self.true_ns
        self.jumped_ns = holder.world.jumped_ns

    def advance(self, now: Numbers) -> None:
        """Bring the account to the present at the numbers in force since it was last touched."""
        self.meter.advance(self.holder.now_ns, now.slope)
        if not self.meter.level:
            self.slack = self.lag_units = 0
        self.fastest = now.slope
        self.true_ns = self.holder.world.now_ns

    @property
    def loose(self) -> int:
        """Tokens granted by the holder that nobody else is known to know of."""
        return sum(tokens for _, tokens in self.untold)

    @property
    def held_tokens(self) -> int:
        """Tokens that are set aside."""
        return sum(tokens for tokens, _ in self.held.values())

    def hand_to(self, node: SimNode, now: Numbers) -> None:
        """Another node decides from now on; the stretch before counts in true time, which nobody could know better."""
        if self._has_lost_holder():
            self.slack += self.loose
        self.untold.clear()
        if self.is_void:
            self.is_void, self.meter.level = False, 0
        self.is_moved = True
        elapsed_ns = node.world.now_ns - self.true_ns
        # The new holder may have kept its copy on a faster clock since it was made, or on one that has jumped.
        elapsed_ns += (node.world.now_ns - self.granted_ns) // DRIFT_SHARE + node.world.jumped_ns - self.jumped_ns
        self.jumped_ns = node.world.jumped_ns
        self.meter.local_ns = node.now_ns - elapsed_ns
        self.holder, self.life = node, node.lives
        # The copy was kept on whichever node decides now, by what that one had been told.
        self.advance(Numbers(now.capacity, max(now.slope, self.fastest)))
        self.fastest = now.slope

    def _has_lost_holder(self) -> bool:
        """Whether the holder could not tell: it is dead or frozen, or was cut off from so many that it had to stop."""
        holder = self.holder
        return (
            not holder.is_alive
            or holder.lives != self.life
            or holder.is_frozen
            or holder.router.keeper.lapses != self.lapses
            or holder.now_ns >= holder.router.keeper.fence.right_until_ns
        )

    def is_held_by(self, node: SimNode) -> bool:
        """Whether the node, in this life, decided last."""
        return self.holder is node and self.life == node.lives


class Ledger:
    """All accounts. `bad_values` are documents that every node must refuse.

    With `delivers_within_ns`, what was granted longer ago than that is known elsewhere, whatever a node itself says.
    """

    def __init__(self, is_reachable: Callable[[str, int], bool], *, delivers_within_ns: int | None) -> None:
        self._is_reachable = is_reachable
        self._delivers_within_ns = delivers_within_ns
        self.bad_values: set[bytes] = set()
        self._nodes: dict[str, SimNode] = {}
        self._learned_ns: dict[str, int] = {}  # by node: when it last took a change, in true time
        self._documents: dict[str, Documents] = {}  # by node
        self._accounts: dict[tuple[str, str], Account] = {}  # by rule and key
        # By whom; a copy may be there that does not know of it.
        self._forgotten: dict[tuple[str, str], set[SimNode]] = defaultdict(set)
        self._shares: dict[tuple[str, str, str, str], Account] = {}  # by node, rule, key and place
        # Into how many parts a node divides a plan: by node, rule, place and, for numbers of its own, key.
        self._parts: dict[tuple[str, str, str, str | None], int] = {}

    def born(self, node: SimNode) -> None:
        """A node that begins a life knows no rules and has no buckets."""
        self._nodes[node.name] = node
        self._documents[node.name] = Documents()
        self._shares = {mark: share for mark, share in self._shares.items() if mark[0] != node.name}

    def lost(self, node: SimNode) -> None:
        """A node is dead or frozen: what only it knew is lost, and so is a bucket both of whose holders are."""
        for account in self._accounts.values():
            if account.is_held_by(node):
                if self._is_known(account):
                    account.untold.clear()
                elif self._delivers_within_ns is not None:
                    since_ns = node.world.now_ns - self._delivers_within_ns
                    account.untold = [grant for grant in account.untold if grant[0] >= since_ns]
            holders = self._ring(account).holders(account.key)
            if node.name in holders and not account.is_held_by(node):
                # The copy is lost, and all of it unknown again.
                account.untold = [(node.world.now_ns, -(-account.meter.level // UNIT))]
            if (node.name in holders or account.is_held_by(node)) and not self._has_holder(account, node):
                account.is_void = True

    def found(self, node: SimNode) -> None:
        """A node that was cut off is back, and what it holds with it."""
        for account in self._accounts.values():
            if account.is_held_by(node):
                account.is_void = False

    def _is_known(self, account: Account) -> bool:
        """Whether another node has all that the holder of an account knows."""
        return (
            account.is_held_by(account.holder)  # still in that life
            and _has_told(account.holder, account)
            and self._has_holder(account, account.holder)
        )

    def _ring(self, account: Account) -> Ring:
        """The holder's ring, or the newest there is when that life is over."""
        holder = account.holder
        if holder.is_alive and account.is_held_by(holder):
            return holder.router.ring
        rings = [node.router.ring for node in self._nodes.values() if node.is_alive]
        return max(rings, key=lambda ring: ring.revision, default=holder.router.ring)

    def _is_being_forgotten(self, rule: str, key: str) -> bool:
        """Whether another holder of the bucket is still to be told of a deletion."""
        return any(((rule, key), True) in _on_their_way(node) for node in self._forgotten.get((rule, key), ()))

    def _has_holder(self, account: Account, node: SimNode) -> bool:
        """Whether another node than this one has the bucket, and can be reached."""
        ring = self._ring(account)
        holders = {name for name in ring.holders(account.key) if name} - {node.name}
        return any(self._is_reachable(name, ring.members[name].boot) for name in holders)

    def decides(self, node: SimNode, rule: str, key: str) -> None:
        """The node is about to decide: what the others know of the bucket by now is as good as its own knowledge."""
        account = self._accounts.get((rule, key))
        if account is not None and account.untold and account.holder.is_alive and self._is_known(account):
            account.untold.clear()

    def knows(self, node: SimNode, rule: str) -> bool:
        """Whether the node has been told of the rule."""
        return rule in self._documents[node.name].rules

    def learned(self, node: SimNode, key: str, value: bytes | None) -> None:
        """Close the stretch of every account on the node, then put the change in force."""
        if value in self.bad_values:
            return
        documents = self._documents[node.name]
        for account in self._held_by(node):
            now = self._numbers(account)
            # Copies elsewhere may have refilled faster in this stretch, by numbers that the holder hears of only now.
            account.lag_units += max(0, account.fastest - now.slope) * (node.now_ns - account.meter.local_ns)
            account.advance(now)
        self._note_lag(node, documents)
        self._note_slopes(documents)
        documents.take(key, value)
        self._learned_ns[node.name] = node.world.now_ns
        self._note_slopes(documents)
        kind, _, name = key.partition("/")
        if kind == "rules" and value is None:
            self._drop(node, name, None, None)
            for account in self._accounts.values():
                if account.rule == name:  # its holder may have died before it learnt that
                    account.is_void = True
        for account in self._held_by(node):
            if account.place == OWN and not documents.has_own(account.rule, account.key):
                account.place = documents.place_without_own(account.rule, account.key)
                self._drop_own_share(node, account)

    def _note_lag(self, node: SimNode, documents: Documents) -> None:
        """Until now a copy on this node refilled by what its holder has known for longer to be over."""
        for account in self._accounts.values():
            holder = account.holder
            if account.rule in documents.rules and not account.is_held_by(node) and self.knows(holder, account.rule):
                excess = _fastest(documents, account) - self._numbers(account).slope
                lag_ns = node.world.now_ns - self._learned_ns.get(holder.name, node.world.now_ns)
                account.lag_units += max(0, excess) * lag_ns

    def _note_slopes(self, documents: Documents) -> None:
        for account in self._accounts.values():
            if account.rule in documents.rules:
                account.fastest = max(account.fastest, _fastest(documents, account))

    def forgot(self, node: SimNode, rule: str, key: str) -> None:
        """The bucket is full again."""
        self._accounts.pop((rule, key), None)
        self._forgotten[rule, key].add(node)
        for mark in [mark for mark in self._shares if mark[:3] == (node.name, rule, key)]:
            del self._shares[mark]

    def refunded(self, node: SimNode, check: Check) -> None:
        """So many tokens are given back, if they were spent."""
        account = self._account(node, check)
        account.meter.level = max(0, account.meter.level - check.cost * UNIT)
        self._forgotten[check.rule, check.key].add(node)

    def lent(self, node: SimNode, check: Check, tokens: int) -> None:
        """Tokens are lent: what becomes of them is known to the borrower, and may be lost."""
        account = self._account(node, check)
        account.is_moved = True
        account.untold.append((node.world.now_ns, tokens))

    def granted_under_lease(self, check: Check) -> str | None:
        """Book what a borrower grants: it counts when it is granted."""
        account = self._accounts.get((check.rule, check.key))
        if account is None or account.rule not in self._documents[account.holder.name].rules:
            return None  # the rule is gone, and the bucket with it
        now = self._numbers(account)
        account.advance(now)
        slack = account.slack * UNIT + account.lag_units
        fits = account.meter.fits(check.cost, now.capacity, slack + TOLERANCE)
        account.meter.level += check.cost * UNIT
        now_ns = account.holder.world.now_ns
        if any(now_ns - learned_ns <= LEASE_MAX_NS + NS_PER_MS for learned_ns in self._learned_ns.values()):
            return None  # it may have been lent by numbers that have been cut since, and the borrower not know yet
        return None if fits else f"granted {(account.meter.level - now.capacity) / UNIT:.6f} tokens too many"

    def judge_denial(self, node: SimNode, check: Check, promised_ns: int) -> str | None:
        """What is wrong with a denial that the owner has promised to the node, or None.

        Nothing is while people may have changed the numbers after the promise, and when whoever made it is gone.
        """
        now_ns = node.world.now_ns
        if any(now_ns - learned_ns <= promised_ns for learned_ns in self._learned_ns.values()):
            return None
        owner = self._nodes.get(node.router.ring.owner(check.key) or "")
        if owner is None or not owner.is_alive or owner.is_frozen or owner.router.ring != node.router.ring:
            return None
        stands = owner.engine.inspect(check.rule, check.key, owner.now_ns)
        if isinstance(stands, Bucket) and stands.remaining:
            return f"{stands.remaining} are left at {owner.name}"
        account = self._accounts.get((check.rule, check.key))
        if account is None:
            return "nothing is spent"
        if account.is_moved or not account.is_held_by(owner):
            return None
        account.advance(self._numbers(account))
        free = self._numbers(account).capacity - account.held_tokens * UNIT
        return f"{account.meter.left(free, 0)} are left" if account.meter.fits(1, free, -TOLERANCE) else None

    def settle(self, node: SimNode, check: Check, verdict: Verdict) -> str | None:
        """Book an owner's decision."""
        account = self._account(node, check)
        if verdict.allowed and verdict.would_allow is not False and check.op is not Op.RESERVE:
            self._note_grant(node, account, check.cost)
        if _comes_late(node, check, verdict):
            return None
        return _book(account, self._numbers(account), check, verdict)

    def ended(self, node: SimNode, check: Check, tokens: int, *, is_spent: bool) -> str | None:
        """Book that what a batch had set aside is spent or given back; 0 tokens: that it was looked at."""
        account = self._account(node, check)
        if not tokens:
            return None
        assert check.hold is not None
        capacity = self._numbers(account).capacity
        for hold in [hold for hold in account.held if hold[0] == check.hold[0]]:
            capacity = max(capacity, account.held.pop(hold)[1])
        if not is_spent:
            return None
        self._note_grant(node, account, tokens)
        slack = account.slack * UNIT + account.lag_units if account.is_moved else 0
        fits = account.meter.fits(tokens, capacity, slack + TOLERANCE)
        account.meter.level += tokens * UNIT
        return None if fits else f"spent {tokens} tokens that were set aside, and are too many"

    def _account(self, node: SimNode, check: Check) -> Account:
        """The account of a bucket that a node decides, brought to the present."""
        place = self._documents[node.name].place(check.rule, check.key, check.segment)
        account = self._accounts.get((check.rule, check.key))
        if account is None:
            account = self._accounts[check.rule, check.key] = Account(node, check, place, 1)
            account.is_moved = (check.rule, check.key) in self._forgotten
        elif account.is_held_by(node):
            account.advance(self._numbers(account))
        else:
            account.is_moved = True  # from here on the copy may have been under any plan of the rule
            account.hand_to(node, self._numbers(account, node))
        account.place = place
        if node.router.keeper.lapses != account.lapses:  # what others knew may have come back, a little older
            account.lapses = node.router.keeper.lapses
            account.is_moved = True
        return account

    def _note_grant(self, node: SimNode, account: Account, tokens: int) -> None:
        account.granted_ns = node.world.now_ns
        if self._is_being_forgotten(account.rule, account.key):
            account.slack += tokens  # the deletion may yet come here
        else:
            account.untold.append((node.world.now_ns, tokens))

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
        accounts = [account for account in self._accounts.values() if account.is_held_by(node)]
        return accounts + [share for mark, share in self._shares.items() if mark[0] == node.name]

    def _numbers(self, account: Account, node: SimNode | None = None) -> Numbers:
        documents = self._documents[(node or account.holder).name]
        place = account.place
        if place == OWN and not documents.has_own(account.rule, account.key):
            place = documents.place_without_own(account.rule, account.key)
        now = documents.numbers(account.rule, account.key, place, account.parts)
        if account.is_moved:
            # A late copy may have put the bucket where it was before: any place's refill may have been its.
            return Numbers(now.capacity, _fastest(documents, account))
        return now

    def _drop(self, node: SimNode, rule: str, key: str | None, place: str | None) -> None:
        """Forget accounts of a rule on a node: of all keys, or of one key at one place alone."""
        if key is None:
            for mark in [m for m, a in self._accounts.items() if a.is_held_by(node) and a.rule == rule]:
                self.forgot(node, *mark)
        self._shares = {
            mark: share
            for mark, share in self._shares.items()
            if not (mark[:2] == (node.name, rule) and key in (None, mark[2]) and place in (None, mark[3]))
        }

    def _drop_own_share(self, node: SimNode, account: Account) -> None:
        self._drop(node, account.rule, account.key, OWN)


def _fastest(documents: Documents, account: Account) -> int:
    places = documents.places(account.rule, account.key)
    return max(documents.numbers(account.rule, account.key, place, account.parts).slope for place in places)


def _on_their_way(node: SimNode) -> Iterator[tuple[tuple[str, str], bool]]:
    """The buckets that some peer is still to be told of, and whether as deleted."""
    for outlet in node.router.keeper.replication.outlets.values():
        yield from outlet.due.items()
        yield from outlet.bulk.items()
        for batch in outlet.flight.values():
            yield from batch


def _has_told(node: SimNode, account: Account) -> bool:
    """Whether nothing of a bucket is still to be sent."""
    rule = node.engine.rules.get(account.rule)
    return not (
        len(node.router.ring.members) < 2
        or node.router.keeper.replication.is_surveying
        or (rule is not None and account.key in rule.changed)
        or any(bucket == (account.rule, account.key) for bucket, _ in _on_their_way(node))
    )


def _comes_late(node: SimNode, check: Check, verdict: Verdict) -> bool:
    """Whether a reservation is refused because its batch is over; in shadow mode the verdict does not say why."""
    if check.op is not Op.RESERVE or (verdict.allowed and verdict.would_allow is not False):
        return False
    assert check.hold is not None
    is_over = node.engine.holds.has_ended((check.rule, check.key), check.hold[0])
    return is_over or verdict.reason == "batch"


def _book(account: Account, now: Numbers, check: Check, verdict: Verdict) -> str | None:
    """Compare one decision with the account; returns what is wrong with it."""
    meter, capacity = account.meter, now.capacity
    is_allowed = verdict.allowed if verdict.would_allow is None else verdict.would_allow
    tokens = check.cost or 1
    if account.is_moved:
        # Copies were rounded up, did not refill on their way, and may have been made before some of the grants.
        if is_allowed and not meter.fits(tokens, capacity, account.slack * UNIT + account.lag_units + TOLERANCE):
            excess = (meter.level + tokens * UNIT - capacity) / UNIT
            return f"granted {excess:.6f} tokens too many, of which {account.slack} may have been unknown"
        if is_allowed:
            _take(account, check, capacity)
        return None if verdict.limit == capacity // UNIT else f"says limit {verdict.limit}, is {capacity // UNIT}"
    free = capacity - account.held_tokens * UNIT
    if is_allowed and not meter.fits(tokens, free, TOLERANCE):
        excess = (meter.level + tokens * UNIT - free) / UNIT
        return f"granted {excess:.6f} tokens too many"
    if not is_allowed and meter.fits(tokens, free, -TOLERANCE):
        return f"denied {tokens} with {meter.left(free, 0)} tokens left"
    if is_allowed:
        _take(account, check, capacity)
        free = capacity - account.held_tokens * UNIT
    if verdict.limit != capacity // UNIT:
        return f"says limit {verdict.limit}, is {capacity // UNIT}"
    least, most = meter.left(free, -TOLERANCE), meter.left(free, TOLERANCE)
    if not least <= verdict.remaining <= most:
        return f"says {verdict.remaining} remaining, are {most}"
    return None


def _take(account: Account, check: Check, capacity: int) -> None:
    """Spend the cost, or set it aside."""
    # Whatever is spent by other numbers may leave what is set aside no room within its own.
    account.held = {hold: (tokens, max(capacity, before)) for hold, (tokens, before) in account.held.items()}
    if check.op is Op.RESERVE:
        assert check.hold is not None
        account.held[check.hold] = check.cost, capacity
    else:
        account.meter.level += check.cost * UNIT
