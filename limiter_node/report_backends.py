"""What a node tells of the backends that it protects: their part of the status document and of the metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from limiter_node import clock
from limiter_node.edge.metrics import Reading

if TYPE_CHECKING:
    from limiter_node.control.conductor import Conductor, Election
    from limiter_node.core.adaptive.gate import Gate
    from limiter_node.core.engine import Engine
    from limiter_node.core.router import Router


class Parts(Protocol):
    """A node, as far as its backends are told of."""

    engine: Engine
    router: Router
    conductor: Conductor | None
    leadership: Election | None


def backend_gauges(node: Parts) -> dict[str, Reading]:
    """{metric name: reading} of what goes up and down."""
    return {
        "limiter_leader": Reading("1 while this node is the controller.", lambda: node.router.controller.term > 0),
        "limiter_backend_multiplier": Reading(
            "Factor on the plans of the rules that name the backend.",
            lambda: {name: node.engine.backends.ppm(name) / 1e6 for name in node.engine.backends.names()},
            label="backend",
        ),
        "limiter_backend_rate": Reading(
            "Checks per second admitted for the whole backend; absent while nothing bounds them.",
            lambda: {name: gate.rate for name, gate in node.engine.backends.gates.items() if gate.rate is not None},
            label="backend",
        ),
        "limiter_backend_in_flight": Reading(
            "Checks admitted here and not yet reported, as estimated.",
            lambda: {name: gate.in_flight for name, gate in node.engine.backends.gates.items()},
            label="backend",
        ),
        "limiter_backend_state": Reading(
            "1 for the state that it is in: normal, overload, drain, recovery, hold, fallback, pinned, observe or off.",
            lambda: _by_state(node),
            label=("backend", "state"),
        ),
        "limiter_backend_signal_age_seconds": Reading(
            "Since a source was last heard of the backend: report (at this node; the leader: at any), poll or health.",
            lambda: _ages_s(node),
            label=("backend", "source"),
        ),
        "limiter_backend_signal_latency_seconds": Reading(
            "Latency of the backend's answers by the signal that the controller goes by; at the leader only.",
            lambda: _latencies_s(node),
            label=("backend", "percentile"),
        ),
        "limiter_backend_signal_error_ratio": Reading(
            "Fraction of the backend's answers that failed or were refused, by the same.",
            lambda: {name: signal.error_rate for name, signal in node.router.controller.signals.items()},
            label="backend",
        ),
        "limiter_backend_signal_answers_per_second": Reading(
            "Answers of the backend, by the same.",
            lambda: {name: signal.throughput for name, signal in node.router.controller.signals.items()},
            label="backend",
        ),
    }


def backend_totals(node: Parts) -> dict[str, Reading]:
    """{metric name: reading} of what only grows."""
    return {
        "limiter_backend_admitted_checks": Reading(
            "Checks decided here that were let through to the backend, by priority.",
            lambda: _by_backend(node),
            label=("backend", "priority"),
        ),
        "limiter_backend_denied_checks": Reading(
            "Checks decided here, allowed by their own limits, that were turned away to protect the backend; where "
            "adaptive is observe, those that would have been. Causes: the published fraction of the priority, the "
            "published rate, this node's own guard.",
            lambda: _by_backend_and_cause(node),
            label=("backend", "priority", "cause"),
        ),
        "limiter_backend_rejected_signals": Reading(
            "Reports, polls and health values that were no good; no backend: of none that exists.",
            lambda: node.engine.backends.rejected,
            label="backend",
        ),
        "limiter_backend_decisions_published": Reading(
            "Decisions that this node has published as the controller.",
            lambda: node.conductor.published if node.conductor else 0,
        ),
        "limiter_backend_decisions_refused": Reading(
            "Decisions that etcd refused since this node led no more, or the record had changed.",
            lambda: node.leadership.refused if node.leadership else 0,
        ),
    }


def describe_backend(node: Parts, name: str) -> dict[str, Any]:
    """How a backend stands: what applies, why, what is heard of it, and what its gate here does."""
    backends, now_ns = node.engine.backends, clock.now_ns()
    record, gate = backends.records.get(name), backends.gate(name)
    ages = {source: round((now_ns - heard_ns) / 1e9, 1) for source, heard_ns in _heard(node, name).items()}
    decision = record.decided if record is not None else None
    return {
        "multiplier": backends.ppm(name) / 1e6,
        "state": backends.state(name),
        "reason": decision.reason if decision is not None else "",
        "rate": decision.rate if decision is not None else None,
        "priorities": decision.priorities if decision is not None else {},
        "would_be": record.would.multiplier if record is not None and record.would is not None else None,
        "adaptive": backends.entry(name).policy.mode,
        "signal_age": min(ages.values(), default=None),
        "signals": ages,
        "rejected": backends.rejected.get(name, 0),
        "fault": backends.faults.get(name),
        "gate": {
            "state": gate.state,
            "share": round(gate.share, 4),
            "in_flight": round(gate.in_flight, 1),
            "admitted": sum(gate.admitted),
            "denied": {cause: sum(counts) for cause, counts in _denied(gate).items()},
            "would_deny": gate.would_deny,
        },
    }


def _heard(node: Parts, name: str) -> dict[str, int]:
    """When each source was last heard of a backend: reports at this node, or at any when it leads."""
    backends, sources = node.engine.backends, dict(node.router.controller.sources.get(name, {}))
    reported_ns = backends.gate(name).reported_ns
    if reported_ns is not None:
        sources["report"] = max(reported_ns, sources.get("report", 0))
    if name in backends.health:
        sources["health"] = backends.health[name][1]
    return sources


def _ages_s(node: Parts) -> dict[tuple[str, ...], float]:
    now_ns = clock.now_ns()
    return {
        (name, source): (now_ns - heard_ns) / 1e9
        for name in node.engine.backends.names()
        for source, heard_ns in _heard(node, name).items()
    }


def _latencies_s(node: Parts) -> dict[tuple[str, ...], float]:
    return {
        (name, percentile): latency_ms / 1e3
        for name, signal in node.router.controller.signals.items()
        for percentile, latency_ms in (("50", signal.p50_ms), ("90", signal.p90_ms), ("99", signal.p99_ms))
    }


def _by_state(node: Parts) -> dict[tuple[str, ...], float]:
    return {(name, node.engine.backends.state(name)): 1 for name in node.engine.backends.names()}


def _by_backend(node: Parts) -> dict[tuple[str, ...], float]:
    return {
        (name, str(priority)): count
        for name, gate in node.engine.backends.gates.items()
        for priority, count in enumerate(gate.admitted)
        if gate.offered[priority]
    }


def _by_backend_and_cause(node: Parts) -> dict[tuple[str, ...], float]:
    return {
        (name, str(priority), cause): count
        for name, gate in node.engine.backends.gates.items()
        for cause, counts in _denied(gate).items()
        for priority, count in enumerate(counts)
        if gate.offered[priority]  # a rate needs the 0 that was before the first one
    }


def _denied(gate: Gate) -> dict[str, list[int]]:
    return {"priority": gate.denied_by_priority, "rate": gate.denied_by_rate, "guard": gate.denied_by_guard}
