"""Subjects driven in a closed loop, in turn, and the ratios taken from them.

A B C, A B C, ...: a machine that slows down, or a neighbour that wakes up, touches all of them alike. Servers share one
core, the load generator has another, and only one server is asked at a time.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import machine
from bench.load import CONNECTIONS, Expected, Mode, Run, command, drive
from bench.progress import tell
from bench.servers import RULE
from bench.stats import Spread, ratio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.servers import Cores, System

WARM_S = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """How often and how long every subject runs, where, and which."""

    rounds: int
    seconds: int
    seed: int
    cores: Cores
    is_quick: bool = False
    only: tuple[str, ...] = ()  # parts of names of subjects; none: all

    def wants(self, name: str) -> bool:
        """Whether a subject of that name is to be measured."""
        return not self.only or any(part.casefold() in name.casefold() for part in self.only)

    def closed_loop_s(self, subjects: int) -> float:
        """About how long so many subjects take."""
        return subjects * (WARM_S + self.rounds * (self.seconds + 0.3))


class Subject(NamedTuple):
    """A system asked in one way."""

    name: str
    system: System
    mode: Mode = "get"
    keyfile: Path | None = None  # instead of the comparison's
    expected: Expected = "allowed"
    load_cpus: str = ""  # where its load is made; usually on the core of all load
    connections: int = CONNECTIONS


class Figure(NamedTuple):
    """A ratio of two subjects' rates."""

    of: str
    against: str
    target: float | None = None  # at least; None: for orientation


@dataclass
class Comparison:
    """Subjects that run interleaved, and the figures taken from them."""

    title: str
    subjects: Sequence[Subject]
    figures: Sequence[Figure]
    does_not_show: str
    runs: dict[str, list[Run]] = field(default_factory=dict)
    # Share of the machine's time that went to other machines of the same host while the runs lasted.
    stolen: float = 0.0

    def run(self, plan: Plan, keyfile: Path) -> dict[str, Any]:
        """Warm every subject, go round them, print what came of it and return it."""
        print(self.title)
        subjects = [subject for subject in self.subjects if plan.wants(subject.name)]
        with machine.Stolen() as stolen:
            for turn in range(plan.rounds + 1):
                for subject in subjects:
                    self._drive(subject, plan, keyfile, is_warming=turn == 0)
                    if turn:
                        rate = self.runs[subject.name][-1].checks_per_s
                        tell(f"round {turn}/{plan.rounds}  {subject.name}  {rate:,.0f}/s")
        self.stolen = stolen.share
        self._show()
        return self.as_json()

    def _drive(self, subject: Subject, plan: Plan, keyfile: Path, *, is_warming: bool) -> None:
        argv = command(
            subject.system.http,
            subject.mode,
            subject.keyfile or keyfile,
            rule=RULE,
            seconds=WARM_S if is_warming else plan.seconds,
            cpu=subject.load_cpus or plan.cores.load,
            connections=subject.connections,
        )
        run = drive(argv, subject.system.pids, expected=subject.expected)
        if is_warming:
            tell(f"warm  {subject.name}  $ {shlex.join(argv)}")
        else:
            self.runs.setdefault(subject.name, []).append(run)

    def _show(self) -> None:
        tell("")
        print(f"  {'checks/s':<36}{'median':>10}{'min':>10}{'max':>10}{'p50 ms':>9}{'p99 ms':>9}{'cpu us':>9}")
        for name, runs in self.runs.items():
            rate, p50, p99, cpu = (
                Spread.of(getattr(run, of) for run in runs) for of in ("checks_per_s", "p50_ms", "p99_ms", "cpu_us")
            )
            print(
                f"  {name:<36}{rate.median:>10,.0f}{rate.low:>10,.0f}{rate.high:>10,.0f}"
                f"{p50.median:>9.2f}{p99.median:>9.2f}{cpu.median:>9.2f}"
            )
        print(f"  {'ratio of medians':<62}{'rate':>6}{'by round':>13}{'cpu':>7}")
        for figure in self._measured_figures():
            rate, cpu = self.ratio(figure), self.cpu_ratio(figure)
            span = f"{rate.low:.2f}-{rate.high:.2f}"
            target = "" if figure.target is None else f"target >= {figure.target:g}  {_word(rate, figure)}"
            label = f"{figure.of} / {figure.against}"
            print(f"  {label:<62}{rate.median:>6.2f}{span:>13}{cpu.median:>7.2f}   {target}".rstrip())
        print(f"  does not show: {self.does_not_show}")
        print(f"  stolen by the hypervisor meanwhile: {self.stolen:.1%} of all time\n", flush=True)

    def _measured_figures(self) -> list[Figure]:
        return [figure for figure in self.figures if {figure.of, figure.against} <= self.runs.keys()]

    def ratio(self, figure: Figure) -> Spread:
        """Of the rates."""
        of, against = ([run.checks_per_s for run in self.runs[name]] for name in (figure.of, figure.against))
        return ratio(of, against)

    def cpu_ratio(self, figure: Figure) -> Spread:
        """How many checks the one does in the CPU time in which the other does one."""
        of, against = ([run.cpu_us for run in self.runs[name]] for name in (figure.of, figure.against))
        return ratio(against, of)

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured."""
        figures = [
            {
                "of": figure.of,
                "against": figure.against,
                "rate": self.ratio(figure),
                "cpu": self.cpu_ratio(figure),
                "target": figure.target,
                "met": figure.target is None or self.ratio(figure).median >= figure.target,
            }
            for figure in self._measured_figures()
        ]
        return {
            "title": self.title,
            "figures": figures,
            "runs": {name: [asdict(run) for run in runs] for name, runs in self.runs.items()},
            "stolen": self.stolen,
            "does_not_show": self.does_not_show,
        }


def _word(measured: Spread, figure: Figure) -> str:
    return "met" if figure.target is None or measured.median >= figure.target else "MISSED"
