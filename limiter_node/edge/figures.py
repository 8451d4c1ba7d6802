"""Figures: what one node shows of itself on the dashboard, and how those of all nodes add up.

Values only. They travel between nodes as msgpack inside a `Looked`, and to the page as JSON. Unknown fields are a newer
version's and are ignored. Rates are per second, measured by each node's own clock; no time crosses between machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from limiter_node.core.errors import UNDECODABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FLOWS_MAX = 200
HITTERS_MAX = 20
BACKENDS_TOLD_MAX = 20
PROBLEMS_MAX = 50
KEY_CHARACTERS_MAX = 520
TEXT_CHARACTERS_MAX = 300
"""What a node shows is bounded by these to some 0.85 MB with SECONDS_MAX seconds, 0.15 MB without."""


class BackendSecond(msgspec.Struct, array_like=True):
    """A backend in one second; what only the leader knows is None elsewhere."""

    multiplier: float
    admitted: float = 0.0
    denied: float = 0.0  # to protect it
    latency_ms: float | None = None  # 90th percentile of the signal that the leader went by
    error_rate: float | None = None
    answers: float | None = None


class Second(msgspec.Struct, array_like=True):
    """The checks of one second, and how the backends stood."""

    allowed: float = 0.0
    denied: float = 0.0
    degraded: float = 0.0
    forwarded: float = 0.0
    backends: dict[str, BackendSecond] = {}


class Flow(msgspec.Struct):
    """Checks per second of one segment of a rule, lately."""

    rule: str
    segment: str
    allowed: float
    denied: float
    shadow_denied: float
    degraded: float

    @property
    def total(self) -> float:
        """All of them; degraded ones are among the others."""
        return self.allowed + self.denied + self.shadow_denied


class Hitter(msgspec.Struct):
    """A key, and how many checks a second it has at the least."""

    rule: str
    key: str
    per_s: float


class Quantiles(msgspec.Struct):
    """Of the durations of checks, lately, in milliseconds."""

    p50_ms: float
    p99_ms: float


class BackendFigures(msgspec.Struct):
    """How a backend stands, by the word of one node."""

    multiplier: float
    state: str
    reason: str
    rate: float | None  # checks per second admitted for the whole of it; None: no bound
    would_be: float | None  # in `observe`, the multiplier that is not applied
    signal_ages_s: dict[str, float]
    fault: str | None  # what was last wrong with what was said of it


class Figures(msgspec.Struct):
    """What one node shows."""

    node: str
    version: str
    state: str  # starting, ready, fenced or draining
    leads: bool
    etcd: str  # connected, lost or none
    config_revision: int
    problems: list[tuple[str, str]]  # (key, error)
    keys: int
    replication_lag_ms: float
    stall_ms: float  # longest of the event loop, lately
    waiting_for: list[str]  # nodes that are still to tell what they know of its keys
    links: dict[str, str]  # peer: state of the circuit
    gone: list[str]  # members that it takes for gone
    durations: dict[str, Quantiles]  # by path: local, forwarded
    flows: list[Flow]
    busiest: list[Hitter]
    denied: list[Hitter]
    backends: dict[str, BackendFigures]
    seconds: list[Second]  # the last ones, oldest first


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Figures)
_seconds_decoder = msgspec.msgpack.Decoder(list[Second])


def encode(figures: Figures) -> bytes:
    """For a peer."""
    return _encoder.encode(figures)


def decode(data: bytes) -> Figures | None:
    """What a peer shows; None when it speaks another version."""
    try:
        return _decoder.decode(data)
    except UNDECODABLE:
        return None


def renewed(seconds: Iterable[Second]) -> list[Second]:
    """The same, every part of them a new object."""
    return _seconds_decoder.decode(_encoder.encode(list(seconds)))


# Sums over nodes.


def sum_of_seconds(seconds: Iterable[Second]) -> Second:
    """The same second at several nodes. The multiplier is the lowest that any goes by."""
    total = Second(backends={})
    for second in seconds:
        total.allowed += second.allowed
        total.denied += second.denied
        total.degraded += second.degraded
        total.forwarded += second.forwarded
        for name, backend in second.backends.items():
            known = total.backends.setdefault(name, BackendSecond(backend.multiplier))
            known.multiplier = min(known.multiplier, backend.multiplier)
            known.admitted += backend.admitted
            known.denied += backend.denied
            if backend.latency_ms is not None:
                known.latency_ms, known.error_rate, known.answers = (
                    backend.latency_ms,
                    backend.error_rate,
                    backend.answers,
                )
    return total


def sum_of_histories(histories: Sequence[Sequence[Second]]) -> list[Second]:
    """Seconds of several nodes, oldest first, put together from the last one backwards."""
    length = max(map(len, histories), default=0)
    return [
        sum_of_seconds(history[-back] for history in histories if back <= len(history)) for back in range(length, 0, -1)
    ]


def sum_of_flows(flows: Iterable[Flow]) -> list[Flow]:
    """By rule and segment, the busiest first."""
    totals: dict[tuple[str, str], Flow] = {}
    for flow in flows:
        known = totals.setdefault((flow.rule, flow.segment), Flow(flow.rule, flow.segment, 0, 0, 0, 0))
        known.allowed += flow.allowed
        known.denied += flow.denied
        known.shadow_denied += flow.shadow_denied
        known.degraded += flow.degraded
    return sorted(totals.values(), key=lambda flow: (-flow.total, flow.rule, flow.segment))[:FLOWS_MAX]


def sum_of_hitters(hitters: Iterable[Hitter]) -> list[Hitter]:
    """By rule and key, the heaviest first."""
    totals: dict[tuple[str, str], float] = {}
    for hitter in hitters:
        pair = hitter.rule, hitter.key
        totals[pair] = totals.get(pair, 0.0) + hitter.per_s
    heaviest = sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:HITTERS_MAX]
    return [Hitter(rule, key, per_s) for (rule, key), per_s in heaviest]
