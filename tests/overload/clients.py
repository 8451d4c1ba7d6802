"""Open-loop clients: requests are sent when they are due, whether or not earlier ones have been answered.

Every arrival goes to both sides, guarded and open, at the same time, so that the two see the same demand. A request's
time counts from when it was due: a client that is late itself counts as slow, and does not hide what it waits for
(coordinated omission). Arrivals are Poisson's, drawn beforehand from a seed. Whoever is turned away does not try again:
that is another experiment (the laboratory has it).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from tests.overload.scenario import SHARES, USERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PATIENCE_S = 5.0
TURNED_AWAY = 429


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that is due; seconds since the start."""

    due_s: float
    segment: str
    user: str


@dataclass(frozen=True, slots=True)
class Shot:
    """What became of a request to one side."""

    side: str
    segment: str
    due_s: float
    sent_s: float
    latency_s: float  # since it was due
    status: int  # 0: no answer

    @property
    def admitted(self) -> bool:
        return self.status != TURNED_AWAY


def arrivals(rate_s: Callable[[float], float], until_s: float, seed: int) -> list[Arrival]:
    """Draw Poisson arrivals at a rate that changes in steps."""
    draw = random.Random(seed)
    found: list[Arrival] = []
    now_s = 0.0
    while True:
        # The rate changes twice in a run: a gap drawn at the rate before it is one gap.
        now_s += draw.expovariate(rate_s(now_s))
        if now_s >= until_s:
            return found
        segment = draw.choices(list(SHARES), list(SHARES.values()))[0]
        found.append(Arrival(now_s, segment, f"{segment}-{draw.randrange(USERS[segment])}"))


class Clients:
    """Sends arrivals to every side; `urls` is {side: url}."""

    def __init__(self, urls: Mapping[str, str], start_s: float) -> None:
        self.shots: list[Shot] = []
        self.sent: Counter[int] = Counter()  # requests to each side, by the second in which they were due
        self._urls = urls
        self._start_s = start_s

    def now_s(self) -> float:
        """Seconds since the start."""
        return asyncio.get_running_loop().time() - self._start_s

    async def send(self, due: Sequence[Arrival]) -> None:
        """Send everything when it is due; returns when all is answered or given up."""
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        tasks: set[asyncio.Task[None]] = set()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as http:
            try:
                for arrival in due:
                    await asyncio.sleep(max(arrival.due_s - self.now_s(), 0))
                    self.sent[int(arrival.due_s)] += 1
                    for side, url in self._urls.items():
                        task = asyncio.create_task(self._ask(http, side, url, arrival))
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
                if tasks:
                    await asyncio.wait(tasks)
            finally:
                for task in tasks:
                    task.cancel()

    async def _ask(self, http: aiohttp.ClientSession, side: str, url: str, arrival: Arrival) -> None:
        sent_s = self.now_s()
        status = 0
        try:
            headers = {"X-User": arrival.user, "X-Segment": arrival.segment}
            async with http.get(url, headers=headers) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            pass  # no answer, which is what the shot says
        self.shots.append(Shot(side, arrival.segment, arrival.due_s, sent_s, self.now_s() - arrival.due_s, status))
