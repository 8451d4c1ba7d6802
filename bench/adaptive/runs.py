"""Runs of scenarios and controllers over seeds, in processes; the reference is found and run first.

One unit of work is a scenario and a seed: its requests are drawn once, and every controller meets the same.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from bench.adaptive.clients import Stream
from bench.adaptive.controllers import REFERENCE, build
from bench.adaptive.controls import REFERENCE_LIMITS
from bench.adaptive.metrics import Figures, figures
from bench.adaptive.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.adaptive.scenario import Scenario

SWEEP_SEEDS = 2
"""The reference's limit is chosen by so many seeds: candidates differ by more than seeds do."""


@dataclass
class Results:
    """Figures by scenario, controller and seed."""

    scenarios: Sequence[Scenario]
    found: dict[tuple[str, str], dict[int, Figures]] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)  # the reference's, by scenario

    def of(self, scenario: str, controller: str) -> dict[int, Figures]:
        """By seed; empty where it was not run."""
        return self.found.get((scenario, controller), {})


Unit = tuple["Scenario", int, tuple[str, ...]]


def run_one(scenario: Scenario, controller: str, seed: int) -> Figures:
    """One run."""
    return figures(scenario, World(Stream(scenario, seed), build(controller)).run())


def _run_unit(unit: Unit) -> tuple[str, int, dict[str, Figures]]:
    scenario, seed, controllers = unit
    stream = Stream(scenario, seed)
    return scenario.name, seed, {name: figures(scenario, World(stream, build(name)).run()) for name in controllers}


def _map(units: Sequence[Unit], jobs: int) -> Iterator[tuple[str, int, dict[str, Figures]]]:
    if jobs == 1:
        yield from map(_run_unit, units)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_run_unit, units)


def run_all(
    scenarios: Sequence[Scenario],
    seeds_of: Mapping[str, Sequence[int]],
    jobs: int,
    progress: Callable[[str], None],
) -> Results:
    """Run every controller for its seeds, and the reference for all of them."""
    results = Results(scenarios)
    candidates = tuple(f"fixed {limit}" for limit in REFERENCE_LIMITS)
    seeds = sorted({seed for of_one in seeds_of.values() for seed in of_one})
    sweep: list[Unit] = [(scenario, seed, candidates) for scenario in scenarios for seed in seeds[:SWEEP_SEEDS]]
    goodputs: dict[tuple[str, str], list[float]] = {}
    for name, _, found in _map(sweep, jobs):
        for candidate, figure in found.items():
            goodputs.setdefault((name, candidate), []).append(figure.goodput)
    for scenario in scenarios:
        best = max(candidates, key=lambda candidate: fmean(goodputs[scenario.name, candidate]))
        results.limits[scenario.name] = float(best.removeprefix("fixed "))
    progress("the reference's limits are found")
    units: list[Unit] = []
    for scenario in scenarios:
        for seed in seeds:
            chosen = (name for name, of_one in seeds_of.items() if seed in of_one)
            units.append((scenario, seed, (f"fixed {results.limits[scenario.name]}", *chosen)))
    for done, (name, seed, found) in enumerate(_map(units, jobs), 1):
        for controller, figure in found.items():
            known_as = REFERENCE if controller.startswith("fixed ") else controller
            results.found.setdefault((name, known_as), {})[seed] = figure
        if done % len(seeds) == 0:
            progress(f"{done} of {len(units)} runs: {name}")
    return results
