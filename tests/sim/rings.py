"""Rings shared by all nodes of a simulated fleet.

A ring is immutable and the same for the same members, so one stands for all: a fleet of 30 builds a ring of 35 ms
once, not 30 times. Nothing else about membership is touched.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from limiter_node.core.ring import Member, Ring

if TYPE_CHECKING:
    from collections.abc import Iterator

RINGS_MAX = 1_000

_known: dict[tuple[int, tuple[Member, ...]], Ring] = {}


@contextmanager
def shared_rings() -> Iterator[None]:
    """Have membership publish one ring per revision and members."""

    def ring(revision: int, members: dict[str, Member]) -> Ring:
        if len(_known) > RINGS_MAX:
            _known.clear()
        mark = revision, tuple(members[name] for name in sorted(members))
        found = _known.get(mark)
        if found is None:
            found = _known[mark] = Ring(revision, members)
        return found

    with mock.patch("limiter_node.cluster.membership.Ring", ring):
        yield
