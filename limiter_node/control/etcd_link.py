"""One connection to one etcd endpoint: dialled, authenticated, its failures mapped to one error.

Does not know what is asked over it, nor which endpoint comes next: that is the session's (`control.etcd`).

It talks through aetcd's stubs: aetcd's client opens plain channels to one host only, and its watcher
hides the revision of a response and lets a broken stream look like a quiet one.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
from aetcd import rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

# Longest wait for one page of a read and for the start of a watch.
CALL_DEADLINE_S = 5.0

CHANNEL_OPTIONS = (
    # gRPC's own limit of 4 MB is below a page of large values. 13 KB for each key of a page is far above
    # anything the contract knows; a watch response is cut by etcd (`fragment`) at 2 MB.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # A dead TCP peer shows within 8 s. etcd drops clients that ping more often than every 5 s.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Each connection is dialled afresh; the shared pool would hand out one that waits in gRPC's backoff.
    ("grpc.use_local_subchannel_pool", 1),
    # etcd is inside; an http_proxy in the environment is meant for what is outside.
    ("grpc.enable_http_proxy", 0),
)
# A member that has lost its leader refuses, and ends streams, rather than serve a frozen view.
REQUIRE_LEADER = ("hasleader", "true")


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """Where etcd is and how to be let in; files are read anew at each connect."""

    endpoints: tuple[str, ...]  # http://host:port or https://host:port, tried in this order
    prefix: str  # root of the keys, as "/limiter": no slash at its end
    lease_ttl_s: float  # etcd takes whole seconds: rounded up
    ca: Path | None = None  # PEM; None: gRPC's own roots
    cert: Path | None = None  # PEM chain and key of a client certificate
    key: Path | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def renew_every_s(self) -> float:
        """Pause between renewals of the lease, and the longest wait for the answer to one.

        A third of the TTL to pause, a third to be answered: the last third is for another endpoint.
        """
        return self.lease_ttl_s / 3


class LinkError(Exception):
    """This connection is of no more use; only its repair, a new one, is left."""

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code  # gRPC's status name, or empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One open connection, and what each call on it carries."""

    endpoint: str
    kv: Any
    lease: Any
    watch: Any
    metadata: tuple[tuple[str, str], ...]


@contextmanager
def mapped() -> Iterator[None]:
    """Turn whatever a gRPC call can end with into LinkError."""
    try:
        yield
    except rpc.AioRpcError as exc:
        raise LinkError(f"{exc.code().name}: {exc.details()}", exc.code().name) from exc
    except TimeoutError as exc:
        raise LinkError("no answer within the deadline", "DEADLINE_EXCEEDED") from exc
    except (asyncio.InvalidStateError, grpc.aio.InternalError) as exc:  # a write to a stream that has ended meanwhile
        raise LinkError(f"stream ended: {exc}", "UNAVAILABLE") from exc
    except asyncio.CancelledError as exc:
        # gRPC raises this too when it has dropped a call by itself. Nobody cancelled us then, and a task
        # group would take it for an orderly end: the loop would be gone with the connection still up.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise LinkError("dropped by gRPC", "CANCELLED") from exc


async def call_once(method: Any, request: Any, link: Link, deadline_s: float = CALL_DEADLINE_S) -> Any:
    """Make one unary call within a deadline; raises LinkError whatever it ends with."""
    with mapped():
        return await method(request, timeout=deadline_s, metadata=link.metadata)


def _pem(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as exc:
        raise LinkError(f"cannot read {path}: {exc.strerror}") from exc


def _credentials(config: EtcdConfig) -> Any:
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(config.ca),
        private_key=_pem(config.key),
        certificate_chain=_pem(config.cert),
    )


async def _token(channel: Any, config: EtcdConfig) -> tuple[tuple[str, str], ...]:
    if config.user is None:
        return ()
    request = rpc.AuthenticateRequest(name=config.user, password=config.password or "")
    try:
        with mapped():
            answer = await rpc.AuthStub(channel).Authenticate(request, timeout=config.renew_every_s)
    except LinkError as exc:
        # Authentication is switched off in etcd. Going on without lets it be switched on while the fleet
        # runs: calls are refused from then on, and the next connection comes with a token.
        if exc.code == "FAILED_PRECONDITION":
            return ()
        raise
    return (("token", answer.token),)


@asynccontextmanager
async def dial(config: EtcdConfig, endpoint: str) -> AsyncIterator[Link]:
    """Open a link, with a token where etcd wants one; raises LinkError when it cannot be had."""
    url = urlsplit(endpoint)
    target = f"dns:///{url.netloc}"
    if url.scheme == "https":
        # In a thread: a secret's mount may be slow, and checks run on this loop.
        credentials = await asyncio.to_thread(_credentials, config)
        channel = rpc.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
    else:
        channel = rpc.insecure_channel(target, options=CHANNEL_OPTIONS)
    try:
        yield Link(
            endpoint=endpoint,
            kv=rpc.KVStub(channel),
            lease=rpc.LeaseStub(channel),
            watch=rpc.WatchStub(channel),
            metadata=(REQUIRE_LEADER, *await _token(channel, config)),
        )
    finally:
        await channel.close()
