"""Tells the limiter what nginx saw: takes nginx's syslog lines over UDP and posts them to `/v1/report`, in batches.

    python -m tests.overload.reporter --listen 127.0.0.1:5514 --node 127.0.0.1:8080 --node 127.0.0.1:8090

A batch goes every 100 ms to one node after the other (any will do), and to the next one where a node does not answer.
Outcomes are hints: a batch that nobody takes is dropped and counted, never kept for later, when it would be old news.
What nginx has to log is in `front`. Should the app of a user do this itself, it needs no reporter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections import defaultdict
from itertools import cycle
from typing import Any

import aiohttp
import uvloop

BATCH_S = 0.1
POST_S_MAX = 1.0
OUTCOMES_MAX = 10_000  # of one report
POSTS_MAX = 20  # at a time

NO_ANSWER = {502: "error", 504: "timeout"}
"""What nginx says where the backend said nothing."""


def outcomes_of(line: str) -> tuple[str, list[dict[str, Any]]]:
    """Read one line: the backend, and an outcome for each server that nginx tried ("0.050, 0.061").

    ValueError when it is none.
    """
    _, brace, rest = line.partition("{")
    try:
        record = json.loads(brace + rest)
        tried = zip(record["seconds"].split(", "), record["status"].split(", "), strict=True)
        outcomes = [
            {"latency_ms": round(float(seconds) * 1e3, 3), "status": NO_ANSWER.get(int(status), int(status))}
            for seconds, status in tried
        ]
        return str(record["backend"]), outcomes
    except (KeyError, TypeError, AttributeError, ValueError) as failure:
        raise ValueError(f"no outcome: {line!r}") from failure


class Reporter(asyncio.DatagramProtocol):
    """Collects outcomes by backend until they are taken."""

    def __init__(self) -> None:
        self.outcomes: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.told = self.dropped = self.unreadable = 0

    def datagram_received(self, data: bytes, _: object) -> None:
        try:
            backend, outcomes = outcomes_of(data.decode(errors="replace"))
        except ValueError:
            self.unreadable += 1
            return
        self.outcomes[backend] += outcomes

    async def post(self, http: aiohttp.ClientSession, nodes: list[str], backend: str, batch: list[Any]) -> None:
        """Give a batch to the first of the nodes that takes it."""
        for node in nodes:
            try:
                async with http.post(
                    f"http://{node}/v1/report", json={"backend": backend, "outcomes": batch}
                ) as answer:
                    if answer.status == 202:
                        self.told += len(batch)
                        return
            except (aiohttp.ClientError, TimeoutError):
                continue
        self.dropped += len(batch)


async def run(listen: str, nodes: list[str], batch_s: float) -> None:
    """Report until told to stop."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    host, _, port = listen.rpartition(":")
    transport, reporter = await loop.create_datagram_endpoint(Reporter, local_addr=(host, int(port)))
    say(f"listening on {listen}")
    first = cycle(range(len(nodes)))
    posts: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=POST_S_MAX)) as http:
        while not told.is_set():
            await asyncio.sleep(batch_s)
            for backend in list(reporter.outcomes):
                batch = reporter.outcomes.pop(backend)[-OUTCOMES_MAX:]
                if len(posts) >= POSTS_MAX:
                    reporter.dropped += len(batch)
                    continue
                turn = next(first)
                post = asyncio.create_task(reporter.post(http, nodes[turn:] + nodes[:turn], backend, batch))
                posts.add(post)
                post.add_done_callback(posts.discard)
        if posts:
            await asyncio.wait(posts, timeout=POST_S_MAX)
    transport.close()
    say(f"{reporter.told} outcomes told, {reporter.dropped} dropped, {reporter.unreadable} lines unreadable")


def say(line: str) -> None:
    """Write a line to standard error at once."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Posts what nginx logs over UDP to a limiter's /v1/report.")
    parser.add_argument("--listen", required=True, help="HOST:PORT, UDP")
    parser.add_argument("--node", action="append", required=True, help="check address of a node; may be repeated")
    parser.add_argument("--batch-ms", type=float, default=BATCH_S * 1e3, help="how often a batch is posted")
    options = parser.parse_args()
    uvloop.run(run(options.listen, options.node, options.batch_ms / 1e3))


if __name__ == "__main__":
    main()
