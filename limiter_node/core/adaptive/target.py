"""The mean latency that a guard steers to, from the objective and what is normal.

    calm   =  max(0.44 objective, 1.5 normal mean)
    tight  =  max(0.44 objective, normal mean + 0.1 (objective - normal mean)), no more than in calm times

In calm times it only says what is too late, and is generous; in tight times every wait is of its making. The two differ
where the objective is less than 3.4 times the normal mean. Pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limiter_node.core.adaptive.normal import Normal

SLO_NORMAL = 2.0
"""Times the normal p90: the objective where people gave none (contract, section 4)."""

SHARE = 0.44
"""Of the objective: the 90th percentile of a queue is then near the objective."""

SHARE_LEARNED = 1.1
"""Of an objective that was only learned: nobody has said that it is late."""

NORMAL = 1.5
"""Times the normal mean latency: an objective below what the backend can do must not close it."""

SPARE = 0.1
"""Of the way from the normal mean to the objective. At 12/s and an objective of twice the normal, half of what had
waited came too late (0.73 of the goodput; 0.79 so)."""


def slo_ms(objective_ms: float | None, normal_p90_ms: float) -> float:
    """The objective, learned where people gave none; 0 while nothing is known."""
    return objective_ms or SLO_NORMAL * normal_p90_ms


def calm_target_ms(objective_ms: float | None, normal: Normal) -> float:
    """What is in time, while nothing is short."""
    share = SHARE if objective_ms else SHARE_LEARNED
    return max(share * slo_ms(objective_ms, normal.p90_ms), NORMAL * normal.mean_ms)


def tight_target_ms(objective_ms: float | None, normal: Normal) -> float:
    """What is steered to in tight times."""
    target_ms = calm_target_ms(objective_ms, normal)
    if not objective_ms:
        return target_ms
    spare_ms = SPARE * max(objective_ms - normal.mean_ms, 0.0)
    return min(target_ms, max(SHARE * objective_ms, normal.mean_ms + spare_ms))
