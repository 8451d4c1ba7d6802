"""What runs amount to: a row for a scenario and a controller, means over scenarios, and the targets of adaptive.md."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING

from bench.adaptive.controllers import FULL, OURS, PEERS_AT_NODES, REFERENCE
from bench.adaptive.metrics import back_s, interval, protect_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bench.adaptive.metrics import Figures
    from bench.adaptive.runs import Results
    from bench.adaptive.scenario import Family, Scenario

RATE_MIN = 100.0
"""Demand from which on the time to protect has its target."""

STEADY_MIN = 400.0
"""Capacity from which on the steady variation has its target."""

TWICE = (1.8, 2.5)
"""Demand by capacity that counts as twice."""


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario and controller: means over seeds."""

    scenario: Scenario
    goodput: float  # to the reference's, seed by seed
    goodput_interval: tuple[float, float]
    by_seed: tuple[float, ...]
    premium: float
    premium_ratio: float  # to the reference's
    protect_s: float
    back_s: float
    overshoot: float
    variation: float
    floor: float
    fairness: float
    throttled: float
    costs: float | None  # good answers that throttling cost while nothing was wrong, by what was offered
    p99_s: float


def row(results: Results, scenario: Scenario, controller: str) -> Row | None:
    """None where it was not run."""
    runs = results.of(scenario.name, controller)
    if not runs:
        return None
    references = results.of(scenario.name, REFERENCE)
    onset, end, last = int(scenario.onset_s), int(scenario.end_s), int(scenario.duration_s)
    ratios = tuple(runs[seed].goodput / max(references[seed].goodput, 0.01) for seed in runs)
    premium = fmean(run.premium for run in runs.values())
    variation, floor = fmean(r.variation for r in runs.values()), fmean(r.floor for r in runs.values())
    return Row(
        scenario=scenario,
        goodput=fmean(ratios),
        goodput_interval=interval(ratios),
        by_seed=ratios,
        premium=premium,
        premium_ratio=premium / max(fmean(references[seed].premium for seed in runs), 0.001),
        protect_s=fmean(protect_s(runs[seed].good_s, references[seed].good_s, onset, end) for seed in runs),
        back_s=fmean(back_s(run.good_s, run.offered_s, onset, end, last) for run in runs.values()),
        overshoot=fmean(run.overshoot for run in runs.values()),
        variation=variation,
        floor=floor,
        fairness=fmean(run.fairness for run in runs.values()),
        throttled=fmean(run.throttled for run in runs.values()),
        costs=_costs(runs, results.of(scenario.name, FULL)),
        p99_s=fmean(run.p99_s for run in runs.values()),
    )


def _costs(runs: dict[int, Figures], all_admitted: dict[int, Figures]) -> float | None:
    """What is answered well where all is admitted, less what is answered well, for the same requests."""
    both = runs.keys() & all_admitted.keys()
    return fmean(all_admitted[seed].well - runs[seed].well for seed in both) if both else None


def _rows(results: Results, controller: str) -> list[Row]:
    """Of all that it was run in."""
    return [found for scenario in results.scenarios if (found := row(results, scenario, controller))]


@dataclass(frozen=True, slots=True)
class Overall:
    """A controller over all that it was run in: overloads, but for what it throttles in health."""

    controller: str
    seeds: int
    mean: float
    interval: tuple[float, float]
    worst: float
    worst_in: str
    premium_ratio: float
    protect_s: float  # median
    back_s: float  # median
    throttled: float  # where nothing is wrong


def overall(results: Results, controller: str) -> Overall | None:
    """Means over scenarios; the interval is of the mean by seed."""
    everywhere = _rows(results, controller)
    rows = [found for found in everywhere if found.scenario.is_overload]
    if not rows:
        return None
    seeds = min(len(found.by_seed) for found in rows)
    by_seed = [fmean(found.by_seed[seed] for found in rows) for seed in range(seeds)]
    worst = min(rows, key=lambda found: found.goodput)
    return Overall(
        controller,
        seeds,
        fmean(found.goodput for found in rows),
        interval(by_seed),
        worst.goodput,
        worst.scenario.name,
        fmean(found.premium_ratio for found in rows),
        median(found.protect_s for found in rows),
        median(found.back_s for found in rows if found.scenario.end_s < found.scenario.duration_s),
        fmean(found.throttled for found in _calm(everywhere)),
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A line of the yardstick: what is asked, what was found, and whether that will do; None where nothing tells."""

    metric: str
    asked: str
    found: str
    is_met: bool | None


def targets(results: Results, others: Iterable[Overall]) -> list[Target]:
    """Ours against each target of adaptive.md section 4."""
    rows = _rows(results, OURS)
    overloads = [found for found in rows if found.scenario.is_overload]
    lively = [found for found in overloads if found.scenario.demand >= RATE_MIN]
    ours = overall(results, OURS)
    lines: list[Target | None] = [
        _median_and_worst("time to protect, at least 100/s", 1, 10, {r.scenario.name: r.protect_s for r in lively}),
        _least("goodput, capacity and surge", 0.95, 0.9, _of(rows, _goodput, "capacity", "surge")),
        _least("goodput, slow dependency and flapping", 0.9, 0.0, _of(rows, _goodput, "slow dependency", "flapping")),
        _median_and_worst("back to 95 %", 10, 20, {r.scenario.name: r.back_s for r in overloads}),
        _most(
            "steady variation at 400/s and more",
            0.08,
            {r.scenario.name: r.variation for r in rows if r.scenario.family == "surge" and _is_quick(r.scenario)},
        ),
        _least("premium success at twice the capacity", 0.95, 0.0, {r.scenario.name: r.premium for r in _twice(rows)}),
        _least("goodput, errors that depend on no load", 0.95, 0.0, _of(rows, _goodput, "errors")),
        _most("throttled when healthy", 0.005, {r.scenario.name: r.throttled for r in _calm(rows)}),
        _most(
            "good answers that this cost", None, {r.scenario.name: r.costs for r in _calm(rows) if r.costs is not None}
        ),
        _least("goodput, signals missing", 0.9, 0.0, _of(rows, _goodput, "signals")),
        _least("goodput through the loss of the leader", 0.95, 0.0, _of(rows, _goodput, "leader")),
        _nodes(rows),
    ]
    peers = list(others)
    at_nodes = [peer for peer in peers if peer.controller in PEERS_AT_NODES]
    at_one_gate = [peer for peer in peers if peer not in at_nodes]
    lines.append(_above("mean over overloads, peers at one gate", ours, at_one_gate))
    lines.append(_above("mean over overloads, peers at nodes", ours, at_nodes))
    return [line for line in lines if line is not None]


def _above(metric: str, ours: Overall | None, peers: list[Overall]) -> Target | None:
    best = max(peers, key=lambda peer: peer.mean, default=None)
    if not ours or not best:
        return None
    words = f"{ours.mean:.3f} (best peer: {best.controller} {best.mean:.3f}), premium {ours.premium_ratio:.2f}"
    is_met = ours.mean > best.mean and ours.premium_ratio >= 0.95
    return Target(metric, "above every peer, premium ≥ 0.95 of reference", words, is_met)


def _goodput(found: Row) -> float:
    return found.goodput


def _of(rows: list[Row], value: Callable[[Row], float], *families: Family) -> dict[str, float]:
    return {found.scenario.name: value(found) for found in rows if found.scenario.family in families}


def _is_quick(scenario: Scenario) -> bool:
    return scenario.capacity_at((scenario.onset_s + scenario.end_s) / 2) >= STEADY_MIN


def _twice(rows: list[Row]) -> list[Row]:
    """Where steady demand is about twice the capacity, and the backend queues rather than refuses."""
    found = []
    for one in rows:
        scenario = one.scenario
        if scenario.family not in ("capacity", "surge", "leader", "publishes", "nodes"):
            continue
        at_s = (scenario.onset_s + scenario.end_s) / 2
        demand = scenario.demand * next(value for since, value in reversed(scenario.profile) if since <= at_s)
        if TWICE[0] <= demand / scenario.capacity_at(at_s) <= TWICE[1]:
            found.append(one)
    return found


def _calm(rows: list[Row]) -> list[Row]:
    """Those that have a time in which nothing is wrong."""
    return [one for one in rows if one.scenario.family != "starts"]


def _nodes(rows: list[Row]) -> Target | None:
    by_count = {found.scenario.nodes: found.goodput for found in rows if found.scenario.family == "nodes"}
    if not {1, 24} <= set(by_count):
        return None
    ratio = by_count[24] / by_count[1]
    words = f"{ratio:.3f} ({by_count[24]:.3f} to {by_count[1]:.3f})"
    return Target("24 nodes against 1", "≥ 0.95 of the goodput", words, ratio >= 0.95)


def _median_and_worst(metric: str, middle: float, worst: float, values: dict[str, float]) -> Target | None:
    if not values:
        return None
    name = max(values, key=values.__getitem__)
    middle_found = median(values.values())
    words = f"median {middle_found:.1f} s, worst {values[name]:.1f} s ({name})"
    is_met = middle_found <= middle and values[name] <= worst
    return Target(metric, f"≤ {middle:g} s median, ≤ {worst:g} s worst", words, is_met)


def _least(metric: str, mean: float, each: float, values: dict[str, float]) -> Target | None:
    if not values:
        return None
    name = min(values, key=values.__getitem__)
    found = fmean(values.values())
    reach = sum(value >= (each or mean) for value in values.values())
    words = f"mean {found:.3f}, least {values[name]:.3f} ({name}); {reach} of {len(values)} reach it"
    asked = f"≥ {mean:g}, none under {each:g}" if each else f"≥ {mean:g}"
    return Target(metric, asked, words, found >= mean and reach == len(values))


def _most(metric: str, bound: float | None, values: dict[str, float]) -> Target | None:
    """Without a bound it is only told."""
    if not values:
        return None
    name = max(values, key=values.__getitem__)
    words = f"mean {fmean(values.values()):.4f}, most {values[name]:.4f} ({name})"
    if bound is None:
        return Target(metric, "", words, None)
    within = sum(value <= bound for value in values.values())
    return Target(metric, f"≤ {bound:g}", f"{words}; {within} of {len(values)} within it", within == len(values))
