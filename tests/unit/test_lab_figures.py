"""Figures on traces made by hand, and controls that must fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.adaptive import plots
from bench.adaptive.clients import Stream
from bench.adaptive.controllers import CONTROLS, build
from bench.adaptive.fitting import FITTING
from bench.adaptive.judged import JUDGED
from bench.adaptive.metrics import Figures, back_s, figures, interval, jain, overshoot, protect_s
from bench.adaptive.report import write
from bench.adaptive.runs import run_all
from bench.adaptive.scenario import Scenario, pulse
from bench.adaptive.summary import overall, row, targets
from bench.adaptive.world import World

if TYPE_CHECKING:
    from pathlib import Path

DROP = Scenario(name="drop", family="capacity", duration_s=30, onset_s=8, end_s=20, capacity=pulse(0.4, 8, 20))


def run(controller: str) -> Figures:
    return figures(DROP, World(Stream(DROP, 1), build(controller)).run())


def test_protection_is_the_first_5_s_at_four_fifths_of_the_reference() -> None:
    reference = [100] * 20
    assert protect_s([100] * 20, reference, 5, 15) == 0
    assert protect_s([100] * 5 + [0] * 3 + [100] * 12, reference, 5, 15) == 2
    assert protect_s([0] * 20, reference, 5, 15) == 10


def test_back_is_the_first_5_s_at_95_percent_of_normal() -> None:
    assert back_s([100] * 20, [100] * 20, 8, 10, 20) == 0
    assert back_s([100] * 8 + [50] * 5 + [100] * 7, [100] * 20, 8, 10, 20) == 3
    assert back_s([94] * 20, [100] * 20, 0, 10, 20) == 10
    assert back_s([94] * 20, [100] * 20, 8, 10, 20) == 0


def test_overshoot_is_the_highest_5_s_over_the_capacity() -> None:
    assert overshoot([100] * 10 + [200] * 5 + [100] * 5, [100] * 20, 0, 20) == 2
    assert overshoot([100, 100, 200, 100, 100, 100], [100.0] * 6, 0, 6) == pytest.approx(1.2)


def test_jain_is_one_for_equals_and_one_nth_for_a_winner() -> None:
    assert jain([0.5] * 10) == pytest.approx(1)
    assert jain([1.0] + [0.0] * 9) == pytest.approx(0.1)


def test_an_interval_holds_the_mean_and_is_the_same_each_time() -> None:
    values = [0.9, 0.95, 1.0, 0.85, 0.92]
    low, high = interval(values)
    assert low < sum(values) / 5 < high
    assert interval(values) == (low, high)
    assert interval([0.7]) == (0.7, 0.7)


def test_the_reference_keeps_what_controls_lose() -> None:
    reference = max((run(f"fixed {limit}") for limit in (1.0, 2.0)), key=lambda found: found.goodput)
    assert reference.goodput > 0.9 * DROP.capacity_at(10)
    assert reference.premium > 0.9
    for name in CONTROLS:
        assert run(name).goodput < 0.5 * reference.goodput, name


def test_the_minimum_throttles_when_healthy_and_no_limiter_never_does() -> None:
    assert run("always minimum").throttled > 0.8
    assert run("always full").throttled == 0
    assert run("always full").overshoot > 2
    assert run("always full").well > 0.9 > 0.2 > run("always minimum").well


def test_scenarios_have_names_of_their_own_and_cover_both_sets() -> None:
    assert len({scenario.name for scenario in (*FITTING, *JUDGED)}) == len(FITTING) + len(JUDGED)
    assert {scenario.family for scenario in JUDGED} == {scenario.family for scenario in FITTING}


def test_a_report_tells_rows_means_and_targets() -> None:
    said: list[str] = []
    results = run_all([DROP], {"ours": range(2), "Gradient2": range(1)}, 1, said.append)
    found = row(results, DROP, "ours")
    assert found is not None
    assert len(found.by_seed) == 2
    assert row(results, DROP, "SRE") is None
    peer = overall(results, "Gradient2")
    assert peer is not None
    metrics = {line.metric for line in targets(results, [peer])}
    assert {"goodput, capacity and surge", "back to 95 %", "mean over overloads, peers at one gate"} <= metrics
    assert said


def test_a_report_is_written_the_same_again(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        results = run_all([DROP], {"ours": range(1), "Gradient2": range(1)}, 1, lambda _: None)
        write(results, ["ours", "Gradient2"], tmp_path / name, {"seeds": "one"}, "tiny")
        written.append({path.name: path.read_text() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert "| drop |" in written[0]["tiny.md"]
    assert written[0].keys() == {"tiny.md", "tiny-goodput.svg", "tiny-capacity.svg"}


def test_pictures_are_the_same_for_the_same_figures() -> None:
    series = {"offered": [1.0, 2.0, 3.0], "good <1 s": [1.0, 1.0, 1.0]}
    picture = plots.lines("a & b", series, shaded=(1, 2))
    assert picture == plots.lines("a & b", series, shaded=(1, 2))
    assert "good &lt;1 s" in picture
    assert "a &amp; b" in picture
    assert "0.950" in plots.bars("means", {"ours": (0.95, 0.94, 0.96)})
