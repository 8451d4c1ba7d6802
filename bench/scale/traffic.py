"""What nodes send each other, in simulated fleets of 3 to 60: the product's own routers, keepers and frames.

Virtual time; each node is asked for so many checks a second, of keys that are spread over the fleet. Frames are counted
by what they are for, and bytes as frames are long, without what TCP adds. Beyond 60 nodes nothing is simulated: among
1,000, pings alone are 100 million frames a second.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from unittest import mock

from msgspec.structs import replace
from structlog.testing import capture_logs

from bench.progress import tell
from bench.servers import COPIED
from limiter_node.cluster import wire
from limiter_node.core.model import Ack, Answer, Ask, Copies, Ping, Pong
from tests.sim.fleet import Fleet
from tests.sim.rings import shared_rings
from tests.sim.scenario import Burst, Load, NodeSpec, Scenario
from tests.sim.world import NS_PER_MS

if TYPE_CHECKING:
    from limiter_node.core.model import Frame

SIZES = (3, 10, 30, 60)
SIZES_QUICK = (3, 6)
CHECKS_PER_NODE_S = 50
KEYS_PER_NODE = 100
COUNTED_MS = 1_000
PURPOSES: dict[type[object], str] = {
    Ask: "checks",
    Answer: "checks",
    Copies: "copies",
    Ack: "copies",
    Ping: "pings",
    Pong: "pings",
}


class Meter:
    """Counts frames and their bytes, once it has begun."""

    def __init__(self) -> None:
        self.frames: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.asked = 0
        self._encode = wire.encode
        self._has_begun = False

    def begin(self, fleet: Fleet) -> None:
        """Count from now on."""
        self._has_begun = True
        self.asked = -fleet.clients.asked

    def encode(self, frame: Frame) -> bytes:
        """In place of the wire's own."""
        data = self._encode(frame)
        if self._has_begun:
            purpose = PURPOSES.get(type(frame), "other")
            self.frames[purpose] += 1
            self.bytes[purpose] += len(data)
        return data


def measure(*, is_quick: bool) -> list[dict[str, Any]]:
    """Take the figures of each size."""
    found = []
    for size in SIZES_QUICK if is_quick else SIZES:
        tell(f"simulating {size} nodes")
        of_size = simulate(size)
        found.append(of_size)
        tell("")
        frames, data = of_size["frames_per_check"], of_size["bytes_per_check"]
        print(
            f"  {size:>4} nodes: {frames['checks']:.2f} frames and {data['checks']:.0f} bytes a check to its owner and"
            f" back, {data['copies']:.0f} bytes a check to its replica; at rest"
            f" {of_size['pings_per_node_s']:,.0f} frames a second and node",
            flush=True,
        )
    return found


def simulate(size: int) -> dict[str, Any]:
    """Of one size."""
    scenario = _scenario(size)
    meter = Meter()
    with capture_logs(), shared_rings(), mock.patch.object(wire, "encode", meter.encode):
        fleet = Fleet(scenario, seed=1)
        fleet.world.at(scenario.calm_ms * NS_PER_MS, "meter", lambda: meter.begin(fleet))
        fleet.run()
    asked = meter.asked + fleet.clients.asked
    seconds = (scenario.until_ms - scenario.calm_ms) / 1_000
    return {
        "nodes": size,
        "checks": asked,
        "frames_per_check": {purpose: meter.frames[purpose] / asked for purpose in ("checks", "copies")},
        "bytes_per_check": {purpose: meter.bytes[purpose] / asked for purpose in ("checks", "copies")},
        "pings_per_node_s": meter.frames["pings"] / seconds / size,
        "ping_bytes_per_node_s": meter.bytes["pings"] / seconds / size,
    }


def _scenario(size: int) -> Scenario:
    # Until it is calm callers ask little; the burst at the end makes it last as long as is to be counted.
    whole = Scenario(
        name="traffic",
        about="a fleet in good health",
        nodes=tuple(NodeSpec(id=f"n{number}") for number in range(size)),
        documents={"rules/api": COPIED.rule},
        load=Load(
            checks_per_s=float(CHECKS_PER_NODE_S * size),
            keys=tuple(f"user:{number:08d}" for number in range(KEYS_PER_NODE * size)),
        ),
    )
    last = Burst(at_ms=whole.calm_ms + COUNTED_MS - 500, rule="api", key="last")
    return replace(whole, bursts=(last,))
