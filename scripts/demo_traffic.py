"""The demo's first act: users who all ask for more than their rule grants, and a rule that changes half-way."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from demo_fleet import API_RULE, NODES, DemoError, say

if TYPE_CHECKING:
    from demo_fleet import Fleet

TRAFFIC_S = 10
CHANGE_AT_S = 5
FREE_RATE_AFTER = 25  # per second and user, from CHANGE_AT_S on


@dataclass
class Segment:
    """Users of one segment: what they ask for, what their rule promises, what came of it."""

    name: str
    users: int
    asks_per_s: int  # each user
    rate_per_s: float
    burst: float
    sent: int = 0
    allowed: int = 0
    denied: int = 0
    failed: int = 0
    # Tokens that each user was promised until `since`, at the rates in force until then.
    promised: float = 0.0
    since: float = 0.0

    def begin(self, now: float) -> None:
        """Start with full buckets."""
        self.promised, self.since = self.burst, now

    def change_rate(self, rate_per_s: float, now: float) -> None:
        """Count what was promised until now at the old rate, and go on at the new one."""
        self.promised, self.since = self.promise_each(now), now
        self.rate_per_s = rate_per_s

    def promise_each(self, now: float) -> float:
        """Return what one user may have been granted at most: burst + rate x time."""
        return self.promised + self.rate_per_s * (now - self.since)

    def promise(self, now: float) -> int:
        """Return what all users of the segment may have been granted at most."""
        return self.users * int(self.promise_each(now))

    def row(self, now: float) -> str:
        """Return the segment's columns of the progress table."""
        return f"{self.sent:>8}{self.allowed:>9}{self.denied:>8}{self.promise(now):>9}"


class Traffic:
    """Users who all ask for more than their rule grants, through nginx, for TRAFFIC_S seconds."""

    def __init__(self, fleet: Fleet, http: aiohttp.ClientSession) -> None:
        self.fleet = fleet
        self.http = http
        # Keys of their own: alice's and bob's buckets stay full for the curls.
        self.segments = (
            Segment("free", users=3, asks_per_s=40, rate_per_s=5, burst=10),
            Segment("premium", users=2, asks_per_s=100, rate_per_s=50, burst=100),
        )
        self.nodes_asked: set[str] = set()

    async def run(self) -> bool:
        """Send, show progress, change a rule half-way; say whether the promise was kept."""
        heading = f"{'sent':>8}{'allowed':>9}{'denied':>8}{'at most':>9}"
        say("  seconds" + "".join(f"  {segment.name:>9}{heading}" for segment in self.segments))
        start = time.monotonic()
        try:
            async with asyncio.TaskGroup() as tasks:
                for segment in self.segments:
                    segment.begin(start)
                    for user in range(1, segment.users + 1):
                        tasks.create_task(self._ask(segment, f"{segment.name}-user-{user}", start))
                await self._narrate(start)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        end = time.monotonic()
        await self.fleet.put("rules/api", API_RULE)
        return self._verdict(end)

    async def _narrate(self, start: float) -> None:
        for second in range(1, TRAFFIC_S + 1):
            await asyncio.sleep(start + second - time.monotonic())
            now = time.monotonic()
            say(f"  {second:>7}" + "".join(f"  {'':>9}{segment.row(now)}" for segment in self.segments))
            if second == CHANGE_AT_S:
                await self._change(self.segments[0])

    async def _ask(self, segment: Segment, key: str, start: float) -> None:
        url = f"http://{self.fleet.front}/v1/check"
        query = {"rule": "api", "key": key, "segment": segment.name}
        for turn in range(segment.asks_per_s * TRAFFIC_S):
            await asyncio.sleep(start + turn / segment.asks_per_s - time.monotonic())
            segment.sent += 1
            try:
                async with self.http.get(url, params=query) as answer:
                    await answer.read()
            except (aiohttp.ClientError, TimeoutError):
                segment.failed += 1
                continue
            self.nodes_asked.add(answer.headers.get("X-Answered-By", ""))
            if answer.status == 200:
                segment.allowed += 1
            elif answer.status == 429:
                segment.denied += 1
            else:
                segment.failed += 1

    async def _change(self, free: Segment) -> None:
        rate = f"{FREE_RATE_AFTER}/s"
        free.change_rate(FREE_RATE_AFTER, time.monotonic())
        await self.fleet.put("rules/api", with_free_rate(rate))
        written = time.monotonic()
        try:
            async with asyncio.timeout(5):
                await self.fleet.arrived(self.http, rate)
        except TimeoutError:
            raise DemoError(f"the new rate {rate} did not reach every node in 5 s") from None
        took_ms = (time.monotonic() - written) * 1e3
        say(f"{'':11}etcdctl put: free users now get {rate}; all {NODES} nodes had it {took_ms:.0f} ms later")

    def _verdict(self, end: float) -> bool:
        kept = True
        for segment in self.segments:
            at_most = segment.promise(end)
            # Everybody asks all the time, so all that is promised is used, but for a second while the
            # change was on its way and for tokens that came between two requests.
            at_least = 0.8 * at_most
            good = at_least <= segment.allowed <= at_most and not segment.failed
            say(
                f"  {segment.name}: {segment.users} users sent {segment.sent}, {segment.allowed} allowed"
                f" of at most {at_most} promised (burst + rate x time), {segment.denied} denied,"
                f" {segment.failed} failed: {'as promised' if good else 'NOT AS PROMISED'}"
            )
            kept = kept and good
        say(f"  {len(self.nodes_asked)} nodes were asked; each user has one bucket all the same")
        return kept


def with_free_rate(rate: str) -> dict[str, Any]:
    """Return the sample rule with another rate for free users."""
    segments = API_RULE["segments"]
    return {**API_RULE, "segments": {**segments, "free": {**segments["free"], "rate": rate}}}
