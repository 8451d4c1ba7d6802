"""The fleet as one node sees it: fetched from its admin API, as tables for people.

The tables are made of the document of `GET /v1/status` and of nothing else. What goes beyond the contract (links,
reasons) is shown where the node tells it.
"""

from __future__ import annotations

import http.client
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import msgspec

from limiter_node.core.errors import UNDECODABLE, LimiterError
from limiter_node.settings import WILDCARDS, Address, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEADLINE_S = 5.0
GAP = "  "


class NoStatus(LimiterError):
    """The admin API did not tell; the message says who was asked and what to do."""


def admin_url(text: str) -> str:
    """The base URL of an admin API: a URL, or HOST:PORT as `serve --admin` takes it, where every host is this one.

    Raises ValueError that says what is allowed.
    """
    if "://" in text:
        if not _is_good_url(text):
            raise ValueError(f"{text!r} is no address; allowed: http://HOST:PORT, https://HOST:PORT or HOST:PORT")
        return text.rstrip("/")
    address = parse_address(text)
    if not address.port:
        raise ValueError(f"{text!r} has no port to ask; allowed: HOST:PORT, PORT 1 to 65535")
    host = ("::1" if address.host == "::" else "127.0.0.1") if address.host in WILDCARDS else address.host
    return f"http://{Address(host, address.port)}"


def _is_good_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_place = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and has_place and not parts.query and not parts.fragment


def fetch(base_url: str) -> bytes:
    """The status document as the node sent it; raises `NoStatus`."""
    url = f"{base_url}/v1/status"
    # The admin port is inside; an http_proxy in the environment is meant for what is outside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    hint = "is a node running there, and is that its --admin address?"
    try:
        with opener.open(url, timeout=DEADLINE_S) as answer:
            body: bytes = answer.read()
    except HTTPError as error:
        why = _detail(error.read()) if error.code == HTTPStatus.SERVICE_UNAVAILABLE else ""
        raise NoStatus(f"{url} answered {error.code} {error.reason}: {why or hint}") from None
    except http.client.HTTPException:
        raise NoStatus(f"{url} was not answered in HTTP: {hint}") from None
    except (OSError, ValueError) as error:  # the latter for a host that is no name
        reason = error.reason if isinstance(error, URLError) else error
        told = (isinstance(reason, OSError) and reason.strerror) or reason
        raise NoStatus(f"{url} cannot be read, {told}: {hint}") from None
    return body


def _detail(body: bytes) -> str:
    """What a problem says, as of a node none of whose workers answers; nothing if it is none."""
    try:
        return str(msgspec.json.decode(body)["detail"])
    except (*UNDECODABLE, KeyError, TypeError):
        return ""


def tables(body: bytes) -> str:
    """The document for people; raises `NoStatus` when it is none."""
    try:
        status = msgspec.json.decode(body)
        parts = [
            _rows([*_facts(status)]),
            _workers(status),
            _members(status),
            _backends(status),
            _problems(status),
        ]
    except (*UNDECODABLE, KeyError, TypeError, AttributeError):
        raise NoStatus("the answer is no status of a limiter-node; is that its --admin address?") from None
    return "\n\n".join(filter(None, parts))


def _facts(status: dict[str, Any]) -> Iterator[Sequence[str]]:
    etcd, config, ring = status["etcd"], status["config"], status["ring"]
    states = ["ready" if status["ready"] else "NOT READY"]
    if status.get("fenced"):
        states.append("FENCED: too few peers answer, so it decides none of its keys")
    yield "node", f"{status['node']} {status.get('version', '')}".strip() + ", " + ", ".join(states)
    yield "serves", ", ".join(f"{name} {status['addresses'][name]}" for name in ("http", "admin", "peer"))
    if status["standalone"]:
        yield "etcd", "none: standalone, one node whose limits hold for itself alone"
    else:
        yield "etcd", f"{'connected' if etcd['connected'] else 'NOT CONNECTED'}, revision {etcd['revision']}"
    yield "fleet", f"{_count(len(ring['members']), 'member')}, ring revision {ring['revision']}"
    yield "leader", status["leader"] or "none"
    problems = len(config["problems"])
    good = "no problems" if not problems else _count(problems, "PROBLEM")
    yield "config", f"{_count(config['rules'], 'rule')}, revision {config['revision']}, {good}"
    yield "keys", f"{_count(status['keys'], 'bucket')} in the memory of this node"


def _workers(status: dict[str, Any]) -> str:
    rows = [
        (
            worker["id"],
            worker["state"] + (", FENCED" if worker["fenced"] else "" if worker["ready"] else ", NOT READY"),
            "-" if worker["pid"] is None else str(worker["pid"]),
            str(worker["restarts"]),
            f"{worker['keys']:,}",
        )
        for worker in status.get("workers", [])
    ]
    return _table(("WORKER", "STATE", "PID", "RESTARTS", "KEYS"), rows)


def _members(status: dict[str, Any]) -> str:
    links = {**status.get("links", {}), **dict.fromkeys(status.get("gone", []), "GONE"), status["node"]: "this node"}
    rows = [
        (member["id"], member["zone"] or "-", f"{member['share']:.1%}", member["peer"], links.get(member["id"], "-"))
        for member in status["ring"]["members"]
    ]
    return _table(("MEMBER", "ZONE", "SHARE", "PEER", "LINK"), rows)


def _backends(status: dict[str, Any]) -> str:
    rows = [
        (
            name,
            f"{backend['multiplier']:g}",
            backend["state"],
            backend.get("adaptive", "-"),
            "none" if backend["signal_age"] is None else f"{backend['signal_age']:.1f} s ago",
            backend.get("reason") or "-",
        )
        for name, backend in status["backends"].items()
    ]
    return _table(("BACKEND", "MULTIPLIER", "STATE", "ADAPTIVE", "SIGNAL", "REASON"), rows)


def _problems(status: dict[str, Any]) -> str:
    rows = [(problem["key"], problem["error"]) for problem in status["config"]["problems"]]
    return _table(("PROBLEM AT", "WHAT IS WRONG"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows below a head; nothing where there are none."""
    return _rows([head, *rows]) if rows else ""


def _rows(rows: Sequence[Sequence[str]]) -> str:
    """Rows whose columns stand below one another, each as wide as its widest cell."""
    # Anyone may have written anything into etcd, and this goes to a terminal.
    clean = [[cell if cell.isprintable() else ascii(cell)[1:-1] for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in clean
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 'S' if noun.isupper() else 's'}"
