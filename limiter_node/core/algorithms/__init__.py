"""One law per module, each a set of pure functions over a packed state; `face` says what they have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.algorithms.fixed_window import FixedWindow
from limiter_node.core.algorithms.leaky_bucket import LeakyBucket
from limiter_node.core.algorithms.sliding_log import SlidingLog
from limiter_node.core.algorithms.sliding_window import SlidingWindow
from limiter_node.core.algorithms.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.algorithms.face import Algorithm, Wall
    from limiter_node.core.limits import Limit

WITHOUT_WALL: dict[str, Callable[[Limit, int, int, int], Algorithm]] = {
    "token_bucket": TokenBucket,
    "leaky_bucket": LeakyBucket,
    "sliding_window": SlidingWindow,
    "sliding_log": SlidingLog,
}


def build(limit: Limit, multiplier_ppm: int, parts: int, now_ns: int, wall: Wall) -> Algorithm:
    """The algorithm that a limit names, with its numbers; `wall` is read by windows of the calendar alone."""
    if limit.algorithm == "fixed_window":
        return FixedWindow(limit, multiplier_ppm, parts, now_ns, wall)
    assert limit.algorithm is not None, "a limit of a key's own numbers, which nobody has put under a rule's"
    return WITHOUT_WALL[limit.algorithm](limit, multiplier_ppm, parts, now_ns)
