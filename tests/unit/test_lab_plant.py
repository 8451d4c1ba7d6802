"""The laboratory's backend obeys queueing theory, and the same seed gives the same run."""

from __future__ import annotations

from dataclasses import replace
from heapq import heappop
from math import factorial
from random import Random

import pytest

from bench.adaptive.clients import Stream
from bench.adaptive.controllers import build
from bench.adaptive.metrics import figures
from bench.adaptive.plant import DONE, REFUSED, Event, Plant
from bench.adaptive.scenario import Scenario, flapping, pulse, ramp, recovering, value_at
from bench.adaptive.world import World


def served(servers: int, rate: float, mean_s: float, count: int, seed: int) -> tuple[list[float], list[float]]:
    """Waiting times and times in the system of requests with exponential service."""
    chance = Random(seed)
    sent_s: list[float] = []
    at_s = 0.0
    for _ in range(count):
        at_s += chance.expovariate(rate)
        sent_s.append(at_s)
    work_s = [chance.expovariate(1 / mean_s) for _ in range(count)]
    events: list[Event] = []
    plant = Plant(servers, None, events, sent_s, work_s)
    total_s = [0.0] * count
    number = 0
    while number < count or events:
        if number < count and (not events or sent_s[number] <= events[0][0]):
            plant.take(number, sent_s[number])
            number += 1
        else:
            now_s, what, which = heappop(events)
            assert what == DONE
            total_s[which] = now_s - sent_s[which]
            plant.finish(now_s)
    return [total - work for total, work in zip(total_s, work_s, strict=True)], total_s


def erlang_c(servers: int, offered: float) -> float:
    """The probability to wait."""
    last = offered**servers / factorial(servers) * servers / (servers - offered)
    return last / (sum(offered**k / factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.7), (5, 0.8), (20, 0.85)])
def test_waiting_times_are_those_of_erlang(servers: int, utilisation: float) -> None:
    mean_s = 0.05
    rate = utilisation * servers / mean_s
    waits_s, _ = served(servers, rate, mean_s, 120_000, seed=1)
    expected_s = erlang_c(servers, rate * mean_s) / (servers / mean_s - rate)
    assert sum(waits_s) / len(waits_s) == pytest.approx(expected_s, rel=0.1)


def test_what_is_in_the_system_obeys_little() -> None:
    scenario = Scenario(name="calm", family="healthy", demand=200)
    stream = Stream(scenario, 1)
    world = World(stream, build("always full"))
    seen: list[int] = []
    world.every(0.05, lambda _: seen.append(world.plant.busy + len(world.plant.queue)))
    world.run()
    rate = len(stream.times) / scenario.duration_s
    mean_s = sum(stream.work_s) / len(stream.work_s)
    assert sum(seen) / len(seen) == pytest.approx(rate * mean_s, rel=0.05)


def test_a_full_queue_refuses_and_fewer_servers_finish_what_they_began() -> None:
    events: list[Event] = []
    plant = Plant(2, 1, events, [0.0] * 4, [1.0] * 4)
    for request in range(4):
        plant.take(request, 0.0)
    assert [what for _, what, _ in sorted(events)] == [REFUSED, DONE, DONE]
    plant.resize(1, 0.5)
    assert plant.utilisation == 1.0
    plant.finish(1.0)
    assert (plant.busy, len(plant.queue)) == (1, 1)
    plant.finish(1.0)
    assert (plant.busy, len(plant.queue)) == (1, 0)


def test_a_slow_dependency_costs_no_capacity() -> None:
    scenario = Scenario(name="slow", family="slow dependency", capacity=pulse(2.5), speed=pulse(2.5))
    assert scenario.capacity_at(40) == scenario.capacity_at(10) == 400


def test_steps_say_what_is_in_force() -> None:
    assert [value_at(pulse(0.4), at_s) for at_s in (0, 30, 59.9, 60)] == [1, 0.4, 0.4, 1]
    assert value_at(ramp(0.5, over_s=20), 41) == pytest.approx(0.7)
    assert value_at(recovering(0.2, over_s=20), 29) == 1
    assert value_at(recovering(0.2, over_s=20), 30) == 0.2
    assert value_at(recovering(0.2, over_s=20), 51) == 1
    assert [value_at(flapping(0.4, every_s=5), at_s) for at_s in (31, 36, 41, 61)] == [0.4, 1, 0.4, 1]


def test_demand_has_the_mix_and_the_rate_that_were_asked_for() -> None:
    scenario = Scenario(name="surge", family="surge", profile=pulse(2.0), batch=3)
    stream = Stream(scenario, 3)
    during = sum(30 <= at_s < 60 for at_s in stream.times)
    assert during == pytest.approx(360 * 2 * 30, rel=0.05)
    assert stream.segments.count(0) / len(stream.segments) == pytest.approx(0.2, abs=0.01)
    assert stream.segments.count(2) / len(stream.segments) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("controller", ["ours", "SRE", "BBR, tuned", "fixed 2.0"])
def test_the_same_seed_gives_the_same_run_and_another_a_different_one(controller: str) -> None:
    scenario = Scenario(
        name="short", family="retries", duration_s=12, onset_s=3, end_s=8, capacity=pulse(0.4, 3, 8), retries=2
    )
    first, again, other = (
        figures(scenario, World(Stream(scenario, seed), build(controller)).run()) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_clients_that_time_out_leave_their_work_behind() -> None:
    scenario = Scenario(
        name="drowned", family="capacity", duration_s=20, onset_s=5, end_s=15, capacity=pulse(0.5, 5, 15)
    )
    drowned = figures(scenario, World(Stream(scenario, 1), build("always full")).run())
    assert sum(drowned.good_s[9:15]) == 0
    patient = replace(scenario, timeout_s=30, slo_s=30)
    waited = figures(patient, World(Stream(patient, 1), build("always full")).run())
    assert sum(waited.good_s[9:15]) > 0
