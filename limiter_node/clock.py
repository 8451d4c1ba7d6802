"""The clock of a node: nanoseconds since the machine started, time in which it was suspended included.

A machine that was put to sleep and wakes must find that its right to decide has run out, and its buckets refilled;
CLOCK_MONOTONIC stands still meanwhile.
"""

from __future__ import annotations

import time
from functools import partial

now_ns = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)


def wall_offset_ns() -> int:
    """What is to be added to `now_ns` for the nanoseconds since 1970 that the wall clock shows."""
    return time.time_ns() - now_ns()
