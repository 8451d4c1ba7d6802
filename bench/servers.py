"""Starts and stops the servers that a bench measures, each pinned to one core.

A Stage owns a temporary folder and every process started in it; leaving it, by whatever way, stops
them by their process ids and removes the folder. Nothing here is timed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

RULE = "bench"  # every check's
START_S_MAX = 20.0
STOP_S_MAX = 10.0
CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGE = Path(os.environ.get("BENCH_PACKAGE", CHECKOUT))  # whose nodes are measured: this, or one that is compiled


class ServerError(RuntimeError):
    """A server ended, or did not get ready in time; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """One child process and the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until(self, claim: str, is_true: Callable[[], bool]) -> None:
        """Poll until is_true; raise ServerError when the process ends or time runs out first."""
        deadline = time.monotonic() + START_S_MAX
        while not is_true():
            exit_code = self.process.poll()
            if exit_code is not None:
                raise ServerError(f"{self.name} ended with {exit_code} before it was {claim}:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} was not {claim} in {START_S_MAX:g} s:\n{self._tail()}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


@dataclass(frozen=True, slots=True)
class System:
    """What is under test: where it answers checks, and every process that works on the answers."""

    http: str
    servers: tuple[Server, ...]  # the first is the one that is asked
    admin: str = ""  # of a limiter node
    workers: tuple[int, ...] = ()  # their pids, where it has several

    @property
    def server(self) -> Server:
        return self.servers[0]

    @property
    def pids(self) -> tuple[int, ...]:
        return (*(server.pid for server in self.servers), *self.workers)

    def is_ready(self) -> bool:
        """Whether a limiter node says that it is ready now."""
        return answers(f"http://{self.admin}/readyz")

    def with_its_workers(self) -> System:
        """The same, of a limiter node that is ready, with the processes of its workers."""
        workers = read_json(f"http://{self.admin}/v1/status").get("workers", ())
        return replace(self, workers=tuple(worker["pid"] for worker in workers))

    def with_help_of(self, *others: System) -> System:
        """The same where others work on its answers, too."""
        return replace(self, servers=(*self.servers, *(server for other in others for server in other.servers)))


@dataclass(frozen=True, slots=True)
class Cores:
    """Where things run: what is measured on one core; the load generator, etcd and Redis on the other."""

    server: int
    load: int

    @property
    def both(self) -> str:
        """For what is measured with its load beside it."""
        return f"{self.server},{self.load}"


@dataclass(frozen=True, slots=True)
class Numbers:
    """What every system enforces for each key: `count` per `period_s`, of which `burst` at once."""

    count: int
    period_s: int
    burst: int
    lease: bool | str = "auto"  # of ours alone

    @property
    def rule(self) -> dict[str, Any]:
        """As a rule of ours."""
        return {"rate": f"{self.count}/{self.period_s}s", "burst": self.burst, "lease": self.lease}


COPIED = Numbers(count=10, period_s=1, burst=2_000)
"""Of fleets: a token is back after 100 ms, so that a grant still counts when its copy is due after 20. Of one that is
back after 1 ms, as of 1,000 a second, there would be nothing to copy."""


class Stage:
    """The servers of one bench and the folder they live in."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="limiter-bench-"))
        self._servers: list[Server] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in reversed(self._servers):
            server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name: str, argv: Sequence[str], *, cpu: int | str, folder: Path = CHECKOUT) -> Server:
        """Start a process on that core, or on those; it is told to end should this one be killed."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["taskset", "-c", str(cpu), "setpriv", "--pdeathsig", "TERM", *argv],
                cwd=folder,
                env={name: value for name, value in os.environ.items() if not name.startswith("LIMITER_")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the bench, which then stops them in order
            )
        server = Server(name, process, log)
        self._servers.append(server)
        return server

    def pid(self, name: str) -> int:
        """Of the process that was started under that name."""
        return next(server.pid for server in self._servers if server.name == name)

    def etcd(self, *, cpu: int, name: str = "etcd") -> str:
        """Start an etcd of one member; return its client URL."""
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        argv = ["etcd", "--name", "bench", "--data-dir", str(self.folder / f"{name}.data"), "--logger", "zap"]
        argv += ["--listen-client-urls", client, "--advertise-client-urls", client]
        argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        argv += ["--initial-cluster", f"bench={peer}", "--log-level", "error"]
        server = self.start(name, argv, cpu=cpu)
        server.wait_until("healthy", lambda: answers(f"{client}/health"))
        return client

    def standalone(
        self,
        rules: dict[str, Any],
        *,
        cpu: int | str,
        name: str = "standalone",
        options: Sequence[str] = (),
        package: Path = PACKAGE,
    ) -> System:
        """Start a node without etcd that enforces these rules."""
        path = self.folder / f"{name}-rules.json"
        path.write_text(json.dumps({"rules": rules}))
        return self.node(name, ["--rules", str(path), *options], cpu=cpu, package=package)

    def node(self, name: str, options: Sequence[str], *, cpu: int | str, package: Path = PACKAGE) -> System:
        """Start a node on free ports and wait until it is ready."""
        return self.nodes([name], options, cpu=cpu, package=package)[0]

    def nodes(
        self, names: Sequence[str], options: Sequence[str], *, cpu: int | str, package: Path = PACKAGE
    ) -> list[System]:
        """Start nodes at the same time and wait until all are ready."""
        started = [self.start(name, [*_node_argv(name), *options], cpu=cpu, folder=package) for name in names]
        nodes = [_listening_node(server) for server in started]
        for node in nodes:
            node.server.wait_until("ready", node.is_ready)
        return [node.with_its_workers() for node in nodes]

    def joining_node(self, name: str, options: Sequence[str], *, cpu: int | str) -> System:
        """Start a node on free ports and wait only until it listens."""
        return _listening_node(self.start(name, [*_node_argv(name), *options], cpu=cpu, folder=PACKAGE))


def _node_argv(name: str) -> list[str]:
    argv = [sys.executable, "-m", "limiter_node", "serve", "--node-id", name]
    for listener in ("--http", "--admin", "--peer"):
        argv += [listener, "127.0.0.1:0"]
    return argv


def _listening_node(server: Server) -> System:
    server.wait_until("listening", lambda: _listening(server.log) is not None)
    where = _listening(server.log) or {}
    return System(where["http"], (server,), where["admin"])


def put(etcd: str, key: str, value: object) -> None:
    """Write one JSON value with etcdctl."""
    subprocess.run(
        ["etcdctl", "--endpoints", etcd, "put", key, json.dumps(value)],
        env={**os.environ, "ETCDCTL_API": "3"},
        stdout=subprocess.DEVNULL,
        timeout=10,
        check=True,
    )


def read_json(url: str) -> Any:
    """Fetch a JSON document."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def metric(node: System, name: str) -> float:
    """Read a metric without labels from a limiter node."""
    with urllib.request.urlopen(f"http://{node.admin}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def answers(url: str) -> bool:
    """Say whether the URL gives a 2xx now."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def takes_connections(port: int) -> bool:
    """Say whether something listens on that port of this host now."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def free_port() -> int:
    """Return a port to listen on from below the range that outgoing connections take theirs from."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def owners(admin: str, keys: Sequence[str]) -> list[str]:
    """Ask a node who owns each key; pipelined, or 40,000 keys would take minutes."""
    host, port = admin.rsplit(":", 1)
    head, tail = b"GET /v1/owner?key=", b" HTTP/1.1\r\nHost: " + admin.encode() + b"\r\n\r\n"
    found: list[str] = []
    with (
        socket.create_connection((host, int(port)), timeout=30) as connection,
        connection.makefile("rb") as answer,
    ):
        for first in range(0, len(keys), 50):
            chunk = keys[first : first + 50]
            connection.sendall(b"".join(head + key.encode() + tail for key in chunk))
            found += [json.loads(_read_body(answer))["owner"] for _ in chunk]
    return found


def _read_body(answer: Any) -> bytes:
    status = answer.readline()
    length = 0
    while (line := answer.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    if b" 200 " not in status:
        raise ServerError(f"/v1/owner answered {status!r}")
    body: bytes = answer.read(length)
    return body


def _listening(log: Path) -> dict[str, str] | None:
    for line in log.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("event") == "listening":
            return entry
    return None
