"""The short part of the chaos runs, and what keeps the runner honest: a hang is seen, a broken bound is called so."""

import os
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.catalogue import CASES, NEED_ROOT, run
from tests.chaos.load import Load
from tests.chaos.report import Options, Report, table
from tests.fleet import say

SHORT = Options(rate_per_s=60.0, hold_s=2.0, kills=2)
HANG_S = 0.4


@pytest.mark.parametrize("name", ["link-cut", "cut-off"])
def test_a_fleet_with_cut_links_keeps_its_promises(name: str) -> None:
    if name in NEED_ROOT and os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    report = run(name, SHORT)
    say(table([report]))
    assert report.broken == []
    assert report.sent > 100


def test_no_atomic_batch_stays_spent_in_part_when_a_node_is_killed_in_the_middle() -> None:
    report = run("killed-in-batches", SHORT)
    say(table([report]))
    assert report.broken == []
    assert report.sent > 20


class HangingServer(socketserver.ThreadingTCPServer):
    """Grants every check at once, except that for a while from `hang` on it answers nobody."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Granting)
        self.hangs_until_s = 0.0
        host, port = self.server_address[:2]
        self.address = f"{host!s}:{port}"

    def hang(self) -> None:
        self.hangs_until_s = time.monotonic() + HANG_S


class Granting(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, HangingServer)
        while self.rfile.readline():
            while self.rfile.readline().strip():
                pass
            time.sleep(max(0.0, self.server.hangs_until_s - time.monotonic()))
            body = b'{"allowed": true, "degraded": false}'
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


@pytest.fixture
def server() -> Iterator[HangingServer]:
    with HangingServer() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_server_that_hangs_delays_every_check_meant_to_be_sent_meanwhile(server: HangingServer) -> None:
    with Load([server.address], "api", ["one", "two"], 100.0) as load:
        time.sleep(0.3)
        server.hang()
        time.sleep(HANG_S + 0.3)
    assert load.failed == []
    assert load.gap.length_s == pytest.approx(HANG_S, abs=0.15)
    waited = sum(check.latency_s > HANG_S / 4 for check in load.checks)
    assert waited > 100 * HANG_S / 2  # a client that waits for its last answer would have seen one
    assert sum(load.granted().values()) == len(load.checks)


def test_a_server_that_is_gone_fails_every_check() -> None:
    with HangingServer() as gone:
        address = gone.address
    with Load([address], "api", ["one"], 100.0) as load:
        time.sleep(0.2)
    assert load.checks
    assert load.failed == load.checks


def test_a_report_says_broken_when_one_key_is_beyond_its_bound() -> None:
    report = Report("killed", progress=lambda _: None)
    report.grants({"a": 2, "b": 3, "c": -1}, {"a": 2, "b": 1, "c": 0})
    assert (report.extra, report.bound, report.verdict) == (3, 1, "BROKEN")
    assert "{'b': 3}" in table([report])


def test_a_report_is_ok_when_every_key_is_within_its_bound() -> None:
    report = Report("killed", progress=lambda _: None)
    report.grants({"a": 2, "b": 0}, {"a": 2, "b": 1})
    assert (report.extra, report.bound, report.verdict) == (2, 2, "ok")


def test_every_case_says_what_it_shows() -> None:
    for name, case in CASES.items():
        assert case.__doc__, name
        assert "\n" not in case.__doc__, name
    assert set(CASES) >= NEED_ROOT
