"""The network: directed paths between hosts, and connections over them that behave as TCP's do.

A path delays, loses, or carries nothing at all; what is lost is sent again by TCP, so to the program loss is delay, and
everything behind it waits too. Within one connection and direction bytes keep their order and arrive once; between
connections there is no order. A connection breaks (both sides hear of it, each in its own time, and bytes under way are
gone), or its far host vanishes without a word.

It carries bytes cut anywhere, and knows neither frames nor nodes. Invariant: a closed side hears nothing more.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from tests.sim.world import NS_PER_MS, World

if TYPE_CHECKING:
    from collections.abc import Callable

DELAY_NS = (50_000, 600_000)
"""One way inside a data centre."""

RETRANSMIT_NS = 200 * NS_PER_MS
"""Linux's least retransmission timeout; doubles with each loss of the same segment."""

SPLIT_SHARE = 0.2
"""Share of writes that arrive in two pieces."""


class Path:
    """One direction between two hosts, with the faults now in force on it."""

    def __init__(self, world: World, source: str, target: str) -> None:
        self.source = source
        self.target = target
        self.slow_ns: list[tuple[int, int]] = []  # delays added, each (least, most)
        self.loss: list[tuple[float, int]] = []  # (share of segments lost, until when)
        self._blocks = 0
        self._blocked_ns = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._world = world
        self._rng = world.rng(f"path {source}>{target}")

    @property
    def is_blocked(self) -> bool:
        return self._blocks > 0

    def delay_ns(self) -> int:
        """How long one segment takes, what is lost being sent again."""
        delay_ns = self._rng.randint(*DELAY_NS) + sum(self._rng.randint(*extra) for extra in self.slow_ns)
        for share, until_ns in self.loss:
            pause_ns = RETRANSMIT_NS
            while self._world.now_ns + delay_ns < until_ns and self._rng.random() < share:
                delay_ns += pause_ns
                pause_ns *= 2
        return delay_ns

    def when_open(self, act: Callable[[], None]) -> None:
        """Have `act` happen once segments pass again; only for a blocked path."""
        self._waiting.append(act)

    def block(self) -> None:
        """Let nothing pass; blocks add up."""
        if not self._blocks:
            self._blocked_ns = self._world.now_ns
        self._blocks += 1

    def unblock(self) -> None:
        """Take one block away; after the last one, what waited is sent again at TCP's next attempt.

        Attempts double their pauses, so that may take as long again as the path was blocked.
        """
        self._blocks -= 1
        if not self._blocks:
            pause_ns = max(RETRANSMIT_NS, self._world.now_ns - self._blocked_ns)
            waiting, self._waiting = self._waiting, deque()
            for act in waiting:
                self._world.after(self._rng.randint(0, pause_ns), f"path {self.source}>{self.target}", act)


class Pipe:
    """Things that travel one path in order."""

    def __init__(self, world: World, path: Path, lane: str) -> None:
        self._world = world
        self._path = path
        self._lane = lane
        self._held: deque[tuple[Callable[[], None], int]] = deque()
        self._last_ns = 0

    def send(self, deliver: Callable[[], None], lag_ns: int = 0) -> None:
        """Have `deliver` happen at the other end, after everything sent before and `lag_ns` on top."""
        if self._path.is_blocked or self._held:
            if not self._held:
                self._path.when_open(self._release)
            self._held.append((deliver, lag_ns))
        else:
            self._put(deliver, lag_ns)

    def _release(self) -> None:
        if self._path.is_blocked:
            self._path.when_open(self._release)
            return
        held, self._held = self._held, deque()
        for deliver, lag_ns in held:
            self._put(deliver, lag_ns)

    def _put(self, deliver: Callable[[], None], lag_ns: int) -> None:
        self._last_ns = max(self._last_ns, self._world.now_ns + lag_ns + self._path.delay_ns())
        self._world.at(self._last_ns, self._lane, deliver)


class Endpoint(Protocol):
    """One side of a connection."""

    def received(self, data: bytes) -> None:
        """Take bytes, cut anywhere."""

    def lost(self) -> None:
        """The connection is gone."""


class Listener(Protocol):
    """What accepts connections at an address."""

    def accept(self, side: Side) -> None:
        """Put an endpoint to a new connection."""


class Side:
    """One side of a connection as its host holds it."""

    def __init__(self, network: Network, name: str, source: str, target: str, address: str) -> None:
        self.address = address  # of the other side's machine
        self.host = source
        self.peer: Side
        self.is_open = True
        self.is_gone = False  # vanished without a word
        self.endpoint: Endpoint | None = None
        self.pipe = Pipe(network.world, network.path(source, target), name)
        self._network = network
        self._lane = name
        self._rng = network.world.rng(name)

    def send(self, data: bytes) -> None:
        """Write bytes; they leave as one segment or as several."""
        if not self.is_open:
            return
        if self.peer.is_gone:
            self._network.reset_dangling(self)
            return
        if len(data) > 1 and self._rng.random() < SPLIT_SHARE:
            cut = self._rng.randrange(1, len(data))
            self._send(data[:cut])
            data = data[cut:]
        self._send(data)

    def close(self) -> None:
        """Close: this side hears nothing more, the other one hears of it after what was sent before."""
        if self.is_open:
            self.is_open = False
            self._network.forget(self)
            self.pipe.send(self.peer.hear_end)

    def vanish(self) -> None:
        """Be gone without a word, as when the power fails: the other side notices when it next gets a reset."""
        self.is_open, self.is_gone = False, True
        self._network.forget(self)

    def hear_end(self) -> None:
        """The other side closed, or the connection broke; the host notices when it runs."""
        self._network.run_on(self.host, self._end)

    def break_in(self, delay_ns: int) -> None:
        """Hear of a break; bytes that arrive until then are still taken."""
        self._network.world.after(delay_ns, self._lane, self.hear_end)

    def _send(self, data: bytes) -> None:
        peer = self.peer
        self.pipe.send(lambda: peer._network.run_on(peer.host, lambda: peer._receive(data)))

    def _receive(self, data: bytes) -> None:
        if self.is_open and self.endpoint is not None:
            self.endpoint.received(data)

    def _end(self) -> None:
        if self.is_open:
            self.is_open = False
            self._network.forget(self)
            if self.endpoint is not None:
                self.endpoint.lost()


class Network:
    """Paths, listeners and connections. Hosts are known by name.

    `run_on` has a host do something when it next runs: at once, once it thaws, or never if it dies first.
    """

    def __init__(self, world: World, run_on: Callable[[str, Callable[[], None]], None]) -> None:
        self.world = world
        self.run_on = run_on
        self.listeners: dict[str, tuple[str, Listener]] = {}  # by address: the host and what listens there
        self.dark: set[str] = set()  # addresses of machines without power: they do not even refuse
        self._paths: dict[tuple[str, str], Path] = {}
        self._sides: dict[Side, None] = {}
        self._dials: dict[str, int] = {}
        self._rng = world.rng("network")

    def path(self, source: str, target: str) -> Path:
        """The directed path between two hosts."""
        path = self._paths.get((source, target))
        if path is None:
            path = self._paths[source, target] = Path(self.world, source, target)
        return path

    def connect(self, host: str, address: str, done: Callable[[Side | None], None], lane: str) -> None:
        """Dial: `done` gets the new side, or None when refused, or is never called: time out."""
        known = self.listeners.get(address)
        if known is None:
            target = address.partition(".")[0]
            is_blocked = self.path(host, target).is_blocked or self.path(target, host).is_blocked
            if address not in self.dark and not is_blocked:
                self.world.after(2 * DELAY_NS[1], lane, lambda: self.run_on(host, lambda: done(None)))
            return
        target = known[0]
        out, back = self.path(host, target), self.path(target, host)
        if out.is_blocked or back.is_blocked:
            return

        def arrive() -> None:
            if address not in self.listeners:
                self.world.after(back.delay_ns(), lane, lambda: self.run_on(host, lambda: done(None)))
            else:
                self._open(host, address, done, lane)

        self.world.after(out.delay_ns(), lane, arrive)

    def sides(self, source: str, target: str) -> list[Side]:
        """Open sides on `source` of the connections to `target`, whoever dialled."""
        return [side for side in self._sides if side.host == source and side.peer.host == target]

    def cut(self, source: str, target: str) -> None:
        """Break every connection between two hosts; each side hears of it in its own time."""
        for side in self.sides(source, target):
            side.break_in(self._rng.randint(0, 2 * DELAY_NS[1]))
            side.peer.break_in(self._rng.randint(0, 2 * DELAY_NS[1]))

    def drop_host(self, host: str, *, is_silent: bool) -> None:
        """A process died: its machine closes its connections, or, when the power failed, nobody does."""
        for side in [side for side in self._sides if side.host == host]:
            if is_silent:
                side.vanish()
            else:
                side.close()

    def reset_dangling(self, side: Side) -> None:
        """Bytes for a host that has vanished: it resets the connection once it is back at its old address."""
        if side.address in self.listeners and not self.path(side.host, side.peer.host).is_blocked:
            side.break_in(2 * DELAY_NS[1])

    def forget(self, side: Side) -> None:
        self._sides.pop(side, None)

    def _open(self, host: str, address: str, done: Callable[[Side | None], None], lane: str) -> None:
        target, listener = self.listeners[address]
        own = next((own for own, (name, _) in self.listeners.items() if name == host), "")
        number = self._dials[lane] = self._dials.get(lane, 0) + 1
        near, far = (
            Side(self, f"{lane} #{number}", host, target, address),
            Side(self, f"{lane} #{number} back", target, host, own),
        )
        near.peer, far.peer = far, near
        self._sides[near] = self._sides[far] = None
        # First of all that comes back on the connection, so that no byte overtakes it.
        far.pipe.send(lambda: self.run_on(host, lambda: done(near)))
        self.run_on(target, lambda: listener.accept(far))
