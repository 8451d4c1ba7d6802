"""What is normal at a backend: how unevenly checks come to it."""

from __future__ import annotations

from random import Random

import pytest

from limiter_node.core.adaptive.normal import Normal

STEP_S = 0.05
STEP_NS = 50_000_000


def learned(counts: list[int]) -> Normal:
    """Of so many checks in each step."""
    normal = Normal()
    normal.begin(0)
    for step, count in enumerate(counts):
        normal.learn(count, count, count, STEP_S, step * STEP_NS)
    return normal


def arrivals(chance: Random, per_step: float, group: int) -> int:
    """Groups come independently of each other."""
    return group * sum(chance.random() < per_step / group / 100 for _ in range(100))


def test_checks_that_come_one_by_one_are_even() -> None:
    chance = Random(1)
    assert learned([arrivals(chance, 20, 1) for _ in range(1200)]).dispersion < 1.3


def test_the_size_of_groups_is_told() -> None:
    chance = Random(2)
    # Its variance is five times its mean, of which one is kept back for the beat of pings.
    assert learned([arrivals(chance, 20, 5) for _ in range(1200)]).dispersion == pytest.approx(4, rel=0.4)


def test_a_demand_that_rises_slowly_is_even() -> None:
    assert learned([step // 20 for step in range(1200)]).dispersion == 1


def test_a_long_pause_is_even() -> None:
    normal = learned([20] * 200)
    normal.learn(0, 0, 0, 4.0, 20 * 10**9)
    for step in range(20):
        normal.learn(20, 20, 20, STEP_S, 20 * 10**9 + step * STEP_NS)
    assert normal.dispersion == 1


def test_an_outcome_too_few_is_chance_and_a_tenth_is_not() -> None:
    normal = Normal()
    normal.begin(0)
    for step in range(400):
        normal.learn(1, 1, int(step % 40 > 0), STEP_S, step * STEP_NS)
    assert normal.ratio == 1
    for step in range(1200):
        normal.learn(1, 1, int(step % 10 > 0), STEP_S, step * STEP_NS)
    assert normal.ratio == pytest.approx(0.9, abs=0.02)


def test_only_what_was_answered_in_time_was_not_too_much() -> None:
    normal = Normal()
    normal.bear(2, 100)
    normal.bear(12, 103)  # a group of twelve
    normal.bear(2, 113)
    assert normal.peak < 12
    normal.bear(2, 115)  # all of them are back
    assert normal.peak == 12
    normal.bear(30, 120)
    normal.bear(20, 1)  # one was late
    normal.bear(2, 50)
    normal.bear(2, 90)
    assert normal.peak == 20


def test_what_was_borne_fades() -> None:
    normal = Normal()
    normal.begin(0)
    normal.bear(12, 0)
    normal.bear(1, 12)
    assert normal.peak == 12
    for step in range(2400):
        normal.bear(1, 12 + step)
        normal.learn(1, 1, 1, STEP_S, step * STEP_NS)
    assert normal.peak < 2
