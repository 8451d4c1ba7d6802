"""What a node tells of itself: the status document, its longest stall, and what the log is told of the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import structlog

from limiter_node import __version__, clock
from limiter_node.core.links import LinkState
from limiter_node.edge.tally import Histogram
from limiter_node.report_backends import describe_backend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from limiter_node.control.conductor import Conductor, Election
    from limiter_node.control.etcd import EtcdSession
    from limiter_node.control.rulebook import RuleBook
    from limiter_node.core.engine import Engine
    from limiter_node.core.links import Link
    from limiter_node.core.model import Member
    from limiter_node.core.ring import Ring
    from limiter_node.core.router import Router
    from limiter_node.edge.http_server import HttpServer
    from limiter_node.edge.tally import Tally
    from limiter_node.settings import Address, Settings


log = structlog.get_logger()

STALLS_KEPT_NS = 30_000_000_000
"""Two scrapes of a usual Prometheus."""

LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""A peer timeout is a tenth of a second: nodes that are as late as that are taken for gone."""


class Stalls:
    """How long the event loop was late at worst, lately."""

    def __init__(self) -> None:
        self._began_ns = 0
        self._now_ns = 0  # the longest since then
        self._before_ns = 0  # the longest in the stretch before
        self.lags = Histogram(LAG_S)  # all of them

    def note(self, late_ns: int, now_ns: int) -> None:
        """Take how late a timer came."""
        self.lags.observe(max(late_ns, 0) / 1e9)
        if now_ns - self._began_ns > STALLS_KEPT_NS:
            self._began_ns, self._before_ns, self._now_ns = now_ns, self._now_ns, 0
        self._now_ns = max(self._now_ns, late_ns)

    @property
    def longest_ns(self) -> int:
        """The longest of the last 30 to 60 s."""
        return max(self._now_ns, self._before_ns)


class FleetLog:
    """Tells the log when this node loses or regains its right to decide, and when peers go or come back."""

    def __init__(self) -> None:
        self._gone: set[str] = set()
        self._fenced_ns: int | None = None
        self._has_begun = False  # a node that joins has no right yet, which is nothing to tell

    def note(self, node: Parts, now_ns: int) -> None:
        """Look at what has changed; to be called every tick."""
        keeper = node.router.keeper
        self._has_begun = self._has_begun or keeper.is_whole
        if keeper.is_fenced and self._fenced_ns is None and self._has_begun:
            self._fenced_ns = now_ns
            log.warning("fenced: too few peers answer in time, so this node decides none of its keys")
        elif not keeper.is_fenced and self._fenced_ns is not None:
            log.info("fence lifted", after_ms=(now_ns - self._fenced_ns) // 1_000_000)
            self._fenced_ns = None
        now_gone = set(gone(node))
        for name in now_gone - self._gone:
            log.warning("peer gone: its replicas decide its keys", peer=name)
        for name in (self._gone - now_gone) & node.router.ring.members.keys():
            log.info("peer back", peer=name)
        self._gone = now_gone


class Parts(Protocol):
    """A node, as far as it is told of."""

    settings: Settings
    addresses: dict[str, Address]
    tally: Tally
    stalls: Stalls
    engine: Engine
    router: Router
    book: RuleBook
    http: HttpServer
    conductor: Conductor | None
    leadership: Election | None
    etcd: EtcdSession | None

    is_draining: bool

    @property
    def is_ready(self) -> bool:
        """Whether a load balancer should send checks here."""

    @property
    def leader(self) -> str | None:
        """The node that is the controller, as far as is known."""

    @property
    def config_revision(self) -> int:
        """The revision of the rules last applied."""


def describe(node: Parts) -> dict[str, Any]:
    """The document of `GET /v1/status`."""
    ring, etcd, keeper = node.router.ring, node.etcd, node.router.keeper
    return {
        "node": node.settings.node_id,
        "version": __version__,
        "addresses": {name: str(address) for name, address in node.addresses.items()},
        "standalone": node.settings.is_standalone,
        "ready": node.is_ready,
        "etcd": {
            "connected": etcd is not None and etcd.connected,
            "revision": 0 if etcd is None else etcd.revision,
        },
        "leader": node.leader,
        "ring": {"revision": ring.revision, "members": _members(node, ring)},
        "links": {name: circuit(link) for name, link in node.router.links.items()},
        "gone": gone(node),
        "fenced": keeper.is_fenced,
        "handover": {
            "waiting_for": sorted(keeper.custody.pending),
            "surveying": keeper.replication.is_surveying,
            "due": {name: len(outlet.due) + len(outlet.bulk) for name, outlet in keeper.replication.outlets.items()},
        },
        "replication_lag_ms": round(keeper.replication.lag_ns(clock.now_ns()) / 1e6, 1),
        "config": {
            "revision": node.config_revision,
            "rules": len(node.engine.rules),
            "problems": [{"key": key, "error": error} for key, error in sorted(node.book.problems.items())],
        },
        "backends": {name: describe_backend(node, name) for name in sorted(node.engine.backends.names())},
        "keys": node.engine.buckets,
        "overloaded": node.http.is_shedding,
    }


def ring_difference(before: Mapping[str, Member], ring: Ring) -> dict[str, list[str]]:
    """Who came to a ring and who went, and how: leavers said so, the others' leases have run out."""
    gone = before.keys() - ring.members.keys()
    boots = {name: (before[name].boot, ring.members[name].boot) for name in before.keys() & ring.members.keys()}
    kinds = {
        "joined": ring.members.keys() - before.keys(),
        "left": gone & ring.leavers.keys(),
        "lapsed": gone - ring.leavers.keys(),
        "restarted": {name for name, (one, other) in boots.items() if one != other},
    }
    return {kind: sorted(names) for kind, names in kinds.items() if names}


def circuit(link: Link) -> str:
    """up, connecting, down, or silent: connected, but nothing is heard, so checks go another way."""
    if link.state is LinkState.UP and clock.now_ns() >= link.usable_until_ns:
        return "silent"
    return link.state.value


def _members(node: Parts, ring: Ring) -> list[dict[str, Any]]:
    return [
        {
            "id": member.id,
            "peer": member.peer or str(node.addresses["peer"]),
            "zone": member.zone,
            "share": round(ring.share(member.id), 4),
        }
        for member in ring.members.values()
    ]


def gone(node: Parts) -> list[str]:
    """The members whose keys their replicas decide."""
    fence, now_ns = node.router.keeper.fence, clock.now_ns()
    return [name for name in node.router.ring.members if name != node.settings.node_id and fence.is_gone(name, now_ns)]
