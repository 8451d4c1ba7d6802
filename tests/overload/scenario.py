"""What is done to the backend and when, and what it could do meanwhile at best.

Pure values. Demand is 0.7 of the capacity in health, so that each overload asks for 1.75 times what the backend can do:
enough to drown it within seconds, and a multiplier of about 0.57 where it is throttled to what it can do.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARES = {"premium": 0.2, "standard": 0.3, "free": 0.5}
PRIORITIES = {"premium": 0, "standard": 5, "free": 9}
USERS = {"premium": 40, "standard": 80, "free": 120}
"""Each asks for about one request in four seconds, and may ask for ten a second."""

BACKEND = "shop"
RULE = "storefront"
RULE_DOCUMENT = {
    "rate": "10/s",
    "burst": 20,
    "backend": BACKEND,
    "segments": {name: {"rate": "10/s", "burst": 20, "priority": priority} for name, priority in PRIORITIES.items()},
}


@dataclass(frozen=True, slots=True)
class Mode:
    """How the backend works."""

    workers: int
    slowness: float = 1.0  # times the normal service time
    failing: float = 0.0  # share of the requests that end in a 500, after their time


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes and times of one run."""

    healthy_s: float = 15.0
    overload_s: float = 20.0
    recovery_s: float = 25.0
    workers: int = 5
    service_ms: float = 60.0  # mean
    spread: float = 0.4  # of the service time: sigma of its logarithm
    slo_ms: float = 500.0
    load: float = 0.7  # demand in health, as a part of the capacity
    timeout_s: float = 2.0  # nginx gives up
    batch_ms: float = 100.0  # how often outcomes are posted
    seed: int = 1

    @property
    def overload_from_s(self) -> float:
        return self.healthy_s

    @property
    def overload_until_s(self) -> float:
        return self.healthy_s + self.overload_s

    @property
    def total_s(self) -> float:
        return self.overload_until_s + self.recovery_s

    @property
    def normal(self) -> Mode:
        """How the backend works in health."""
        return Mode(self.workers)

    @property
    def demand_s(self) -> float:
        """Requests per second in health."""
        return self.load * self.capacity_s(self.normal)

    def capacity_s(self, mode: Mode) -> float:
        """Requests per second that the pool gets done."""
        return mode.workers / (self.service_ms / 1e3 * mode.slowness)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to overload the backend."""

    name: str
    title: str
    pool: float = 1.0  # what is left of the workers
    slowness: float = 1.0
    failing: float = 0.0
    demand: float = 1.0  # times the normal demand

    def mode(self, plan: Plan) -> Mode:
        """How the backend works meanwhile."""
        return Mode(max(round(self.pool * plan.workers), 1), self.slowness, self.failing)

    def demand_s(self, plan: Plan, now_s: float) -> float:
        """Requests per second at a time."""
        is_overload = plan.overload_from_s <= now_s < plan.overload_until_s
        return plan.demand_s * (self.demand if is_overload else 1.0)

    def possible_s(self, plan: Plan) -> float:
        """Good answers per second that nobody could better: no idle worker, nothing too late."""
        mode = self.mode(plan)
        return min(plan.capacity_s(mode), self.demand * plan.demand_s) * (1 - mode.failing)


WAYS = {
    way.name: way
    for way in (
        Way("capacity", "the pool shrinks to 40 %", pool=0.4),
        Way("surge", "2.5 times the demand", demand=2.5),
        Way("slow", "every request takes 2.5 times as long, 30 % fail", slowness=2.5, failing=0.3),
    )
}
