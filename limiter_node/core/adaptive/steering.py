"""How many checks a guard lets in while times are tight, so that the latency comes to its target.

    x       =  target * memory: what may be held                                                             (Little)
    rate    =  answers per second + (aim * x - held) / 0.1 s
    aim     =  1, and less by 8 % for each second that answers have been late, down to a half
    window  =  0.85 x + 0.5 + 2 sqrt(x) (1 - priority / 9): with more held, nobody of this priority gets in

What comes back is let in again: that alone holds the queue as it is, without a swing, like a window of so many checks
in flight. The second term brings it to what belongs to the target (Little), and lower the longer that does not help:
a queue must give way to it, and what does not give way is none (`guard`). `held` and `memory` are of `flow`. In a jam
the rate is less than what comes back, until it is over. The windows are for what buckets have saved up, at every node:
of 12 checks a second that is seconds' worth. Pure functions.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import TYPE_CHECKING

from limiter_node.core.adaptive.evidence import PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limiter_node.core.adaptive.flow import Flow

CORRECT_S = 0.1
"""What is held too much or too little is to be right in so long: the time after which its effect is known."""

WINDOW = 0.85
WINDOW_EXTRA = 0.5
WINDOW_SIGMAS = 2.0
"""Of what may be held; a half check more, as jitter rounds it; and Poisson's noise for the highest priority, which is
to find room whatever the others do. With 1.2 instead of 2 a surge of 5 served 10 % less of it; without windows and
with a slower correction, drops to 15 % and flapping kept 0.04 to 0.08 less of the goodput."""

UNBOUND: Sequence[float] = (inf,) * PRIORITIES

AIM_PER_S = 0.08
AIM_LEAST = 0.5
"""Held at the target to the per cent, a queue looks like a latency as it now is: after 6 s it was the new normal."""

RATE_LEAST = 0.1
"""Of what is answered: a drain lets the highest priorities through."""

JAM_LEAST = 0.1
"""In a jam a tenth of what could be answered is let in, to find its end."""

GOOD_RUN = 4
"""Answers in time in a row are reason for as many checks a second, less these: out of a dead time in seconds."""


RANKS = tuple(1 - priority / (PRIORITIES - 1) for priority in range(PRIORITIES))


def tight_windows(flow: Flow, *, target_s: float, good_run: int) -> Sequence[float]:
    """How much may be held for a check of each priority to be let in; `good_run`: latest answers in time."""
    expected = max(flow.memory_s, good_run - GOOD_RUN) * target_s
    least, room = WINDOW * expected + WINDOW_EXTRA, WINDOW_SIGMAS * sqrt(expected)
    return [least + room * rank for rank in RANKS]


def tight_rate(flow: Flow, *, target_s: float, late_s: float, good_run: int, is_jammed: bool) -> float:
    """Work it out; `late_s`: for how long the latency has been above its target; `good_run`: latest answers in time."""
    possible = min(flow.answers_s, flow.memory_s) if is_jammed else flow.memory_s
    aim = max(1 - AIM_PER_S * late_s, AIM_LEAST)
    back_s = flow.answers_s if late_s else flow.answers_s + flow.lost_s  # quick refusals come back as well
    rate = back_s + (aim * possible * target_s - flow.held) / CORRECT_S
    least = JAM_LEAST * flow.memory_s if is_jammed else RATE_LEAST * flow.answers_s
    return max(rate, least, 0.0 if late_s else good_run - GOOD_RUN)
