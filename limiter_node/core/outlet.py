"""An outlet: the copies of buckets that one peer is still to get, and those that it has not confirmed yet.

A bucket that is due twice is due once: what is sent is how it stands then. It knows peers and frames by their names and
ids alone; what is due where is `replication`'s.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from limiter_node.core.carried import Carried

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from limiter_node.core.forward import Forward
    from limiter_node.core.model import Check, Outcome

FRAMES_IN_FLIGHT_MAX = 2
"""100 copies take a quarter of a millisecond to take in. A node that joins gets them from all others at once, and
checks wait behind: with 8 frames of 250 copies from each of three, at twice that time, the slowest of 100 checks took
200 ms."""

BULK_EVERY_NS = 10_000_000
"""What is handed over goes as one frame in so long: 5,000 copies a second and peer. While a fourth node took over its
part of a million keys on two cores, p99 was 2.3 times that before; at twice the pace 4.7, at four times 7 to 14."""

Bucket = tuple[str, str]  # rule and key


class Barrier:
    """What was due at a peer at one moment."""

    __slots__ = ("breaks", "bulk_taken", "last_id", "taken")

    def __init__(self) -> None:
        self.taken = -1  # buckets that must have left `Outlet.due`; -1: to be set anew
        self.bulk_taken = 0  # and `Outlet.bulk`
        self.breaks = 0
        self.last_id: int | None = None  # the last frame that some of them left in


class Outlet:
    """Copies on their way to one peer."""

    __slots__ = (
        "barrier",
        "breaks",
        "bulk",
        "bulk_ns",
        "bulk_taken",
        "carried",
        "confirmed_ns",
        "due",
        "epoch",
        "flight",
        "held",
        "held_in",
        "taken",
    )

    def __init__(self) -> None:
        self.due: dict[Bucket, bool] = {}  # True: the peer has to forget what it knows first
        self.bulk: dict[Bucket, bool] = {}  # handed over: unchanged for long
        self.bulk_ns = 0  # when some of them were last sent
        self.flight: dict[int, list[tuple[Bucket, bool]]] = {}  # by frame id
        self.carried = Carried()
        self.held: dict[Bucket, list[tuple[Forward, Outcome]]] = {}  # outcomes that wait for the next frame's ack
        self.held_in: dict[int, list[tuple[Forward, Outcome]]] = {}  # and those of frames in flight
        self.confirmed_ns = 0  # when the peer last confirmed something, or nothing was due
        self.taken = 0  # buckets that have left `due`
        self.bulk_taken = 0  # and `bulk`
        self.breaks = 0  # of the way: whatever was in flight then is due again
        self.epoch = -1  # of the peer, when it last asked for all
        self.barrier = Barrier()  # what was due then

    def add(self, buckets: Iterable[Bucket], now_ns: int, *, forgets: bool = False) -> None:
        """Have buckets sent."""
        self._begin(now_ns)
        for bucket in buckets:
            self.due.setdefault(bucket, False)
            if forgets:
                self.due[bucket] = True
                self.carried.forget(bucket)

    def add_bulk(self, bucket: Bucket, now_ns: int) -> None:
        """Have a bucket sent when there is nothing more urgent."""
        self._begin(now_ns)
        if bucket not in self.due:
            self.bulk[bucket] = False

    def carry(self, frame_id: int, checks: Sequence[Check], spent: Sequence[int], now_ns: int) -> None:
        """An answer with copies is on its way, see `Carried`."""
        self._begin(now_ns)
        self.carried.add(frame_id, checks, spent)

    def on_kept(self, frame_ids: Iterable[int], now_ns: int) -> None:
        """The peer has kept what these answers carried."""
        for frame_id in frame_ids:
            forgotten = self.carried.take(frame_id)
            if forgotten is not None:
                self.confirmed_ns = now_ns
                self.due.update(dict.fromkeys(forgotten, True))

    def turn(self) -> None:
        """Have sent what was on its way with an answer at the last turn and still is."""
        self._send_again(self.carried.turn())

    def _begin(self, now_ns: int) -> None:
        """The peer is behind from now on, if it is not already."""
        if not self.is_busy:
            self.confirmed_ns = now_ns

    def _send_again(self, batch: Iterable[tuple[Bucket, bool]]) -> None:
        for bucket, forgets in batch:
            self.due[bucket] = forgets or self.due.get(bucket, False)

    @property
    def is_busy(self) -> bool:
        """Whether the peer is still to get or to confirm something."""
        return bool(self.due or self.bulk or self.flight or self.carried)

    def buckets(self) -> Iterator[Bucket]:
        """All that the peer is still to get or to confirm."""
        in_flight = (bucket for batch in self.flight.values() for bucket, _ in batch)
        return chain(self.due, self.bulk, in_flight, self.carried.buckets())

    def is_past(self, barrier: Barrier) -> bool:
        """Whether the peer has everything that was due when this was first asked of the barrier."""
        if barrier.taken < 0 or barrier.breaks != self.breaks:
            self.turn()
            self.turn()  # nothing is carried any more: all is due
            barrier.taken, barrier.bulk_taken = self.taken + len(self.due), self.bulk_taken + len(self.bulk)
            barrier.breaks, barrier.last_id = self.breaks, None
        if self.taken < barrier.taken or self.bulk_taken < barrier.bulk_taken:
            return False
        if barrier.last_id is None:
            barrier.last_id = max(self.flight, default=0)
        return all(frame_id > barrier.last_id for frame_id in self.flight)

    def next_up(self, now_ns: int, *, hurries: bool) -> dict[Bucket, bool]:
        """What the next frame is of: what has changed, else what is handed over, if it is time for that."""
        if len(self.flight) >= FRAMES_IN_FLIGHT_MAX:
            return {}
        if self.due:
            return self.due
        return self.bulk if hurries or now_ns - self.bulk_ns >= BULK_EVERY_NS else {}

    def send(self, frame_id: int, batch: list[tuple[Bucket, bool]], now_ns: int) -> None:
        """A frame is on its way with the first few of what is next up."""
        queue = self.due or self.bulk
        for bucket, _ in batch:
            del queue[bucket]
        if queue is self.due:
            self.taken += len(batch)
        else:
            self.bulk_taken += len(batch)
            self.bulk_ns = now_ns
        self.flight[frame_id] = batch

    def on_down(self) -> list[tuple[Forward, Outcome]]:
        """The way is broken: what was under way is due again; returns the outcomes that waited."""
        self._send_again(chain.from_iterable(self.flight.values()))
        self.flight.clear()
        waiting = [held for helds in (*self.held.values(), *self.held_in.values()) for held in helds]
        self.held.clear()
        self.held_in.clear()
        self.breaks += 1
        return waiting
