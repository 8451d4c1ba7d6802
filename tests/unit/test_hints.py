"""Hints: what is asked of somebody who wrote something else, and where nothing is."""

import pytest

from limiter_node.core.hints import did_you_mean, plain_rate

FIELDS = ("rate", "burst", "algorithm", "segments", "backend", "on_unreachable")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("brust", "burst"), ("Rate", "rate"), ("segment", "segments"), ("on-unreachable", "on_unreachable")],
)
def test_the_nearest_of_what_is_allowed_is_asked_for(written: str, meant: str) -> None:
    assert did_you_mean(written, FIELDS) == f'; did you mean "{meant}"?'


@pytest.mark.parametrize(("written", "meant"), [(True, "on"), (False, "off")])
def test_on_and_off_are_meant_by_what_yaml_makes_of_them(written: bool, meant: str) -> None:
    assert did_you_mean(written, ("off", "observe", "on")) == f'; did you mean "{meant}"?'
    assert did_you_mean(written, FIELDS) == ""


@pytest.mark.parametrize("written", ["", "x", "colour", 7, None])
def test_what_is_near_to_nothing_is_not_guessed_at(written: object) -> None:
    assert did_you_mean(written, FIELDS) == ""


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("100 per second", "100/s"),
        ("1,000 / Min", "1000/m"),
        ("1_000/hour", "1000/h"),
        ("5 an hour", "5/h"),
        ("10/30sec", "10/30s"),
        ("10000/months", "10000/month"),
        ("100/s", "100/s"),
        ("100", ""),
        ("5/year", ""),
        ("often", ""),
        ("", ""),
    ],
)
def test_a_loose_rate_is_told_in_its_plain_form(written: str, plain: str) -> None:
    assert plain_rate(written) == plain
