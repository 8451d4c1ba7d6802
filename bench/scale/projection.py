"""What fleets larger than this machine carry, from what was measured on it; every formula is here.

A node at rest costs `rest_us + peer_us x (n - 1)` microseconds of a core a second, most of it pings: least squares over
the real fleets. A check costs `local_us + forwarded_us x (n - 1) / n`, for that is how likely its key is another's: the
first as one node alone was measured, the second as the largest fleet was, where hardly any two checks share a frame.
What is left of a node's core, divided by the cost of a check, is what it carries.

It knows nothing of networks, of cores shared with others, or of keys asked for more often than others.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import linear_regression
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CORE_US = 1_000_000.0
PEER_TIMEOUT_MS = 100.0  # the default
KEEPALIVES_PER_LEASE, LEASE_S = 3, 5  # of each node; the defaults
FLEETS = {"one node": 1, "a rack": 30, "1,000 nodes": 1_000}


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of a core."""

    rest_us: float  # a second, of a node alone
    peer_us: float  # a second, for each peer
    local_us: float  # a check
    forwarded_us: float  # besides, if the key is another node's

    def at_rest_us(self, nodes: int, *, timeout_ms: float = PEER_TIMEOUT_MS) -> float:
        """Of one node of so many, a second; pings come the rarer the longer the peer timeout."""
        return self.rest_us + self.peer_us * (nodes - 1) * PEER_TIMEOUT_MS / timeout_ms

    def check_us(self, nodes: int) -> float:
        """Of one check, whichever node is asked."""
        return self.local_us + self.forwarded_us * (nodes - 1) / nodes

    def checks_per_s(self, nodes: int, *, timeout_ms: float = PEER_TIMEOUT_MS) -> float:
        """Of a node with one core that does nothing else."""
        return max(0.0, CORE_US - self.at_rest_us(nodes, timeout_ms=timeout_ms)) / self.check_us(nodes)

    def nodes_at_half_a_core(self, *, timeout_ms: float = PEER_TIMEOUT_MS) -> int:
        """How many nodes a fleet has when half of each one's core goes to being a fleet."""
        return 1 + int((CORE_US / 2 - self.rest_us) / (self.peer_us * PEER_TIMEOUT_MS / timeout_ms))


class Limit(NamedTuple):
    """Something that gives out as a fleet grows."""

    what: str
    nodes: int
    then: str


def fit(fleets: Sequence[Mapping[str, float]]) -> Costs:
    """The costs of measured fleets; the first is one node alone, the last the largest."""
    sizes = [fleet["nodes"] for fleet in fleets]
    rest = linear_regression(
        [size - 1 for size in sizes], [fleet["rest_us_per_s"] / fleet["nodes"] for fleet in fleets]
    )
    local_us, largest = fleets[0]["check_us"], fleets[-1]
    forwarded_us = (largest["check_us"] - local_us) * largest["nodes"] / (largest["nodes"] - 1)
    return Costs(rest.intercept, rest.slope, local_us, forwarded_us)


def carried(parts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a fleet of each size carries."""
    costs = fit(parts["fleets"])
    bytes_per_key = parts["keys"][-1]["bytes_per_key"][-1][1]
    largest = parts["traffic"][-1]["bytes_per_check"]
    for name, nodes in FLEETS.items():
        timeout_ms = PEER_TIMEOUT_MS if costs.nodes_at_half_a_core() > nodes else 10 * PEER_TIMEOUT_MS
        per_node = costs.checks_per_s(nodes, timeout_ms=timeout_ms)
        forwarded = (nodes - 1) / nodes
        yield {
            "name": name,
            "nodes": nodes,
            "timeout_ms": timeout_ms,
            "at_rest": costs.at_rest_us(nodes, timeout_ms=timeout_ms) / CORE_US,
            "checks_per_node_s": per_node,
            "checks_per_s": nodes * per_node,
            "sent_per_node_s": per_node * (largest["checks"] * forwarded + largest["copies"] * (nodes > 1)),
            "gb_per_10m_keys": bytes_per_key * 1e7 / 1e9 * (2 if nodes > 1 else 1),
            "keepalives_per_s": nodes * KEEPALIVES_PER_LEASE / LEASE_S,
        }


def limits(parts: Mapping[str, Any]) -> list[Limit]:
    """What gives out, that of the smallest fleet first; rings and watches by the largest measured, in proportion."""
    costs = fit(parts["fleets"])
    ring, watches = parts["rings"][-1], parts["watchers"][-1]
    longer_ms = 10 * PEER_TIMEOUT_MS
    found = [
        Limit(
            f"pings take half a core of every node, at --peer-timeout {PEER_TIMEOUT_MS:g}",
            costs.nodes_at_half_a_core(),
            f"at {longer_ms:g} ms they do so at {costs.nodes_at_half_a_core(timeout_ms=longer_ms):,} nodes, and a dead"
            " node is noticed ten times later",
        ),
        Limit(
            f"a new ring takes as long to make as --peer-timeout {PEER_TIMEOUT_MS:g}, on all nodes at once",
            int(ring["nodes"] * PEER_TIMEOUT_MS / ring["build_ms"]),
            f"at {ring['nodes']:,} nodes checks wait {ring['build_ms']:.0f} ms whenever one joins or leaves, and that"
            " timeout has to be longer",
        ),
        Limit(
            "a change takes a second from etcd to the last node",
            int(watches["watches"] * 1_000 / watches["spread_ms"]),
            f"it is {watches['spread_ms']:.0f} ms and {watches['etcd_ms']:.0f} ms of etcd's core for"
            f" {watches['watches']:,}; a fleet rolled one by one is twice as many changes as nodes",
        ),
    ]
    return sorted(found, key=lambda limit: limit.nodes)
