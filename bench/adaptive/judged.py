"""The scenarios that laws are judged on: other capacities, service times and seeds. Nothing is fitted to these."""

from __future__ import annotations

from bench.adaptive.scenario import Scenario, flapping, pulse, ramp, recovering

JUDGED = (
    Scenario(name="drop to 58 %", family="capacity", capacity=pulse(0.58), cv=0.5),
    Scenario(name="drop to 42 %, big", family="capacity", capacity=pulse(0.42), servers=36, service_ms=70, demand=460),
    Scenario(
        name="drop to 25 %, quick", family="capacity", capacity=pulse(0.25), servers=12, service_ms=28, demand=385
    ),
    Scenario(name="drop to 15 %, big", family="capacity", capacity=pulse(0.15), servers=40, service_ms=90, demand=400),
    Scenario(name="work 1.9 times as much", family="capacity", speed=pulse(1.9), cv=1.5, servers=24),
    Scenario(name="ramp to 35 %", family="capacity", capacity=ramp(0.35, over_s=15), servers=30, service_ms=80, cv=1.2),
    Scenario(name="cold start from 15 %", family="capacity", capacity=recovering(0.15, over_s=28), cv=0.7),
    Scenario(name="cold and slow start", family="capacity", speed=recovering(4, over_s=25), servers=26, service_ms=60),
    Scenario(
        name="heavier tails, drop to 50 %", family="capacity", cv=2.2, capacity=pulse(0.5), servers=28, service_ms=65
    ),
    Scenario(
        name="surge 1.3 times capacity", family="surge", profile=pulse(1.45), servers=32, service_ms=75, demand=385
    ),
    Scenario(name="surge 1.9", family="surge", profile=pulse(2.1), servers=42, service_ms=88, demand=430, cv=1.4),
    Scenario(
        name="surge 4.5", family="surge", profile=pulse(4.5, end_s=50), servers=16, service_ms=45, demand=310, end_s=50
    ),
    Scenario(
        name="surge 2.3 in groups", family="surge", profile=pulse(2.5), batch=3, servers=30, service_ms=70, demand=390
    ),
    Scenario(name="dependency 1.6 slower", family="slow dependency", capacity=pulse(1.6), speed=pulse(1.6), cv=0.8),
    Scenario(
        name="dependency 2.4 slower",
        family="slow dependency",
        capacity=pulse(2.4),
        speed=pulse(2.4),
        servers=30,
        service_ms=65,
        demand=400,
        cv=0.6,
    ),
    Scenario(
        name="dependency 2.8 slower, learned",
        family="slow dependency",
        capacity=pulse(2.8),
        speed=pulse(2.8),
        slo_is_known=False,
        slo_s=0.7,
        service_ms=45,
    ),
    Scenario(
        name="flapping each 7 s", family="flapping", capacity=flapping(0.35, every_s=7), servers=26, service_ms=60
    ),
    Scenario(name="flapping each 3 s", family="flapping", capacity=flapping(0.45, every_s=3), cv=1.4),
    Scenario(
        name="fast failure at 50 %", family="fast failure", capacity=pulse(0.5), queue_max=10, servers=32, service_ms=75
    ),
    Scenario(name="errors 10 %", family="errors", errors=((0, 0), (30, 0.1), (60, 0)), servers=28, service_ms=65),
    Scenario(name="errors 25 %", family="errors", errors=((0, 0), (30, 0.25), (60, 0)), cv=0.6),
    Scenario(name="errors 55 %", family="errors", errors=((0, 0), (30, 0.55), (60, 0)), cv=1.5),
    Scenario(name="refusals 25 %", family="errors", errors=((0, 0), (30, 0.25), (60, 0)), errors_are="refused"),
    Scenario(
        name="spike with 4 attempts",
        family="retries",
        profile=pulse(2.4, end_s=37),
        retries=3,
        end_s=50,
        servers=26,
        service_ms=60,
        demand=330,
    ),
    Scenario(
        name="blind from before a drop",
        family="signals",
        capacity=pulse(0.5),
        loads_lost=((22, 58),),
        servers=30,
        service_ms=72,
    ),
    Scenario(name="blind at a drop", family="signals", capacity=pulse(0.38), loads_lost=((30, 60),), cv=1.3),
    Scenario(name="blind after a drop", family="signals", capacity=pulse(0.4), loads_lost=((36, 60),), cv=0.7),
    Scenario(name="no reports after a drop", family="signals", capacity=pulse(0.5), reports_lost=((40, 55),)),
    Scenario(
        name="12/s, evenly, drop to half",
        family="low traffic",
        servers=4,
        service_ms=290,
        demand=12,
        capacity=pulse(0.5),
        cv=0.5,
    ),
    Scenario(
        name="25/s, drop to 40 %",
        family="low traffic",
        servers=5,
        service_ms=175,
        demand=25,
        capacity=pulse(0.4),
        cv=0.8,
    ),
    Scenario(name="leader killed in a drop", family="leader", capacity=pulse(0.5), leader_lost_s=42, leader_gap_s=8),
    Scenario(
        name="leader cut off in a drop",
        family="leader",
        capacity=pulse(0.4),
        leader_lost_s=36,
        leader_is_cut_off=True,
        cv=0.7,
    ),
    Scenario(
        name="publishes late and mixed up",
        family="publishes",
        capacity=pulse(0.5),
        publish_delay_s=(0.2, 3.0),
        duplicated=0.4,
        cv=0.8,
    ),
    Scenario(name="start at 0.05", family="starts", start=0.05, onset_s=0, end_s=30, duration_s=60, cv=0.8),
    Scenario(
        name="start at 0.5", family="starts", start=0.5, onset_s=0, end_s=30, duration_s=60, servers=30, service_ms=70
    ),
    Scenario(name="1 node, drop to 40 %", family="nodes", capacity=pulse(0.4), nodes=1, cv=1.2),
    Scenario(name="24 nodes, drop to 40 %", family="nodes", capacity=pulse(0.4), nodes=24, cv=1.2),
    Scenario(
        name="capacity added", family="healthy", capacity=((0, 1), (30, 1.5)), servers=24, service_ms=60, demand=320
    ),
    Scenario(
        name="another healthy wave",
        family="healthy",
        demand=330,
        cv=1.5,
        profile=((0, 0.5), (10, 0.7), (20, 0.9), (35, 1), (50, 0.85), (65, 0.6), (80, 0.4)),
    ),
    Scenario(name="healthy, 12/s", family="healthy", servers=4, service_ms=120, demand=12, cv=0.7),
)
