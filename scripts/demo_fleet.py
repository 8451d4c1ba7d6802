"""What the demo runs: a real etcd, three nodes, two backends, a reporter, and nginx in front of them all.

Everything is a child of this process with its files in one temporary folder; both are gone when `fleet_in_a_folder` is
left, however it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from demo_overload import PLAN

from tests.overload import front as front_of_shop
from tests.overload.scenario import BACKEND, RULE, RULE_DOCUMENT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

NODES = 3
FRONT_PORT = 8080
ETCD_PORT = 12379
SHOP_PORT = 8090  # of the two backends and the reporter: 8090, 8091, 8092 (UDP)
NODE_PORT = 8110  # node-1 checks on 8110, admin on 8111, peers on 8112; node-2 on 8120 ...
READY_S_MAX = 30.0
STOP_S_MAX = 15.0
LOG_TAIL_LINES = 15

API_RULE: dict[str, Any] = {
    "rate": "5/s",
    "burst": 10,
    "segments": {
        "free": {"rate": "5/s", "burst": 10, "priority": 9},
        "premium": {"rate": "50/s", "burst": 100, "priority": 0},
    },
    "backend": BACKEND,
}
KEYS = {"alice": {"segment": "premium"}, "bob": {"segment": "free"}}

NGINX_CONF = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    upstream limiter {{
        {servers}
        keepalive 64;
    }}
    {shop_http}
    server {{
        listen {address};
        {shop_server}
        location / {{
            proxy_pass http://limiter;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_connect_timeout 250ms;
            proxy_send_timeout 2s;
            proxy_read_timeout 2s;
            proxy_next_upstream error timeout http_503;
            add_header X-Answered-By $upstream_addr always;
        }}
    }}
}}
"""


class DemoError(Exception):
    """Something the demo needs did not work; the message is for the person watching."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One child process, its output in a file."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @property
    def lives(self) -> bool:
        """Whether the process has not ended."""
        return self.process.returncode is None

    def last_words(self) -> str:
        """Return the end of the log."""
        tail = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "the end of its log:\n" + ("\n".join(f"    {line}" for line in tail) or "    (nothing)")

    def obituary(self) -> str:
        """Say how the process ended and what it said last."""
        return f"{self.name} ended with exit code {self.process.returncode}; {self.last_words()}"

    async def stop(self) -> None:
        """End the process: politely, then not."""
        if not self.lives:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


class Fleet:
    """etcd, the nodes registered in it, and nginx in front of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pieces: list[Piece] = []
        self.etcd = f"http://127.0.0.1:{port_near(ETCD_PORT)}"
        self.front = f"127.0.0.1:{port_near(FRONT_PORT)}"
        self.checks: list[str] = []
        self.admins: list[str] = []
        self.backends = [f"127.0.0.1:{port_near(SHOP_PORT + number)}" for number in range(2)]
        self.reporter = f"127.0.0.1:{port_near(SHOP_PORT + 2)}"

    async def start(self, http: aiohttp.ClientSession) -> None:
        """Start everything and return once every node has joined the ring and knows the rule."""
        await self._start_etcd()
        await self._ready("etcd", _ok, http, f"{self.etcd}/health")
        say(f"etcd      {self.etcd}")
        await self.put("rules/api", API_RULE)
        await self.put(f"rules/{RULE}", RULE_DOCUMENT)
        await self.put(f"backends/{BACKEND}", {"slo_ms": PLAN.slo_ms})
        for key, value in KEYS.items():
            await self.put(f"keys/{key}", value)
        for number in range(1, NODES + 1):
            await self._start_node(number)
        for number, admin in enumerate(self.admins, start=1):
            await self._ready(f"node-{number}", _has_joined, http, admin)
            say(f"node-{number}    http://{self.checks[number - 1]}, admin http://{admin}/v1/status")
        await self._start_shop()
        say(f"backends  http://{self.backends[0]} behind the limiter, http://{self.backends[1]} behind nobody")
        await self._start_nginx()
        await self._ready("nginx", _ok, http, f"http://{self.front}/v1/check?rule=api&key=alice&cost=0")
        say(f"nginx     http://{self.front}, round robin over the three")
        say(f"logs      {self.folder}/*.log")

    async def put(self, name: str, value: object) -> None:
        """Write one value the way a person would: with etcdctl."""
        argv = [*self.etcdctl_put(name), json.dumps(value)]
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=os.environ | {"ETCDCTL_API": "3"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _, complaint = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise DemoError(f"{shlex.join(argv)}: {complaint.decode(errors='replace')}")

    def etcdctl_put(self, name: str) -> list[str]:
        """Return the command that writes a key, up to its value."""
        return ["etcdctl", f"--endpoints={self.etcd}", "put", f"/limiter/{name}"]

    async def arrived(self, http: aiohttp.ClientSession, rate: str) -> None:
        """Return once every node enforces this rate for free users."""
        for admin in self.admins:
            while True:
                rules = (await read_json(http, f"http://{admin}/v1/rules"))["rules"]
                if rules["api"]["segments"]["free"]["rate"] == rate:
                    break
                await asyncio.sleep(0.01)

    async def first_death(self) -> Piece:
        """Return the first piece that ends by itself."""
        alive = {asyncio.ensure_future(piece.process.wait()): piece for piece in self.pieces if piece.lives}
        try:
            done, _ = await asyncio.wait(alive, return_when=asyncio.FIRST_COMPLETED)
            return alive[done.pop()]
        finally:
            for waiting in alive:
                waiting.cancel()

    async def stop(self) -> None:
        """Stop from the front to the back, so that nothing is asked of what is gone."""
        while self.pieces:
            nodes = [piece for piece in self.pieces if piece.name.startswith("node-")]
            last = nodes if self.pieces[-1] in nodes else [self.pieces[-1]]
            await asyncio.gather(*(piece.stop() for piece in last))
            self.pieces = [piece for piece in self.pieces if piece not in last]

    async def _start_etcd(self) -> None:
        peer = f"http://127.0.0.1:{port_near(ETCD_PORT + 1)}"
        argv = ["etcd", "--name", "demo", "--data-dir", str(self.folder / "etcd")]
        argv += ["--listen-client-urls", self.etcd, "--advertise-client-urls", self.etcd]
        argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        argv += ["--initial-cluster", f"demo={peer}", "--logger", "zap", "--log-level", "warn"]
        await self._run("etcd", argv)

    async def _start_node(self, number: int) -> None:
        check, admin, peer = (f"127.0.0.1:{port_near(NODE_PORT + 10 * (number - 1) + offset)}" for offset in range(3))
        self.checks.append(check)
        self.admins.append(admin)
        argv = [sys.executable, "-m", "limiter_node", "serve", "--etcd", self.etcd]
        argv += ["--node-id", f"node-{number}", "--http", check, "--admin", admin, "--peer", peer]
        await self._run(f"node-{number}", argv)

    async def _start_shop(self) -> None:
        """Two equal backends, and what tells the nodes what nginx saw of the first."""
        for number, backend in enumerate(self.backends, start=1):
            argv = [sys.executable, "-m", "tests.overload.backend", "--port", backend.rpartition(":")[2]]
            argv += ["--workers", str(PLAN.workers), "--service-ms", str(PLAN.service_ms)]
            await self._run(f"backend-{number}", argv)
        argv = [sys.executable, "-m", "tests.overload.reporter", "--listen", self.reporter]
        for check in self.checks:
            argv += ["--node", check]
        await self._run("reporter", argv)

    async def _start_nginx(self) -> None:
        servers = " ".join(f"server {check} max_fails=1 fail_timeout=1s;" for check in self.checks)
        conf = self.folder / "nginx.conf"
        shop_server = front_of_shop.server_config(self.reporter, PLAN.timeout_s)
        conf.write_text(
            NGINX_CONF.format(
                folder=self.folder,
                servers=servers,
                address=self.front,
                shop_http=front_of_shop.http_config(*self.backends),
                shop_server=shop_server,
            )
        )
        await self._run("nginx", ["nginx", "-e", "stderr", "-c", str(conf)])

    async def _run(self, name: str, argv: Sequence[str]) -> None:
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                # Should this process be killed outright, the kernel still tells its children to end.
                *("setpriv", "--pdeathsig", "TERM", *argv),
                env={name: value for name, value in os.environ.items() if not name.startswith("LIMITER_")},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is for this process, which stops the others in order
            )
        self.pieces.append(Piece(name, process, log))

    async def _ready(
        self,
        name: str,
        is_ready: Callable[[aiohttp.ClientSession, str], Awaitable[bool]],
        http: aiohttp.ClientSession,
        where: str,
    ) -> None:
        deadline = time.monotonic() + READY_S_MAX
        while not await is_ready(http, where):
            for piece in self.pieces:
                if not piece.lives:
                    raise DemoError(piece.obituary())
                if piece.name == name and time.monotonic() > deadline:
                    raise DemoError(f"{name} was not ready in {READY_S_MAX:g} s; {piece.last_words()}")
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def fleet_in_a_folder() -> AsyncIterator[Fleet]:
    """Give an unstarted fleet; stop what runs of it and remove its folder afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="limiter-demo-"))
    try:
        fleet = Fleet(folder)
        try:
            yield fleet
        finally:
            await fleet.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def say(line: str = "") -> None:
    """Print a line at once."""
    print(line, flush=True)


def port_near(wanted: int) -> int:
    """Return the wanted port if nobody listens there, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            # As servers do: connections of an earlier demo that linger are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise DemoError("no free port on 127.0.0.1")


async def _ok(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False  # not yet


async def _has_joined(http: aiohttp.ClientSession, admin: str) -> bool:
    """Say whether the node is ready, sees the whole fleet and knows the sample rule."""
    if not await _ok(http, f"http://{admin}/readyz"):
        return False
    try:
        status = await read_json(http, f"http://{admin}/v1/status")
        rules = await read_json(http, f"http://{admin}/v1/rules")
    except (aiohttp.ClientError, TimeoutError):
        return False
    return len(status["ring"]["members"]) == NODES and "api" in rules["rules"]


async def read_json(http: aiohttp.ClientSession, url: str) -> Any:
    """GET a JSON document."""
    async with http.get(url) as answer:
        return await answer.json()
