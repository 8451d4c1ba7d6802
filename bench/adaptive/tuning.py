"""Picks each peer's parameters on the fitting set: the point of its grid with the best mean goodput ratio.

Nine scenarios with one seed each, none of them judged. What is picked is printed, to be put into `tuned.TUNED`.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.adaptive.clients import Stream
from bench.adaptive.controllers import AT_NODES, PEERS_AT_NODES, PeerGates, peer
from bench.adaptive.controls import REFERENCE_LIMITS, Fixed
from bench.adaptive.fitting import FITTING
from bench.adaptive.metrics import figures
from bench.adaptive.tuned import GRIDS
from bench.adaptive.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = frozenset(
    (
        "drop to 44 %",
        "drop to 25 %",
        "ramp to 40 %",
        "surge 2",
        "dependency 2.2 slower",
        "flapping each 5 s",
        "spike with retries",
        "25/s, drop to half",
        "24 nodes, drop to 44 %",
    )
)
SEED = 1000
"""Not among those of reports."""


def tune(jobs: int, progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """The best parameters by peer: at one gate, and `at_nodes`."""
    picked: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(jobs) as pool:
        for name, score, point in pool.map(_pick, (*GRIDS, *PEERS_AT_NODES)):
            picked[name] = point
            progress(f"{name}: {score:.3f} with {point}")
    return picked


def _pick(name: str) -> tuple[str, float, dict[str, Any]]:
    law, _, variant = name.partition(", ")
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    streams = [Stream(scenario, SEED) for scenario in FITTING if scenario.name in NAMES]
    references = [_reference(stream) for stream in streams]
    grid = GRIDS[law]
    for values in product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        ratios = [
            _goodput(stream, peer(law, point, at_nodes=variant == AT_NODES)) / reference
            for stream, reference in zip(streams, references, strict=True)
        ]
        if fmean(ratios) > best[0]:
            best = fmean(ratios), point
    return name, *best


def _reference(stream: Stream) -> float:
    return max(_goodput(stream, Fixed(limit)) for limit in REFERENCE_LIMITS)


def _goodput(stream: Stream, controller: PeerGates | Fixed) -> float:
    return figures(stream.scenario, World(stream, controller).run()).goodput
