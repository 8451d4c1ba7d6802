"""What etcd says, taken to where it belongs; on the workers of a standalone node, what their board says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node import clock
from limiter_node.core.errors import BadRule

if TYPE_CHECKING:
    from limiter_node.app import Node


class Fleet:
    """Hands each change on (an `etcd.Changes`)."""

    def __init__(self, node: Node) -> None:
        self._book = node.book
        self._membership = node.membership
        self._node = node
        self._monotonic_ns = clock.now_ns

    def changed(self, key: str, value: bytes | None, revision: int) -> None:
        """Take one change."""
        kind, _, name = key.partition("/")
        if key == "leader" and self._node.leadership is not None:
            self._node.leadership.changed(value, revision)
            self._node.router.controller.see_election(revision)
            return
        if kind == "multipliers" and self._node.conductor is not None:
            self._node.conductor.changed(name, revision, is_deleted=value is None)
        if kind != "nodes":
            is_live = self._node.etcd is not None and self._node.etcd.is_watching
            self._book.changed(key, value, self._monotonic_ns(), is_live=is_live)
            return
        try:
            self._membership.changed(name, value, revision, self._monotonic_ns())
        except BadRule as bad:
            self._book.reject(key, str(bad))
        else:
            self._book.note_good(key)

    def synced(self, revision: int) -> None:
        """Act on the changes so far together: one ring, however many nodes came or went."""
        self._membership.settle(self._monotonic_ns())
