"""How many checks a second a guard lets in while times are tight, so that the latency comes to its target.

    rate  =  answers per second + (aim * target * memory - held) / 0.15 s
    aim   =  1, and less by 8 % for each second that answers have been late, down to a half

What comes back is let in again: that alone holds the queue as it is, without a swing, like a window of so many checks
in flight. The second term brings it to what belongs to the target (Little), and lower the longer that does not help:
a queue must give way to it, and what does not give way is none (`guard`). `held` and `memory` are of `flow`. In a jam
the rate is less than what comes back, until it is over. A pure function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limiter_node.core.adaptive.flow import Flow

CORRECT_S = 0.15
"""What is held too much or too little is to be right in so long: twice the time after which its effect is known."""

AIM_PER_S = 0.08
AIM_LEAST = 0.5
"""Held at the target to the per cent, a queue looks like a latency as it now is: after 6 s it was the new normal."""

RATE_LEAST = 0.1
"""Of what is answered: a drain lets the highest priorities through."""

JAM_LEAST = 0.1
"""In a jam a tenth of what could be answered is let in, to find its end."""

GOOD_RUN = 4
"""Answers in time in a row are reason for as many checks a second, less these: out of a dead time in seconds."""


def tight_rate(flow: Flow, *, target_s: float, late_s: float, good_run: int, is_jammed: bool) -> float:
    """Work it out; `late_s`: for how long the latency has been above its target; `good_run`: latest answers in time."""
    possible = min(flow.answers_s, flow.memory_s) if is_jammed else flow.memory_s
    aim = max(1 - AIM_PER_S * late_s, AIM_LEAST)
    back_s = flow.answers_s if late_s else flow.answers_s + flow.lost_s  # quick refusals come back as well
    rate = back_s + (aim * possible * target_s - flow.held) / CORRECT_S
    least = JAM_LEAST * flow.memory_s if is_jammed else RATE_LEAST * flow.answers_s
    return max(rate, least, 0.0 if late_s else good_run - GOOD_RUN)
