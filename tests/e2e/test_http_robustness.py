"""What a node makes of HTTP as it should not be: raw sockets, hostile framing, slow and deaf clients.

After every bad request the same three claims: nothing was spent, no answer was a 5xx, and the node goes on
answering. Requests are written out byte by byte so that no client library mends them.
"""

import contextlib
import json
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from tests.harness import Answer, NodeProcess, RawConnection, check, check_body, eventually, get_json

RULES: dict[str, Any] = {
    "rules": {
        "daily": {"rate": "1/d", "burst": 500},
        "once": {"rate": "1/d", "burst": 1},
        "bulk": {"rate": "1/d", "burst": 1_000_000_000},
    }
}
MIB = 1024 * 1024
SLOW_CLIENT_S = 10.0

_keys = count()


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    with NodeProcess("robust", rules=RULES) as running:
        yield running


@pytest.fixture
def key() -> str:
    return f"{next(_keys):03}"  # as long as the KEY it stands in for, so that lengths stay true


@pytest.fixture
def raw(node: NodeProcess) -> Iterator[RawConnection]:
    with RawConnection(node.http) as connection:
        yield connection


def get(key: str, *headers: str, rule: str = "daily", cost: int = 1, version: str = "1.1") -> bytes:
    lines = [f"GET /v1/check?rule={rule}&key={key}&cost={cost} HTTP/{version}", "Host: limiter", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def post(body: str | bytes, *headers: str, path: str = "/v1/check", version: str = "1.1") -> bytes:
    data = body.encode() if isinstance(body, str) else body
    length = f"Content-Length: {len(data)}"
    lines = [f"POST {path} HTTP/{version}", "Host: limiter", length, *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


def chunked(*chunks: bytes, headers: str = "") -> bytes:
    head = f"POST /v1/check HTTP/1.1\r\nHost: limiter\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
    parts = (f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in chunks)
    return head.encode() + b"".join(parts) + b"0\r\n\r\n"


def assert_refused(answer: Answer, *statuses: int) -> None:
    assert answer.status in statuses, answer
    assert answer.headers["content-type"].partition(";")[0] == "application/problem+json"
    assert answer.body["status"] == answer.status


def assert_still_usable(connection: RawConnection, key: str) -> None:
    """The next check on the same connection is answered, and is the first to spend anything."""
    connection.send(get(key))
    answer = connection.read_answer()
    assert (answer.status, answer.body["remaining"]) == (200, 499), answer


def assert_unspent(node: NodeProcess, key: str) -> None:
    assert check(node, "daily", key, cost=0).body["remaining"] == 500


# Connections


def test_a_connection_serves_many_requests(raw: RawConnection, key: str) -> None:
    for left in range(499, 399, -1):
        raw.send(get(key) if left % 2 else post(check_body("daily", key)))
        assert raw.read_answer().body["remaining"] == left


def test_fifty_mixed_pipelined_requests_are_answered_in_order(raw: RawConnection, key: str) -> None:
    two = json.dumps({"checks": [{"rule": "daily", "key": key}] * 2})
    cycle: list[tuple[bytes, int, Callable[[int], Any]]] = [
        (post(check_body("daily", key)), 200, lambda left: left - 1),
        (get(key), 200, lambda left: left - 2),
        (post(two, path="/v1/check/batch"), 200, lambda left: [left - 3, left - 4]),
        (get("nobody", rule="no-such-rule"), 404, lambda _: None),
        (get(key, cost=501), 429, lambda left: left - 4),
        (post("{"), 400, lambda _: None),
        (post(check_body("daily", key), "Content-Type: text/plain"), 415, lambda _: None),
        (b"DELETE /v1/check HTTP/1.1\r\nHost: limiter\r\n\r\n", 405, lambda _: None),
        (chunked(check_body("daily", key).encode()), 200, lambda left: left - 5),
        (get(key, cost=0), 200, lambda left: left - 5),
    ]
    raw.send(b"".join(sent for sent, _, _ in cycle) * 5)
    for left in range(500, 475, -5):
        for sent, status, told in cycle:
            answer = raw.read_answer()
            assert answer.status == status, (sent, answer)
            assert left_of(answer) == told(left), (sent, answer)


def left_of(answer: Answer) -> Any:
    if "results" in answer.body:
        return [result["remaining"] for result in answer.body["results"]]
    return answer.body.get("remaining")


def test_a_request_may_come_one_byte_at_a_time(raw: RawConnection, key: str) -> None:
    for data in (
        post(check_body("daily", key)),
        get(key),
        chunked(b'{"rule": "daily",', b'"key": "%s"}' % key.encode()),
    ):
        for at in range(len(data)):
            raw.send(data[at : at + 1])
        assert raw.read_answer().status == 200
    assert_still_at(raw, key, 497)


def assert_still_at(connection: RawConnection, key: str, left: int) -> None:
    connection.send(get(key, cost=0))
    assert connection.read_answer().body["remaining"] == left


@pytest.mark.parametrize("seed", range(5))
def test_packet_borders_mean_nothing(raw: RawConnection, key: str, seed: int) -> None:
    chance = random.Random(seed)
    stream = (post(check_body("daily", key)) + get(key) + chunked(check_body("daily", key).encode())) * 20
    cuts = sorted(chance.sample(range(1, len(stream)), 100))
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        raw.send(stream[start:end])
    assert [raw.read_answer().body["remaining"] for _ in range(60)] == list(range(499, 439, -1))


def send_in_two(connection: RawConnection, data: bytes, cut: int) -> None:
    """Send up to the cut, make sure that it was read on its own, then send the rest.

    A whole request on another connection, begun after the first part and answered before the second, shows that
    the node's loop has been round in between.
    """
    connection.send(data[:cut])
    with RawConnection(f"127.0.0.1:{connection.socket.getpeername()[1]}") as other:
        other.send(get("other", cost=0) * 2)
        assert [other.read_answer().status for _ in range(2)] == [200, 200]
    connection.send(data[cut:])


@pytest.mark.parametrize("cut", [5, 40, 60, 75])
def test_a_large_body_may_arrive_with_the_rest_of_a_torn_head(raw: RawConnection, key: str, cut: int) -> None:
    batch = json.dumps({"checks": [{"rule": "bulk", "key": key}] * 1000})
    send_in_two(raw, post(batch, path="/v1/check/batch"), cut)
    answer = raw.read_answer()
    assert (answer.status, len(answer.body["results"])) == (200, 1000)


@pytest.mark.parametrize("cut", [100, 2_000, 7_500, 14_000])
def test_headers_under_16_kib_may_be_torn_anywhere(raw: RawConnection, key: str, cut: int) -> None:
    send_in_two(raw, get(key, "X-First: " + "x" * 7_000, "X-Second: " + "x" * 7_000), cut)
    answer = raw.read_answer()
    assert (answer.status, answer.body["remaining"]) == (200, 499)


@pytest.mark.parametrize("cut", [1, 30, 70])
def test_many_pipelined_requests_may_arrive_with_the_rest_of_a_torn_head(
    raw: RawConnection, key: str, cut: int
) -> None:
    send_in_two(raw, get(key) * 400, cut)
    assert [raw.read_answer().body.get("remaining") for _ in range(400)] == list(range(499, 99, -1))


def test_connection_close_is_honoured_and_echoed(raw: RawConnection, key: str) -> None:
    raw.send(get(key, "Connection: close"))
    (answer,) = raw.read_to_end()
    assert answer.status == 200
    assert answer.headers["connection"].lower() == "close"


def test_an_http_1_0_request_is_answered_and_the_connection_closed(raw: RawConnection, key: str) -> None:
    raw.send(get(key, version="1.0"))
    (answer,) = raw.read_to_end()
    assert (answer.status, answer.body["remaining"]) == (200, 499)


def test_http_1_0_with_keep_alive_is_kept_alive(raw: RawConnection, key: str) -> None:
    for left in (499, 498, 497):
        raw.send(post(check_body("daily", key), "Connection: keep-alive", version="1.0"))
        answer = raw.read_answer()
        assert answer.body["remaining"] == left
        assert answer.headers["connection"].lower() == "keep-alive"


def test_header_names_are_of_any_case_and_values_may_be_padded(raw: RawConnection, key: str) -> None:
    body = check_body("daily", key)
    raw.send(
        f"POST /v1/check HTTP/1.1\r\nhOST:limiter\r\ncontent-LENGTH: \t {len(body)} \t\r\n"
        f"CONTENT-type:application/json\r\n\r\n{body}"
    )
    assert raw.read_answer().status == 200


def test_a_client_that_waits_for_100_continue_gets_it_and_then_its_answer(raw: RawConnection, key: str) -> None:
    request = post(check_body("daily", key), "Expect: 100-continue")
    head, blank, body = request.partition(b"\r\n\r\n")
    raw.send(head + blank)
    assert raw.read_answer().status == 100
    raw.send(body)
    answer = raw.read_answer()
    assert (answer.status, answer.body["remaining"]) == (200, 499)


def test_a_client_that_expects_100_continue_but_does_not_wait_is_served(raw: RawConnection, key: str) -> None:
    raw.send(post(check_body("daily", key), "Expect: 100-continue"))
    answer = raw.read_answer()
    if answer.status == 100:
        answer = raw.read_answer()
    assert (answer.status, answer.body["remaining"]) == (200, 499)
    raw.send(get(key))
    assert raw.read_answer().body["remaining"] == 498


def test_an_upgrade_to_h2c_is_answered_as_plain_http(raw: RawConnection, key: str) -> None:
    upgrade = (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    )
    for left in (499, 498):
        raw.send(post(check_body("daily", key), *upgrade))
        answer = raw.read_answer()
        assert (answer.status, answer.body["remaining"]) == (200, left)
    for left in (497, 496):
        raw.send(get(key, *upgrade) + get(key, cost=0))
        assert [raw.read_answer().body["remaining"] for _ in range(2)] == [left, left]


def test_an_upgrade_to_websocket_is_answered_as_plain_http(raw: RawConnection, key: str) -> None:
    raw.send(get(key, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"))
    assert raw.read_answer().status == 200
    raw.send(get(key))
    assert raw.read_answer().body["remaining"] == 498


def test_an_answer_to_head_has_no_body(raw: RawConnection, key: str) -> None:
    raw.send(get(key, cost=0).replace(b"GET", b"HEAD", 1) + get(key))
    assert raw.read_answer(to_head=True).status in {200, 405}
    assert raw.read_answer().body["remaining"] == 499


def test_a_body_sent_with_get_does_not_become_the_next_request(raw: RawConnection, key: str) -> None:
    smuggled = get(key, cost=100)
    raw.send(get(key, f"Content-Length: {len(smuggled)}", cost=0) + smuggled)
    assert raw.read_answer().status < 500
    assert_still_usable(raw, key)


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT limiter:80 HTTP/1.1\r\nHost: limiter\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: limiter\r\n\r\n",
        b"TRACE /v1/check HTTP/1.1\r\nHost: limiter\r\n\r\n",
        b"GET http://limiter/v1/check HTTP/1.1\r\nHost: limiter\r\n\r\n",
        b"GET //v1/check HTTP/1.1\r\nHost: limiter\r\n\r\n",
        b"GET /v1/check#fragment HTTP/1.1\r\nHost: limiter\r\n\r\n",
        b"GET /v1/check?rule=daily&key=caf\xc3\xa9&x HTTP/1.1\r\nHost: limiter\r\n\r\n",
        b"GET ?rule HTTP/1.1\r\nHost: limiter\r\n\r\n",
        b"BREW /v1/check HTTP/1.1\r\nHost: limiter\r\n\r\n",
        b"get /v1/check HTTP/1.1\r\nHost: limiter\r\n\r\n",
        b"GET /v1/check HTTP/1.1\r\nHost: limiter\r\nConnection: nonsense, ,\r\n\r\n",
    ],
    ids=range(11),
)
def test_an_odd_request_line_is_a_4xx(node: NodeProcess, raw: RawConnection, key: str, head: bytes) -> None:
    raw.send(head)
    assert 400 <= raw.read_answer().status < 500
    assert check(node, "daily", key).status == 200


# Bad requests that leave the connection usable


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (post(""), 400),
        (post("{"), 400),
        (post('{"rule": "daily", "key": "KEY", "cost": -1}'), 400),
        (post(b'{"rule": "daily", "key": "KEY\xff"}'), 400),
        (post("[" * 100_000), 400),
        (chunked(b"{"), 400),
        (chunked(), 400),
        (post('{"rule": "daily", "key": "KEY"}', "Content-Type: text/plain"), 415),
        (chunked(b'{"rule": "daily", "key": "KEY"}', headers="Content-Type: text/plain\r\n"), 415),
        (post('{"rule": "no-such-rule", "key": "KEY"}'), 404),
        (post('{"rule": "daily", "key": "KEY"}', path="/v1/nothing"), 404),
        (post('{"rule": "daily", "key": "KEY"}').replace(b"POST", b"PUT"), 405),
        (get("%ff"), 400),
        (get("k" * 513), 400),
        (get("KEY", cost=-1), 400),
        (b"GET /v1/check?" + b"k" * (8 * 1024) + b" HTTP/1.1\r\nHost: limiter\r\n\r\n", 414),
        (get("KEY", *(f"X-Filler-{n}: {'x' * 1000}" for n in range(17))), 431),
        (get("KEY", "X-Filler: " + "x" * 17 * 1024), 431),
        (post('{"rule": "daily", "key": "KEY"}', "X-Filler: " + "x" * 17 * 1024), 431),
        (post('{"rule": "daily", "key": "KEY"}' + " " * MIB), 413),
        (chunked(b'{"rule": "daily", "key": "KEY"}', *[b" " * 65536] * 16), 413),
    ],
    ids=range(21),
)
def test_a_4xx_spends_nothing_and_leaves_the_connection_usable(
    node: NodeProcess, raw: RawConnection, key: str, sent: bytes, status: int
) -> None:
    raw.send(sent.replace(b"KEY", key.encode()))
    assert_refused(raw.read_answer(), status)
    assert_unspent(node, key)
    assert_still_usable(raw, key)


def test_a_request_that_was_refused_does_not_disturb_those_pipelined_after_it(raw: RawConnection, key: str) -> None:
    raw.send((post("{") + get(key) + get("%zz") + get(key)) * 10)
    statuses = [raw.read_answer().status for _ in range(40)]
    assert statuses == [400, 200] * 20
    assert_still_at(raw, key, 480)


# Limits


@pytest.mark.parametrize(("length", "status"), [(8 * 1024, 400), (8 * 1024 + 1, 414), (64 * 1024, 414)])
def test_a_target_over_8_kib_is_414(raw: RawConnection, length: int, status: int) -> None:
    target = b"/v1/check?rule=daily&key=".ljust(length, b"k")
    raw.send(b"GET " + target + b" HTTP/1.1\r\nHost: limiter\r\n\r\n")
    assert_refused(raw.read_answer(), status)


def test_a_target_that_never_ends_is_414(raw: RawConnection) -> None:
    raw.send_until_refused(b"GET /v1/check?key=" + b"k" * 64 * 1024)
    assert_refused(raw.read_answer(), 414)


@pytest.mark.parametrize("filler", ["X-Filler: ", "Cookie: a=b; "])
def test_headers_under_16_kib_are_fine(raw: RawConnection, key: str, filler: str) -> None:
    raw.send(get(key, filler + "x" * 15 * 1024))
    assert raw.read_answer().status == 200


@pytest.mark.parametrize("head", [b"X-Filler: ", b"X-Filler"], ids=["value", "name"])
def test_a_header_that_never_ends_is_431(raw: RawConnection, head: bytes) -> None:
    raw.send_until_refused(b"GET /v1/check HTTP/1.1\r\nHost: limiter\r\n" + head + b"x" * 64 * 1024)
    assert_refused(raw.read_answer(), 431)


def test_headers_that_never_stop_coming_are_431(raw: RawConnection) -> None:
    raw.send_until_refused(b"GET /v1/check HTTP/1.1\r\nHost: limiter\r\n" + b"X-Filler: x\r\n" * 5000)
    assert_refused(raw.read_answer(), 431)


def test_a_body_of_exactly_1_mib_is_read(raw: RawConnection, key: str) -> None:
    raw.send(post(check_body("daily", key).ljust(MIB)))
    assert raw.read_answer().body["remaining"] == 499


def test_a_chunked_body_of_exactly_1_mib_is_read(raw: RawConnection, key: str) -> None:
    body = check_body("daily", key).ljust(MIB).encode()
    raw.send(chunked(*(body[at : at + 10_000] for at in range(0, MIB, 10_000))))
    assert raw.read_answer().body["remaining"] == 499


@pytest.mark.parametrize("length", [MIB + 1, 10**12, 2**63, 2**64 + 1, 10**30])
@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)], ids=["plain", "expecting"])
def test_a_body_announced_over_1_mib_is_413_before_a_byte_of_it_is_sent(
    raw: RawConnection, length: int, expect: tuple[str, ...]
) -> None:
    lines = ["POST /v1/check HTTP/1.1", "Host: limiter", f"Content-Length: {length}", *expect]
    raw.send("\r\n".join(lines) + "\r\n\r\n")
    answer = raw.read_answer()
    # A length that no integer holds may also be called malformed.
    assert_refused(answer, *((413,) if length < 2**63 else (413, 400)))


def test_a_chunked_body_over_1_mib_is_413_even_if_it_never_ends(
    node: NodeProcess, raw: RawConnection, key: str
) -> None:
    start = chunked(check_body("daily", key).encode()).removesuffix(b"0\r\n\r\n")
    raw.send_until_refused(start + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 17)
    assert_refused(raw.read_answer(), 413)
    assert_unspent(node, key)


def test_one_chunk_announced_over_1_mib_is_413_or_closed(node: NodeProcess, raw: RawConnection, key: str) -> None:
    head = chunked().removesuffix(b"0\r\n\r\n")
    raw.send_until_refused(head + b"7fffffffffffffff\r\n" + b" " * (MIB + 1))
    assert_refused(raw.read_answer(), 413, 400)
    assert_unspent(node, key)


# Framing


CHECK = '{"rule": "daily", "key": "KEY", "cost": 100}'
SMUGGLED = "GET /v1/check?rule=daily&key=KEY&cost=100 HTTP/1.1\r\nHost: limiter\r\n\r\n"
AMBIGUOUS = {
    "length and chunked": f"Content-Length: {len(CHECK)}\r\nTransfer-Encoding: chunked\r\n",
    "chunked and length": "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    "two lengths": f"Content-Length: {len(CHECK)}\r\nContent-Length: 0\r\n",
    "the same length twice": f"Content-Length: {len(CHECK)}\r\nContent-Length: {len(CHECK)}\r\n",
    "two lengths in one": "Content-Length: 5, 5\r\n",
    "space before colon": f"Content-Length : {len(CHECK)}\r\n",
    "tab before colon": f"Content-Length\t: {len(CHECK)}\r\n",
    "space before another colon": f"X-Other : x\r\nContent-Length: {len(CHECK)}\r\n",
    "folded header": f"X-Other: a\r\n b\r\nContent-Length: {len(CHECK)}\r\nContent-Length: 0\r\n",
    "signed length": "Content-Length: +5\r\n",
    "negative length": "Content-Length: -5\r\n",
    "hexadecimal length": "Content-Length: 0x5\r\n",
    "length with a space": "Content-Length: 5 5\r\n",
    "empty length": "Content-Length: \r\n",
    "chunked twice and length": "Transfer-Encoding: chunked, chunked\r\nContent-Length: 4\r\n",
    "chunked but not last": "Transfer-Encoding: chunked, identity\r\n",
    "unknown encoding": "Transfer-Encoding: xchunked\r\n",
    "header without a name": ": x\r\nContent-Length: 0\r\n",
    "header without a colon": "Nonsense\r\n",
    "NUL in a header": "X-Other: a\0b\r\n",
    "bare CR in a header": "X-Other: a\rContent-Length: 0\r\n",
}


def assert_answered_at_most_once_and_closed(node: NodeProcess, sent: str, key: str) -> None:
    with RawConnection(node.http) as raw:
        raw.send_until_refused(sent.replace("KEY", key).encode("latin-1"))
        answers = raw.read_to_end()
        assert len(answers) <= 1, answers
        for answer in answers:
            assert_refused(answer, 400)
    assert_unspent(node, key)


@pytest.mark.parametrize("headers", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_ambiguous_framing_is_answered_at_most_once_and_the_connection_closed(
    node: NodeProcess, key: str, headers: str
) -> None:
    sent = f"POST /v1/check HTTP/1.1\r\nHost: limiter\r\n{headers}\r\n{CHECK}{SMUGGLED * 3}"
    assert_answered_at_most_once_and_closed(node, sent, key)


@pytest.mark.parametrize(
    "hosts", ["", "Host: a\r\nHost: b\r\n", "Host: a\r\nHost: a\r\n", "Host : a\r\n"], ids=range(4)
)
def test_a_request_without_exactly_one_host_is_answered_at_most_once_and_the_connection_closed(
    node: NodeProcess, key: str, hosts: str
) -> None:
    target = "/v1/check?rule=daily&key=KEY&cost=100"
    sent = f"GET {target} HTTP/1.1\r\n{hosts}\r\n"
    assert_answered_at_most_once_and_closed(node, sent + SMUGGLED, key)


@pytest.mark.parametrize(
    "body",
    [
        f"{len(CHECK):x}\r\n{CHECK}XX0\r\n\r\n",
        f"{len(CHECK):x}\r\n{CHECK}0\r\n\r\n",
        f"xyz\r\n{CHECK}\r\n0\r\n\r\n",
        f"-{len(CHECK):x}\r\n{CHECK}\r\n0\r\n\r\n",
        f"0x{len(CHECK):x}\r\n{CHECK}\r\n0\r\n\r\n",
        f"\r\n{CHECK}\r\n0\r\n\r\n",
        f"{len(CHECK):x}\r\n{CHECK}\r\nz\r\n\r\n",
        f"ffffffffffffffffff\r\n{CHECK}\r\n0\r\n\r\n",
    ],
    ids=range(8),
)
def test_bad_chunking_is_answered_at_most_once_and_the_connection_closed(
    node: NodeProcess, key: str, body: str
) -> None:
    head = "POST /v1/check HTTP/1.1\r\nHost: limiter\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert_answered_at_most_once_and_closed(node, head + body + SMUGGLED, key)


@pytest.mark.parametrize("cuts", [(), (1,), (5, 20), (10, 11, 12)], ids=str)
def test_a_well_chunked_body_is_read(raw: RawConnection, key: str, cuts: tuple[int, ...]) -> None:
    body = check_body("daily", key).encode()
    pieces = [body[a:b] for a, b in zip((0, *cuts), (*cuts, len(body)), strict=True)]
    raw.send(chunked(*pieces))
    answer = raw.read_answer()
    assert (answer.status, answer.body["remaining"]) == (200, 499)
    raw.send(get(key))
    assert raw.read_answer().body["remaining"] == 498


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/check\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: limiter\r\n\r\n",
        b"GET / SMTP/1.1\r\nHost: limiter\r\n\r\n",
        b"\x00" * 100 + b"\r\n\r\n",
        b"{}\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["TLS", "HTTP/2", "HTTP/0.9", "version", "protocol", "NULs", "JSON", "answer"],
)
def test_what_is_not_http_is_answered_at_most_once_and_the_connection_closed(
    node: NodeProcess, raw: RawConnection, key: str, junk: bytes
) -> None:
    raw.send_until_refused(junk + get(key, cost=100))
    answers = raw.read_to_end()
    assert len(answers) <= 1
    assert all(answer.status < 500 or answer.status == 505 for answer in answers)
    assert_unspent(node, key)


# Clients that leave, dawdle or do not listen


def test_a_client_that_closes_half_way_spends_nothing(node: NodeProcess, key: str) -> None:
    whole = post(check_body("daily", key))
    for end in range(1, len(whole), 7):
        with RawConnection(node.http) as raw:
            raw.send(whole[:end])
    for end in range(1, len(whole), 7):
        with RawConnection(node.http) as raw:
            raw.send(whole[:end])
            # Linger for 0 s: the close is a reset instead of an orderly end.
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_unspent(node, key)


def test_a_client_that_stops_sending_half_way_is_not_waited_for(node: NodeProcess, key: str) -> None:
    whole = post(check_body("daily", key))
    for end in (1, 10, len(whole) - 1):
        with RawConnection(node.http) as raw:
            raw.send(whole[:end])
            raw.socket.shutdown(socket.SHUT_WR)
            answers = raw.read_to_end()
            assert len(answers) <= 1
            assert all(400 <= answer.status < 500 for answer in answers)
    assert_unspent(node, key)


def test_a_client_that_has_said_everything_still_gets_its_answers(raw: RawConnection, key: str) -> None:
    raw.send(get(key) * 20)
    raw.socket.shutdown(socket.SHUT_WR)
    assert [answer.body["remaining"] for answer in raw.read_to_end()] == list(range(499, 479, -1))


def seconds_until_cut_off(address: str, start: bytes, drip: bytes) -> tuple[float, bytes]:
    """Send the start at once, then the drip byte by byte, two a second; how long until the end, and what came."""
    came = b""
    with RawConnection(address, timeout_s=0.5) as raw:
        raw.send(start)
        began_s = time.monotonic()
        dripping = iter(drip)
        while (elapsed_s := time.monotonic() - began_s) < 2 * SLOW_CLIENT_S:
            try:
                data = raw.socket.recv(65536)
                if not data:
                    break
                came += data
            except TimeoutError:
                with contextlib.suppress(StopIteration):
                    raw.send_until_refused(bytes([next(dripping)]))
            except ConnectionResetError:
                break
    return elapsed_s, came


def test_a_client_that_trickles_is_cut_off_after_ten_seconds(node: NodeProcess, key: str) -> None:
    headers = b"GET /v1/check?rule=daily&key=%s HTTP/1.1\r\nHost: limiter\r\n" % key.encode()
    body_head = b"POST /v1/check HTTP/1.1\r\nHost: limiter\r\nContent-Length: 1000\r\n\r\n"
    chunk_head = b"POST /v1/check HTTP/1.1\r\nHost: limiter\r\nTransfer-Encoding: chunked\r\n\r\n"
    clients = [
        (b"G", b"ET /v1/check?rule=daily&key=" + b"k" * 100),
        (headers, b""),
        (headers, b"X-Filler: " + b"x" * 100),
        (body_head, b""),
        (body_head, b" " * 100),
        (chunk_head, b"64\r\n" + b" " * 100),
        (chunk_head, b"1\r\n \r\n" * 20),
        (get(key, cost=0) + headers, b"X-Filler: " + b"x" * 100),
        (get(key, cost=0) + body_head, b" " * 100),
    ]
    with ThreadPoolExecutor(len(clients)) as threads:
        ends = list(threads.map(lambda client: seconds_until_cut_off(node.http, *client), clients))
    for (start, drip), (elapsed_s, came) in zip(clients, ends, strict=True):
        assert SLOW_CLIENT_S - 1 <= elapsed_s <= SLOW_CLIENT_S + 3, (start, drip)
        assert b"HTTP/1.1 5" not in came
        assert came.count(b"HTTP/1.1 200") == start.count(b"cost=0")
    assert_unspent(node, key)


def test_a_client_that_never_reads_does_not_fill_the_nodes_memory(node: NodeProcess, key: str) -> None:
    burst = get(key, rule="bulk") * 1000
    before = node.memory_bytes
    sent = 0
    with RawConnection(node.http, receive_buffer_bytes=4096) as raw:
        raw.socket.setblocking(False)
        while sent < 12 * MIB and select.select([], [raw.socket], [], 1.0)[1]:
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                sent += raw.socket.send(burst)
        assert node.memory_bytes - before < 24 * MIB, f"{sent} bytes were taken from a client that reads nothing"
        assert check(node, "daily", key).status == 200
    assert sent > 0


@pytest.mark.parametrize("says_goodbye", [False, True])
def test_a_client_that_reads_late_gets_every_answer_in_order(node: NodeProcess, key: str, says_goodbye: bool) -> None:
    count_sent = 20_000
    data = get(key, rule="bulk") * count_sent
    with RawConnection(node.http, receive_buffer_bytes=4096) as raw, ThreadPoolExecutor(1) as thread:
        sending = thread.submit(raw.send, data)
        # The node has stopped reading, or has taken everything: either way the sender makes no more progress.
        eventually(lambda: sending.done() or is_stuck(raw), 20.0)
        for number in range(1, count_sent + 1):
            assert raw.read_answer().body["remaining"] == 1_000_000_000 - number
            if says_goodbye and number == count_sent // 2:
                sending.result(20.0)
                raw.socket.shutdown(socket.SHUT_WR)
        if says_goodbye:
            assert raw.read_to_end() == []


def is_stuck(raw: RawConnection) -> bool:
    return not select.select([], [raw.socket], [], 0.3)[1]


NEVER_ENDING = {
    "target": b"GET /v1/check?key=",
    "header": b"GET /v1/check HTTP/1.1\r\nHost: limiter\r\nX-Filler: ",
    "body": b"POST /v1/check HTTP/1.1\r\nHost: limiter\r\nContent-Length: 99999999999\r\n\r\n",
    "chunk": chunked().removesuffix(b"0\r\n\r\n") + b"fffffff\r\n",
    "chunk extension": chunked().removesuffix(b"0\r\n\r\n") + b"5;x=",
    "trailer": chunked(b"{}").removesuffix(b"\r\n") + b"X-Filler: ",
}


@pytest.mark.parametrize("start", NEVER_ENDING.values(), ids=NEVER_ENDING.keys())
def test_what_never_ends_does_not_fill_the_nodes_memory(node: NodeProcess, key: str, start: bytes) -> None:
    before = node.memory_bytes
    with RawConnection(node.http) as raw:
        raw.socket.settimeout(1.0)
        with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            raw.send(start)
            for _ in range(64):
                raw.send(b"x" * MIB)
        assert node.memory_bytes - before < 24 * MIB
    assert check(node, "daily", key).body["remaining"] == 499


@pytest.mark.parametrize("trailers", [b"X-Trailer: a\r\n", b"X-Trailer: a\r\nX-Other: b\r\n"], ids=[1, 2])
def test_trailers_after_a_chunked_body_are_ignored(raw: RawConnection, key: str, trailers: bytes) -> None:
    raw.send(chunked(check_body("daily", key).encode()).removesuffix(b"\r\n") + trailers + b"\r\n" + get(key))
    assert [raw.read_answer().body["remaining"] for _ in range(2)] == [499, 498]


def test_a_head_repeated_byte_for_byte_does_not_hide_a_change_of_the_request(raw: RawConnection, key: str) -> None:
    requests = [
        (get(key), 200, 499),
        (get(key), 200, 498),
        (get(key, cost=0), 200, 498),
        (get(key).replace(b"GET", b"PUT", 1), 405, None),
        (get(key).replace(b"/v1/check?", b"/v1/nothing?", 1), 404, None),
        (get(key), 200, 497),
        (get("%zz"), 400, None),
    ]
    for sent, status, left in requests:
        raw.send(sent)
        answer = raw.read_answer()
        assert (answer.status, answer.body.get("remaining")) == (status, left), sent
    raw.send(get(key) + get(key)[:20])
    assert raw.read_answer().body["remaining"] == 496
    raw.send(get(key)[20:] + get(key))
    assert [raw.read_answer().body["remaining"] for _ in range(2)] == [495, 494]


@pytest.mark.parametrize("port", ["http", "admin", "peer"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_bytes_leave_the_node_alive_and_answering(node: NodeProcess, key: str, port: str, seed: int) -> None:
    chance = random.Random(f"{seed} {port}")
    starts = [
        b"",
        b"GET /",
        b"POST /v1/check HTTP/1.1\r\n",
        b"\x00\x00\x00\x10",
        b"\x16\x03\x01",
        b"\x93\x01\xc4\xff",
    ]
    for _ in range(30):
        with RawConnection(getattr(node, port)) as raw:
            raw.send_until_refused(chance.choice(starts) + chance.randbytes(chance.randrange(1, 4096)))
    assert_alive(node, key)


@pytest.mark.parametrize("port", ["http", "admin", "peer"])
@pytest.mark.parametrize(
    "flood",
    [b"\xff" * 8 + bytes(MIB), bytes(MIB), b"\xdd\xff\xff\xff\xff" + b"\xc0" * MIB, b"\x91" * MIB],
    ids=["lengths", "zeros", "array", "nesting"],
)
def test_a_flood_of_nonsense_is_neither_kept_nor_fatal(node: NodeProcess, key: str, port: str, flood: bytes) -> None:
    before = node.memory_bytes
    with RawConnection(getattr(node, port)) as raw:
        raw.socket.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            raw.send_until_refused(flood * 4)
        assert node.memory_bytes - before < 64 * MIB
    assert_alive(node, key)


def assert_alive(node: NodeProcess, key: str) -> None:
    assert node.running, node.log_tail()
    assert check(node, "daily", key).body["remaining"] == 499
    assert eventually(node.is_ready)
    assert get_json(node.admin, "/v1/status")["ready"] is True


def test_many_idle_connections_are_no_burden(node: NodeProcess, key: str) -> None:
    with contextlib.ExitStack() as open_connections:
        idle = [open_connections.enter_context(RawConnection(node.http)) for _ in range(300)]
        assert check(node, "daily", key).status == 200
        for connection in (idle[0], idle[150], idle[299]):
            connection.send(get(key, cost=0))
            assert connection.read_answer().status == 200
