"""The plan of several limits, taken together or not at all, or of one that is no token bucket.

Each limit is an `algorithms.face.Algorithm`; a key's state is the tuple of what it has under each of them. A check is
granted when all of them have the tokens, and spends the cost from each; otherwise it spends nothing from any.

Expiry is by two generations as in `table`: a key that was put is young until the table turns, and by the turn after
that nothing of it counts any more, which the algorithms tell of all states that there were. No look at single keys is
ever needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limiter_node.core.algorithms import build
from limiter_node.core.limits import BUCKETS
from limiter_node.core.model import DURATION_MAX_NS, NEVER, Bucket, Entry, LimitVerdict, Verdict
from limiter_node.core.plan import NoKin, PlanBase, continued, move, share_of
from limiter_node.core.table import SHARDS, Census, Shards

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from limiter_node.core.algorithms.face import Algorithm, Decision, State, Wall
    from limiter_node.core.limits import Limit, Limits
    from limiter_node.core.plan import Kin

States = tuple["State | None", ...]


class JointTable(Shards[States]):
    """Buckets of the keys under one plan; a state for each of the `algorithms`."""

    __slots__ = ("_due", "algorithms")

    def __init__(self, census: Census, algorithms: list[Algorithm], now_ns: int, shards: int) -> None:
        super().__init__(census, shards)
        self.algorithms = algorithms
        # Beyond these nothing counts that is old.
        self._due = [algorithm.horizon(now_ns) for algorithm in algorithms]

    def states(self, key: str) -> States | None:
        """What the key has; None for one that is not stored."""
        index = hash(key) & self.mask
        states = self.young[index].get(key)
        return self.old[index].get(key) if states is None else states

    def rotate(self, now_ns: int) -> list[dict[str, States]]:
        """Drop the old generation if nothing of it counts any more."""
        pairs = zip(self.algorithms, self._due, strict=True)
        if not all(algorithm.is_past(horizon, now_ns) for algorithm, horizon in pairs):
            return []
        self._due = [algorithm.horizon(now_ns) for algorithm in self.algorithms]
        return self.turn()

    def fullness(self, index: int, now_ns: int) -> Iterator[tuple[int, str]]:
        """(nanoseconds until it is full, key) of each bucket in a shard; the caller must not store meanwhile."""
        for shard in (self.young[index], self.old[index]):
            for key, states in shard.items():
                yield self.full_in_ns(states, now_ns), key

    def full_in_ns(self, states: States, now_ns: int) -> int:
        """Nanoseconds until nothing of a key counts any more."""
        pairs = zip(self.algorithms, states, strict=True)
        return max(0 if state is None else algorithm.full_in_ns(state, now_ns) for algorithm, state in pairs)


def shape_of(limits: Limits) -> list[tuple[Any, ...]]:
    """What the states of limits go by: only the numbers may change beneath them; of a lone bucket, the period too."""
    if len(limits) == 1 and limits[0].algorithm in BUCKETS:
        return [(limits[0].algorithm,)]
    return [(limit.algorithm, limit.period_s, limit.calendar, limit.timezone) for limit in limits]


class JointPlan(PlanBase):
    """A `Plan` of any limits. `wall` is what windows of the calendar go by."""

    __slots__ = ("_wall", "algorithms", "table")

    def __init__(
        self,
        segment: str,
        limits: Limits,
        multiplier_ppm: int,
        now_ns: int,
        *,
        wall: Wall,
        census: Census,
        kin: Kin,
        changed: set[str],
        parts: int = 1,
        shards: int = SHARDS,
    ) -> None:
        super().__init__(segment, kin=kin, changed=changed, parts=parts)
        self._wall = wall
        self.algorithms = [build(limit, multiplier_ppm, parts, now_ns, wall) for limit in limits]
        self.table = JointTable(census, self.algorithms, now_ns, shards)
        self.set_numbers(limits, multiplier_ppm, now_ns)

    def fits(self, limits: Limits) -> bool:
        """Whether the limits differ from the present ones in nothing but numbers."""
        return shape_of(limits) == shape_of(self.limits)

    def set_numbers(self, limits: Limits, multiplier_ppm: int, now_ns: int) -> None:
        """Other numbers from now on; every key keeps what it has spent."""
        self.limits = limits
        self.multiplier_ppm = multiplier_ppm
        for algorithm, limit in zip(self.algorithms, limits, strict=True):
            algorithm.set_numbers(limit, multiplier_ppm, self.parts, now_ns)
        tightest = min(range(len(limits)), key=lambda index: self.algorithms[index].tokens)
        self.tokens, self.window_s = self.algorithms[tightest].tokens, limits[tightest].window_s
        if self.share is not None:
            share_of(self, self.share.parts, now_ns)

    def at_share(self, parts: int, now_ns: int) -> JointPlan:
        """As `Plan` has it."""
        return JointPlan(
            self.segment,
            self.limits,
            self.multiplier_ppm,
            now_ns,
            wall=self._wall,
            census=self.table.census,
            kin=NoKin(),
            changed=set(),
            parts=parts,
            shards=self.table.mask + 1,
        )

    def spend(self, key: str, cost: int, now_ns: int) -> Verdict:
        """Spend `cost` whole tokens of the key under every limit if all have them; cost 0 is a peek."""
        states = self._states(key, now_ns)
        pairs = list(zip(self.algorithms, states, strict=True))
        decisions = [algorithm.decide(state, cost, now_ns) for algorithm, state in pairs]
        if not all(decision.allowed for decision in decisions):
            # What would have had the tokens keeps them.
            decisions = [
                algorithm.decide(state, 0, now_ns)._replace(allowed=decision.allowed, retry_ns=decision.retry_ns)
                for (algorithm, state), decision in zip(pairs, decisions, strict=True)
            ]
        elif cost:
            self.table.put(key, tuple(decision.state for decision in decisions))
        return self._verdict(decisions)

    def _verdict(self, decisions: list[Decision]) -> Verdict:
        """In the numbers of the limit that denies longest, else of the one with least left."""
        tightest = _tightest(decisions)
        said, limit = decisions[tightest], self.limits[tightest]
        waits = [decision.wait_ns for decision in decisions if decision.wait_ns is not None]
        return Verdict(
            said.allowed,
            self.algorithms[tightest].tokens,
            said.remaining,
            said.reset_ns,
            said.retry_ns,
            limit.window_s,
            wait_ns=max(waits) if waits and said.allowed else None,
            limits=self._each(decisions) if len(decisions) > 1 else None,
        )

    def _each(self, decisions: list[Decision]) -> list[LimitVerdict]:
        return [
            LimitVerdict(
                limit.rate,
                limit.algorithm or "",
                algorithm.tokens,
                decision.remaining,
                decision.reset_ns,
                decision.retry_ns,
            )
            for limit, algorithm, decision in zip(self.limits, self.algorithms, decisions, strict=True)
        ]

    def _states(self, key: str, now_ns: int) -> States:
        """What the key has here, or brings from another plan of the rule."""
        states = self.table.states(key)
        if states is None:
            for plan in self.kin.places(key):
                if plan is not self and plan.has(key) and move(key, plan, self, now_ns):
                    self.changed.add(key)
                    break
            states = self.table.states(key)
        return (None,) * len(self.algorithms) if states is None else states

    def charge(self, key: str, cost: int, now_ns: int) -> None:
        """As `Plan` has it."""
        pairs = zip(self.algorithms, self._states(key, now_ns), strict=True)
        self.table.put(key, tuple(algorithm.charge(state, cost, now_ns) for algorithm, state in pairs))

    def refund(self, key: str, cost: int, now_ns: int) -> int:
        """Give back up to `cost` whole tokens under each limit; returns the most that any of them had spent of it."""
        states = self.table.states(key)
        if states is None:
            return 0
        pairs = list(zip(self.algorithms, states, strict=True))
        refunded = max(min(cost, algorithm.spent(state, now_ns)) for algorithm, state in pairs)
        after = tuple(algorithm.refund(state, cost, now_ns) for algorithm, state in pairs)
        if all(state is None for state in after):
            self.table.forget(key)
        else:
            self.table.put(key, after)
        return refunded

    def bucket(self, key: str, now_ns: int) -> Bucket:
        """The key's bucket as it stands, in the numbers of the tightest limit."""
        states = self.table.states(key) or (None,) * len(self.algorithms)
        pairs = list(zip(self.algorithms, states, strict=True))
        decisions = [algorithm.decide(state, 0, now_ns) for algorithm, state in pairs]
        tightest = _tightest(decisions)
        algorithm, state = pairs[tightest]
        return Bucket(
            self.segment,
            self.limits[tightest].algorithm or "",
            algorithm.tokens,
            algorithm.spent(state, now_ns),
            decisions[tightest].remaining,
            limits=self._each(decisions) if len(decisions) > 1 else None,
        )

    def has(self, key: str) -> bool:
        """Whether the key's bucket is here."""
        return self.table.states(key) is not None

    def account(self, key: str, now_ns: int) -> list[Entry]:
        """What the key has spent under each limit, for another plan or node; empty when that is nothing."""
        states = self.table.states(key)
        if states is None:
            return []
        packed = [
            None if state is None else algorithm.pack(state, now_ns)
            for algorithm, state in zip(self.algorithms, states, strict=True)
        ]
        # An entry of every limit, or others of its algorithm and period would take its place.
        account = [
            Entry(limit.algorithm or "", limit.period_s, values or [])
            for limit, values in zip(self.limits, packed, strict=True)
        ]
        return account if any(packed) else []

    def credit(self, key: str, account: Sequence[Entry], now_ns: int) -> bool:
        """Have the key spent at least what an account says; returns whether that is news."""
        before = self.table.states(key) or (None,) * len(self.algorithms)
        after = []
        for (limit, entry), algorithm, state in zip(
            continued(self.limits, account), self.algorithms, before, strict=True
        ):
            told = None if entry is None else _unpacked(algorithm, entry, limit, now_ns)
            after.append(state if told is None else told if state is None else algorithm.merge(state, told, now_ns))
        if tuple(after) == before:
            return False
        self.table.put(key, tuple(after))
        return True


def _unpacked(algorithm: Algorithm, entry: Entry, limit: Limit, now_ns: int) -> State | None:
    try:
        return algorithm.unpack(entry.values, entry.period_s or limit.period_s, now_ns)
    except ValueError:
        return None  # of a peer with a bug, or a limit of other numbers: nothing to learn from


def _tightest(decisions: list[Decision]) -> int:
    """The limit that denies longest, else the one with least left."""

    def tightness(index: int) -> tuple[int, int]:
        retry_ns = decisions[index].retry_ns
        return DURATION_MAX_NS if retry_ns == NEVER else retry_ns, -decisions[index].remaining

    return max(range(len(decisions)), key=tightness)
