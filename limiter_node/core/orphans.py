"""Orphans: copies of buckets whose rule is not in force on this node, kept until it is.

A node that was started while the rule's value in etcd was bad, or that hears of a rule later than its peers, holds
them for others all the same: they are told on like any bucket. They do not refill meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.model import FORGOTTEN_SPENT

if TYPE_CHECKING:
    from limiter_node.core.model import Copy

ORPHANS_MAX = 10_000
"""Copies kept, some 3 MB; to take them all in when their rule comes, in one piece, costs 30 ms."""


class Orphans:
    """The copies of unknown rules."""

    def __init__(self) -> None:
        self._copies: dict[tuple[str, str], tuple[Copy, bool]] = {}

    def put(self, copy: Copy, *, follows: bool) -> None:
        """Keep a copy (`follows`: see `Engine.merge`), unless more is known to be spent already.

        Which of two accounts is more, nobody can say without their rule: the later one is kept.
        """
        bucket = copy.rule, copy.key
        known = self.get(*bucket)
        if copy.spent == FORGOTTEN_SPENT:
            self._copies.pop(bucket, None)
        elif known is None:
            if len(self._copies) < ORPHANS_MAX:
                self._copies[bucket] = copy, follows
        elif copy.account or copy.spent > known.spent:
            self._copies[bucket] = copy, follows

    def get(self, rule: str, key: str) -> Copy | None:
        """The copy of a bucket."""
        known = self._copies.get((rule, key))
        return known and known[0]

    def drop(self, rule: str, key: str) -> None:
        """Forget a copy."""
        self._copies.pop((rule, key), None)

    def take(self, rule: str) -> list[tuple[Copy, bool]]:
        """The copies of a rule, which are not kept any more."""
        return [self._copies.pop(bucket) for bucket in self.buckets() if bucket[0] == rule]

    def buckets(self) -> list[tuple[str, str]]:
        """(rule, key) of each."""
        return list(self._copies)
