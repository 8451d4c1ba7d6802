"""Gathering: gives memory back to the system once a node holds far fewer keys than it did.

CPython returns an arena (1 MB) when nothing is left in it, glibc the end of its heap. A million keys come within
seconds; what else was made in those seconds and stays (the counts of the busiest keys, the dashboard's last seconds,
empty shards, what the interpreter keeps to use again) lies scattered among them: some thousand objects of 50 bytes kept
four fifths of 100 MB. Made anew they lie beside each other, in the free places of a few arenas.

Nothing is done while keys come as fast as they go. Each step is short: no check waits for more than one.
"""

from __future__ import annotations

import ctypes
import gc
from functools import partial
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from limiter_node.app import Node
    from limiter_node.core.table import Shards

FORGOTTEN_MIN = 20_000
"""Keys, of some 2.5 MB: less is soon filled by others."""

TICKS_PER_TRIM = 10
"""While keys are freed: 100,000 of them, whose 3.5 MB of dicts glibc returns in 0.4 ms."""

TABLES_PER_STEP = 50
"""1.5 ms."""

COLLECTED_MAX = 5_000
"""Connections and keys up to which the collector walks all that was made since the start; it takes 1 us for each."""


class Gathering:
    """Of one node; `tick` is to be called with each of the engine's."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._keys_most = 0  # since it last began
        self._steps: Iterator[None] = iter(())
        # Only glibc has it. Dicts below 128 KB are on its heap, which has an end but no holes for the system to take.
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)

    def tick(self) -> None:
        """Begin when half of the keys have been forgotten, and go on by a step."""
        keys = self._node.engine.buckets
        self._keys_most = max(self._keys_most, keys)
        if self._keys_most - keys >= max(FORGOTTEN_MIN, self._keys_most // 2):
            self._keys_most = keys
            self._steps = self._gather()
        next(self._steps, None)

    def _gather(self) -> Iterator[None]:
        while self._node.engine.remains:
            yield from repeat(None, TICKS_PER_TRIM)
            self._trim(0)
        for renew in self._renewals():
            self._collect()  # or what is made anew would take the scattered places that are kept to be used again
            yield
            renew()
            yield
        self._collect()
        yield
        self._trim(0)

    def _collect(self) -> None:
        """Free what the interpreter keeps to use again; only a collection of everything does."""
        if len(self._node.http.connections) + self._node.engine.buckets <= COLLECTED_MAX:
            gc.collect()

    def _renewals(self) -> Iterator[Callable[[], None]]:
        tables = iter(self._node.engine.all_tables())
        while some := list(islice(tables, TABLES_PER_STEP)):
            yield partial(_renew_tables, some)
        yield self._node.tally.busiest.renew
        yield self._node.tally.most_denied.renew
        yield self._node.recorder.renew


def _renew_tables(tables: Sequence[Shards[Any]]) -> None:
    for table in tables:
        table.renew()
