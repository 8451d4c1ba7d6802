"""What happens in a run, as data: a backend, its clients, a fleet, and what goes wrong when.

`Steps` say how a factor changes: ((0, 1), (30, 0.44), (65, 1)) is 1 until 30 s, then 0.44, and 1 again from 65 s on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Steps = tuple[tuple[float, float], ...]
Spans = tuple[tuple[float, float], ...]
Family = Literal[
    "capacity",
    "surge",
    "slow dependency",
    "flapping",
    "fast failure",
    "errors",
    "retries",
    "signals",
    "low traffic",
    "leader",
    "publishes",
    "starts",
    "nodes",
    "healthy",
]

NO_OVERLOADS: frozenset[Family] = frozenset(("errors", "starts", "healthy"))
"""Families whose goodput does not enter the mean over overloads."""

SHARES = (0.2, 0.3, 0.5)
PRIORITIES = (0, 5, 9)
"""Premium, standard and free: their part of demand, and their priority."""

USERS = 60
"""In each segment: enough for an index of fairness, few enough for each to have some hundred requests."""

ONSET_S = 30.0
END_S = 60.0
DURATION_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run. Rates are per second, the rest as the names say."""

    name: str
    family: Family
    duration_s: float = DURATION_S
    onset_s: float = ONSET_S  # of the cause
    end_s: float = END_S
    # The backend.
    servers: int = 20
    service_ms: float = 50.0  # mean: 20 servers do 400/s
    cv: float = 1.0  # of service times; log-normal
    queue_max: int | None = None  # more are refused at once, with a 503
    capacity: Steps = ((0, 1),)  # factor on the number of servers
    speed: Steps = ((0, 1),)  # factor on service times
    errors: Steps = ((0, 0),)  # fraction of requests that fail, whatever the load
    errors_are: Literal["failed", "refused"] = "failed"
    # The clients.
    demand: float = 360.0
    profile: Steps = ((0, 1),)  # factor on demand
    batch: float = 1.0  # mean number of requests that come at the same instant
    timeout_s: float = 1.0
    slo_s: float = 0.5
    slo_is_known: bool = True
    retries: int = 0
    backoff_s: float = 0.2  # doubled at each attempt, spread by half
    # The fleet.
    nodes: int = 8
    reports_to: Literal["random", "admitting"] = "random"
    report_delay_s: float = 0.02
    loads_lost: Spans = ()  # from the nodes to the leader
    reports_lost: Spans = ()  # from callers to the nodes
    publish_delay_s: tuple[float, float] = (0.01, 0.06)
    duplicated: float = 0.0  # fraction of publishes that arrive once more, up to 5 s later
    leader_lost_s: float | None = None
    leader_gap_s: float = 6.0
    leader_is_cut_off: bool = False  # it goes on deciding, and its writes are fenced
    start: float | None = None  # a multiplier to adopt

    @property
    def is_overload(self) -> bool:
        """Whether its goodput enters the mean over overloads."""
        return self.family not in NO_OVERLOADS

    def capacity_at(self, at_s: float) -> float:
        """Requests per second that the backend can do; a slower answer with as many more servers costs none."""
        servers = max(1, round(self.servers * value_at(self.capacity, at_s)))
        return servers / (self.service_ms / 1e3 * value_at(self.speed, at_s))


def value_at(steps: Steps, at_s: float) -> float:
    """The factor in force."""
    return next(value for since_s, value in reversed(steps) if since_s <= at_s)


def pulse(value: float, onset_s: float = ONSET_S, end_s: float = END_S) -> Steps:
    """From 1 to `value` and back."""
    return (0, 1), (onset_s, value), (end_s, 1)


def ramp(value: float, *, over_s: float, onset_s: float = ONSET_S, end_s: float = END_S) -> Steps:
    """From 1 to `value` in 20 steps, and back at once."""
    steps = [(onset_s + over_s * i / 20, 1 + (value - 1) * (i + 1) / 20) for i in range(20)]
    return ((0, 1), *steps, (end_s, 1))


def recovering(value: float, *, over_s: float, onset_s: float = ONSET_S) -> Steps:
    """At once to `value`, and back to 1 in 20 steps: a cold start."""
    steps = [(onset_s + over_s * i / 20, value + (1 - value) * i / 20) for i in range(21)]
    return ((0, 1), *steps)


def flapping(value: float, *, every_s: float, onset_s: float = ONSET_S, end_s: float = END_S) -> Steps:
    """Between `value` and 1, each for `every_s`."""
    steps: list[tuple[float, float]] = [(0, 1)]
    at_s, low = onset_s, True
    while at_s < end_s:
        steps.append((at_s, value if low else 1))
        at_s, low = at_s + every_s, not low
    return (*steps, (end_s, 1))
