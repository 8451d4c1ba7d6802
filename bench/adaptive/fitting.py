"""The scenarios that parameters are picked on: ours and the peers'. Everything here may be looked at and fitted to."""

from __future__ import annotations

from bench.adaptive.scenario import Scenario, flapping, pulse, ramp, recovering

FITTING = (
    Scenario(name="drop to 60 %", family="capacity", capacity=pulse(0.6)),
    Scenario(name="drop to 44 %", family="capacity", capacity=pulse(0.44)),
    Scenario(name="drop to 25 %", family="capacity", capacity=pulse(0.25)),
    Scenario(name="drop to 15 %", family="capacity", capacity=pulse(0.15)),
    Scenario(name="work 2.3 times as much", family="capacity", speed=pulse(2.3), cv=0.7),
    Scenario(name="ramp to 40 %", family="capacity", capacity=ramp(0.4, over_s=20)),
    Scenario(name="slow cold start", family="capacity", capacity=recovering(0.2, over_s=25)),
    Scenario(name="heavy tails, drop to 44 %", family="capacity", cv=2.5, capacity=pulse(0.44)),
    Scenario(name="surge 1.3", family="surge", demand=320, profile=pulse(1.5)),
    Scenario(name="surge 2", family="surge", profile=pulse(2.2)),
    Scenario(name="surge 5", family="surge", profile=pulse(5, end_s=50), end_s=50),
    Scenario(name="surge 2 in groups", family="surge", profile=pulse(2.2), batch=5, demand=320),
    Scenario(name="dependency 1.4 slower", family="slow dependency", capacity=pulse(1.4), speed=pulse(1.4)),
    Scenario(name="dependency 2.2 slower", family="slow dependency", capacity=pulse(2.2), speed=pulse(2.2)),
    Scenario(
        name="dependency 3 slower, objective learned",
        family="slow dependency",
        capacity=pulse(3),
        speed=pulse(3),
        slo_is_known=False,
        slo_s=0.8,
    ),
    Scenario(
        name="dependency 10 slower for good, objective learned",
        family="slow dependency",
        capacity=((0, 1), (30, 10)),
        speed=((0, 1), (30, 10)),
        service_ms=20,
        slo_is_known=False,
        slo_s=0.9,
        cv=0.5,
        end_s=120,
        duration_s=120,
    ),
    Scenario(name="flapping each 5 s", family="flapping", capacity=flapping(0.4, every_s=5)),
    Scenario(name="flapping each 2 s", family="flapping", capacity=flapping(0.3, every_s=2)),
    Scenario(name="fast failure at 44 %", family="fast failure", capacity=pulse(0.44), queue_max=8),
    Scenario(name="errors 20 %", family="errors", errors=((0, 0), (30, 0.2), (60, 0))),
    Scenario(name="refusals 60 %", family="errors", errors=((0, 0), (30, 0.6), (60, 0)), errors_are="refused"),
    Scenario(name="spike with retries", family="retries", profile=pulse(2, end_s=38), retries=3, end_s=50, demand=300),
    Scenario(name="loads lost from before the drop", family="signals", capacity=pulse(0.44), loads_lost=((25, 55),)),
    Scenario(name="loads lost at the drop", family="signals", capacity=pulse(0.44), loads_lost=((30, 55),)),
    Scenario(name="reports lost after the drop", family="signals", capacity=pulse(0.44), reports_lost=((38, 50),)),
    Scenario(
        name="12/s, drop to half", family="low traffic", servers=4, service_ms=250, demand=12, capacity=pulse(0.5)
    ),
    Scenario(
        name="25/s, drop to half", family="low traffic", servers=4, service_ms=130, demand=25, capacity=pulse(0.5)
    ),
    Scenario(name="leader killed", family="leader", capacity=pulse(0.44), leader_lost_s=40),
    Scenario(
        name="publishes late, twice, out of order",
        family="publishes",
        capacity=pulse(0.44),
        publish_delay_s=(0.1, 2.5),
        duplicated=0.3,
    ),
    Scenario(name="start at 0.2", family="starts", start=0.2, onset_s=0, end_s=30, duration_s=60),
    Scenario(name="1 node, drop to 44 %", family="nodes", capacity=pulse(0.44), nodes=1),
    Scenario(name="24 nodes, drop to 44 %", family="nodes", capacity=pulse(0.44), nodes=24),
    Scenario(name="8 nodes, reports come home", family="nodes", capacity=pulse(0.44), reports_to="admitting"),
    Scenario(
        name="healthy wave",
        family="healthy",
        demand=300,
        profile=((0, 0.6), (10, 0.8), (20, 1), (30, 1.1), (50, 1), (60, 0.8), (70, 0.6)),
    ),
    Scenario(name="healthy, 25/s", family="healthy", servers=3, service_ms=60, demand=25, nodes=8),
)
