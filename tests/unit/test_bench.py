"""The bench's own arithmetic: what many runs come to, when an open loop asks, and what a report says of results."""

import re
import select
import socket
import threading
from contextlib import closing
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import plots, report
from bench.comparison import Comparison, Figure, Plan
from bench.latency import added_p99
from bench.load import Run
from bench.open_loop import CONNECTIONS, Client, due_times_s, is_whole, requests_for
from bench.servers import Cores
from bench.stats import Spread, quantile, ratio

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def test_a_ratio_is_of_medians_and_its_span_of_rounds() -> None:
    # Rounds 2 and 3 ran on a machine half as fast: both subjects fell, their ratios did not.
    assert ratio([100, 50, 45], [50, 25, 30]) == Spread(1.5, 50 / 30, 2.0)


def test_a_quantile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, fraction) for fraction in (0, 0.5, 0.99, 1)] == [1, 51, 100, 100]


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (ANSWER, True),
        (ANSWER[:-1], False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", False),
        (b"HTTP/1.1 200 OK\r\nserver: envoy\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", True),
    ],
)
def test_an_answer_is_whole_once_its_body_is_there(answer: bytes, whole: bool) -> None:
    assert is_whole(answer) is whole


def test_due_times_are_those_of_a_poisson_stream_and_of_the_seed_alone() -> None:
    times = due_times_s(1_000, 20, seed=1)
    assert times == due_times_s(1_000, 20, seed=1)
    assert len(times) == 20_000
    assert times == sorted(times)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.001, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.1)  # exponential


def test_an_open_loop_counts_the_wait_for_a_server_that_answers_late() -> None:
    # The server answers nothing until a check has been asked on every connection: each waits for the last of them,
    # and the one check more, due at the same time, waits until a connection is free.
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = threading.Thread(target=_answer_all_at_once, args=(listener, CONNECTIONS))
        server.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        due_s = [0.0] * (CONNECTIONS - 1) + [0.3, 0.3]
        measured = Client([address], requests_for(["key"], address), due_s).run()
        server.join(10)
    assert (measured.checks, measured.refused, measured.unanswered) == (CONNECTIONS + 1, 1, 0)
    assert measured.p50_ms >= 300


def _answer_all_at_once(listener: socket.socket, count: int) -> None:
    connections = [listener.accept()[0] for _ in range(count)]
    for connection in connections:
        connection.recv(1_000)
    for connection in connections:
        connection.sendall(ANSWER)
    (asked_again, *_), _, _ = select.select(connections, [], [], 10)
    asked_again.recv(1_000)
    asked_again.sendall(ANSWER.replace(b"200 OK", b"429 No"))
    for connection in connections:
        connection.recv(1_000)  # until the client closes it
        connection.close()


def comparison() -> Comparison:
    """Two subjects in two rounds."""
    found = Comparison("both", [], [Figure("node", "other", 3), Figure("node", "left out", 1)], "a network")
    found.runs = {"node": [_run(90), _run(110)], "other": [_run(30), _run(55)]}
    return found


def _run(rate: float) -> Run:
    return Run(checks_per_s=rate, cpu_us=1e6 / rate, p50_ms=1, p99_ms=2)


def test_a_comparison_tells_the_figures_that_both_subjects_were_measured_for() -> None:
    (figure,) = comparison().as_json()["figures"]
    assert figure["rate"] == Spread(2.0, 100 / 42.5, 3.0)
    assert not figure["met"]


def test_only_some_subjects_are_wanted() -> None:
    plan = Plan(1, 1, 1, Cores(0, 1), only=("LIMITS", "redis"))
    names = ("node", "aiohttp + limits in memory", "aiohttp + GCRA Lua on Redis")
    assert [plan.wants(name) for name in names] == [False, True, True]


def timed(p99_ms: float, rate_per_s: float) -> dict[str, float]:
    """A run of the open loop."""
    same = dict.fromkeys(("p50_ms", "p90_ms", "p999_ms", "cpu_us", "client_late_p99_ms"), 1.0)
    return {**same, "p99_ms": p99_ms, "rate_per_s": rate_per_s}


def results() -> dict[str, Any]:
    """Of a run of all parts, as read back from speed.json."""
    runs = {
        "node": {"1,000/s": [timed(1, 1e3)], "half load": [timed(1, 3e4), timed(2, 3e4)]},
        "forwarded": {"half load": [timed(4, 1e4), timed(5, 1e4)]},
    }
    latency = {"runs": runs, "stolen": 0.0, "added_p99": list(added_p99(runs) or ()), "added_p99_max": 2.0}
    memory = {
        "sizes": [{"keys": 1_000, "bytes_per_key": 120}, {"keys": 2_000, "bytes_per_key": 141}],
        "bytes_per_key_max": 140,
        "given_back": {"share": 0.9},
    }
    parts = {
        "local": comparison().as_json(),
        "latency": latency,
        "memory": memory,
        "footprint": {"keys": 1_000, "bytes_per_key": {"node": 120.0, "other": 240.0}},
    }
    return {"facts": {"machine": "a small one"}, "parts": parts}


def test_the_report_says_which_targets_are_missed() -> None:
    rows = {row[0]: row[1:] for row in report.targets(results()["parts"])}
    assert rows == {
        "node / other": ("at least 3", "2.35 (2.00 to 3.00)", "**missed**"),
        "p99 that forwarding adds at half load, in p99s of a local check": (
            "at most 2",
            "2.25 (1.50 to 3.00)",
            "**missed**",
        ),
        "bytes a key, 1,000 to 2,000 keys": ("at most 140", "120 to 141", "**missed**"),
    }


def test_the_report_names_machine_and_pictures_it_has_drawn() -> None:
    page = report.page(results())
    assert "- machine: a small one" in page
    drawn = dict(report.pictures(results()["parts"]))
    assert set(re.findall(r"\((speed-\w+\.svg)\)", page)) == drawn.keys()
    for picture in drawn.values():
        ElementTree.fromstring(picture)


def test_a_bar_is_as_long_as_its_median() -> None:
    picture = plots.bars("rates", {"a": Spread(90, 100, 110), "b & c": Spread(50, 50, 50)}, ours=("a",))
    first, second = (float(width) for width in re.findall(r'<rect x="230".*?width="([\d.]+)"', picture))
    assert first == pytest.approx(2 * second, rel=0.01)
    assert "b &amp; c" in picture


def test_a_curve_is_drawn_between_powers_of_ten() -> None:
    picture = plots.curves("p99", "rate", {"node": [(100, 1), (10_000, 100)]})
    (points,) = re.findall(r'<polyline points="([^"]+)"', picture)
    assert points == "50.0,288.0 690.0,28.0"
