"""Parameters of the peers, picked on fitting scenarios by `python -m bench.adaptive --tune`, and their grids."""

from __future__ import annotations

from typing import Any

GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "Gradient2": {"least": (1,), "queue": (0.5, 2, 4), "tolerance": (1.5, 2.0, 3.0), "window_s": (0.25, 1.0)},
    "Vegas": {"alpha": (2, 3, 6), "beta": (4, 6, 12), "window_s": (0.25, 1.0)},
    "AIMD": {"least": (1,), "slow_s": (0.2, 0.35, 0.5), "backoff": (0.9, 0.98)},
    "Envoy gradient": {"buffer": (0.25, 0.5, 1.0), "probe_s": (30.0, 60.0, 300.0)},
    "Envoy admission": {"window_s": (2.0, 5.0, 10.0), "aggression": (1.0, 2.0, 4.0), "threshold": (0.9, 0.95)},
    "SRE": {"k": (1.05, 1.1, 1.5), "window_s": (2.0, 5.0, 10.0)},
    "BBR": {"threshold": (0.7, 0.8, 0.95), "decay": (0.5, 0.8, 0.95), "window_s": (3.0, 10.0)},
    "DAGOR": {"cut": (0.05, 0.2, 0.4), "grow": (0.01, 0.03), "queued_s": (0.02, 0.1)},
    "Aperture": {"tick_s": (1.0, 2.0), "window_s": (2.0, 5.0), "tolerance": (1.25, 2.0), "grow": (0.025, 0.1)},
    "Breakwater": {"target_s": (0.1, 0.2, 0.3), "cut": (0.02, 0.1, 0.3), "clients": (1000, 4000)},
    "TopFull": {"slow_s": (0.25, 0.5), "cut": (0.05, 0.15, 0.3), "grow": (0.01, 0.04)},
}

TUNED: dict[str, dict[str, Any]] = {
    "Gradient2": {"least": 1, "queue": 4, "tolerance": 2.0, "window_s": 1.0},
    "Vegas": {"alpha": 6, "beta": 4, "window_s": 1.0},
    "AIMD": {"least": 1, "slow_s": 0.2, "backoff": 0.98},
    "Envoy gradient": {"buffer": 0.25, "probe_s": 30.0},
    "Envoy admission": {"window_s": 2.0, "aggression": 4.0, "threshold": 0.95},
    "SRE": {"k": 1.05, "window_s": 10.0},
    "BBR": {"threshold": 0.95, "decay": 0.5, "window_s": 10.0},
    "DAGOR": {"cut": 0.4, "grow": 0.03, "queued_s": 0.02},
    "Aperture": {"tick_s": 1.0, "window_s": 2.0, "tolerance": 2.0, "grow": 0.025},
    "Breakwater": {"target_s": 0.2, "cut": 0.1, "clients": 1000},
    "TopFull": {"slow_s": 0.5, "cut": 0.15, "grow": 0.04},
}
"""Mean goodput ratios on the nine scenarios that they were picked on: Breakwater 0.98, AIMD 0.94, BBR 0.87, Envoy
gradient 0.86, Vegas 0.82, Gradient2 0.80, DAGOR 0.62, Aperture 0.56, SRE 0.47, TopFull 0.44, Envoy admission 0.39."""

TUNED_AT_NODES: dict[str, dict[str, Any]] = {
    "Gradient2": {"least": 1, "queue": 0.5, "tolerance": 2.0, "window_s": 1.0},
    "Vegas": {"alpha": 2, "beta": 4, "window_s": 1.0},
    "AIMD": {"least": 1, "slow_s": 0.2, "backoff": 0.9},
    "Envoy gradient": {"buffer": 0.25, "probe_s": 60.0},
    "Breakwater": {"target_s": 0.1, "cut": 0.1, "clients": 1000},
}
"""For a gate of its own on each node, picked there on the same nine: the five that limit what is in flight. Breakwater
0.96, AIMD 0.95, Envoy gradient 0.75, Gradient2 0.69, Vegas 0.68."""
