"""Where a node is spoken to: by clients, by people and by peers.

All workers of a node listen for checks at one port, and the kernel gives a connection to any of those that listen at
that moment; so a worker listens there only once it can answer. A connection that waits to be accepted when its worker
dies is lost with it. People ask the supervisor, which asks each worker at a unix socket; peers of the same node use
another one, those of other nodes the worker's own port.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from limiter_node import clock
from limiter_node.cluster.peer import PeerServer
from limiter_node.settings import Address, telling

if TYPE_CHECKING:
    from limiter_node.core.router import Router
    from limiter_node.edge.admin_api import AdminApi
    from limiter_node.edge.http_server import HttpServer
    from limiter_node.settings import Settings


class Listeners:
    """Opens and closes them; `addresses` are those in use."""

    def __init__(self, settings: Settings, router: Router, http: HttpServer, admin: AdminApi) -> None:
        self.addresses: dict[str, Address] = {}
        self.peer_connections: set[PeerServer] = set()
        self._settings = settings
        self._router = router
        self._http = http
        self._admin = admin
        self._peer_servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Listen, a worker for all but checks; raises OSError when that cannot be."""
        settings, worker = self._settings, self._settings.worker
        loop = asyncio.get_running_loop()
        with telling("peer", settings.peer):
            server = await loop.create_server(self._peer_server, settings.peer.host, settings.peer.port)
        self._peer_servers.append(server)
        self.addresses["peer"] = Address(*server.sockets[0].getsockname()[:2])
        if worker is None:
            await self.open()
            with telling("admin", settings.admin):
                self.addresses["admin"] = Address(*await self._admin.start(settings.admin.host, settings.admin.port))
            return
        for_siblings = _bound(worker.socket_of(worker.number, "peer"))
        self._peer_servers.append(await loop.create_unix_server(self._peer_server, sock=for_siblings))
        await self._admin.start_at(_bound(worker.socket_of(worker.number, "admin")))

    async def open(self) -> None:
        """Listen for checks."""
        http, is_shared = self._settings.http, self._settings.worker is not None
        with telling("http", http):
            self.addresses["http"] = Address(*await self._http.start(http.host, http.port, is_shared=is_shared))

    def _peer_server(self) -> PeerServer:
        return PeerServer(self._router, clock.now_ns, self.peer_connections)

    async def stop(self) -> None:
        """Close them, and every connection."""
        for server in self._peer_servers:
            server.close()
        for connection in list(self.peer_connections):
            connection.transport.abort()
        await self._http.stop(0)
        await self._admin.stop()


def _bound(name: str) -> socket.socket:
    """A unix socket of that name; uvloop does not bind abstract ones itself."""
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(name)
    return bound
