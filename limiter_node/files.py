"""How many files and connections the process may have open."""

from __future__ import annotations

import resource

KEPT = 512
"""For peers, probes, etcd and the log, whatever clients do; where there are few, half of them."""


def room_for_clients() -> int:
    """Raise the limit as far as the process is let, and tell how many of that are for clients' connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        soft = hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(soft // 2, soft - KEPT)
