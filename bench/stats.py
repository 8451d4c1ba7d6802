"""What many runs come to: least, median and most, and ratios of two subjects measured in turn."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Spread(NamedTuple):
    """A quantity over several runs."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = sorted(values)
        return cls(found[0], median(found), found[-1])


def ratio(of: Sequence[float], against: Sequence[float]) -> Spread:
    """The ratio of medians, between the least and the greatest ratio within one round.

    A round's two runs had the same machine, neighbours included; so the ratios of rounds say how sure the figure is.
    """
    by_round = [one / other for one, other in zip(of, against, strict=True)]
    return Spread(min(by_round), median(of) / median(against), max(by_round))


def quantile(ascending: Sequence[float], fraction: float) -> float:
    """The value that this fraction of all are not above; of values in ascending order."""
    return ascending[min(int(fraction * len(ascending)), len(ascending) - 1)]
