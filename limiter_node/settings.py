"""One node's settings: what the command line and the environment say, checked all at once.

Pure: strings in, frozen settings out, or a `ConfigError` that lists every problem with the option's name. Precedence is
the command line's: option, then `LIMITER_<OPTION>`, then the default.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from limiter_node.core.errors import ConfigError
from limiter_node.core.rules import NAME_ALLOWED, is_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PORT = re.compile("[0-9]{1,5}")
WORKERS_MAX = 64
"""Every worker pings every other some fifty times a second."""

WILDCARDS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - recognised here, not bound


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen at or to dial."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def of_worker(self, number: int) -> Address:
        """Where a worker listens, the first one here: each at a port of its own, one after the other."""
        return Address(self.host, self.port and self.port + number - 1)


@contextmanager
def telling(option: str, address: Address) -> Iterator[None]:
    """Name the option in what the system says of an address."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error
        raise OSError(f"--{option}: cannot listen at {address}: {why}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSettings:
    """Where etcd is, how to be let in, and what is ours in it."""

    endpoints: tuple[str, ...]  # empty: standalone
    prefix: str
    ca: Path | None
    cert: Path | None
    key: Path | None
    user: str | None
    password: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One of the processes that are a node together (`--workers`): a member of the ring like any node.

    Workers of a node talk over unix sockets in Linux' abstract namespace: no file is left behind by one that is killed,
    and a socket that nobody listens at refuses connections, which is how its peers know that a process is dead.
    """

    number: int  # from 1 on
    count: int
    node: str  # the id of the whole
    run: str  # names the sockets of this run of the node, and of no other

    def id_of(self, number: int) -> str:
        """The node id of a worker of this node."""
        return f"{self.node}.{number}"

    def socket_of(self, number: int, purpose: str) -> str:
        """Where a worker of this node listens: for its peers, or for whoever asks its admin API."""
        return f"\0limiter-node/{self.run}/{number}/{purpose}"

    @property
    def siblings(self) -> dict[str, str]:
        """{node id: where it listens for peers} of all workers of this node."""
        return {self.id_of(number): self.socket_of(number, "peer") for number in range(1, self.count + 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run one node; times carry their unit in the name."""

    etcd: EtcdSettings
    rules: Path | None  # standalone only
    node_id: str
    zone: str | None
    http: Address
    admin: Address
    peer: Address
    advertise: Address | None  # None: the peer address in use
    lease_ttl_s: int
    replication_interval_ms: int
    peer_timeout_ms: int
    drain_delay_s: float
    drain_timeout_s: float
    on_unknown_rule: str
    max_keys: int
    log_format: str  # json or human
    log_checks: float  # fraction of the checks that are told in the log, 0 to 1
    workers: int  # processes, 1 to WORKERS_MAX
    worker: Worker | None = None  # None: this is the whole node

    @property
    def is_standalone(self) -> bool:
        """Whether the node runs alone, without etcd."""
        return not self.etcd.endpoints

    @property
    def is_alone(self) -> bool:
        """Whether this process is the whole fleet."""
        return self.is_standalone and self.worker is None

    def of_worker(self, number: int, run: str) -> Settings:
        """What one of the workers goes by: a name and a peer port of its own, and its part of the memory."""
        worker = Worker(number=number, count=self.workers, node=self.node_id, run=run)
        return replace(
            self,
            worker=worker,
            node_id=worker.id_of(number),
            peer=self.peer.of_worker(number),
            advertise=self.advertise and self.advertise.of_worker(number),
            max_keys=-(-self.max_keys // self.workers),
        )


class _Problems(list[str]):
    """Collects what is wrong while the parse goes on."""

    def tried(self, option: str, parse: Callable[[str], Any], value: Any) -> Any:
        if value is None:
            return None
        try:
            return parse(value)
        except ValueError as error:
            self.append(f"--{option}: {error}")
            return None


def parse(options: Mapping[str, Any]) -> Settings:
    """Settings from option values by their names; raises `ConfigError` with every problem."""
    problems = _Problems()
    listen = {name: problems.tried(name, parse_address, options[name]) for name in ("http", "admin", "peer")}
    etcd = _etcd(options, problems)
    advertise = problems.tried("advertise", _dialable, options["advertise"])
    for option in ("node-id", "zone"):
        problems.tried(option, _name, options[option.replace("-", "_")])
    peer = listen["peer"]
    if etcd.endpoints and peer and advertise is None and peer.host in WILDCARDS:
        problems.append(f"--advertise: needed, since other nodes cannot dial --peer {peer}")
    if etcd.endpoints and options["rules"]:
        problems.append("--rules: for a standalone node only; with --etcd the rules are in etcd")
    for option in ("drain-delay", "drain-timeout", "log-checks"):
        if isnan(options[option.replace("-", "_")]):  # in every range, as far as comparing tells
            problems.append(f"--{option}: nan is not allowed; allowed: a number")
    if options["drain_delay"] > options["drain_timeout"]:
        problems.append("--drain-delay: longer than --drain-timeout, which includes it")
    _check_workers(options["workers"], options["node_id"], {"peer": peer, "advertise": advertise}, problems)
    if problems:
        raise ConfigError(tuple(problems))
    return Settings(
        etcd=etcd,
        rules=_path(options["rules"]),
        node_id=options["node_id"],
        zone=options["zone"],
        http=listen["http"],
        admin=listen["admin"],
        peer=listen["peer"],
        advertise=advertise,
        lease_ttl_s=options["lease_ttl"],
        replication_interval_ms=options["replication_interval"],
        peer_timeout_ms=options["peer_timeout"],
        drain_delay_s=options["drain_delay"],
        drain_timeout_s=options["drain_timeout"],
        on_unknown_rule=options["on_unknown_rule"],
        max_keys=options["max_keys"],
        log_format=options["log_format"],
        log_checks=options["log_checks"],
        workers=options["workers"],
    )


def _check_workers(count: int, node_id: str, first: Mapping[str, Address | None], problems: _Problems) -> None:
    """Each has a name and ports of its own, made from those of the whole."""
    if count == 1:
        return
    suffix = f".{count}"
    if is_name(node_id) and not is_name(node_id + suffix):
        problems.append(f"--node-id: {node_id!r} is too long; allowed: with the {suffix} of a worker {NAME_ALLOWED}")
    for option, address in first.items():
        if address is not None and address.of_worker(count).port > 65535:
            problems.append(f"--{option}: {count} workers take as many ports, and there is none after 65535")


def parse_etcd(options: Mapping[str, Any]) -> EtcdSettings:
    """The settings for etcd alone, from the same options; raises `ConfigError` with every problem."""
    problems = _Problems()
    etcd = _etcd(options, problems)
    if problems:
        raise ConfigError(tuple(problems))
    return etcd


def _etcd(options: Mapping[str, Any], problems: _Problems) -> EtcdSettings:
    for one, other in (("etcd-cert", "etcd-key"), ("etcd-user", "etcd-password")):
        if (options[one.replace("-", "_")] is None) != (options[other.replace("-", "_")] is None):
            problems.append(f"--{one} and --{other}: one needs the other")
    return EtcdSettings(
        endpoints=problems.tried("etcd", _endpoints, options["etcd"]) or (),
        prefix=problems.tried("prefix", _prefix, options["prefix"]),
        ca=_path(options["etcd_ca"]),
        cert=_path(options["etcd_cert"]),
        key=_path(options["etcd_key"]),
        user=options["etcd_user"],
        password=options["etcd_password"],
    )


def parse_address(text: str) -> Address:
    """HOST:PORT or [IPV6]:PORT; raises ValueError that says what is allowed."""
    host, separator, port = text.rpartition(":")
    if separator and _PORT.fullmatch(port) and int(port) < 65536:
        return Address(host.removeprefix("[").removesuffix("]"), int(port))
    raise ValueError(f"{text!r} is no address; allowed: HOST:PORT, PORT 0 to 65535, 0 picks a free one")


def _dialable(text: str) -> Address:
    address = parse_address(text)
    if address.host in WILDCARDS or not address.port:
        raise ValueError(f"{text!r} cannot be dialled; allowed: HOST:PORT that other nodes reach")
    return address


def _endpoints(text: str) -> tuple[str, ...]:
    endpoints = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    if not endpoints:  # whoever writes the option does not mean a node without etcd
        raise ValueError("no endpoint is given; allowed: http://HOST:PORT or https://HOST:PORT")
    for endpoint in endpoints:
        parts = urlsplit(endpoint)
        try:
            is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.path
            is_good = is_good and parts.port is not None
        except ValueError:
            is_good = False
        if not is_good:
            raise ValueError(f"{endpoint!r} is no endpoint; allowed: http://HOST:PORT or https://HOST:PORT")
    return endpoints


def _prefix(text: str) -> str:
    prefix = text.rstrip("/")
    if not prefix.startswith("/"):
        raise ValueError(f"{text!r} is not allowed; allowed: a path such as /limiter")
    return prefix


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{text!r} is not allowed; allowed: {NAME_ALLOWED}")
    return text


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
