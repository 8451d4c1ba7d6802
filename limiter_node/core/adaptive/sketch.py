"""Latencies as a mergeable sketch: quantiles within 1 % of the true ones, whatever the distribution.

DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees", VLDB
2019): bucket i counts the latencies in (gamma^(i-1), gamma^i] microseconds, gamma = (1 + alpha) / (1 - alpha). Any
value of a bucket is within alpha of 2 gamma^i / (gamma + 1). Two sketches are merged by adding their counts, with no
error added. The `ddsketch` package has the same, but speaks protobuf; this is what of it a frame needs.
"""

from __future__ import annotations

from math import ceil, log
from typing import Annotated

import msgspec

ALPHA = 0.01
GAMMA = (1 + ALPHA) / (1 - ALPHA)
LATENCY_MAX_MS = 86_400_000.0
"""A day. Longer ones are counted as this."""

_LOG_GAMMA = log(GAMMA)
INDEX_MAX = ceil(log(LATENCY_MAX_MS * 1e3) / _LOG_GAMMA)
"""1,259: the most buckets that there can be."""


class Sketch(msgspec.Struct, array_like=True):
    """Counts by bucket; latencies of a microsecond and less share the first."""

    counts: Annotated[
        dict[Annotated[int, msgspec.Meta(ge=0, le=INDEX_MAX)], Annotated[int, msgspec.Meta(ge=1, le=2**53)]],
        msgspec.Meta(max_length=INDEX_MAX + 1),
    ] = {}
    sum_ms: Annotated[float, msgspec.Meta(ge=0, le=2**53 * LATENCY_MAX_MS)] = 0.0

    def add(self, latency_ms: float, count: int = 1) -> None:
        """Count a latency (milliseconds, not negative) `count` times."""
        latency_ms = min(latency_ms, LATENCY_MAX_MS)
        us = latency_ms * 1e3
        index = ceil(log(us) / _LOG_GAMMA) if us > 1 else 0
        self.counts[index] = self.counts.get(index, 0) + count
        self.sum_ms += latency_ms * count

    def merge(self, other: Sketch) -> None:
        """Count all that the other has counted."""
        counts = self.counts
        for index, count in other.counts.items():
            counts[index] = counts.get(index, 0) + count
        self.sum_ms += other.sum_ms

    @property
    def count(self) -> int:
        """How many latencies were counted."""
        return sum(self.counts.values())

    @property
    def mean_ms(self) -> float:
        """Their mean; 0 when there are none."""
        count = self.count
        return self.sum_ms / count if count else 0.0

    def quantiles_ms(self, *quantiles: float) -> tuple[float, ...]:
        """The latencies that these fractions of all do not exceed, in milliseconds; zeros when there are none.

        `quantiles` ascend, each between 0 and 1.
        """
        total = self.count
        if not total:
            return (0.0,) * len(quantiles)
        found: list[float] = []
        seen = 0
        wanted = iter(quantiles)
        rank = ceil(next(wanted) * total)
        for index, count in sorted(self.counts.items()):
            seen += count
            while seen >= rank:
                found.append(2 * GAMMA**index / (GAMMA + 1) / 1e3)
                following = next(wanted, None)
                if following is None:
                    return tuple(found)
                rank = ceil(following * total)
        raise AssertionError("quantiles are at most 1")
