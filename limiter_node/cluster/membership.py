"""Who is in the fleet: the values under `nodes/` become ring snapshots.

A member that announces its leave (`"leaving": true`) is out of the ring at once. One whose key vanishes without a
word has lost its lease, and that is either dead or about to register again: an etcd that was frozen longer than the
lease drops every lease when it wakes, and all nodes are back within milliseconds. So a lapse takes effect only after
a grace; until then the ring stays as it is, whoever else comes or goes. A dead node costs nothing by that: its peers
notice long before.

For the same reason a node that finds nobody else registered when it starts does not found a fleet at once, even if
others come: an etcd that wakes with all leases gone shows whoever starts just then an empty fleet, whose members are
about to be back. Nodes that start meanwhile wait for this one's keys.

This module knows neither etcd nor sockets, and time is handed in. Invariants: a ring holds exactly the members that
etcd had at its revision, so that two rings of one revision are the same; no ring is empty; the ring's revision never
goes back, even where etcd's does (restored from a backup): it then stands still until etcd has caught up.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from limiter_node.core.errors import BadRule
from limiter_node.core.model import Member
from limiter_node.core.ring import Ring
from limiter_node.core.rules import NAME_ALLOWED, decode_json, is_name, problems_of

if TYPE_CHECKING:
    from collections.abc import Callable

LAPSE_GRACE_NS = 1_000_000_000
"""Longer than a node takes to register again (one round trip to etcd), short against every lease."""

FOUNDING_GRACE_NS = 2_000_000_000
"""How long a node that starts as the first waits for others: twice the longest pause between dials to etcd."""

WEIGHT_MAX = 100
_PORT = re.compile("[0-9]{1,5}")


class NodeDoc(msgspec.Struct, omit_defaults=True):
    """A node as it registers. Unknown fields are a newer version's and are ignored."""

    peer: str
    zone: str | None = None
    version: str = ""
    weight: int = 1
    leaving: bool = False
    boot: int = 0


def encode_node(doc: NodeDoc) -> bytes:
    """The value of `nodes/<id>`."""
    return msgspec.json.encode(doc)


def parse_node(name: str, value: bytes) -> NodeDoc:
    """Check a value under `nodes/`; raises `BadRule` with every problem."""
    document = decode_json(value)
    problems = [*problems_of(document, NodeDoc)]
    if problems:
        raise BadRule(tuple(problems))
    doc = msgspec.convert(document, NodeDoc)
    if not is_name(name):
        problems.append(f"node id: {name!r} is not allowed; allowed: {NAME_ALLOWED}")
    host, _, port = doc.peer.rpartition(":")
    if not host or not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        problems.append(f"peer: {doc.peer!r} is not HOST:PORT")
    if not 1 <= doc.weight <= WEIGHT_MAX:
        problems.append(f"weight: {doc.weight} is out of range; allowed: 1 to {WEIGHT_MAX}")
    if problems:
        raise BadRule(tuple(problems))
    return doc


class Membership:
    """Keeps the members, and publishes a new ring whenever they change."""

    def __init__(self, node_id: str, publish: Callable[[Ring], None]) -> None:
        self._node_id = node_id
        self._publish = publish
        self._founding_ns: int | None = None  # when the first ring might have been published
        self.has_ring = False
        self._members: dict[str, Member] = {}
        self._leavers: dict[str, Member] = {}
        # Members whose key has vanished: when (monotonic ns), and at which revision.
        self._lapsed: dict[str, tuple[int, int]] = {}
        self._revision = 0
        self._is_stale = False

    @property
    def has_others(self) -> bool:
        """Whether another node is a member, by the last word, and so could take keys over."""
        return not self._members.keys() <= {self._node_id}

    def changed(self, name: str, value: bytes | None, revision: int, now_ns: int) -> None:
        """Take a change of `nodes/<name>`; raises `BadRule` for a bad value, which changes nothing."""
        if value is None:
            if name in self._members:
                self._lapsed.setdefault(name, (now_ns, revision))
            elif self._leavers.pop(name, None) is not None:
                self._revision = max(self._revision, revision)
                self._is_stale = True
            return
        doc = parse_node(name, value)
        self._lapsed.pop(name, None)
        self._revision = max(self._revision, revision)
        self._is_stale = True
        self._members.pop(name, None)
        self._leavers.pop(name, None)
        where = self._leavers if doc.leaving else self._members
        where[name] = Member(name, doc.peer, doc.zone, doc.weight, doc.version, doc.boot)

    def settle(self, now_ns: int) -> None:
        """Publish what has changed, lapses past their grace included; to be called after changes and regularly."""
        for name, (lapsed_ns, revision) in list(self._lapsed.items()):
            if now_ns - lapsed_ns >= LAPSE_GRACE_NS:
                del self._lapsed[name]
                del self._members[name]
                self._revision = max(self._revision, revision)
                self._is_stale = True
        if self._is_stale and self._members and not self._lapsed and not self._is_founding(now_ns):
            self._is_stale, self.has_ring = False, True
            self._publish(Ring(self._revision, dict(self._members), dict(self._leavers)))

    def _is_founding(self, now_ns: int) -> bool:
        """Whether this node has found nobody else when it started, and that is not long ago."""
        if self._founding_ns is None:
            self._founding_ns = now_ns if list(self._members) == [self._node_id] else now_ns - FOUNDING_GRACE_NS
        return now_ns - self._founding_ns < FOUNDING_GRACE_NS
