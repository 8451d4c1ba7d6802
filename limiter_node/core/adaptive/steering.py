"""How many checks a second a guard lets in while times are tight, so that the latency comes to its target.

    x     =  target * the less of the rate and what could be answered lately                                  (Little)
    room  =  what the latency leaves of the target, 0 to 1
    rate  =  rate * (1 + room / 2) + (x + 1.5 sqrt(x) room - out - 0.8 surplus) / (0.2 s when negative, 0.3 to 0.5 s)

In a jam the rate is no more than what comes back. All terms add up over nodes: many small guards act like a large one,
and their noise cancels out. A pure function.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limiter_node.core.adaptive.flow import Flow

CORRECT_S = 0.5
QUICK = 0.6
EXCESS_S = 0.2
"""What is out too little is to come in so long, twice what it takes to see what came of it, down to 0.6 of that the
more latency there is to spare; what is out too much is to be gone in 0.2 s: who waits too long is work for nothing."""

SURPLUS_PART = 0.8
"""Of what was sent lately and not answered: it counts as out before any latency tells of it. One node's is noise; over
all nodes it adds up to a queue that is seen a round trip earlier (a drop to 15 %: 0.80 against 0.68)."""

ROOM = 0.5
"""Half more than before is tried where answers come at once: back from a drop in seconds."""

RATE_LEAST = 0.25
"""Of what is answered: a drain lets the highest priorities through."""

JAM_LEAST = 0.1
"""In a jam a tenth of what could be answered is let in, to find its end."""

GOOD_RUN = 4
"""Answers in time in a row are reason for as many checks a second, less these: out of a dead time in seconds."""

MARGIN_SIGMAS = 1.5
"""Of a Poisson count, where the latency leaves room: makes nodes that have little gain on those that have much."""


def tight_rate(
    flow: Flow, rate_s: float, *, out: float, target_s: float, lateness: float, good_run: int, is_jammed: bool
) -> float:
    """Work it out; `lateness` is the latency by its target, `good_run` how many of the last answers were in time."""
    room = max(1 - lateness, 0.0)
    base = min(rate_s, flow.answers_s) if is_jammed else rate_s
    expected = min(base, flow.memory_s) * target_s
    missing = expected + MARGIN_SIGMAS * room * sqrt(expected) - out - SURPLUS_PART * flow.surplus
    correct_s = CORRECT_S * min(max(lateness, QUICK), 1.0) if missing > 0 else EXCESS_S
    rate = base * (1 + ROOM * room) + missing / correct_s
    least = JAM_LEAST * flow.memory_s if is_jammed else RATE_LEAST * base
    return max(rate, least, good_run - GOOD_RUN if room else 0.0)
