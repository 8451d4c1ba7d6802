"""How many checks a guard lets in while times are tight, so that the latency comes to its target.

    x       =  target * memory: what may be held                                                             (Little)
    rate    =  answers per second + (aim * x - held) / 0.1 s, or by 0.03 s where that is more than is held
    aim     =  1, and less by 8 % for each second that answers have been late, down to a half
    window  =  0.7 x + 1.3 + 0.04 s * memory * alone + (0.5 x + 0.5) (1 - priority / 9): with more held, nobody of this
               priority gets in; alone: 1 for a node that gets all, 0 for one that gets half or less

What comes back is let in again: that alone holds the queue as it is, without a swing, like a window of so many checks
in flight. The second term brings it to what belongs to the target (Little), and lower the longer that does not help:
a queue must give way to it, and what does not give way is none (`guard`). `held` and `memory` are of `flow`. In a jam
the rate is less than what comes back, until it is over. The windows are for what buckets have saved up, at every node:
of 12 checks a second that is seconds' worth. Pure functions.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from limiter_node.core.adaptive.evidence import PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limiter_node.core.adaptive.flow import Flow

CORRECT_S = 0.1
CORRECT_UP_S = 0.03
"""What is held too much is to be right in so long, the time after which its effect is known; too little much sooner,
for then the windows bound what comes of it (0.84 instead of 0.81 of Breakwater's goodput at 12 to 25/s)."""

WINDOW = 0.7
WINDOW_EXTRA = 1.3
ROOM = 0.5
ROOM_EXTRA = 0.5
"""Of what may be held, and checks more: a half, as jitter rounds it, and some for a few per second, which else waste
capacity, and get in late where there are more of them (0.8 and 2 instead: 0.84 of the goodput at 12 to 50/s, and not
0.86). The room is the highest priority's, which is to find some whatever the others do: in proportion, for the
answers per second fall behind what others have sent by so much; with Poisson's 2 sqrt(x) instead a surge of 5 served
15 % less of it. Without windows drops to 15 % and flapping kept 0.04 to 0.08 less of the goodput."""

ALONE_S = 0.04
"""What several nodes let in that each of them does not know of yet: they hear of each other every 50 ms, and what is
its own a node knows at once. So a node alone, without it, kept 0.94 to 0.97 under flapping of what eight keep, and 0.90
where 60 % are refused; with it 0.98 to 1.00. For two it changes nothing, and of eight the highest priority got 2 % less
in a surge of 5."""

UNBOUND: Sequence[float] = (inf,) * PRIORITIES
RANKS = tuple(1 - priority / (PRIORITIES - 1) for priority in range(PRIORITIES))
"""1 for the highest priority, 0 for the lowest."""

AIM_PER_S = 0.08
AIM_LEAST = 0.5
"""Held at the target to the per cent, a queue looks like a latency as it now is: after 6 s it was the new normal."""

RATE_LEAST = 0.1
"""Of what is answered: a drain lets the highest priorities through."""

JAM_LEAST = 0.1
"""In a jam a tenth of what could be answered is let in, to find its end."""

GOOD_RUN = 4
"""Answers in time in a row are reason for as many checks a second, less these: out of a dead time in seconds."""


def tight_windows(flow: Flow, *, target_s: float, good_run: int, share: float) -> Sequence[float]:
    """How much may be held for a check of each priority to be let in.

    `good_run`: latest answers in time; `share`: this node's, of what all send.
    """
    possible_s = max(flow.memory_s, good_run - GOOD_RUN)
    expected = possible_s * target_s
    least = WINDOW * expected + WINDOW_EXTRA + ALONE_S * max(2 * share - 1, 0.0) * possible_s
    room = ROOM * expected + ROOM_EXTRA
    return [least + room * rank for rank in RANKS]


def tight_rate(flow: Flow, *, target_s: float, late_s: float, good_run: int, is_jammed: bool) -> float:
    """Work it out; `late_s`: for how long the latency has been above its target; `good_run`: latest answers in time."""
    possible = min(flow.answers_s, flow.memory_s) if is_jammed else flow.memory_s
    aim = max(1 - AIM_PER_S * late_s, AIM_LEAST)
    back_s = flow.answers_s if late_s else flow.answers_s + flow.lost_s  # quick refusals come back as well
    room = aim * possible * target_s - flow.held
    rate = back_s + room / (CORRECT_UP_S if room > 0 else CORRECT_S)
    least = JAM_LEAST * flow.memory_s if is_jammed else RATE_LEAST * flow.answers_s
    return max(rate, least, 0.0 if late_s else good_run - GOOD_RUN)
