"""The wire between the hosts of `hosts`: a process that carries IP packets from one TUN device to another.

Linux's own netem does the like, but many kernels come without it; TUN devices they have. Whatever crosses the wire is
real TCP: a packet is dropped, delayed or carried, and the hosts' kernels see to the rest. It knows nothing of limiters.

Started with a seed and ADDRESS=DESCRIPTOR of each device. Each line of standard input is the whole state of the links,
in JSON, and is answered once it is in force; the end of standard input ends the process. Packets that are on their way
when a link is cut are lost.

As with netem, each packet's delay is drawn alone, so that packets may overtake one another.
"""

from __future__ import annotations

import heapq
import ipaddress
import json
import os
import random
import selectors
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKET_BYTES_MAX = 65_536
NICENESS = -15
"""A wire waits for no processor: where nodes and load take them all, packets are carried first."""
SOURCE, DESTINATION = slice(12, 16), slice(16, 20)
_Link = tuple[bytes, bytes]


class Wire:
    """The links' state, and the packets that are on their way."""

    def __init__(self, devices: dict[bytes, int], seed: int) -> None:
        self._devices = devices
        self._random = random.Random(seed)
        self._cut: set[_Link] = set()
        self._slow: set[_Link] = set()
        self._delay_s = self._jitter_s = self._loss = 0.0
        self._in_flight: list[tuple[float, int, _Link, bytes]] = []  # (due, number, link, packet), a heap
        self._carried = 0

    def set_links(self, line: str) -> None:
        """Cut and slow exactly these, both ways."""
        told = json.loads(line)
        self._cut, self._slow = both_ways(told["cut"]), both_ways(told["slow"])
        self._delay_s, self._jitter_s = told["delay_ms"] / 1e3, told["jitter_ms"] / 1e3
        self._loss = told["loss"]

    def take(self, packet: bytes, now_s: float) -> None:
        """Carry, delay or drop one packet."""
        link = packet[SOURCE], packet[DESTINATION]
        if link[1] not in self._devices or link in self._cut:
            return
        delay_s = 0.0
        if link in self._slow:
            if self._random.random() < self._loss:
                return
            delay_s = self._delay_s + self._random.uniform(-self._jitter_s, self._jitter_s)
        self._carried += 1
        heapq.heappush(self._in_flight, (now_s + delay_s, self._carried, link, packet))

    def deliver(self, now_s: float) -> float | None:
        """Hand over what is due; returns how long until the next packet is, None when nothing is on its way."""
        while self._in_flight:
            due_s, _, link, packet = self._in_flight[0]
            if due_s > now_s:
                return due_s - now_s
            heapq.heappop(self._in_flight)
            if link not in self._cut:
                with suppress(OSError):  # a full queue drops packets, as real ones do
                    os.write(self._devices[link[1]], packet)
        return None


def both_ways(pairs: list[list[str]]) -> set[_Link]:
    """The links of these pairs of addresses, there and back."""
    ends = [(ipaddress.ip_address(one).packed, ipaddress.ip_address(other).packed) for one, other in pairs]
    return {*ends, *((other, one) for one, other in ends)}


def serve(wire: Wire, devices: Iterable[int]) -> None:
    """Carry packets, and obey standard input, until that ends."""
    control = sys.stdin.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        for device in devices:
            selector.register(device, selectors.EVENT_READ)
        wait_s: float | None = None
        while True:
            for key, _ in selector.select(wait_s):
                if key.fd != control:
                    with suppress(BlockingIOError):
                        while True:
                            wire.take(os.read(key.fd, PACKET_BYTES_MAX), time.monotonic())
                elif line := sys.stdin.readline():
                    wire.set_links(line)
                    sys.stdout.write("done\n")
                    sys.stdout.flush()
                else:
                    return
            wait_s = wire.deliver(time.monotonic())


def main(seed: str, *pairs: str) -> None:
    """Read the command line."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    devices = {}
    for address, _, device in (pair.partition("=") for pair in pairs):
        devices[ipaddress.ip_address(address).packed] = int(device)
        os.set_blocking(int(device), False)
    serve(Wire(devices, int(seed)), devices.values())


if __name__ == "__main__":
    main(*sys.argv[1:])
