"""The worked examples of the README's section on algorithms come out as it says."""

import re
from datetime import UTC, datetime

import pytest

from limiter_node.core.algorithms import build
from limiter_node.core.algorithms.face import Decision, Wall
from limiter_node.core.algorithms.token_bucket import PPM
from limiter_node.core.limits import BUCKETS, WINDOWS, Limit, parse_rate
from tests.harness import ROOT

SECTION = (ROOT / "README.md").read_text().split("## Which algorithm")[1].split("\n## ")[0]
SECOND_NS = 1_000_000_000


def rows(first_cell: str) -> list[list[str]]:
    """The table whose head begins with a cell: the head, and the rows below it."""
    table = SECTION[SECTION.index(f"| {first_cell} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in (table[0], *table[2:])]


def told(decision: Decision) -> str:
    """As the README tells it."""
    if not decision.allowed:
        return f"denied, {decision.retry_ns / SECOND_NS:.0f} s"
    wait = "" if decision.wait_ns is None else f", wait {decision.wait_ns / SECOND_NS:.0f} s"
    return f"{decision.remaining} left{wait}"


def wall_ns(day: str, time: str) -> int:
    moment = datetime.strptime(f"{day} {time}", "%d %B %Y %H:%M:%S").replace(tzinfo=UTC)
    return int(moment.timestamp()) * SECOND_NS


def test_every_algorithm_is_in_both_tables() -> None:
    names = [f"`{name}`" for name in (*BUCKETS, *WINDOWS)]
    for first_cell in ("`algorithm`", "26 November 2026"):
        assert [row[0] for row in rows(first_cell)[1:]] == names


@pytest.mark.parametrize("algorithm", [*BUCKETS, *WINDOWS])
def test_the_worked_example_comes_out_as_told(algorithm: str) -> None:
    (day, *asked), *answers = rows("26 November 2026")
    expected = next(row[1:] for row in answers if row[0] == f"`{algorithm}`")
    limit = Limit("10/m", 10, 60, 10, algorithm)
    assert f"`{limit.rate}`" in SECTION
    law, state, got = build(limit, PPM, 1, 0, Wall()), None, []
    for time, cost in (re.fullmatch(r"(\S+), cost (\d+)", ask).groups() for ask in asked):  # type: ignore[union-attr]
        decision = law.decide(state, int(cost), wall_ns(day, time))
        state = decision.state
        got.append(told(decision))
    assert got == expected


def test_the_quota_of_a_month_is_there_again_when_the_readme_says() -> None:
    rate, zone, reset_s = re.findall(
        r"`(\d+/month)` with `\"timezone\": \"(.+?)\"`[^`]+`reset_after` is (\d+)", SECTION
    )[0]
    count, period_s = parse_rate(rate)
    law = build(Limit(rate, count, period_s, count, "fixed_window", zone), PPM, 1, 0, Wall())
    assert law.decide(None, 1, wall_ns("26 November 2026", "12:00:00")).reset_ns == int(reset_s) * SECOND_NS
