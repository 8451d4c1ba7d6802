"""Rings shared by all nodes of a simulated fleet.

A ring is immutable and the same for the same members, so one stands for all: a fleet of 30 builds a ring of 35 ms
once, not 30 times. Nothing else about membership is touched.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from limiter_node.core.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limiter_node.core.model import Member, News

RINGS_MAX = 1_000

_known: dict[tuple[object, ...], Ring] = {}


@contextmanager
def shared_rings() -> Iterator[None]:
    """Have membership publish one ring per revision and members."""

    def ring(revision: int, members: dict[str, Member], leavers: dict[str, Member] | None = None) -> Ring:
        if len(_known) > RINGS_MAX:
            _known.clear()
        mark = revision, *(tuple(who[name] for name in sorted(who)) for who in (members, leavers or {}))
        found = _known.get(mark)
        if found is None:
            found = _known[mark] = Ring(revision, members, leavers)
        return found

    def told_by(news: News) -> Ring:
        members, leavers = ({member.id: member for member in who} for who in (news.members, news.leavers))
        return ring(news.revision, members, leavers)

    with (
        mock.patch("limiter_node.cluster.membership.Ring", ring),
        mock.patch.object(Ring, "told_by", told_by),
    ):
        yield
