"""Every controller by name: ours, the peers at published defaults and tuned, and the controls.

A peer stands at one gate that sees all requests, and hears of outcomes at once: better than what any of them would have
in front of a fleet. In scenarios of the family "nodes" it stands on every node instead, as a library would. The best of
them stand "at nodes" as well, in all scenarios: on each of ours, with outcomes that come as late, and tuned there.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from bench.adaptive.controls import Fixed, Full, Rate
from bench.adaptive.fleet import Fleet, LateOutcomes
from bench.adaptive.peers_rates import Aperture, Bbr, Dagor, EnvoyAdmission, Sre, TopFull
from bench.adaptive.peers_windows import Aimd, Breakwater, EnvoyGradient, Gradient2, Limit, Vegas, Windowed
from bench.adaptive.tuned import TUNED, TUNED_AT_NODES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.adaptive.world import Controller, Outcome, World

TIMEOUT_S = 1.0
"""The latency that a timeout counts as."""


class Peer(Protocol):
    """A law at one gate."""

    def admits(self, priority: int, user: int, now_s: float) -> bool:
        """Whether a request gets through."""

    def report(self, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """How one that did has ended."""


class Sampled(Protocol):
    """A limit that keeps its own windows."""

    @property
    def limit(self) -> float:
        """How many may be in flight."""

    def take(self, now_s: float, rtt_s: float, out: int, *, dropped: bool) -> None:
        """Take a sample."""


class PerSample:
    """A limit that takes every sample as it comes."""

    def __init__(self, inner: Limit) -> None:
        self._inner = inner

    @property
    def limit(self) -> float:
        """The inner one's."""
        return self._inner.limit

    def take(self, now_s: float, rtt_s: float, out: int, *, dropped: bool) -> None:
        """Pass it on."""
        self._inner.sample(rtt_s, out, dropped=dropped)


class Bounded:
    """No more in flight than a limit says, whoever asks."""

    def __init__(self, limit: Sampled) -> None:
        self.limit = limit
        self._out = 0

    def admits(self, priority: int, user: int, now_s: float) -> bool:
        """Below the limit."""
        if self._out >= int(self.limit.limit):
            return False
        self._out += 1
        return True

    def report(self, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """Timeouts and refusals are drops; other errors are ignored, as their latency tells nothing."""
        out, self._out = self._out, self._out - 1
        if outcome != "failed":
            rtt_s = TIMEOUT_S if latency_s is None else latency_s
            self.limit.take(now_s, rtt_s, out, dropped=outcome != "ok")


class PeerGates:
    """A peer's law at one gate, or at one on each node, `at_nodes` with outcomes that come as late as ours."""

    def __init__(self, build: Callable[[World, Callable[[], float]], Peer], *, at_nodes: bool = False) -> None:
        self._build = build
        self._at_nodes = at_nodes

    def start(self, world: World) -> None:
        """Set the gates up."""
        count = world.scenario.nodes if self._at_nodes or world.scenario.family == "nodes" else 1
        self._gates = [self._build(world, Random(f"peer {world.seed} {n}").random) for n in range(count)]
        self._is_one = count == 1
        self._late = LateOutcomes(world, self._tell) if self._at_nodes else None

    def admit(self, node: int, priority: int, user: int, now_s: float) -> bool:
        """Ask the gate."""
        return self._gates[0 if self._is_one else node].admits(priority, user, now_s)

    def report(self, node: int, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """Tell the gate that admitted it."""
        if self._late is None:
            self._tell(node, latency_s, outcome, now_s)
        else:
            self._late.send(node, latency_s, outcome, now_s)

    def _tell(self, node: int, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        self._gates[0 if self._is_one else node].report(latency_s, outcome, now_s)


# By what a law needs to be built.
PER_SAMPLE: dict[str, Callable[..., Limit]] = {"AIMD": Aimd}
WINDOWED: dict[str, Callable[..., Limit]] = {"Gradient2": Gradient2, "Vegas": Vegas, "Breakwater": Breakwater}
BY_CHANCE: dict[str, Callable[..., Peer]] = {"Envoy admission": EnvoyAdmission, "SRE": Sre}
TOLD_BY_BACKEND: dict[str, Callable[..., Peer]] = {"BBR": Bbr, "DAGOR": Dagor}
ALONE: dict[str, Callable[..., Peer]] = {"Aperture": Aperture, "TopFull": TopFull}
ENVOY_GRADIENT = "Envoy gradient"
PEERS = (*WINDOWED, *PER_SAMPLE, ENVOY_GRADIENT, *BY_CHANCE, *TOLD_BY_BACKEND, *ALONE)

BREAKWATER_WINDOW: dict[str, Any] = {"window_s": 0.1, "samples_min": 1}
"""About a round trip and a half: it moves once a round trip."""


def _law(name: str, parameters: Mapping[str, Any], world: World, chance: Callable[[], float]) -> Peer:
    """One gate's law."""
    if name in WINDOWED:
        inner = {**(BREAKWATER_WINDOW if name == "Breakwater" else {}), **parameters}
        window = {key: inner.pop(key) for key in ("window_s", "samples_min") if key in inner}
        return Bounded(Windowed(WINDOWED[name](**inner), **window))
    if name in PER_SAMPLE:
        return Bounded(PerSample(PER_SAMPLE[name](**parameters)))
    if name == ENVOY_GRADIENT:
        return Bounded(EnvoyGradient(jitter=chance, **parameters))
    if name in BY_CHANCE:
        return BY_CHANCE[name](chance, **parameters)
    if name in TOLD_BY_BACKEND:
        return TOLD_BY_BACKEND[name](world.plant, **parameters)
    return ALONE[name](**parameters)


OURS = "ours"
GUARD_ONLY = "ours, guards only"
ONE_NODE = "ours, one node"
REFERENCE = "reference"
AT_NODES = "at nodes"
PEERS_AT_NODES = tuple(f"{law}, {AT_NODES}" for law in TUNED_AT_NODES)
FULL = "always full"
CONTROLS: dict[str, Callable[[], Controller]] = {
    FULL: Full,
    "frozen": partial(Rate, 1.1),
    "always minimum": partial(Rate, 0.05),
}


def peer(name: str, parameters: Mapping[str, Any], *, at_nodes: bool = False) -> PeerGates:
    """A peer with parameters other than its defaults."""
    return PeerGates(partial(_law, name, parameters), at_nodes=at_nodes)


def names() -> list[str]:
    """Every controller that can be built by name, in the order of reports."""
    return [
        OURS,
        ONE_NODE,
        GUARD_ONLY,
        *(f"{name}{variant}" for name in PEERS for variant in ("", ", tuned")),
        *PEERS_AT_NODES,
        *CONTROLS,
    ]


def build(name: str) -> Controller:
    """A controller by name; `fixed X` is the reference's candidate with X requests in flight a server."""
    if name == OURS:
        return Fleet()
    if name == GUARD_ONLY:
        return Fleet(has_leader=False)
    if name == ONE_NODE:
        return Fleet(nodes=1)
    if name in CONTROLS:
        return CONTROLS[name]()
    if name.startswith("fixed "):
        return Fixed(float(name.removeprefix("fixed ")))
    law, _, variant = name.partition(", ")
    if variant == AT_NODES:
        return peer(law, TUNED_AT_NODES[law], at_nodes=True)
    return peer(law, TUNED[law] if variant else {})
