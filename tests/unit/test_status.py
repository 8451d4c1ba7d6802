"""`limiter-node status`: which address is asked, and what is shown of the answer."""

import copy
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import msgspec
import pytest

from limiter_node import status
from limiter_node.status import NoStatus, admin_url, fetch, tables

STATUS: dict[str, Any] = {
    "node": "n1",
    "version": "1.2.3",
    "addresses": {"http": "10.0.0.1:8080", "admin": "10.0.0.1:8081", "peer": "10.0.0.1:8082"},
    "standalone": False,
    "ready": True,
    "etcd": {"connected": True, "revision": 812},
    "leader": "n2",
    "ring": {
        "revision": 640,
        "members": [
            {"id": "n1", "peer": "10.0.0.1:8082", "zone": "a", "share": 0.3341},
            {"id": "n2", "peer": "10.0.0.2:8082", "zone": None, "share": 0.3309},
            {"id": "n3", "peer": "10.0.0.3:8082", "zone": "c", "share": 0.335},
        ],
    },
    "links": {"n2": "up", "n3": "down"},
    "gone": ["n3"],
    "fenced": False,
    "config": {"revision": 811, "rules": 12, "problems": [{"key": "rules/x", "error": "rate: is required"}]},
    "backends": {
        "orders": {
            "multiplier": 0.62,
            "state": "overload",
            "signal_age": 1.24,
            "adaptive": "on",
            "reason": "p90 812ms",
        },
        "idle": {"multiplier": 1.0, "state": "normal", "signal_age": None},
    },
    "keys": 1204,
}

SHOWN = """\
node    n1 1.2.3, ready
serves  http 10.0.0.1:8080, admin 10.0.0.1:8081, peer 10.0.0.1:8082
etcd    connected, revision 812
fleet   3 members, ring revision 640
leader  n2
config  12 rules, revision 811, 1 PROBLEM
keys    1,204 buckets in the memory of this node

MEMBER  ZONE  SHARE  PEER           LINK
n1      a     33.4%  10.0.0.1:8082  this node
n2      -     33.1%  10.0.0.2:8082  up
n3      c     33.5%  10.0.0.3:8082  GONE

BACKEND  MULTIPLIER  STATE     ADAPTIVE  SIGNAL     REASON
orders   0.62        overload  on        1.2 s ago  p90 812ms
idle     1           normal    -         none       -

PROBLEM AT  WHAT IS WRONG
rules/x     rate: is required"""


def shown(**changes: Any) -> str:
    return tables(msgspec.json.encode({**copy.deepcopy(STATUS), **changes}))


def test_the_fleet_is_shown_in_tables_whose_columns_stand_below_one_another() -> None:
    assert shown() == SHOWN


def test_the_workers_of_a_node_are_shown() -> None:
    well = {"id": "n1.1", "pid": 71, "state": "listening", "restarts": 0, "ready": True, "keys": 1204, "fenced": False}
    dead = {"id": "n1.2", "pid": None, "state": "down", "restarts": 3, "ready": False, "keys": 0, "fenced": False}
    table = """\
WORKER  STATE            PID  RESTARTS  KEYS
n1.1    listening        71   0         1,204
n1.2    down, NOT READY  -    3         0
n1.3    joining, FENCED  72   0         0"""
    assert table in shown(
        workers=[well, dead, {**dead, "id": "n1.3", "pid": 72, "state": "joining", "restarts": 0, "fenced": True}]
    )


def test_tables_of_nothing_are_left_out() -> None:
    text = shown(backends={}, config={"revision": 0, "rules": 0, "problems": []}, keys=1)
    assert "BACKEND" not in text
    assert "PROBLEM" not in text
    assert "0 rules, revision 0, no problems" in text
    assert "1 bucket in" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"standalone": True}, "etcd    none: standalone"),
        ({"etcd": {"connected": False, "revision": 7}}, "etcd    NOT CONNECTED, revision 7"),
        ({"ready": False}, "node    n1 1.2.3, NOT READY"),
        ({"fenced": True}, "node    n1 1.2.3, ready, FENCED"),
        ({"leader": None}, "leader  none"),
    ],
)
def test_what_is_not_as_it_should_be_stands_out(changes: dict[str, Any], told: str) -> None:
    assert told in shown(**changes)


def test_what_somebody_wrote_into_etcd_does_no_harm_to_a_terminal() -> None:
    text = shown(config={"revision": 1, "rules": 0, "problems": [{"key": "keys/\x1b[2J", "error": "a\nb"}]})
    assert "keys/\\x1b[2J" in text
    assert "a\\nb" in text


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"7", b'{"node": "n1"}', b'{"node": 1, "ring": []}'])
def test_what_is_no_status_is_not_shown(body: bytes) -> None:
    with pytest.raises(NoStatus, match="no status of a limiter-node"):
        tables(body)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:8081", "http://127.0.0.1:8081"),
        ("node-1:8081", "http://node-1:8081"),
        ("0.0.0.0:8081", "http://127.0.0.1:8081"),
        (":8081", "http://127.0.0.1:8081"),
        ("[::]:8081", "http://[::1]:8081"),
        ("[2001:db8::1]:8081", "http://[2001:db8::1]:8081"),
        ("http://node-1:8081/", "http://node-1:8081"),
        ("https://gateway/limiter/admin", "https://gateway/limiter/admin"),
    ],
)
def test_the_admin_address_may_be_a_url_or_what_serve_was_given(text: str, url: str) -> None:
    assert admin_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "8081",
        "127.0.0.1:0",
        "127.0.0.1:x",
        "ftp://a:1",
        "http://",
        "http://a:0",
        "http://a:x",
        "http://[::1",
    ],
)
def test_what_is_no_admin_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="; allowed: "):
        admin_url(text)


def test_a_server_that_never_answers_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "DEADLINE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(NoStatus, match=f"^{url}/v1/status cannot be read, .*timed out: is a node running there"):
            fetch(url)


def test_a_host_that_is_no_name_is_told() -> None:
    with pytest.raises(NoStatus, match="cannot be read"):
        fetch("http://a..b:1")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"detail": "no worker answers"}', "no worker answers"),
        (b"<html>", "is a node running there"),
        (b"[]", "is a node"),
    ],
)
def test_a_node_that_cannot_tell_says_why(body: bytes, why: str) -> None:
    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as there
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(NoStatus, match=f"answered 503 Service Unavailable: {why}"):
            fetch(f"http://127.0.0.1:{server.server_port}")
