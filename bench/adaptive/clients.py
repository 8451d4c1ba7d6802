"""Who asks and when: one stream of requests a scenario and seed, the same for every controller.

Arrivals are Poisson (or Poisson groups) at a rate that changes; whatever chance has a say in about a request is drawn
here beforehand: how much work it is, whether it fails, which node it meets. So two controllers differ by what they do.
"""

from __future__ import annotations

from bisect import bisect
from math import log, sqrt
from random import Random
from typing import TYPE_CHECKING

from bench.adaptive.scenario import SHARES, USERS, value_at

if TYPE_CHECKING:
    from bench.adaptive.scenario import Scenario


class Stream:
    """Requests by number, as columns, in the order of their times; retries are appended by the world to a copy."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.seed = seed
        self.times = _times(scenario, Random(f"times {seed}"))
        count = len(self.times)
        chance = Random(f"requests {seed}")
        draw = chance.random
        bounds = (SHARES[0], SHARES[0] + SHARES[1])
        self.segments = [bisect(bounds, draw()) for _ in range(count)]
        self.users = [segment * USERS + int(draw() * USERS) for segment in self.segments]
        self.nodes = [int(draw() * scenario.nodes) for _ in range(count)]
        self.luck = [draw() for _ in range(count)]
        self.work_s = _work(scenario, Random(f"work {seed}"), count)


def _times(scenario: Scenario, chance: Random) -> list[float]:
    times: list[float] = []
    edges = [since_s for since_s, _ in scenario.profile[1:]] + [scenario.duration_s]
    at_s, draw = 0.0, chance.expovariate
    for edge_s in edges:
        rate = scenario.demand * value_at(scenario.profile, at_s) / scenario.batch
        start_s, at_s = at_s, min(edge_s, scenario.duration_s)
        next_s = start_s + draw(rate)
        while next_s < at_s:
            size = 1
            while scenario.batch > 1 and chance.random() > 1 / scenario.batch:
                size += 1
            times.extend([next_s] * size)
            next_s += draw(rate)
    return times


def _work(scenario: Scenario, chance: Random, count: int) -> list[float]:
    """Service times: log-normal, with the given mean and coefficient of variation."""
    mean_s = scenario.service_ms / 1e3
    sigma = sqrt(log(1 + scenario.cv**2))
    mu = log(mean_s) - sigma**2 / 2
    draw = chance.lognormvariate
    return [draw(mu, sigma) for _ in range(count)]
