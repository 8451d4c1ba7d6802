"""Which few of very many keys are asked for most, in bounded memory (Space-Saving).

A. Metwally, D. Agrawal and A. El Abbadi, Efficient Computation of Frequent and Top-k Elements in Data Streams, ICDT
2005: of all keys `size` are counted. A key that is not among them takes the place of the one counted least and goes on
from its count, which is then the most that the newcomer may be counted too high.

Invariants: what a key really weighs is between `count - error` and `count`; every key that weighs more than the total
divided by `size` is counted; memory is that of `size` keys.
"""

from __future__ import annotations

import pickle
from heapq import heappush, heapreplace

Key = tuple[str, str]
"""(rule, client key)."""


class HeavyHitters:
    """The heaviest keys of a stream."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._counts: dict[Key, list[int]] = {}  # [count, error]
        # (count, key) of each key, counts as they were when it was last looked at: a key's own can only be higher.
        self._heap: list[tuple[int, Key]] = []

    def add(self, key: Key, weight: int) -> None:
        """Count a key `weight` times."""
        entry = self._counts.get(key)
        if entry is not None:
            entry[0] += weight
        elif len(self._counts) < self._size:
            self._counts[key] = [weight, 0]
            heappush(self._heap, (weight, key))
        else:
            least = self._least()
            del self._counts[least[1]]
            self._counts[key] = [least[0] + weight, least[0]]
            heapreplace(self._heap, (least[0] + weight, key))

    def _least(self) -> tuple[int, Key]:
        """The key counted least, left at the top of the heap."""
        while True:
            count, key = self._heap[0]
            now = self._counts[key][0]
            if now == count:
                return count, key
            heapreplace(self._heap, (now, key))

    def renewed(self) -> HeavyHitters:
        """The same in other memory."""
        made = HeavyHitters(self._size)
        made._counts, made._heap = pickle.loads(pickle.dumps((self._counts, self._heap)))  # noqa: S301  # its own
        return made

    def at_least(self) -> dict[Key, int]:
        """{key: what it weighs at the least} of those that certainly weigh anything."""
        return {key: count - error for key, (count, error) in self._counts.items() if count > error}
