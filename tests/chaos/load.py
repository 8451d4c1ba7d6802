"""Open-loop load: checks are sent at fixed times, whether or not earlier ones have been answered.

Each check's time counts from when it was meant to be sent. A client that waits for its last answer stops asking while a
server hangs and so never sees the hang (coordinated omission); this one goes on, on as many connections as that takes.
The load runs on an event loop in a thread of its own; everything it saw is read after the context is left.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlencode

from tests.harness import split_address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHECK_TIMEOUT_S = 5.0
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Check:
    """One check that was sent, or could not be; times are seconds since the load began."""

    key: str
    address: str
    intended_s: float
    done_s: float
    status: int  # 0: no answer
    body: Any  # the verdict, or why there is none

    @property
    def granted(self) -> bool:
        return self.status == 200

    @property
    def failed(self) -> bool:
        """Not answered, answered with an error, or denied for want of anybody to ask."""
        return self.status not in (200, 429) or self.body.get("reason") == "unreachable"

    @property
    def degraded(self) -> bool:
        return not self.failed and bool(self.body["degraded"])

    @property
    def latency_s(self) -> float:
        return self.done_s - self.intended_s

    def __str__(self) -> str:
        answer = self.status or self.body
        return (
            f"{self.key} at {self.intended_s:.3f} s, {answer} from {self.address} after {self.latency_s * 1e3:.0f} ms"
        )


class Gap(NamedTuple):
    """A time without answers."""

    length_s: float
    began_s: float  # since the load began


class Load:
    """Asks for a token of each key in turn, of each address in turn, so many times a second until the context is left.

    `began_s` is its time zero on the monotonic clock.
    """

    def __init__(self, addresses: Sequence[str], rule: str, keys: Sequence[str], rate_per_s: float) -> None:
        self.checks: list[Check] = []
        self.began_s = 0.0
        self._addresses = list(addresses)
        self._rule = rule
        self._keys = list(keys)
        self._interval_s = 1 / rate_per_s
        self._stop = threading.Event()
        self._idle: dict[str, list[_Connection]] = defaultdict(list)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self.began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(3 * CHECK_TIMEOUT_S)

    # What came of it

    @property
    def now_s(self) -> float:
        """Seconds since it began, as its checks tell time."""
        return time.monotonic() - self.began_s

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.failed]

    @property
    def degraded(self) -> list[Check]:
        return [check for check in self.checks if check.degraded]

    @property
    def gap(self) -> Gap:
        """The longest time that any key went without a good answer, or that any one check waited for its own."""
        good: dict[str, list[float]] = defaultdict(list)
        for check in self.checks:
            if not check.failed:
                good[check.key].append(check.done_s)
        gaps = [Gap(check.latency_s, check.intended_s) for check in self.checks]
        for done in good.values():
            done.sort()
            gaps += [Gap(later - earlier, earlier) for earlier, later in pairwise(done)]
        return max(gaps, default=Gap(0.0, 0.0))

    def granted(self, since_s: float = 0.0, until_s: float = float("inf")) -> Counter[str]:
        """{key: grants answered in that time}, zeros included."""
        found = Counter(dict.fromkeys(self._keys, 0))
        found.update(check.key for check in self.checks if check.granted and since_s <= check.done_s <= until_s)
        return found

    def latency_s(self, quantile: float, since_s: float = 0.0, until_s: float = float("inf")) -> float:
        """That quantile of the latencies of checks meant to be sent in that time."""
        found = sorted(check.latency_s for check in self.checks if since_s <= check.intended_s <= until_s)
        return found[min(int(quantile * len(found)), len(found) - 1)]

    # How it is made

    async def _run(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        number = 0
        while not self._stop.is_set():
            wait_s = number * self._interval_s - self.now_s
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, 0.05))
                continue
            key = self._keys[number % len(self._keys)]
            address = self._addresses[number // len(self._keys) % len(self._addresses)]
            task = asyncio.create_task(self._ask(key, address, number * self._interval_s))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        if tasks:
            await asyncio.wait(tasks, timeout=2 * CHECK_TIMEOUT_S)
        for connections in self._idle.values():
            for connection in connections:
                connection[1].close()

    async def _ask(self, key: str, address: str, intended_s: float) -> None:
        status, body = 0, None
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                status, body = await self._exchange(address, key)
        except (OSError, EOFError, TimeoutError, ValueError) as failure:
            body = repr(failure)
        self.checks.append(Check(key, address, intended_s, self.now_s, status, body))

    async def _exchange(self, address: str, key: str) -> tuple[int, Any]:
        idle = self._idle[address]
        while idle and idle[-1][0].at_eof():
            idle.pop()[1].close()
        connection = idle.pop() if idle else await asyncio.open_connection(*split_address(address))
        reader, writer = connection
        is_reusable = False
        try:
            target = "/v1/check?" + urlencode({"rule": self._rule, "key": key})
            writer.write(f"GET {target} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
            status, headers = _head(await reader.readuntil(b"\r\n\r\n"))
            body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))))
            is_reusable = headers.get("connection", "").lower() != "close"
            return status, body
        finally:
            if is_reusable:
                idle.append(connection)
            else:
                with suppress(OSError):
                    writer.close()


def _head(data: bytes) -> tuple[int, Mapping[str, str]]:
    status_line, *lines = data.decode("latin-1").rstrip().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(status_line.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}
