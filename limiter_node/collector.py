"""The collector of cyclic garbage, run by the clock: a pass looks at what was made in a tenth of a second, not more.

Left to itself CPython collects once so many more objects were made than freed, whichever they were. While new ones take
the places of old ones, as the states of 300,000 keys of a sliding window do, or copies that wait for a slow peer, that
is never, until all are young and one pass has to look at each: 30 to 75 ms, three times that with a million keys. And
the shards of such keys were walked whole, in the middle generation. Here what has outlived a pass is not looked at
again but by `FULL_NS`; nothing that a check or a connection makes is in a cycle, so there is little to find.
"""

from __future__ import annotations

import gc

EVERY_NS = 100_000_000
"""At 50,000 new keys a second 1 ms; when nothing happens 1 us."""

FULL_NS = 3_600_000_000_000
"""Between collections of everything made since the start: some 100 ms where a million keys have several limits, else 1.
An hour's garbage is that of connections to the admin API, 5 KB each."""


class Collector:
    """Of this process."""

    def __init__(self, now_ns: int) -> None:
        self._young_ns = self._full_ns = now_ns

    def take_over(self) -> None:
        """Leave what there is now out of every collection: it stays. A batch of 100 takes 10 % less time so."""
        gc.collect()
        gc.freeze()
        gc.disable()

    def tick(self, now_ns: int) -> None:
        """Collect what is due; to be called every 10 ms or so."""
        if now_ns - self._full_ns >= FULL_NS:
            self._full_ns = self._young_ns = now_ns
            gc.collect()
        elif now_ns - self._young_ns >= EVERY_NS:
            self._young_ns = now_ns
            gc.collect(1)  # not 0: what stays would be looked at again in the middle generation
