"""Polls: the leader reads the pages of backends that have one, each at its own pace.

Only the leader polls, so that a fleet of any size is one client to a backend. A page that cannot be had or read is
counted and named in the status; it is evidence of nothing. A backend that does not answer in time says nothing either:
whether it is overloaded the callers' reports tell.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import structlog

from limiter_node.control.scrape import Page
from limiter_node.core.errors import BadRule

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from limiter_node.core.adaptive.controller import Controller
    from limiter_node.core.adaptive.registry import Backends
    from limiter_node.core.backends import Poll

log = structlog.get_logger()

JITTER = 0.1
"""Of the pace: polls of many backends drift apart."""

PAGE_BYTES_MAX = 4 << 20
TIMEOUT_MAX_S = 5.0


class Polls:
    """The polls under way."""

    def __init__(
        self, backends: Backends, controller: Controller, monotonic_ns: Callable[[], int], rng: random.Random
    ) -> None:
        self.done = 0
        self._backends = backends
        self._controller = controller
        self._monotonic_ns = monotonic_ns
        self._rng = rng
        self._tasks: dict[str, tuple[Poll, asyncio.Task[None]]] = {}

    def keep(self) -> None:
        """Poll what is to be polled, as the entries have it now."""
        wanted = {
            name: entry.poll
            for name, entry in self._backends.entries.items()
            if entry.poll is not None and entry.policy.mode != "off"
        }
        for name, (poll, task) in list(self._tasks.items()):
            if wanted.get(name) != poll:
                task.cancel()
                del self._tasks[name]
        for name, poll in wanted.items():
            if name not in self._tasks:
                self._tasks[name] = poll, asyncio.create_task(self._poll(name, poll), name=f"poll of {name}")

    def stop(self) -> None:
        """Poll no more."""
        for _, task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _poll(self, name: str, poll: Poll) -> None:
        page = Page(name, poll)
        timeout = aiohttp.ClientTimeout(total=min(TIMEOUT_MAX_S, max(poll.every_s, 1.0)))
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            while True:
                await self._read(session, name, poll, page)
                await asyncio.sleep(poll.every_s * self._rng.uniform(1 - JITTER, 1 + JITTER))

    async def _read(self, session: aiohttp.ClientSession, name: str, poll: Poll, page: Page) -> None:
        try:
            async with session.get(poll.url) as answer:
                answer.raise_for_status()
                body = await _whole(answer.content)
            now_ns = self._monotonic_ns()
            signal = page.read(body, now_ns)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, BadRule) as error:
            self._backends.reject(name, "poll", str(error) or "no answer in time")
            return
        self.done += 1
        if signal is not None:
            self._controller.polled(name, signal, now_ns)


async def _whole(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > PAGE_BYTES_MAX:
            raise ValueError(f"the page is too long; allowed: {PAGE_BYTES_MAX} bytes")
    return bytes(body)
