"""A machine's monotonic clock: its own origin, its own pace, and what jumps do to it.

It only converts between true time and the machine's; it never reads anything. Invariant: it never goes backwards.
"""

from __future__ import annotations

PPM = 1_000_000


class SimClock:
    """Reads `offset_ns` at true time 0 and gains `drift_ppm` millionths."""

    def __init__(self, offset_ns: int, drift_ppm: int = 0) -> None:
        self._base_ns = offset_ns
        self._since_ns = 0
        self._pace_ppm = PPM + drift_ppm

    def read(self, true_ns: int) -> int:
        """The machine's time; `true_ns` must not lie before the last jump."""
        return self._base_ns + (true_ns - self._since_ns) * self._pace_ppm // PPM

    def true_span(self, local_ns: int) -> int:
        """True nanoseconds in which at least `local_ns` pass here."""
        return -(-local_ns * PPM // self._pace_ppm) + 1

    def jump(self, true_ns: int, by_ns: int) -> None:
        """Gain `by_ns` at once, as after a live migration."""
        assert by_ns >= 0, "a monotonic clock goes forward"
        self._base_ns, self._since_ns = self.read(true_ns) + by_ns, true_ns
