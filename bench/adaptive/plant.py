"""A backend: servers, one queue, first in first out, and a capacity that changes while it runs.

A request that has been taken is worked on to its end, whether or not its client still waits. Fewer servers finish what
they have begun. A slow dependency is a longer service with as many more servers: latency without loss of capacity, as
of a backend that waits for others and holds no thread meanwhile.
"""

from __future__ import annotations

from collections import deque
from heapq import heappush

DONE = 0
REFUSED = 1
REFUSAL_S = 0.003
"""How quickly a full backend says 503."""

Event = tuple[float, int, int]
"""When, what, of which request."""


class Plant:
    """`events` is the world's heap; `sent_s` and `work_s` are columns of its requests."""

    def __init__(
        self, servers: int, queue_max: int | None, events: list[Event], sent_s: list[float], work_s: list[float]
    ) -> None:
        self.servers = servers
        self.busy = 0
        self.slowness = 1.0
        self.queue: deque[int] = deque()
        # Of requests that were started: for laws that are told by the backend itself.
        self.waited_s = 0.0
        self.started = 0
        self._queue_max = queue_max
        self._events = events
        self._sent_s = sent_s
        self._work_s = work_s

    @property
    def utilisation(self) -> float:
        """Busy servers by servers, 1 at most."""
        return min(1.0, self.busy / self.servers)

    def take(self, request: int, now_s: float) -> None:
        """Start it, queue it or refuse it."""
        if self.busy < self.servers:
            self._start(request, now_s)
        elif self._queue_max is None or len(self.queue) < self._queue_max:
            self.queue.append(request)
        else:
            heappush(self._events, (now_s + REFUSAL_S, REFUSED, request))

    def finish(self, now_s: float) -> None:
        """A server is through with a request."""
        self.busy -= 1
        if self.queue and self.busy < self.servers:
            self._start(self.queue.popleft(), now_s)

    def resize(self, servers: int, now_s: float) -> None:
        """Have as many servers from now on; those too many stop when they are through."""
        self.servers = servers
        while self.queue and self.busy < servers:
            self._start(self.queue.popleft(), now_s)

    def _start(self, request: int, now_s: float) -> None:
        self.busy += 1
        self.started += 1
        self.waited_s += now_s - self._sent_s[request]
        heappush(self._events, (now_s + self._work_s[request] * self.slowness, DONE, request))
