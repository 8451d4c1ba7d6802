"""All buckets of one plan: who is not full, and how far from it.

A table knows keys, states and one virtual clock; it does not know rules, rings or verdicts. A bucket that is full
is not stored at all, so memory follows the keys active within one refill time.

Expiry is by two generations: a key touched moves to the young one; when the clock has moved so far that every bucket
left in the old one must be full, the old one is dropped whole and the young one becomes old. No scan ever looks
for expired keys. At that moment the clock starts again from zero, which keeps states small integers.

Each generation is cut into shards by the key's hash, so that whatever must walk keys (making room, handing
over) has a bounded piece to take, and no dict grows so large that its resize stalls the loop.

Invariant: forgetting by expiry changes no later answer; `state` of an absent key is a full bucket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from limiter_node.core.algorithms.token_bucket import UNIT, VirtualClock, compact

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARDS = 512
"""Shards per generation: at 10 million keys one holds 20,000, some 3 ms to walk. Empty, 40 KB a plan.

Beyond 21,845 keys a dict's indices take four bytes instead of two: with half as many shards, 6 million keys took 142
bytes each, and now 135 at most."""

PIECE_KEYS = 100

Held = TypeVar("Held")


class Census:
    """The number of buckets in all tables that share it, and how many there may be."""

    __slots__ = ("buckets", "buckets_max")

    def __init__(self, buckets_max: int = 1 << 62) -> None:
        self.buckets = 0
        self.buckets_max = buckets_max


class Shards(Generic[Held]):
    """Values by key in two generations of shards, the young and the old; who is in which is the subclass' business."""

    __slots__ = ("census", "mask", "old", "young")

    def __init__(self, census: Census, shards: int) -> None:
        self.census = census
        self.mask = shards - 1  # shards is a power of two
        self.young: list[dict[str, Held]] = [{} for _ in range(shards)]
        self.old: list[dict[str, Held]] = [{}] * shards  # one for all: no key is ever put into an old one

    def __len__(self) -> int:
        return sum(map(len, self.young)) + sum(map(len, self.old))

    def put(self, key: str, held: Held) -> None:
        """Store a value; it is young."""
        index = hash(key) & self.mask
        shard = self.young[index]
        if key not in shard and self.old[index].pop(key, None) is None:
            self.census.buckets += 1
        shard[key] = held

    def forget(self, key: str) -> None:
        """Remove the key, if it is here."""
        index = hash(key) & self.mask
        if self.young[index].pop(key, None) is not None or self.old[index].pop(key, None) is not None:
            self.census.buckets -= 1

    def turn(self) -> list[dict[str, Held]]:
        """Let the old generation go and make the young one old; returns the shards let go.

        The caller frees them in bounded pieces: dropping a million entries at once would stall the loop for 100 ms.
        """
        dropped = [shard for shard in self.old if shard]
        self.census.buckets -= sum(map(len, dropped))
        if any(self.young):
            self.old, self.young = self.young, [{} for _ in self.young]
        elif dropped:
            self.old = [{}] * len(self.old)
        return dropped

    def release(self) -> list[dict[str, Held]]:
        """Forget everything; returns the shards let go, as `turn` does."""
        dropped = [shard for shard in (*self.young, *self.old) if shard]
        self.census.buckets -= sum(map(len, dropped))
        self.young, self.old = [{} for _ in self.young], [{}] * len(self.old)
        return dropped

    def renew(self) -> None:
        """Make the empty shards anew, beside each other: those that there are were made among keys, in the last turn.

        Takes 30 us.
        """
        empty: dict[str, Held] = {}
        self.young = [shard or {} for shard in self.young]
        self.old = [shard or empty for shard in self.old]

    def key_pieces(self) -> Iterator[list[str]]:
        """All keys, at most PIECE_KEYS at a time; of a shard as it was when its first piece was asked for."""
        for young, old in zip(self.young, self.old, strict=True):
            keys = [*young, *old]
            for start in range(0, len(keys), PIECE_KEYS):
                yield keys[start : start + PIECE_KEYS]

    def rotate(self, now_ns: int) -> list[dict[str, Held]]:
        """Turn, if all that is old has no meaning any more. Call it about once a second; it is cheap otherwise."""
        raise NotImplementedError

    def fullness(self, index: int, now_ns: int) -> Iterator[tuple[int, str]]:
        """(nanoseconds until it is full, key) of each bucket in a shard; the caller must not store meanwhile."""
        raise NotImplementedError


class Table(Shards[int]):
    """Buckets of the keys under one plan; `capacity` and states are in units of 1/UNIT token."""

    __slots__ = ("_due", "_young_ceiling", "capacity", "clock", "shift")

    def __init__(self, census: Census, now_ns: int, capacity: int, num: int, den: int, *, shards: int = SHARDS) -> None:
        super().__init__(census, shards)
        self.clock = VirtualClock(now_ns, num, den)
        self.capacity = capacity
        # States in `old` were counted from the origin before this one: subtract `shift` to compare them with V.
        self.shift = 0
        # No young bucket can be further from full than this.
        self._young_ceiling = capacity
        # Once V reads this, every bucket in `old` is full: V was 0 when they stopped being young, and none of
        # them was further from full than the ceiling they had then.
        self._due = capacity

    def state(self, key: str) -> int | None:
        """The key's state, or None for a full bucket that is not stored. Moves nothing."""
        index = hash(key) & self.mask
        state = self.young[index].get(key)
        return self.old_state(key, index) if state is None else state

    def old_state(self, key: str, index: int) -> int | None:
        """The state of a key that is not young, in the shard of that index."""
        state = self.old[index].get(key)
        return None if state is None else state - self.shift

    def put_spent(self, key: str, spent: int, now_ns: int) -> None:
        """Store a bucket that comes from elsewhere with `spent` units, which may exceed the capacity here."""
        self._young_ceiling = max(self._young_ceiling, spent)
        self.put(key, compact(self.clock.at(now_ns) + spent))

    def raise_spent(self, key: str, spent: int, now_ns: int) -> bool:
        """As `put_spent`, if that is more than the bucket has spent here; returns whether it is.

        `state`, `clock.at` and `put` in one, for nearly every copy that comes: nothing is looked up twice.
        """
        index = hash(key) & self.mask
        shard = self.young[index]
        state, is_young = shard.get(key), True
        if state is None:
            state, is_young = self.old_state(key, index), False
        v = self.clock.at(now_ns)
        if spent <= 0 or (state is not None and v + spent <= state):
            return False
        self._young_ceiling = max(self._young_ceiling, spent)
        if not is_young and self.old[index].pop(key, None) is None:
            self.census.buckets += 1
        shard[key] = compact(v + spent)
        return True

    def pop_spent(self, key: str, now_ns: int) -> int | None:
        """Remove the key and return the units it has spent (0: full again), or None when it was not stored."""
        state = self.state(key)
        if state is None:
            return None
        index = hash(key) & self.mask
        if self.young[index].pop(key, None) is None:
            del self.old[index][key]
        self.census.buckets -= 1
        return max(0, state - self.clock.at(now_ns))

    def set_numbers(self, now_ns: int, capacity: int, num: int, den: int) -> None:
        """Other numbers from now on. Every key keeps what it has spent."""
        self.clock.set_rate(now_ns, num, den)
        self.capacity = capacity
        self._young_ceiling = max(self._young_ceiling, capacity)

    def rotate(self, now_ns: int) -> list[dict[str, int]]:
        """Drop the old generation if all its buckets are full by now."""
        v = self.clock.at(now_ns)
        if v < self._due:
            return []
        self.clock.base -= v
        self.shift = v
        dropped = self.turn()
        self._due = max(self._young_ceiling, self.capacity)
        self._young_ceiling = self.capacity
        return dropped

    def fullness(self, index: int, now_ns: int) -> Iterator[tuple[int, str]]:
        """(nanoseconds until it is full, key) of each bucket in a shard; the caller must not store meanwhile."""
        for key, spent in self.shard_entries(index, now_ns):
            yield self.ns_until_full(spent), key

    def shard_entries(self, index: int, now_ns: int) -> Iterator[tuple[str, int]]:
        """(key, units spent) of one shard, both generations; the caller must not store meanwhile."""
        v = self.clock.at(now_ns)
        for key, state in self.young[index].items():
            yield key, max(0, state - v)
        v += self.shift
        for key, state in self.old[index].items():
            yield key, max(0, state - v)

    def ns_until_full(self, spent: int) -> int:
        """Nanoseconds in which `spent` units are refilled at the present rate."""
        return -(-spent * self.clock.den // self.clock.num)


def whole_tokens(units: int) -> int:
    """Units as whole tokens, rounded down, never below 0."""
    return units // UNIT if units > 0 else 0
