"""The product's own ring for fleets to 1,000 nodes: how even it is, what moves when a node joins, and its price.

Nothing is sent or simulated: a ring is a value, and here it is built and asked.
"""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

from bench.progress import tell
from limiter_node.core.model import Member
from limiter_node.core.ring import Ring

SIZES = (3, 10, 30, 100, 300, 1_000)
SIZES_QUICK = (3, 30)
KEYS = 20_000


def measure(*, is_quick: bool) -> list[dict[str, Any]]:
    """Take the figures of each size."""
    found = []
    for size in SIZES_QUICK if is_quick else SIZES:
        tell(f"a ring of {size:,}")
        of_size = balance(size)
        found.append(of_size)
        tell("")
        print(
            f"  {size:>5,} nodes: largest share {of_size['largest']:.2f} of the fair one, smallest"
            f" {of_size['smallest']:.2f}; a join moves {of_size['moved']:.4f} of all keys (fair: {1 / (size + 1):.4f});"
            f" built in {of_size['build_ms']:,.0f} ms, {of_size['bytes'] / 1e6:.1f} MB",
            flush=True,
        )
    return found


def balance(size: int) -> dict[str, Any]:
    """Of one size: made of what is known but for one member, as when a node joins a fleet that runs."""
    _ring(size - 1)
    began_s = time.perf_counter()
    ring = _ring(size)
    build_ms = 1e3 * (time.perf_counter() - began_s)
    shares = [ring.share(name) for name in ring.members]
    keys = [f"user:{number:08d}" for number in range(KEYS)]
    grown = _ring(size + 1)
    moved = sum(ring.owner(key) != grown.owner(key) for key in keys) / KEYS
    return {
        "nodes": size,
        "largest": max(shares) * size,
        "smallest": min(shares) * size,
        "moved": moved,
        "build_ms": build_ms,
        "bytes": _bytes(size),
    }


def _ring(size: int) -> Ring:
    members = (Member(f"node-{number}", f"10.0.{number >> 8}.{number & 255}:8082") for number in range(size))
    return Ring(size, {member.id: member for member in members})


def _bytes(size: int) -> int:
    tracemalloc.start()
    try:
        ring = _ring(size)
        taken = tracemalloc.get_traced_memory()[0]
        del ring
        return taken
    finally:
        tracemalloc.stop()
