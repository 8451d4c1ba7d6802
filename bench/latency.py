"""Time to answer at fixed rates, in an open loop: at a few beside each other, and where each has its core half busy.

That is not half of what a closed loop gets out of it: there checks come in larger groups, and cost less. At half of
that rate forwarded checks kept the core 99 % busy.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.load import RunError, command, cpu_ns, drive, keys_of_13_bytes
from bench.open_loop import CONNECTIONS, Measured
from bench.progress import tell
from bench.servers import COPIED, RULE, Stage
from bench.speed import FORWARDED, NODE, NUMBERS, SYSTEMS, owned_keys, write_keys
from bench.stats import Spread
from bench.systems import limiter

if TYPE_CHECKING:
    from pathlib import Path

    from bench.comparison import Plan
    from bench.servers import System

RATES_PER_S = (1_000, 4_000, 16_000)
ROUNDS_MAX = 3
RUNS_ABOUT = 22  # a round of all systems
KEYS = 20_000
KEYS_QUICK = 4_000
# Beyond that share of what a closed loop gets out of it, a queue only grows for as long as one looks.
LOAD_MAX = 0.8
HALF_STEPS = 3
HALF_STEP_MAX = 1.5
"""Half load is sought so often, from half of a closed loop's rate on, and never goes up faster."""
ADDED_P99_MAX = 2.0  # of a forwarded check at half load, in p99s of a local one
LEFT_OUT = ("nginx limit_req", "aiohttp + dict")


@dataclass(frozen=True, slots=True)
class Subject:
    """A system, and what it can do."""

    name: str
    system: System
    keyfile: Path
    capacity_per_s: float
    half_per_s: float  # where it has its core half busy

    @property
    def rates_per_s(self) -> dict[str, float]:
        """{what the rate is called: checks a second}."""
        fixed = {f"{rate:,}/s": float(rate) for rate in RATES_PER_S if rate <= LOAD_MAX * self.capacity_per_s}
        return {**fixed, "half load": self.half_per_s}


def measure(plan: Plan) -> dict[str, Any]:
    """Take all latencies, print them and return them."""
    print(f"latency: open loop (a Poisson stream), GET, {CONNECTIONS} connections, {plan.seconds} s a run")
    rounds = min(plan.rounds, ROUNDS_MAX)
    runs: dict[str, dict[str, list[dict[str, float]]]] = {}
    with Stage() as stage, machine.Stolen() as stolen:
        subjects = _subjects(stage, plan)
        for turn in range(1, rounds + 1):
            for subject in subjects:
                for name, rate_per_s in subject.rates_per_s.items():
                    tell(f"round {turn}/{rounds}  {subject.name}  {name}")
                    run = _drive(subject, rate_per_s, plan)
                    runs.setdefault(subject.name, {}).setdefault(name, []).append(run)
    found = {
        "rates": {subject.name: subject.rates_per_s for subject in subjects},
        "capacity": {subject.name: subject.capacity_per_s for subject in subjects},
        "runs": runs,
        "stolen": stolen.share,
        "added_p99": added_p99(runs),
        "added_p99_max": ADDED_P99_MAX,
    }
    _show(found)
    return found


def added_p99(runs: dict[str, dict[str, list[dict[str, float]]]]) -> Spread | None:
    """By how much a forwarded check's p99 at half load exceeds a local one's, in p99s of the local one."""
    if not {NODE, FORWARDED} <= runs.keys():
        return None
    local, forwarded = ([run["p99_ms"] for run in runs[name]["half load"]] for name in (NODE, FORWARDED))
    times = [there / here - 1 for there, here in zip(forwarded, local, strict=True)]
    return Spread.of(times)


def _subjects(stage: Stage, plan: Plan) -> list[Subject]:
    count = KEYS_QUICK if plan.is_quick else KEYS
    any_keys = write_keys(stage, keys_of_13_bytes(count, seed=plan.seed))
    found = [
        _subject(name, start(stage, plan.cores, NUMBERS), any_keys, plan)
        for name, start in SYSTEMS.items()
        if name not in LEFT_OUT and plan.wants(name)
    ]
    if plan.wants(FORWARDED):
        pair = limiter.pair(stage, plan.cores, COPIED)
        theirs = write_keys(stage, owned_keys(pair, count, seed=plan.seed), "owned-keys")
        found.insert(1, _subject(FORWARDED, pair.asked, theirs, plan))
    return found


def _subject(name: str, system: System, keyfile: Path, plan: Plan) -> Subject:
    tell(f"closed loop  {name}")
    argv = command(system.http, "get", keyfile, rule=RULE, seconds=plan.seconds, cpu=plan.cores.load)
    capacity_per_s = drive(argv, system.pids).checks_per_s
    found = Subject(name, system, keyfile, capacity_per_s, capacity_per_s / 2)
    for _ in range(HALF_STEPS):
        tell(f"half load?  {name}  {found.half_per_s:,.0f}/s")
        busy = _drive(found, found.half_per_s, plan)["cpu_us"] * found.half_per_s / 1e6
        half_per_s = found.half_per_s * min(0.5 / busy, HALF_STEP_MAX)
        found = replace(found, half_per_s=min(half_per_s, LOAD_MAX * capacity_per_s))
    return found


def _drive(subject: Subject, rate_per_s: float, plan: Plan) -> dict[str, float]:
    argv = ["taskset", "-c", str(plan.cores.load), sys.executable, "-m", "bench.open_loop", str(subject.keyfile)]
    argv += [f"{rate_per_s:.0f}", str(plan.seconds), subject.system.http]
    cpu_ns_before = cpu_ns(subject.system.pids)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=plan.seconds + 60, check=False)
    cpu_ns_used = cpu_ns(subject.system.pids) - cpu_ns_before
    if done.returncode:
        raise RunError(f"{shlex.join(argv)} failed:\n{done.stdout}{done.stderr}")
    measured = Measured(**json.loads(done.stdout))
    if measured.refused or measured.unanswered:
        raise RunError(f"{shlex.join(argv)}: not every check was allowed: {done.stdout}")
    return {**asdict(measured), "rate_per_s": rate_per_s, "cpu_us": cpu_ns_used / 1e3 / measured.checks}


def _show(found: dict[str, Any]) -> None:
    tell("")
    print(
        f"  {'ms, medians of rounds':<30}{'rate':>12}{'p50':>9}{'p99':>9}{'p99.9':>9}{'cpu us':>9}{'client late':>13}"
    )
    for name, by_rate in found["runs"].items():
        for rate, runs in by_rate.items():
            p50, p99, p999, cpu, late = (
                Spread.of(run[of] for run in runs).median
                for of in ("p50_ms", "p99_ms", "p999_ms", "cpu_us", "client_late_p99_ms")
            )
            asked = f"{runs[0]['rate_per_s']:,.0f}/s"
            print(f"  {name:<30}{asked:>12}{p50:>9.2f}{p99:>9.2f}{p999:>9.2f}{cpu:>9.2f}{late:>13.2f}  {rate}")
    added = found["added_p99"]
    if added is not None:
        word = "met" if added.median <= ADDED_P99_MAX else "MISSED"
        print(
            f"  p99 that forwarding adds at half load, in p99s of a local check: {added.median:.2f}"
            f" ({added.low:.2f}-{added.high:.2f})   target <= {ADDED_P99_MAX:g}  {word}"
        )
    print(f"  stolen by the hypervisor meanwhile: {found['stolen']:.1%} of all time\n", flush=True)
