"""A node's ration of a backend: its share of the admitted rate, spent by priority.

One bucket, so that nothing is wasted while anybody wants it. Priority p may draw while more than a reserve of 7.5 % of
the bucket per step of p is left (5: 38 %, 9: 68 %), so that the lower ones are turned away first, and find the
bucket open again whenever the higher ones leave something. Each priority below 0 earns a floor of 5 % of the rate,
which it may draw whatever the reserves: nobody starves to nothing.

Before the bucket stands the fraction of each priority that is decided for the whole fleet. It is what keeps the order
of priorities across nodes whose mixes differ. It is spread evenly (error diffusion), and blind to who asks.

Invariant: in any t seconds at most rate * t + the bucket is drawn. Time comes in as an argument.
"""

from __future__ import annotations

from limiter_node.core.adaptive.evidence import PRIORITIES

NS = 1_000_000_000
BUCKET_S = 0.25
"""Of the rate: what a pause of demand saves up. Two ticks of a queue of 0.5 s would be a burst that is felt."""

BUCKET_MIN = 8.0
"""Checks. With 4 the reserves leave so little that 24 nodes at 14/s each wasted a fifth of the rate."""

START_SHARE = 0.5
"""Of the bucket, when a rate begins: it begins because the backend has too much already."""

RESERVE_STEP = 0.075
"""Of the bucket less the check that is drawn: also a bucket of 3 opens to all. Over the fitting set
the highest priority got 1 % less with 0.065, and as much with 0.085."""

FLOOR_SHARE = 0.05
FLOOR_MAX = 1.0
"""Checks that a floor may save up: a floor is a trickle and no burst."""


class Ration:
    """What this node may admit. Without a rate and fractions: everything."""

    def __init__(self, bucket_min: float = BUCKET_MIN) -> None:
        self.bucket_min = bucket_min  # checks
        self.rate: float | None = None  # checks per second, this node's
        self.fractions: list[float] | None = None  # by priority
        self._bucket = 0.0
        self._tokens = 0.0
        self._filled_ns = 0
        self._floors = [0.0] * PRIORITIES
        self._carry = [0.5] * PRIORITIES

    @property
    def is_open(self) -> bool:
        """Whether nothing is rationed."""
        return self.rate is None and self.fractions is None

    def set_rate(self, rate: float | None, now_ns: int, typical: float | None = None) -> None:
        """Go over to another rate; what is saved up stays, as far as the new bucket holds it.

        The bucket is for the `typical` rate, else for this one: what is less for a moment takes no reserves away.
        """
        if self.rate is not None:
            self._fill(now_ns)
        if rate is not None:
            self._bucket = max(BUCKET_S * (rate if typical is None else typical), self.bucket_min)
            if self.rate is None:
                self._tokens = START_SHARE * self._bucket
            self._tokens = min(self._tokens, self._bucket)
        self._filled_ns = now_ns
        self.rate = rate

    def set_fractions(self, fractions: dict[int, float]) -> None:
        """Admit these fractions. A priority not named gets the least of what those above it in rank get, else all."""
        if not fractions:
            self.fractions = None
            return
        found, least = [], 1.0
        for priority in range(PRIORITIES):
            fraction = min(max(fractions.get(priority, least), 0.0), 1.0)
            least = min(least, fraction)
            found.append(fraction)
        self.fractions = found

    def passes(self, priority: int) -> bool:
        """Whether a check is among the fraction of its priority."""
        if self.fractions is None:
            return True
        carry = self._carry[priority] + self.fractions[priority]
        self._carry[priority] = carry - 1 if carry >= 1 else carry
        return carry >= 1

    def draw(self, priority: int, now_ns: int) -> bool:
        """Take a check from the bucket; False, and nothing taken, when it may not."""
        if self.rate is None:
            return True
        self._fill(now_ns)
        if self._tokens < 1:
            return False
        if self._tokens - 1 < RESERVE_STEP * priority * (self._bucket - 1):
            if self._floors[priority] < 1:
                return False
            self._floors[priority] -= 1
        self._tokens -= 1
        return True

    def _fill(self, now_ns: int) -> None:
        assert self.rate is not None
        earned = self.rate * max(now_ns - self._filled_ns, 0) / NS
        if earned:
            self._filled_ns = now_ns
            self._tokens = min(self._tokens + earned, self._bucket)
            floors = self._floors
            for priority in range(1, PRIORITIES):
                floors[priority] = min(floors[priority] + FLOOR_SHARE * earned, FLOOR_MAX)
