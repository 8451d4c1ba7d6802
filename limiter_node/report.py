"""What a node tells of itself: the status document and the metrics of the admin API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import structlog

from limiter_node import __version__, clock
from limiter_node.core.links import LinkState
from limiter_node.edge.metrics import Reading
from limiter_node.report_backends import backend_gauges, backend_totals, describe_backend

if TYPE_CHECKING:
    from limiter_node.control.conductor import Conductor
    from limiter_node.control.etcd import EtcdSession
    from limiter_node.control.leadership import Leadership
    from limiter_node.control.rulebook import RuleBook
    from limiter_node.core.engine import Engine
    from limiter_node.core.links import Link
    from limiter_node.core.ring import Ring
    from limiter_node.core.router import Router
    from limiter_node.edge.http_server import HttpServer
    from limiter_node.edge.metrics import Counters
    from limiter_node.settings import Address, Settings


log = structlog.get_logger()

STALLS_KEPT_NS = 30_000_000_000
"""Two scrapes of a usual Prometheus."""


class Stalls:
    """How long the event loop was late at worst, lately."""

    def __init__(self) -> None:
        self._began_ns = 0
        self._now_ns = 0  # the longest since then
        self._before_ns = 0  # the longest in the stretch before

    def note(self, late_ns: int, now_ns: int) -> None:
        """Take how late a timer came."""
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
        gone = set(_gone(node))
        for name in gone - self._gone:
            log.warning("peer gone: its replicas decide its keys", peer=name)
        for name in (self._gone - gone) & node.router.ring.members.keys():
            log.info("peer back", peer=name)
        self._gone = gone


class Parts(Protocol):
    """A node, as far as it is told of."""

    settings: Settings
    addresses: dict[str, Address]
    counters: Counters
    stalls: Stalls
    engine: Engine
    router: Router
    book: RuleBook
    http: HttpServer
    conductor: Conductor | None
    leadership: Leadership | None
    etcd: EtcdSession | None

    @property
    def is_ready(self) -> bool:
        """Whether a load balancer should send checks here."""

    @property
    def leader(self) -> str | None:
        """The node that is the controller, as far as is known."""

    @property
    def config_revision(self) -> int:
        """The revision of the rules last applied."""


def gauges(node: Parts) -> dict[str, Reading]:
    """{metric name: (help text, how to read it)} of what goes up and down."""
    keeper = node.router.keeper
    return {
        "limiter_ready": Reading("1 while a load balancer should send checks here.", lambda: node.is_ready),
        "limiter_keys": Reading("Buckets in memory, copies for other nodes included.", lambda: node.engine.buckets),
        "limiter_rules": Reading("Rules in force.", lambda: len(node.engine.rules)),
        "limiter_config_problems": Reading("Keys whose present value is bad.", lambda: len(node.book.problems)),
        "limiter_config_revision": Reading("Revision of the rules last applied.", lambda: node.config_revision),
        "limiter_ring_members": Reading("Nodes in the ring.", lambda: len(node.router.ring.members)),
        "limiter_ring_revision": Reading("etcd revision of the ring.", lambda: node.router.ring.revision),
        "limiter_peer_up": Reading(
            "1 while checks can be sent to the peer: its circuit is closed.",
            lambda: {name: circuit(link) == "up" for name, link in node.router.links.items()},
            label="peer",
        ),
        "limiter_peers_gone": Reading("Members whose keys their replicas decide.", lambda: len(_gone(node))),
        "limiter_fenced": Reading("1 while this node may not decide its own keys.", lambda: keeper.is_fenced),
        "limiter_handover_pending_peers": Reading(
            "Nodes that have not told all that they know of this node's keys.",
            lambda: len(keeper.custody.pending),
        ),
        "limiter_replication_due_copies": Reading(
            "Copies that peers are still to get.", lambda: keeper.replication.due
        ),
        "limiter_replication_lag_seconds": Reading(
            "How long the peer that is furthest behind has confirmed no copy.",
            lambda: keeper.replication.lag_ns(clock.now_ns()) / 1e9,
        ),
        "limiter_etcd_connected": Reading(
            "1 while etcd is watched.", lambda: node.etcd is not None and node.etcd.connected
        ),
        "limiter_loop_stall_max_seconds": Reading(
            "How late the event loop was at worst in the last 30 to 60 s.",
            lambda: node.stalls.longest_ns / 1e9,
        ),
        "limiter_http_connections": Reading("Open check connections.", lambda: len(node.http.connections)),
        **backend_gauges(node),
    }


def totals(node: Parts) -> dict[str, Reading]:
    """{metric name: (help text, how to read it)} of what only grows."""
    router, keeper = node.router, node.router.keeper
    return {
        "limiter_forwarded_checks": Reading("Checks passed on to their owner.", lambda: router.forwarded),
        "limiter_rerouted_checks": Reading(
            "Forwarded checks that the first node asked did not own.",
            lambda: router.rerouted,
        ),
        "limiter_helped_checks": Reading(
            "Checks sent to the replica, or to a third node, since the owner could not be reached.",
            lambda: router.helped,
        ),
        "limiter_stood_in_checks": Reading(
            "Checks decided as the replica of a node that is gone.", lambda: keeper.acted
        ),
        "limiter_degraded_verdicts": Reading(
            "Degraded verdicts made here. unreachable: neither the owner nor the replica could be reached, so "
            "on_unreachable decided; fenced: this node owns the key and may not decide; uncopied: of durability sync, "
            "without the replica.",
            lambda: {
                "unreachable": router.unanswered,
                "fenced": router.fenced,
                "uncopied": keeper.replication.uncopied,
            },
            label="reason",
        ),
        "limiter_replicated_copies": Reading("Copies sent to other nodes.", lambda: keeper.replication.sent),
        "limiter_pulled_keys": Reading("Keys asked for before they were handed over.", lambda: keeper.custody.pulled),
        "limiter_fence_lapses": Reading("Times that this node lost its right to decide.", lambda: keeper.lapses),
        "limiter_fenced_seconds": Reading(
            "Time without the right to decide.",
            lambda: keeper.fenced_ns_until(clock.now_ns()) / 1e9,
        ),
        "limiter_unknown_rule_checks": Reading("Checks whose rule does not exist.", lambda: node.counters.unknown_rule),
        "limiter_evicted_keys": Reading(
            "Buckets forgotten before they were full, for want of room.",
            lambda: node.engine.evicted,
        ),
        "limiter_config_rejections": Reading("Bad values seen.", lambda: node.book.rejected),
        "limiter_etcd_reconnects": Reading(
            "Connections to etcd given up.", lambda: node.etcd.reconnects if node.etcd else 0
        ),
        "limiter_etcd_lease_losses": Reading(
            "Leases that ran out.", lambda: node.etcd.lease_losses if node.etcd else 0
        ),
        **backend_totals(node),
    }


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
        "gone": _gone(node),
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
    }


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


def _gone(node: Parts) -> list[str]:
    fence, now_ns = node.router.keeper.fence, clock.now_ns()
    return [name for name in node.router.ring.members if name != node.settings.node_id and fence.is_gone(name, now_ns)]
