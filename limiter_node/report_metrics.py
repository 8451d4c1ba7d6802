"""The metrics of a node: what each is called, says of the node, and is read from.

Names and units are by Prometheus' conventions (`promtool check metrics` is a test). Labels are names that people have
written (rules, segments, backends, nodes) or fixed words, never client keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node import __version__, clock
from limiter_node.edge.metrics import Exposition, HistogramReading, Reading
from limiter_node.report import circuit, gone
from limiter_node.report_backends import backend_gauges, backend_totals

if TYPE_CHECKING:
    from limiter_node.report import Parts


def exposition(node: Parts) -> Exposition:
    """All of a node's metrics."""
    return Exposition(gauges=gauges(node), totals=totals(node), histograms=histograms(node))


def gauges(node: Parts) -> dict[str, Reading]:
    """{metric name: (help text, how to read it)} of what goes up and down."""
    keeper = node.router.keeper
    return {
        "limiter_ready": Reading("1 while a load balancer should send checks here.", lambda: node.is_ready),
        "limiter_node_info": Reading(
            "Always 1; the labels say which node this is.",
            lambda: _info(node),
            label=("node", "zone", "version"),
        ),
        "limiter_keys": Reading("Buckets in memory, copies for other nodes included.", lambda: node.engine.buckets),
        "limiter_rules": Reading("Rules in force.", lambda: len(node.engine.rules)),
        "limiter_config_problems": Reading("Keys whose present value is bad.", lambda: len(node.book.problems)),
        "limiter_config_revision": Reading("Revision of the rules last applied.", lambda: node.config_revision),
        "limiter_ring_members": Reading("Nodes in the ring.", lambda: len(node.router.ring.members)),
        "limiter_ring_share_ratio": Reading(
            "Fraction of all keys that this node owns.", lambda: node.router.ring.share(node.settings.node_id)
        ),
        "limiter_ring_revision": Reading("etcd revision of the ring.", lambda: node.router.ring.revision),
        "limiter_peer_up": Reading(
            "1 while checks can be sent to the peer: its circuit is closed.",
            lambda: {name: circuit(link) == "up" for name, link in node.router.links.items()},
            label="peer",
        ),
        "limiter_peers_gone": Reading("Members whose keys their replicas decide.", lambda: len(gone(node))),
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
        "limiter_overloaded": Reading(
            "1 while requests that have waited too long are refused.", lambda: node.http.is_shedding
        ),
        **backend_gauges(node),
    }


def totals(node: Parts) -> dict[str, Reading]:
    """{metric name: (help text, how to read it)} of what only grows."""
    return {**_check_totals(node), **_fleet_totals(node), **_edge_totals(node), **backend_totals(node)}


def _check_totals(node: Parts) -> dict[str, Reading]:
    return {
        "limiter_checks": Reading(
            "Checks answered by this node, whoever decided them, by the rule's segment that gave the numbers. "
            "shadow_denied: would have been denied, but for the rule's shadow mode.",
            lambda: _checks(node),
            label=("rule", "segment", "verdict"),
        ),
        "limiter_degraded_answers": Reading(
            "Degraded verdicts among them, whoever made them; see limiter_degraded_verdicts for the reasons.",
            lambda: _degraded(node),
            label=("rule", "segment"),
        ),
        "limiter_problem_answers": Reading(
            "Answers of the check API that were no verdict, by HTTP status: bad requests, and 503 where the node could "
            "not answer.",
            lambda: {str(status): count for status, count in node.tally.problems.items()},
            label="status",
        ),
        "limiter_shed_requests": Reading(
            "Requests refused for having waited too long on this node; a batch is one.",
            lambda: node.http.refusing.refused,
        ),
        "limiter_refused_connections": Reading(
            "Connections closed at once, for there were too many.", lambda: node.http.turned_away
        ),
        "limiter_unknown_rule_checks": Reading("Checks whose rule does not exist.", lambda: node.tally.unknown_rule),
        "limiter_evicted_keys": Reading(
            "Buckets forgotten before they were full, for want of room.",
            lambda: node.engine.evicted,
        ),
    }


def _fleet_totals(node: Parts) -> dict[str, Reading]:
    router, keeper = node.router, node.router.keeper
    return {
        "limiter_forwarded_checks": Reading("Checks passed on to their owner.", lambda: router.forwarded),
        "limiter_rerouted_checks": Reading(
            "Forwarded checks that the first node asked did not own.",
            lambda: router.failover.rerouted,
        ),
        "limiter_helped_checks": Reading(
            "Checks sent to the replica, or to a third node, since the owner could not be reached.",
            lambda: router.failover.helped,
        ),
        "limiter_stood_in_checks": Reading(
            "Checks decided as the replica of a node that is gone.", lambda: keeper.acted
        ),
        "limiter_degraded_verdicts": Reading(
            "Degraded verdicts made here. unreachable: neither the owner nor the replica could be reached, so "
            "on_unreachable decided; fenced: this node owns the key and may not decide; uncopied: of durability sync, "
            "without the replica.",
            lambda: {
                "unreachable": router.failover.unanswered,
                "fenced": router.failover.fenced,
                "uncopied": keeper.replication.uncopied,
            },
            label="reason",
        ),
        "limiter_atomic_batches": Reading(
            "Atomic batches that this node was asked for, by what came of them.",
            lambda: {"granted": router.batches.granted, "refused": router.batches.refused},
            label="verdict",
        ),
        "limiter_resolved_holds": Reading(
            "Times that this node asked what had become of an atomic batch that it holds tokens for.",
            lambda: router.batches.resolved,
        ),
        "limiter_replicated_copies": Reading("Copies sent to other nodes.", lambda: keeper.replication.sent),
        "limiter_pulled_keys": Reading("Keys asked for before they were handed over.", lambda: keeper.custody.pulled),
        "limiter_fence_lapses": Reading("Times that this node lost its right to decide.", lambda: keeper.lapses),
        "limiter_fenced_seconds": Reading(
            "Time without the right to decide.",
            lambda: keeper.fenced_ns_until(clock.now_ns()) / 1e9,
        ),
        "limiter_config_rejections": Reading("Bad values seen.", lambda: node.book.rejected),
        "limiter_etcd_reconnects": Reading(
            "Connections to etcd given up.", lambda: node.etcd.reconnects if node.etcd else 0
        ),
        "limiter_etcd_lease_losses": Reading(
            "Leases that ran out.", lambda: node.etcd.lease_losses if node.etcd else 0
        ),
    }


def _edge_totals(node: Parts) -> dict[str, Reading]:
    router, lendings = node.router, node.router.keeper.commitments.lendings
    return {
        "limiter_edge_denials": Reading(
            "Checks of other nodes' keys that this node denied at once, as their owners had promised.",
            lambda: node.engine.denials.told,
        ),
        "limiter_leased_grants": Reading(
            "Tokens of other nodes' keys that this node granted from what it had borrowed.",
            lambda: router.leases.granted,
        ),
        "limiter_lent_tokens": Reading(
            "Tokens of this node's keys that it has lent. lost: of these, those that no word came of: they are spent.",
            lambda: {"lent": lendings.tokens, "lost": lendings.lost},
            label="what",
        ),
    }


def histograms(node: Parts) -> dict[str, HistogramReading]:
    """{metric name: reading} of how long things take."""
    return {
        "limiter_check_duration_seconds": HistogramReading(
            "From reading a check to its answer, sampled: some 300 checks a second stand for all. local: decided "
            "here at once; forwarded: another node was needed, the owner or, for durability sync, the replica.",
            lambda: {
                (rule, path): histogram
                for rule, by_path in node.tally.latencies.items()
                for path, histogram in by_path.items()
            },
            labels=("rule", "path"),
        ),
        "limiter_event_loop_lag_seconds": HistogramReading(
            "How late a timer of the event loop came, some 100 times a second.", lambda: {(): node.stalls.lags}
        ),
    }


def _info(node: Parts) -> dict[tuple[str, ...], float]:
    return {(node.settings.node_id, node.settings.zone or "", __version__): 1}


def _degraded(node: Parts) -> dict[tuple[str, ...], float]:
    return {pair: series.degraded for pair, series in node.tally.series.items()}


def _checks(node: Parts) -> dict[tuple[str, ...], float]:
    for name, rule in node.engine.rules.items():
        for segment in rule.plans:
            node.tally.of(name, segment)  # a rate needs the 0 that was before the first check
    return {
        (rule, segment, verdict): count
        for (rule, segment), series in node.tally.series.items()
        for verdict, count in (
            ("allowed", series.allowed),
            ("denied", series.denied),
            ("shadow_denied", series.shadow_denied),
        )
    }
