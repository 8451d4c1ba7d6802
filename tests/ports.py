"""Free loopback ports for what tests start, kept from other tests until it has started, and after it was killed."""

from __future__ import annotations

import random
import socket
from collections import deque
from contextlib import suppress

HOST = "127.0.0.1"

MOST_HELD = 512
"""More than a suite has in use at once. All that it ever asks for are more open files than some machines allow."""

_held: deque[socket.socket] = deque()
"""Bound and not listening, so that connections are refused; the oldest first."""


def free_port() -> int:
    """Find a port that nobody has, and hold it.

    Two suites run side by side (`scripts/test`), and what is started listens only later: a port that was only free
    when asked for is taken by two at times. A server may listen at a held port if it sets SO_REUSEADDR, as asyncio's
    and Go's, nginx and HAProxy do; this function, there and here, passes over it.

    Below the range from which the kernel takes ports for outgoing connections: one of those would keep a killed
    server from coming back to its port.
    """
    while True:
        holder = socket.socket()
        with suppress(OSError):
            holder.bind((HOST, random.randrange(20_000, 32_000)))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _held.append(holder)
            if len(_held) > MOST_HELD:
                _held.popleft().close()
            port: int = holder.getsockname()[1]
            return port
        holder.close()


def free_ports(count: int) -> list[int]:
    """Find so many ports that nobody has, and hold them."""
    return [free_port() for _ in range(count)]
