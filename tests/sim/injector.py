"""Brings faults about: a fault's beginning, and its end where it has one.

The only place that knows both what a fault means and what the fleet is made of.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.sim.faults import (
    AnyFault,
    Cut,
    Delay,
    EtcdDown,
    Flaky,
    Freeze,
    Jump,
    Kill,
    Leave,
    Loss,
    Partition,
    Start,
    WatchLag,
    links_of,
)
from tests.sim.world import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.sim.etcd import SimEtcd
    from tests.sim.network import Network, Path
    from tests.sim.node import SimNode, Witness
    from tests.sim.world import World

LANE = "faults"


class Injector:
    """Schedules faults on a fleet."""

    def __init__(
        self,
        world: World,
        network: Network,
        etcd: SimEtcd,
        nodes: dict[str, SimNode],
        witness: Witness,
        is_reachable: Callable[[str, int], bool],
    ) -> None:
        self._witness = witness
        self._is_reachable = is_reachable
        self._world = world
        self._network = network
        self._etcd = etcd
        self._nodes = nodes

    def schedule(self, faults: Sequence[AnyFault]) -> None:
        """Have all of them happen."""
        for number, fault in enumerate(faults):
            self._world.at(fault.at_ms * NS_PER_MS, LANE, partial(self._begin, fault, number))

    def _begin(self, fault: AnyFault, number: int) -> None:
        self._world.note(repr(fault))
        match fault:
            case Cut():
                for source, target in links_of(fault.links, list(self._nodes)):
                    self._network.cut(source, target)
            case Flaky():
                self._break_again(fault, number, 0)
            case Loss() | Delay() | Partition():
                self._disturb(fault)
            case EtcdDown():
                self._etcd.stop()
                self._at_end(fault, lambda: self._etcd.start(drops_leases=fault.drops_leases))
            case _:
                for name in fault.nodes:
                    self._strike(fault, self._nodes[name])

    def _strike(self, fault: Freeze | Jump | Kill | Start | Leave | WatchLag, node: SimNode) -> None:
        match fault:
            case Freeze():
                node.freeze()
                self._at_end(fault, node.thaw)
            case Jump():
                node.clock.jump(self._world.now_ns, fault.by_ms * NS_PER_MS)
                self._world.jumped_ns += fault.by_ms * NS_PER_MS
            case Kill():
                node.kill(is_silent=fault.is_silent)
            case Start():
                node.start(moves=fault.moves)
            case Leave():
                node.run(node.leave)
            case WatchLag() if node.lives:
                node.session.watch_lag_ns = fault.lag_ms * NS_PER_MS
                self._at_end(fault, lambda: setattr(node.session, "watch_lag_ns", 0))

    def _disturb(self, fault: Loss | Delay | Partition) -> None:
        for path in self._paths(fault.links):
            match fault:
                case Loss():
                    lost = fault.share, fault.until_ms * NS_PER_MS
                    path.loss.append(lost)
                    self._at_end(fault, partial(path.loss.remove, lost))
                case Delay():
                    extra = round(fault.least_ms * NS_PER_MS), round(fault.most_ms * NS_PER_MS)
                    path.slow_ns.append(extra)
                    self._at_end(fault, partial(path.slow_ns.remove, extra))
                case Partition():
                    path.block()
                    self._at_end(fault, path.unblock)
        if isinstance(fault, Partition):
            self._note_reach()
            self._at_end(fault, self._note_reach)

    def _note_reach(self) -> None:
        """Tell the witness who is cut off from too many by now, and who is not."""
        for node in self._nodes.values():
            if node.is_alive and not node.is_frozen:
                if self._is_reachable(node.name, node.lives):
                    self._witness.found(node)
                else:
                    self._witness.lost(node)

    def _break_again(self, fault: Flaky, number: int, count: int) -> None:
        rng = self._world.rng(f"flaky {number} {count}")
        if count:
            source, target = rng.choice(list(links_of(fault.links, list(self._nodes))))
            self._network.cut(source, target)
        next_ns = self._world.now_ns + round(rng.expovariate(fault.breaks_per_s) * NS_PER_S)
        if next_ns < fault.until_ms * NS_PER_MS:
            self._world.at(next_ns, LANE, lambda: self._break_again(fault, number, count + 1))

    def _paths(self, selectors: Sequence[str]) -> Iterator[Path]:
        for source, target in links_of(selectors, list(self._nodes)):
            yield self._network.path(source, target)

    def _at_end(self, fault: Freeze | WatchLag | Loss | Delay | Partition | EtcdDown, act: Callable[[], None]) -> None:
        def end() -> None:
            self._world.note(f"end of {fault!r}")
            act()

        self._world.at(fault.until_ms * NS_PER_MS, LANE, end)
