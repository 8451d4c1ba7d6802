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

TUNED: dict[str, dict[str, Any]] = {name: {} for name in GRIDS}
