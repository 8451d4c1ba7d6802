"""How soon a change in etcd has reached so many watches, and what that costs etcd: a real one, on a core of its own.

Each node of a fleet has one watch on the prefix, so a change is sent as often as there are nodes. Here all watches
belong to one client on the other core, by etcd's JSON gateway; the gateway takes etcd some more than the nodes' gRPC.
The time is from the put until the last watch has it, with the client's own work in it.
"""

from __future__ import annotations

import base64
import json
import select
import socket
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.load import RunError, cpu_ns
from bench.progress import tell
from bench.servers import Stage

if TYPE_CHECKING:
    from bench.servers import Cores

SIZES = (10, 100, 1_000)
SIZES_QUICK = (10, 50)
CHANGES = 20
SPREAD_S_MAX = 30.0
PREFIX = "/limiter/"


class Watch:
    """A stream of changes below the prefix."""

    def __init__(self, address: str) -> None:
        self.changes = 0
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=SPREAD_S_MAX)
        body = json.dumps({"create_request": {"key": _base64(PREFIX), "range_end": _base64(PREFIX[:-1] + "0")}})
        head = f"POST /v3/watch HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall((head + body).encode())
        self._received = b""
        while b'"created":true' not in self._received:
            self._received += self._read()
        self._received = b""

    def take(self) -> None:
        """Read what has come."""
        self._received += self._read()
        self.changes += self._received.count(b'"events":[')
        # What may be the beginning of the next.
        self._received = self._received[self._received.rfind(b'"events":[') + 1 :][-9:]

    def _read(self) -> bytes:
        data = self.socket.recv(65_536)
        if not data:
            raise RunError("etcd ended a watch")
        return data


def measure(cores: Cores, *, is_quick: bool) -> list[dict[str, Any]]:
    """Take the figures of each number of watches."""
    found = []
    for count in SIZES_QUICK if is_quick else SIZES:
        tell(f"{count:,} watches")
        of_count = spread(count, cores)
        found.append(of_count)
        tell("")
        print(
            f"  {count:>5,} watches: a change has reached all after {of_count['spread_ms']:.1f} ms"
            f" ({of_count['spread_max_ms']:.1f} at worst); etcd works {of_count['etcd_ms']:.1f} ms for it",
            flush=True,
        )
    return found


def spread(count: int, cores: Cores) -> dict[str, Any]:
    """Of one number of watches."""
    with Stage() as stage:
        etcd = stage.etcd(cpu=cores.server)
        address = etcd.removeprefix("http://")
        watches = {watch.socket.fileno(): watch for watch in (Watch(address) for _ in range(count))}
        epoll = select.epoll()
        for fd in watches:
            epoll.register(fd, select.EPOLLIN)
        pids = [stage.pid("etcd")]
        began_ns = cpu_ns(pids)
        times_ms = [_change(address, watches, epoll, change) for change in range(1, CHANGES + 1)]
        etcd_ms = (cpu_ns(pids) - began_ns) / 1e6 / CHANGES
        epoll.close()
        for watch in watches.values():
            watch.socket.close()
    return {"watches": count, "spread_ms": median(times_ms), "spread_max_ms": max(times_ms), "etcd_ms": etcd_ms}


def _change(address: str, watches: dict[int, Watch], epoll: select.epoll, number: int) -> float:
    began_s = time.perf_counter()
    host, _, port = address.rpartition(":")
    body = json.dumps({"key": _base64(f"{PREFIX}rules/bench"), "value": _base64(json.dumps({"rate": f"{number}/s"}))})
    with socket.create_connection((host, int(port)), timeout=SPREAD_S_MAX) as connection:
        head = f"POST /v3/kv/put HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        missing = len(watches)
        while missing:
            events = epoll.poll(SPREAD_S_MAX)
            if not events:
                raise RunError(f"a change has not reached {missing} of {len(watches)} watches")
            for fd, _ in events:
                watch = watches[fd]
                before = watch.changes
                watch.take()
                missing -= before < number <= watch.changes
        return 1e3 * (time.perf_counter() - began_s)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
