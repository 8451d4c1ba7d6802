"""What came of a run, in figures. Requests count in the second in which they were due, whenever they were answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.overload.scenario import SHARES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tests.overload.clients import Shot
    from tests.overload.record import Run

CUT = 0.7
"""Every node's multiplier is to be below this soon after an overload begins."""

BACK = 0.95
BACK_WINDOW_S = 3.0
"""Back to normal: from then on so much of the demand is answered well for so long (some 170 requests)."""

SETTLE_S = 3.0
"""Of health, before figures of it count: the first requests find cold connections everywhere."""


ONSET_S = 5.0
"""What the issue gives the limiter to act in."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one side did in a part of the overload."""

    goodput_s: float  # 200s within the objective, per second
    ratio: float  # the same, of what the backend can do
    served: dict[str, float]  # by segment: answered within the objective, of the demand
    admitted: dict[str, float]  # by segment, of the demand
    p90_ms: dict[str, float]  # by segment, of admitted requests


@dataclass(frozen=True, slots=True)
class Side:
    """What one side did."""

    side: str
    overload: Stretch
    later: Stretch  # without its first ONSET_S
    healthy_good: float  # of the demand, before
    healthy_denied: int
    back_s: float | None  # after the overload's end


@dataclass(frozen=True, slots=True)
class Figures:
    """What the table shows."""

    sides: dict[str, Side]
    cut_s: float | None  # after the overload's beginning: when the last node's multiplier was below CUT
    healthy_multiplier: float  # the lowest of any node
    lowest_multiplier: float
    worst_lag_ms: float  # of the clients: sent after it was due


def figures(run: Run) -> Figures:
    """Work everything out."""
    plan = run.plan
    healthy = [sample for sample in run.samples if SETTLE_S <= sample.at_s < plan.overload_from_s]
    return Figures(
        sides={side: _side(run, side) for side in ("with", "without")},
        cut_s=_cut_s(run),
        healthy_multiplier=min(sample.multiplier for sample in healthy),
        lowest_multiplier=min(sample.multiplier for sample in run.samples),
        worst_lag_ms=max(shot.sent_s - shot.due_s for shot in run.shots) * 1e3,
    )


def is_good(shot: Shot, run: Run) -> bool:
    """Answered well within the objective."""
    return shot.status == 200 and shot.latency_s <= run.plan.slo_ms / 1e3


def is_served(shot: Shot, run: Run) -> bool:
    """Answered within the objective, also by an error of the backend's own: nobody in front of it can help those."""
    return shot.status in (200, 500) and shot.latency_s <= run.plan.slo_ms / 1e3


def quantile(values: Iterable[float], q: float) -> float:
    """A quantile; 0 of nothing."""
    found = sorted(values)
    return found[min(int(q * len(found)), len(found) - 1)] if found else 0.0


def per_second(run: Run, side: str, what: Callable[[list[Shot]], float]) -> list[float]:
    """A figure of the requests due in each second."""
    seconds: list[list[Shot]] = [[] for _ in range(int(run.plan.total_s))]
    for shot in run.shots:
        if shot.side == side and shot.due_s < len(seconds):
            seconds[int(shot.due_s)].append(shot)
    return [what(shots) for shots in seconds]


def _side(run: Run, side: str) -> Side:
    plan = run.plan
    begin_s, end_s = plan.overload_from_s, plan.overload_until_s
    mine = [shot for shot in run.shots if shot.side == side]
    healthy = [shot for shot in mine if SETTLE_S <= shot.due_s < begin_s]
    return Side(
        side=side,
        overload=_stretch(run, mine, begin_s, end_s),
        later=_stretch(run, mine, begin_s + ONSET_S, end_s),
        healthy_good=sum(is_good(shot, run) for shot in healthy) / len(healthy),
        healthy_denied=sum(not shot.admitted for shot in healthy),
        back_s=_back_s([shot for shot in mine if shot.due_s >= end_s], run),
    )


def _stretch(run: Run, shots: Sequence[Shot], since_s: float, until_s: float) -> Stretch:
    due = [shot for shot in shots if since_s <= shot.due_s < until_s]
    goodput_s = sum(is_good(shot, run) for shot in due) / (until_s - since_s)
    by_segment = {name: [shot for shot in due if shot.segment == name] for name in SHARES}
    return Stretch(
        goodput_s=goodput_s,
        ratio=goodput_s / run.way.possible_s(run.plan),
        served={name: sum(is_served(shot, run) for shot in mine) / len(mine) for name, mine in by_segment.items()},
        admitted={name: sum(shot.admitted for shot in mine) / len(mine) for name, mine in by_segment.items()},
        p90_ms={
            name: quantile((shot.latency_s * 1e3 for shot in mine if shot.admitted), 0.9)
            for name, mine in by_segment.items()
        },
    )


def _back_s(recovery: Sequence[Shot], run: Run) -> float | None:
    """When the first window began in which the demand was served as in health."""
    end_s, tenths = run.plan.overload_until_s, round((run.plan.recovery_s - BACK_WINDOW_S) * 10)
    for tenth in range(tenths + 1):
        since_s = end_s + tenth / 10
        window = [shot for shot in recovery if since_s <= shot.due_s < since_s + BACK_WINDOW_S]
        if window and sum(is_good(shot, run) for shot in window) >= BACK * len(window):
            return tenth / 10
    return None


def _cut_s(run: Run) -> float | None:
    begin_s, end_s = run.plan.overload_from_s, run.plan.overload_until_s
    first: dict[str, float] = {}
    for sample in run.samples:
        if begin_s <= sample.at_s < end_s and sample.multiplier < CUT:
            first.setdefault(sample.node, sample.at_s - begin_s)
    nodes = {sample.node for sample in run.samples}
    return max(first.values()) if first.keys() == nodes else None
