"""Entries, multipliers and health of backends: what is accepted, what it becomes, and every problem of what is not."""

from typing import Any

import pytest

from limiter_node.core.adaptive.evidence import Decision, Policy
from limiter_node.core.algorithms.token_bucket import PPM
from limiter_node.core.backends import (
    Backend,
    Poll,
    Record,
    parse_backend,
    parse_health,
    parse_record,
    quantiles,
    record_json,
)
from limiter_node.core.errors import BadRule
from limiter_node.core.rules import decode_json


@pytest.mark.parametrize(
    ("multiplier", "ppm"),
    [
        (1, PPM),
        (1.0, PPM),
        (0.62, 620_000),
        (0.3, 300_000),
        (1 / 3, 333_333),
        (0.0000014, 1),
        (1e-12, 1),
        (5e-324, 1),
    ],
)
def test_a_multiplier_is_kept_in_millionths_and_at_least_one(multiplier: float, ppm: int) -> None:
    assert parse_record("orders", {"multiplier": multiplier}) == Record(Decision(multiplier, "unknown", ""))
    assert parse_record("orders", {"multiplier": multiplier}).ppm == ppm


def test_what_the_controller_adds_to_a_multiplier_is_carried_and_not_judged() -> None:
    document = {
        "multiplier": 0.5,
        "state": "overload",
        "pinned": True,
        "reason": "p90 812ms > 250ms",
        "rate": 930,
        "priorities": {"0": 1.0},
        "term": 17,
        "of a later version": [],
    }
    assert parse_record("orders", document) == Record(
        Decision(0.5, "overload", "p90 812ms > 250ms", 930, {"0": 1.0}), pinned=True
    )


@pytest.mark.parametrize("multiplier", [0, 0.0, -0.1, 1.0000001, 2, float("nan"), float("inf"), -float("inf")])
def test_a_multiplier_is_above_0_and_up_to_1(multiplier: float) -> None:
    with pytest.raises(BadRule) as caught:
        parse_record("orders", {"multiplier": multiplier})
    assert caught.value.problems == (f"multiplier: {multiplier} is out of range; allowed: above 0, up to 1",)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({}, ["multiplier: is required"]),
        ([], ["document: must be an object"]),
        ({"multiplier": "0.5"}, ["multiplier: Expected float, got str; allowed: a number"]),
        ({"multiplier": True}, ["multiplier: Expected float, got bool; allowed: a number"]),
        (
            {"multiplier": None, "pinned": 1},
            [
                "multiplier: Expected float, got null; allowed: a number",
                "pinned: Expected bool, got int; allowed: true, false",
            ],
        ),
        (
            {"multiplier": 0.5, "rate": -1, "priorities": {"0": 2}},
            [
                "rate: Expected float >= 0.0; allowed: a number of 0 to 1000000000000",
                "priorities: Expected float <= 1.0; allowed: an object of {name: a number of 0 to 1}",
            ],
        ),
    ],
)
def test_every_problem_of_a_multiplier_is_told_at_once(document: Any, told: list[str]) -> None:
    with pytest.raises(BadRule) as caught:
        parse_record("orders", document)
    assert list(caught.value.problems) == told


# Entries.


def test_an_empty_entry_is_an_adaptive_backend_fed_by_reports() -> None:
    assert parse_backend("orders", {}) == Backend(Policy(), 1.0, None)
    assert Policy() == Policy("on", None, 0.05, 0.05, None, 10.0)


def test_an_entry_with_everything() -> None:
    document = {
        "adaptive": "observe",
        "slo_ms": 250,
        "error_rate_max": 0.1,
        "min": 0.1,
        "max": 0.8,
        "fallback": 0.4,
        "stale_after_s": 20,
        "poll": {
            "url": "http://orders:9100/metrics",
            "format": "prometheus",
            "every_s": 2,
            "latency": "http_request_duration_seconds",
            "requests": "http_requests_total",
            "error_label": "code=~5..",
        },
    }
    poll = Poll(
        "http://orders:9100/metrics",
        "prometheus",
        2,
        "http_request_duration_seconds",
        "http_requests_total",
        ("code", "=~", "5.."),
    )
    assert parse_backend("orders", document) == Backend(Policy("observe", 250, 0.1, 0.1, 0.4, 20), 0.8, poll)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], ["document: must be an object"]),
        ({"adaptive": "maybe"}, ["adaptive: Invalid enum value 'maybe'; allowed: off, observe, on"]),
        ({"slo_ms": 0, "other": 1}, ["slo_ms: Expected float > 0.0", "other: unknown field"]),
        ({"min": 0}, ["min: Expected float > 0.0"]),
        ({"min": 0.5, "max": 0.4}, ["max: 0.4 is below min; allowed: 0.5 to 1"]),
        ({"fallback": "full"}, ["fallback: 'full' is not allowed; allowed: \"hold\", or a multiplier"]),
        ({"fallback": 0}, ["fallback: 0 is not allowed"]),
        ({"poll": {"format": "json"}}, ["poll.url: is required"]),
        ({"poll": {"url": "file:///etc/passwd"}}, ["poll.url: 'file:///etc/passwd' is not allowed"]),
        ({"poll": {"url": "http://[::1/"}}, ["poll.url: 'http://[::1/' is not allowed; allowed: http://HOST[:PORT]"]),
        ({"poll": {"url": "http://a:99999/"}}, ["poll.url: 'http://a:99999/' is not allowed"]),
        ({"poll": {"url": "http://a:x/"}}, ["poll.url: 'http://a:x/' is not allowed"]),
        ({"poll": {"url": "http://:80/"}}, ["poll.url: 'http://:80/' is not allowed"]),
        ({"poll": {"url": "http://a", "format": "prometheus"}}, ["poll: prometheus needs latency"]),
        ({"poll": {"url": "http://a", "error_label": "code"}}, ["poll.error_label: 'code' is not allowed"]),
        ({"poll": {"url": "http://a", "error_label": "code=~("}}, ["poll.error_label: '(' is no regular expression"]),
    ],
)
def test_every_problem_of_an_entry_names_its_field(document: Any, told: list[str]) -> None:
    with pytest.raises(BadRule) as caught:
        parse_backend("orders", document)
    assert len(caught.value.problems) == len(told)
    for problem, start in zip(caught.value.problems, told, strict=True):
        assert problem.startswith(start)


@pytest.mark.parametrize("parse", [parse_backend, parse_record, lambda name, _: parse_health(name, {}, "health")])
def test_a_backend_has_a_name(parse: Any) -> None:
    with pytest.raises(BadRule, match="backend name: 'no name' is not allowed"):
        parse("no name", {"multiplier": 1})


# Records as the controller writes them.


def test_a_published_record_reads_back_as_the_decision_it_was() -> None:
    decision = Decision(0.625, "overload", "p90 812 ms > 250 ms", 930.0, {"0": 1.0, "9": 0.05}, 800.0, 1600)
    document = decode_json(record_json(decision, 17, observed=False))
    assert document["term"] == 17
    assert parse_record("orders", document) == Record(decision)


def test_a_record_that_is_only_observed_acts_on_nothing() -> None:
    decision = Decision(0.625, "overload", "p90 812 ms > 250 ms", 930.0)
    record = parse_record("orders", decode_json(record_json(decision, 17, observed=True)))
    assert (record.decision.multiplier, record.decision.rate) == (1.0, None)
    assert record.would == decision


def test_a_priority_in_a_record_is_0_to_9() -> None:
    with pytest.raises(BadRule, match="priorities: '10' is no priority; allowed: 0 to 9"):
        parse_record("orders", {"multiplier": 1, "priorities": {"10": 0.5}})


def test_a_record_is_one_that_is_read_back_whatever_the_law_has_come_to() -> None:
    """Four digits of a tiny multiplier would be 0, which is none."""
    decision = Decision(1e-9, "overload", "", rate=1e300, hold_rate=1e300, expires_ms=1)
    record = parse_record("orders", decode_json(record_json(decision, 17, observed=False)))
    assert (record.decision.multiplier, record.decision.rate) == (0.0001, 1e12)


def test_rates_in_a_record_are_no_greater_than_any_fleet_has() -> None:
    for field in ("rate", "hold_rate"):
        with pytest.raises(BadRule, match=f"{field}: Expected float <= 1000000000000.0"):
            parse_record("orders", {"multiplier": 1, field: 1e13})


# Health.


def test_quantiles_that_are_not_told_are_read_off_the_line_between_those_that_are() -> None:
    assert quantiles(None, None, None) == (0.0, 0.0, 0.0)
    assert quantiles(10, None, None) == (10, 10, 10)
    assert quantiles(None, None, 80) == (80, 80, 80)
    p50, p90, p99 = quantiles(10, None, 100)
    assert (p50, p99) == (10, 100)
    assert p90 == pytest.approx(35.56, rel=1e-3)
    assert quantiles(0, None, 100) == (0, 0, 100)


def test_what_a_monitor_says_becomes_a_signal() -> None:
    document = {"latency_ms": {"p50": 10, "p99": 100}, "error_rate": 0.02, "throughput": 900}
    told = parse_health("orders", document, "health")
    assert (told.source, told.p50_ms, told.p99_ms, told.error_rate, told.throughput) == ("health", 10, 100, 0.02, 900)
    assert 10 < told.mean_ms < told.p90_ms


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("x", "document: must be an object"),
        ({}, "latency_ms: is required"),
        ({"latency_ms": {"p50": -1}}, "latency_ms.p50: Expected float >= 0.0"),
        ({"latency_ms": {}, "error_rate": 2}, "error_rate: Expected float <= 1.0"),
        ({"latency_ms": {}, "throughput": 1e300}, "throughput: Expected float <= 1000000000000.0"),
        ({"latency_ms": {}, "up": True}, "up: unknown field"),
    ],
)
def test_health_that_is_no_good_is_refused(document: Any, told: str) -> None:
    with pytest.raises(BadRule) as caught:
        parse_health("orders", document, "health")
    assert caught.value.problems[0].startswith(told)
