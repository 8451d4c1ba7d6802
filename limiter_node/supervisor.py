"""The supervisor of a node with several workers: starts them, starts again those that die, ends them together.

Each worker is a process and a member of the ring like any node; the supervisor holds no key and decides no check, and
while it is frozen nobody misses it. When it dies its workers notice by the end of their lines, and drain.

The first worker is started alone: what it cannot do, none can, and it says so once. A worker that ends before all have
started ends the node, with its exit code; one that dies later is started again after a pause that doubles with each
death in a row. Its peers know by a refused connection that it is dead, and its replicas decide its keys meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from limiter_node import __version__
from limiter_node.control.board import (
    LINE_BYTES_MAX,
    Board,
    Opened,
    Post,
    Shown,
    Started,
    Task,
    decode_of_worker,
    encode,
)
from limiter_node.control.rules_file import check_file
from limiter_node.edge.workers_api import WorkersApi
from limiter_node.settings import Address, telling

if TYPE_CHECKING:
    from limiter_node.settings import Settings

log = structlog.get_logger()

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
"""A worker that has lived for longer is no crash loop."""

KILL_GRACE_S = 0.5
"""A worker keeps to the drain timeout by itself; one that does not is killed so much later."""


class WorkerEnded(Exception):
    """A worker could not start, and has said why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class WorkerProcess:
    """One worker: where it is in its life (an `edge.workers_api.WorkerView`), and the line to it."""

    def __init__(self, settings: Settings) -> None:
        assert settings.worker is not None
        self.id = settings.node_id
        self.number = settings.worker.number
        self.admin = settings.worker.socket_of(self.number, "admin")
        self.peer = ""
        self.restarts = 0
        self.state = "down"  # then starting, joining (it can be asked), listening (for checks)
        self.has_begun = asyncio.Event()  # to join, for the first time
        self.process: asyncio.subprocess.Process | None = None
        self.writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self.process.pid if self.process is not None else None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


class Supervisor:
    """Runs the workers of a node; `options` are those of the command line, for each worker to parse."""

    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        self.node_id = settings.node_id
        self.zone = settings.zone
        self.version = __version__
        self.addresses: dict[str, str] = {}
        self.is_draining = False
        self.is_begun = False
        self._settings = settings
        self._options = options
        self._run = secrets.token_hex(8)
        self.workers = [
            WorkerProcess(settings.of_worker(number, self._run)) for number in range(1, settings.workers + 1)
        ]
        self._board = Board(settings.workers)
        self._admin = WorkersApi(self)
        self._reserved: list[socket.socket] = []
        self._keeping: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all workers, and return once they have begun; raises what keeps them from it."""
        settings = self._settings
        if settings.is_standalone:
            log.warning("standalone: one node, no etcd; limits hold for this node alone", workers=settings.workers)
            if settings.rules is not None:
                check_file(settings.rules)
        with telling("http", settings.http):
            self._reserved, port = reserve(settings.http)
        self._options["http"] = str(Address(settings.http.host, port))
        with telling("admin", settings.admin):
            admin = await self._admin.start(settings.admin.host, settings.admin.port)
        self.addresses |= {"http": self._options["http"], "admin": str(Address(*admin)), "peer": str(settings.peer)}
        first, *others = self.workers
        await self._begin(first)
        await asyncio.gather(*map(self._begin, others))
        self.addresses["peer"] = first.peer
        log.info("listening", version=__version__, workers=settings.workers, **self.addresses)

    async def _begin(self, worker: WorkerProcess) -> None:
        keeping = asyncio.create_task(self._keep(worker), name=worker.id)
        self._keeping.append(keeping)
        beginning = asyncio.create_task(worker.has_begun.wait())
        try:
            await asyncio.wait((keeping, beginning), return_when=asyncio.FIRST_COMPLETED)
        finally:
            beginning.cancel()
        if not worker.has_begun.is_set():
            await keeping

    async def _keep(self, worker: WorkerProcess) -> None:
        """Have a worker run until the node is to end."""
        loop = asyncio.get_running_loop()
        backoff_s = BACKOFF_MIN_S
        while True:
            began_s = loop.time()
            code = await self._live(worker)
            if self.is_draining:
                return
            if not worker.has_begun.is_set():
                raise WorkerEnded(code)
            if loop.time() - began_s > BACKOFF_MAX_S:
                backoff_s = BACKOFF_MIN_S
            log.error("worker died, starting it again", worker=worker.id, code=code, after_s=backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(BACKOFF_MAX_S, 2 * backoff_s)
            worker.restarts += 1

    async def _live(self, worker: WorkerProcess) -> int:
        """One life of a worker; returns its exit code, or minus the signal that ended it."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = worker.process = await asyncio.create_subprocess_exec(*worker_command(), stdin=theirs.fileno())
        worker.state = "starting"
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES_MAX)
        try:
            if self.is_draining:
                worker.signal(signal.SIGTERM)
            writer.write(encode(Task(self._options, worker.number, self._run)))
            worker.writer = writer
            with suppress(ConnectionResetError):
                while line := await reader.readline():
                    self._hear(worker, line)
            return await process.wait()
        finally:
            writer.close()
            worker.process, worker.writer, worker.state = None, None, "down"
            self._admin.note_death(worker.number)
            self._lose(worker)

    def _hear(self, worker: WorkerProcess, line: bytes) -> None:
        match decode_of_worker(line):
            case Started(peer):
                worker.peer, worker.state = peer, "joining"
                worker.has_begun.set()
                self._show(worker)
            case Opened():
                worker.state = "listening"
                self.is_begun = self.is_begun or all(one.state == "listening" for one in self.workers)
            case Post(key, value):
                self._board.post(worker.id, key, value)
                self._show(*self.workers)

    def _lose(self, worker: WorkerProcess) -> None:
        """Take note of a death; a member that is not back when its lease would have run out, is none any more."""
        self._board.lose(worker.id)
        self._show(*self.workers)

        def lapse() -> None:
            self._board.lapse(worker.id)
            self._show(*self.workers)

        asyncio.get_running_loop().call_later(self._settings.lease_ttl_s, lapse)

    def _show(self, *workers: WorkerProcess) -> None:
        """Show workers that hear it what stands on the board; where there is etcd that is nothing."""
        notices = self._board.notices
        for worker in workers:
            if worker.writer is not None and worker.state != "starting" and notices:
                worker.writer.write(encode(Shown(notices)))

    # Its end.

    def hang_up(self) -> None:
        """Have certificates and tokens read again; by a worker that starts, they are about to be."""
        for worker in self.workers:
            if worker.state != "starting":
                worker.signal(signal.SIGHUP)

    async def run(self, stop: asyncio.Future[str]) -> None:
        """Run until `stop` says why that is to end; raises `WorkerEnded` where the node could not start."""
        starting = asyncio.create_task(self.start())
        await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            failing = asyncio.gather(*self._keeping)  # none ends by itself, but for a bug of ours
            await asyncio.wait((stop, failing), return_when=asyncio.FIRST_COMPLETED)
            if not stop.done():
                await failing
        starting.cancel()
        await self.drain(stop.result())

    async def drain(self, why: str) -> None:
        """End all workers together; takes at most the drain timeout."""
        settings = self._settings
        log.info("draining", why=why, delay_s=settings.drain_delay_s, timeout_s=settings.drain_timeout_s)
        self._end(signal.SIGTERM)
        ended = asyncio.gather(*self._keeping, return_exceptions=True)
        await asyncio.wait((ended,), timeout=settings.drain_timeout_s + KILL_GRACE_S)
        if any(worker.process is not None for worker in self.workers):
            log.warning("some workers did not end in time, and are killed")
        log.info("stopped")

    async def close(self) -> None:
        """End everything at once."""
        self._end(signal.SIGKILL)
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await self._admin.stop()
        for reserved in self._reserved:
            reserved.close()

    def _end(self, number: signal.Signals) -> None:
        """Start no worker any more, and send a signal to those that run."""
        self.is_draining = True
        for worker, keeping in zip(self.workers, self._keeping, strict=False):
            if worker.process is None:
                keeping.cancel()
            worker.signal(number)


async def supervise(settings: Settings, options: dict[str, Any]) -> int:
    """Run a node with several workers until a signal ends it, a second one at once; returns the exit code."""
    loop = asyncio.get_running_loop()
    supervisor = Supervisor(settings, options)
    stop: asyncio.Future[str] = loop.create_future()

    def on_stop(why: str) -> None:
        if not stop.done():
            stop.set_result(why)
            return
        log.warning("second signal: leaving at once")
        for worker in supervisor.workers:
            worker.signal(signal.SIGKILL)
        os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop, number.name)
    loop.add_signal_handler(signal.SIGHUP, supervisor.hang_up)
    try:
        await supervisor.run(stop)
    except WorkerEnded as ended:
        return max(1, ended.code)
    finally:
        await supervisor.close()
    return 0


def worker_command() -> list[str]:
    """A Python that finds the package as this one did: when installed, not in the working directory."""
    is_script = sys.modules["__main__"].__spec__ is None
    return [sys.executable, *(("-P",) if is_script else ()), "-m", "limiter_node", "worker"]


def reserve(address: Address) -> tuple[list[socket.socket], int]:
    """Take a port for all workers to listen at: sockets that are bound to it, and its number.

    Raises OSError where somebody else listens there. Nobody is connected to a socket that does not listen.
    """
    reserved: list[socket.socket] = []
    port = address.port
    places = socket.getaddrinfo(address.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, (host, _, *rest) in places:
        try:
            shared = socket.socket(family, kind, protocol)
        except OSError:  # a machine without IPv6
            continue
        reserved.append(shared)
        with socket.socket(family, kind, protocol) as probe:
            # Who shares a port is not told of others who do: another node of this user.
            _bind(probe, socket.SO_REUSEADDR, (host, port, *rest))
        _bind(shared, socket.SO_REUSEPORT, (host, port, *rest))
        port = shared.getsockname()[1]
    return reserved, port


def _bind(end: socket.socket, option: int, address: tuple[Any, ...]) -> None:
    end.setsockopt(socket.SOL_SOCKET, option, 1)
    if end.family is socket.AF_INET6:
        end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio binds it
    end.bind(address)
