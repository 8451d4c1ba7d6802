"""Asks at times drawn beforehand, whether or not earlier checks have been answered: an open loop.

A closed loop waits for its answer before it asks again; while a server hangs it asks nothing, and so hardly sees the
hang (coordinated omission). Here each check's time counts from when it was due. Times are those of a Poisson stream,
as many independent clients make; one that is due while every connection is taken waits, and that counts too.

No event loop: epoll, plain sockets, and requests written out beforehand, some 12 us a check. How late the client itself
was is in the result, so that a slow client is not taken for a slow server.

    python -m bench.open_loop KEYFILE RATE_PER_S SECONDS ADDRESS ...
"""

from __future__ import annotations

import ctypes
import gc
import json
import random
import re
import select
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from itertools import accumulate, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from bench.servers import RULE
from bench.stats import quantile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CONNECTIONS = 64
ANSWER_S_MAX = 5.0
WAIT_S_MAX = 0.1
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PR_SET_TIMERSLACK = 29


@dataclass(frozen=True, slots=True)
class Measured:
    """What one open-loop run saw; unanswered checks and other statuses than 200 are counted, not timed."""

    checks: int
    refused: int
    unanswered: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    client_late_p99_ms: float


class Connection:
    """A keep-alive connection with at most one request on its way."""

    __slots__ = ("due_s", "idle_since_s", "received", "socket")

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=ANSWER_S_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = b""
        self.due_s = 0.0
        self.idle_since_s = 0.0

    def take(self) -> bytes:
        """Read what has come; returns the answer once it is whole, else nothing."""
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionError("the server closed a connection")
        self.received += data
        if not is_whole(self.received):
            return b""
        answer, self.received = self.received, b""
        return answer


def is_whole(answer: bytes) -> bool:
    """Whether head and body of a response are there; one without a length has no body."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = _LENGTH.search(answer, 0, end + 2)
    return len(answer) >= end + 4 + (int(length[1]) if length else 0)


def due_times_s(rate_per_s: float, seconds: float, *, seed: int) -> list[float]:
    """When to ask: a Poisson stream of so many in all, from time zero on."""
    rng = random.Random(seed)
    return list(accumulate(rng.expovariate(rate_per_s) for _ in range(round(rate_per_s * seconds))))


class Client:
    """One run."""

    def __init__(self, addresses: Sequence[str], requests: Sequence[bytes], due_s: Sequence[float]) -> None:
        connections = [Connection(address) for address in islice(cycle(addresses), CONNECTIONS)]
        self._by_fd = {connection.socket.fileno(): connection for connection in connections}
        self._idle = deque(connections)
        self._epoll = select.epoll()
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN)
        self._requests, self._due_s = requests, due_s
        self._asked = 0
        self._latencies_s: list[float] = []
        self._late_s: list[float] = []
        self._statuses: Counter[bytes] = Counter()

    def run(self) -> Measured:
        """Ask everything, once; gives up when nothing has been answered or asked for some time."""
        try:
            self._ask_all()
        finally:
            self._epoll.close()
            for connection in self._by_fd.values():
                connection.socket.close()
        return self._measured()

    def _ask_all(self) -> None:
        began_s, moved_s = time.perf_counter(), 0.0
        while len(self._latencies_s) < len(self._due_s):
            now_s = time.perf_counter() - began_s
            wait_s = self._due_s[self._asked] - now_s if self._idle and self._asked < len(self._due_s) else WAIT_S_MAX
            if wait_s <= 0:
                self._ask(now_s)
            else:
                # epoll's own timeouts are whole milliseconds.
                select.select([self._epoll], [], [], min(wait_s, WAIT_S_MAX))
            events = self._epoll.poll(0)
            for fd, _ in events:
                self._answered(self._by_fd[fd], time.perf_counter() - began_s)
            if wait_s <= 0 or events:
                moved_s = now_s
            elif now_s - moved_s > ANSWER_S_MAX:
                break

    def _ask(self, now_s: float) -> None:
        connection = self._idle.popleft()
        connection.due_s = self._due_s[self._asked]
        connection.socket.send(self._requests[self._asked % len(self._requests)])
        self._late_s.append(now_s - max(connection.due_s, connection.idle_since_s))
        self._asked += 1

    def _answered(self, connection: Connection, now_s: float) -> None:
        answer = connection.take()
        if answer:
            self._statuses[answer[9:12]] += 1
            self._latencies_s.append(now_s - connection.due_s)
            connection.idle_since_s = now_s
            self._idle.append(connection)

    def _measured(self) -> Measured:
        took, late = sorted(self._latencies_s), sorted(self._late_s)
        answered = self._statuses.total()
        return Measured(
            checks=answered,
            refused=answered - self._statuses[b"200"],
            unanswered=len(self._due_s) - answered,
            p50_ms=1e3 * quantile(took, 0.5),
            p90_ms=1e3 * quantile(took, 0.9),
            p99_ms=1e3 * quantile(took, 0.99),
            p999_ms=1e3 * quantile(took, 0.999),
            max_ms=1e3 * took[-1],
            client_late_p99_ms=1e3 * quantile(late, 0.99),
        )


def requests_for(keys: Iterable[str], host: str) -> list[bytes]:
    """A check of each key, as it goes over the wire."""
    return [f"GET /v1/check?rule={RULE}&key={key} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() for key in keys]


def main() -> None:
    keyfile, rate_per_s, seconds, *addresses = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)  # else every sleep is 50 us longer
    requests = requests_for(Path(keyfile).read_text().split(), addresses[0])
    client = Client(addresses, requests, due_times_s(float(rate_per_s), float(seconds), seed=1))
    gc.disable()
    print(json.dumps(asdict(client.run())))


if __name__ == "__main__":
    main()
