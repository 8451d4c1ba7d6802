"""What is written down of a run: counts by second and segment, latencies during the cause, and counts by user."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.adaptive.scenario import SHARES, USERS

if TYPE_CHECKING:
    from bench.adaptive.scenario import Scenario

SEGMENTS = len(SHARES)


@dataclass(slots=True)
class Trace:
    """Columns of counts: second * SEGMENTS + segment. A retry is offered, and not asked again."""

    seconds: int
    asked: list[int] = field(default_factory=list)
    offered: list[int] = field(default_factory=list)
    admitted: list[int] = field(default_factory=list)
    good: list[int] = field(default_factory=list)  # answered well within the objective, by the second asked in
    user_offered: list[int] = field(default_factory=list)  # during the cause
    user_good: list[int] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)  # of admitted requests that ended during the cause

    @classmethod
    def of(cls, scenario: Scenario) -> Trace:
        """An empty one."""
        seconds = int(scenario.duration_s) + 2
        asked, offered, admitted, good = ([0] * (seconds * SEGMENTS) for _ in range(4))
        user_offered, user_good = ([0] * (SEGMENTS * USERS) for _ in range(2))
        return cls(seconds, asked, offered, admitted, good, user_offered, user_good)

    def per_second(self, counts: list[int], segment: int | None = None) -> list[int]:
        """A column by second, of one segment or all."""
        if segment is not None:
            return counts[segment::SEGMENTS]
        return [sum(counts[i : i + SEGMENTS]) for i in range(0, len(counts), SEGMENTS)]
