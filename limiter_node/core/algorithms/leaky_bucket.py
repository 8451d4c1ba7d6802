"""The leaky bucket as a queue: callers are let in at a steady rate, each told how long to wait for its turn.

Water drains at `rate`; a grant pours its cost on top and waits until all that was there before has drained:

    allow iff level + cost <= burst;   wait = level / rate;   then level <- level + cost

This is the leaky bucket as a shaper (J. Turner, IEEE Communications Magazine 24(10), 1986), whose level is what a token
bucket calls spent: ITU-T I.371 shows the two to be one law, so this is `TokenBucket` and a wait.

What it promises: callers that hold back for `wait_ns` go on one after the other, each once the costs before it have
drained at `rate`; none waits longer than burst / rate; and what is granted, waiting or not, keeps the bound of the
token bucket. What it costs: one integer a key, 32 bytes at first, 48 once its clock has passed 2^60 units. Where it
errs: it cannot know whether a caller did wait, and who was told to wait at one rate is not called when it changes.
Choose it to smooth what reaches something that suffers from bursts; with a burst of 1 it lets nobody wait and just
spaces grants.
"""

from __future__ import annotations

from limiter_node.core.algorithms.face import Decision
from limiter_node.core.algorithms.token_bucket import TokenBucket


class LeakyBucket(TokenBucket):
    """A queue of `burst` tokens, drained at the limit's rate."""

    __slots__ = ()

    def decide(self, state: int | None, cost: int, now_ns: int) -> Decision:
        """As `Algorithm` has it; a grant waits until the queue before it has drained."""
        decision = super().decide(state, cost, now_ns)
        if not decision.allowed:
            return decision
        wait_ns = 0 if state is None else self.full_in_ns(state, now_ns)
        return Decision(*decision[:5], wait_ns)  # half the time of `_replace`
