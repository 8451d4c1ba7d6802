"""Shows the whole thing running: a real etcd, three nodes, nginx in front, rules for free and premium users.

    ./scripts/demo [--once]

Everything it starts is a child of this process with its files in one temporary folder; both are gone
when it ends, however it ends. Parts, in reading order: Piece (one child process), Fleet (etcd, nodes, two
backends and nginx), Traffic (users who ask for more than their rule grants), and story(), which is told on the
screen. Its second act, a backend that is drowned, is `demo_overload`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from demo_overload import PLAN, WAY, Act, summary

from tests.overload import front as front_of_shop
from tests.overload.scenario import BACKEND, RULE, RULE_DOCUMENT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

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

TRAFFIC_S = 10
CHANGE_AT_S = 5
FREE_RATE_AFTER = 25  # per second and user, from CHANGE_AT_S on
# A change that takes longer than this to arrive is not "live".
ARRIVAL_S_MAX = 1.0

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
                rules = (await _json(http, f"http://{admin}/v1/rules"))["rules"]
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
        status = await _json(http, f"http://{admin}/v1/status")
        rules = await _json(http, f"http://{admin}/v1/rules")
    except (aiohttp.ClientError, TimeoutError):
        return False
    return len(status["ring"]["members"]) == NODES and "api" in rules["rules"]


async def _json(http: aiohttp.ClientSession, url: str) -> Any:
    async with http.get(url) as answer:
        return await answer.json()


def show_curls(fleet: Fleet) -> None:
    """Print what to type in another terminal."""
    check = f"http://{fleet.front}/v1/check"
    change = shlex.join([*fleet.etcdctl_put("rules/api"), json.dumps(with_free_rate("1/m"))])
    back = shlex.join([*fleet.etcdctl_put("rules/api"), json.dumps(API_RULE)])
    pin = shlex.join([*fleet.etcdctl_put(f"multipliers/{BACKEND}"), '{"multiplier": 0.3, "pinned": true}'])
    unpin = shlex.join([*fleet.etcdctl_put(f"multipliers/{BACKEND}")[:-2], "del", f"/limiter/multipliers/{BACKEND}"])
    report = json.dumps({"backend": BACKEND, "outcomes": [{"latency_ms": 12.5, "status": 200}, {"status": "timeout"}]})
    say(f"""
Try, in another terminal (alice is premium: 50/s, burst 100; bob is free: 5/s, burst 10):

  # 200, with what is left; X-Answered-By is the node that nginx chose
  curl -i '{check}?rule=api&key=alice'

  # the same as JSON, and three tokens at once
  curl -i {check} -d '{{"rule": "api", "key": "alice", "cost": 3}}' -H 'Content-Type: application/json'

  # ten times 200, then 429: bob's burst is spent, whichever node answers
  for i in $(seq 15); do curl -s -o /dev/null -w '%{{http_code}} ' '{check}?rule=api&key=bob'; done; echo

  # a live change: free users get one a minute; run the line above again
  ETCDCTL_API=3 {change}
  # and back
  ETCDCTL_API=3 {back}

  # the backend that the limiter protects, through nginx: 200, or 429 while it is overloaded
  curl -i http://{fleet.front}/guarded/ -H 'X-User: eve' -H 'X-Segment: free'

  # tell how the backend answers (nginx's log does, here): 202 from any node
  curl -i http://{fleet.front}/v1/report -d '{report}' -H 'Content-Type: application/json'

  # pin the backend's multiplier: alice's limit is 30 now; and give it back to the controller
  ETCDCTL_API=3 {pin}
  ETCDCTL_API=3 {unpin}

  # what a node knows: the fleet, the rules, who owns a key, a bucket
  curl -s http://{fleet.admins[0]}/v1/status
  curl -s http://{fleet.admins[0]}/v1/rules
  curl -s 'http://{fleet.admins[0]}/v1/owner?key=alice'
  curl -s http://{fleet.admins[0]}/v1/keys/api/alice
""")


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


async def story(*, once: bool, picture: Path) -> bool:
    """Run the demo; say whether all was as promised."""
    timeout = aiohttp.ClientTimeout(total=5)
    async with fleet_in_a_folder() as fleet, aiohttp.ClientSession(timeout=timeout) as http:
        await fleet.start(http)
        say(f"\nTraffic through nginx for {TRAFFIC_S} s, everybody asking for more than is granted:\n")
        kept = await unless_something_dies(fleet, Traffic(fleet, http).run())
        if not once:
            await unless_something_dies(fleet, second_act(fleet, http, picture))
        # After the traffic: whoever tries them meanwhile would change the rule under it.
        show_curls(fleet)
        if not once:
            say("Everything stays up until Ctrl-C.")
            await watch_over(fleet)
        return kept


async def second_act(fleet: Fleet, http: aiohttp.ClientSession, picture: Path) -> bool:
    """Drown the backend with and without the limiter; the picture stays when the demo is gone."""
    say(f"\nA backend is drowned for {PLAN.overload_s:g} s ({WAY.title}), with and without the limiter before it:\n")
    run = await Act(http, fleet.front, fleet.backends, fleet.admins).play(picture)
    say("\n".join(["", *summary(run), f"  drawn in {picture}"]))
    return True


async def unless_something_dies(fleet: Fleet, work: Coroutine[Any, Any, bool]) -> bool:
    """Await the work, but raise DemoError as soon as a piece of the fleet ends."""
    working, death = asyncio.ensure_future(work), asyncio.ensure_future(fleet.first_death())
    try:
        await asyncio.wait([working, death], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise DemoError((await death).obituary())
        return await working
    finally:
        working.cancel()
        death.cancel()


async def watch_over(fleet: Fleet) -> None:
    """Stay until cancelled, telling of every piece that ends."""
    while any(piece.lives for piece in fleet.pieces):
        say("\n" + (await fleet.first_death()).obituary())
    raise DemoError("nothing is left running")


async def until_told(*, once: bool, picture: Path) -> int:
    """Run the story until it ends or a signal says so; return the exit code."""
    told: list[signal.Signals] = []
    task = asyncio.ensure_future(story(once=once, picture=picture))

    def stop(sent: signal.Signals) -> None:
        # Only the first counts: a second Ctrl-C must not interrupt the cleaning up.
        if not told:
            told.append(sent)
            say("\nstopping")
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return 0 if await task else 1
    except asyncio.CancelledError:
        return 0 if told == [signal.SIGINT] else 128 + told[0]
    except (DemoError, aiohttp.ClientError) as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1


def main() -> None:
    """Parse the command line and run the demo."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="A real etcd, three nodes and nginx in front, with sample rules and some traffic.",
    )
    parser.add_argument("--once", action="store_true", help="end after the traffic instead of staying up")
    parser.add_argument(
        "--picture",
        type=Path,
        default=Path(tempfile.gettempdir()) / "limiter-demo-overload.svg",
        help="where the drowned backend is drawn; not with --once  [default: %(default)s]",
    )
    options = parser.parse_args()
    sys.exit(asyncio.run(until_told(once=options.once, picture=options.picture)))


if __name__ == "__main__":
    main()
