"""The metrics of several workers, added up."""

import pytest

from limiter_node.app import Node
from limiter_node.edge.summed_metrics import LARGEST, OF_THE_NODE, SMALLEST, Ledger, joined, parse, render
from limiter_node.report_metrics import exposition, gauges
from limiter_node.settings import parse as parse_settings
from tests.unit.test_settings import OPTIONS

PAGE = """\
# HELP limiter_checks_total Checks.
# TYPE limiter_checks_total counter
limiter_checks_total{{rule="a b",verdict="allowed"}} {checks}
# HELP limiter_keys Keys.
# TYPE limiter_keys gauge
limiter_keys {keys}
# HELP limiter_ring_members Nodes.
# TYPE limiter_ring_members gauge
limiter_ring_members {members}
# HELP limiter_peer_up Peers.
# TYPE limiter_peer_up gauge
limiter_peer_up{{peer="{peer}"}} {up}
# HELP limiter_node_info This.
# TYPE limiter_node_info gauge
limiter_node_info{{node="x"}} 1.0
# HELP took_seconds Time.
# TYPE took_seconds histogram
took_seconds_bucket{{le="0.1"}} {fast}
took_seconds_bucket{{le="+Inf"}} {all}
took_seconds_count {all}
took_seconds_sum {sum}
"""


def text(**changes: object) -> str:
    usual = {"checks": 3.0, "keys": 5.0, "members": 4.0, "peer": "n.2", "up": 1.0, "fast": 1.0, "all": 2.0, "sum": 0.5}
    return PAGE.format(**{**usual, **changes})


def samples(rendered: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in rendered.splitlines() if not line.startswith("#"))
    return {name: float(number) for name, _, number in lines}


def test_counts_are_added_and_of_states_the_telling_one_is_taken() -> None:
    whole = joined([parse(text()), parse(text(checks=4.0, members=3.0, up=0.0, fast=2.0, all=6.0, sum=1.0))])
    assert samples(render(whole)) == {
        'limiter_checks_total{rule="a b",verdict="allowed"}': 7,
        "limiter_keys": 10,
        "limiter_ring_members": 4,
        'limiter_peer_up{peer="n.2"}': 0,
        'took_seconds_bucket{le="0.1"}': 3,
        'took_seconds_bucket{le="+Inf"}': 8,
        "took_seconds_count": 8,
        "took_seconds_sum": 1.5,
    }


def test_what_one_worker_alone_tells_is_kept() -> None:
    whole = samples(render(joined([parse(text(peer="n.1", up=0.0)), parse(text())])))
    assert (whole['limiter_peer_up{peer="n.1"}'], whole['limiter_peer_up{peer="n.2"}']) == (0, 1)


def test_each_metric_is_described_once() -> None:
    rendered = render(joined([parse(text()), parse(text())]))
    assert rendered.count("# HELP limiter_checks_total Checks.\n# TYPE limiter_checks_total counter\n") == 1
    assert rendered.endswith("\n")


def total(ledger: Ledger, pages: dict[int, str]) -> dict[str, float]:
    return samples(render(ledger.total({worker: parse(page) for worker, page in pages.items()})))


def test_what_a_dead_worker_has_counted_stays_counted() -> None:
    ledger, checks = Ledger(), 'limiter_checks_total{rule="a b",verdict="allowed"}'
    assert total(ledger, {1: text(checks=10.0), 2: text(checks=20.0)})[checks] == 30
    ledger.end(1)
    after = total(ledger, {2: text(checks=21.0)})
    assert (after[checks], after["limiter_keys"], after["took_seconds_count"]) == (31, 5, 4)
    assert total(ledger, {1: text(checks=1.0), 2: text(checks=21.0)})[checks] == 32
    ledger.end(1)
    ledger.end(1)  # its next life died before anybody looked
    assert total(ledger, {2: text(checks=21.0)})[checks] == 32
    assert total(ledger, {1: text(checks=0.0), 2: text(checks=21.0)})[checks] == 32


def test_a_worker_that_does_not_answer_in_time_makes_no_counter_fall() -> None:
    ledger, checks = Ledger(), 'limiter_checks_total{rule="a b",verdict="allowed"}'
    total(ledger, {1: text(checks=10.0), 2: text(checks=20.0)})
    late = total(ledger, {2: text(checks=20.0)})
    assert (late[checks], late["limiter_keys"]) == (30, 5)
    assert total(ledger, {1: text(checks=15.0), 2: text(checks=20.0)})[checks] == 35


@pytest.fixture
def node() -> Node:
    return Node(parse_settings(OPTIONS))


def test_the_page_of_a_real_node_is_read_as_it_was_written(node: Node) -> None:
    written = exposition(node).text().decode()
    again = render(parse(written))
    assert samples(again) == samples(written)
    assert [line for line in again.splitlines() if line[0] == "#"] == [
        line for line in written.splitlines() if line[0] == "#"
    ]


def test_no_rule_of_how_to_join_is_for_a_metric_that_is_gone(node: Node) -> None:
    names = {name for name in LARGEST | SMALLEST | OF_THE_NODE if not name.startswith("process_")}
    assert names <= gauges(node).keys()
