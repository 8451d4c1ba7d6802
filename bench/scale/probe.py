"""One client that asks a node 200 times a second, and says how long a check had to wait at worst: a process of its own.

A line on its standard input asks for the longest wait since the last line, in ms; the end of the input ends it. As in
the open loop, a check's wait counts from when it was due; those that fell due during a wait are left out.

    python -m bench.scale.probe ADDRESS
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

from bench.open_loop import ANSWER_S_MAX, Connection
from bench.servers import RULE

if TYPE_CHECKING:
    from bench.servers import System

EVERY_S = 0.005
# The longest stall that is waited for: what is measured may be bad.
WAIT_S_MAX = 12 * ANSWER_S_MAX


class Probe:
    """The process, as whoever measures sees it."""

    def __init__(self, node: System, *, cpu: int) -> None:
        argv = ["taskset", "-c", str(cpu), sys.executable, "-m", "bench.scale.probe", node.http]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def longest_wait_ms(self) -> float:
        """Since it was last asked."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def __enter__(self) -> Self:
        self.longest_wait_ms()  # it runs, and has asked
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def main() -> None:
    (address,) = sys.argv[1:]
    connection = Connection(address)
    connection.socket.settimeout(WAIT_S_MAX)
    request = f"GET /v1/check?rule={RULE}&key=probe&cost=0 HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
    longest_s, due_s = 0.0, time.perf_counter()
    while True:
        connection.socket.sendall(request)
        while not connection.take():
            pass
        now_s = time.perf_counter()
        longest_s = max(longest_s, now_s - due_s)
        due_s += EVERY_S * max(1, (now_s - due_s) // EVERY_S)
        if select.select([sys.stdin], [], [], max(0.0, due_s - now_s))[0]:
            if not sys.stdin.readline():
                return
            print(1e3 * longest_s, flush=True)
            longest_s, due_s = 0.0, time.perf_counter()


if __name__ == "__main__":
    main()
