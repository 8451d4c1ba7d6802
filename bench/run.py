"""Runs the figures of speed and memory and prints each beside its target.

A figure of speed is a ratio of medians over interleaved runs: A B C, A B C, ... so that a machine that
slows down, or a neighbour that wakes up, touches all of them alike. Servers share one core, the load
generator has another; only one server is asked at a time. A node with workers has both, and so has its load.

    python -m bench.run [--quick] [--json FILE] [PART ...]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench import machine, memory
from bench.load import CHECKS_PER_BATCH, CONNECTIONS, Mode, Run, command, drive, keys_of_13_bytes
from bench.servers import ServerError, Stage, owners, put

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.servers import Node

KEYS = 100_000
# Asked for in the forwarded figure, all owned by one node: as many again are looked up and left out.
KEYS_OWNED = 20_000
KEYS_OWNED_QUICK = 4_000
RULE = "bench"
# No key is asked often enough to be denied: what is measured is checks that are allowed.
NUMBERS = {"rate": "1000/s", "burst": 2000}
WARM_S = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """A server asked in one way."""

    name: str
    asked: Node
    mode: Mode = "get"
    # Other nodes that work on the same checks: the owner, or its replica.
    behind: tuple[Node, ...] = ()
    load_cpus: str = ""  # where the load comes from, if not from the plan's core
    connections: int = CONNECTIONS

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(pid for node in (self.asked, *self.behind) for pid in node.pids)


@dataclass(frozen=True, slots=True)
class Figure:
    """A ratio of two subjects' rates."""

    of: str
    against: str
    target: float | None  # at least; None: for orientation


@dataclass(frozen=True, slots=True)
class Plan:
    """How often and how long every subject runs."""

    rounds: int
    seconds: int
    seed: int
    server_cpu: int
    load_cpu: int


@dataclass
class Group:
    """Subjects that run interleaved, and the figures taken from them."""

    title: str
    subjects: Sequence[Subject]
    figures: Sequence[Figure]
    does_not_show: str
    runs: dict[str, list[Run]] = field(default_factory=dict)
    # Share of the machine's time that went to other machines of the same host while the runs lasted.
    stolen: float = 0.0

    def run(self, plan: Plan, keyfile: Path) -> None:
        """Warm every subject, then go round them."""
        print(self.title)
        argvs = {
            subject: command(
                subject.asked.http,
                subject.mode,
                keyfile,
                rule=RULE,
                seconds=plan.seconds,
                cpu=subject.load_cpus or plan.load_cpu,
                connections=subject.connections,
            )
            for subject in self.subjects
        }
        print(f"  $ {shlex.join(next(iter(argvs.values())))}", flush=True)
        for subject, argv in argvs.items():
            drive([f"-d{WARM_S}s" if word.startswith("-d") else word for word in argv], subject.pids)
        stolen_before, ticks_before = machine.cpu_ticks()
        for turn in range(1, plan.rounds + 1):
            for subject, argv in argvs.items():
                run = drive(argv, subject.pids)
                self.runs.setdefault(subject.name, []).append(run)
                _progress(f"round {turn}/{plan.rounds}  {subject.name}  {run.checks_per_s:,.0f}/s")
        _progress("")
        stolen, ticks = machine.cpu_ticks()
        self.stolen = (stolen - stolen_before) / max(1, ticks - ticks_before)

    def show(self) -> None:
        """Print rates and latencies, then the ratios."""
        print(f"  {'checks/s':<36}{'median':>10}{'min':>10}{'max':>10}{'p50 ms':>9}{'p99 ms':>9}{'cpu us':>9}")
        for name, runs in self.runs.items():
            rates = [run.checks_per_s for run in runs]
            print(
                f"  {name:<36}{median(rates):>10,.0f}{min(rates):>10,.0f}{max(rates):>10,.0f}"
                f"{median(run.p50_ms for run in runs):>9.2f}{median(run.p99_ms for run in runs):>9.2f}"
                f"{median(run.cpu_us for run in runs):>9.2f}"
            )
        print(f"  {'ratio of medians':<58}{'rate':>6}{'by round':>13}{'cpu':>7}")
        for figure in self.figures:
            ratio, by_round = self.ratio(figure)
            span = f"{min(by_round):.2f}-{max(by_round):.2f}"
            target = "" if figure.target is None else f"target >= {figure.target:.2f}  {_word(ratio, figure)}"
            label = f"{figure.of} / {figure.against}"
            print(f"  {label:<58}{ratio:>6.2f}{span:>13}{self.cpu_ratio(figure):>7.2f}   {target}".rstrip())
        print(f"  does not show: {self.does_not_show}")
        print(f"  stolen by the hypervisor meanwhile: {self.stolen:.1%} of all time\n", flush=True)

    def ratio(self, figure: Figure) -> tuple[float, list[float]]:
        """Return the ratio of medians, and the ratios within each round."""
        of, against = ([run.checks_per_s for run in self.runs[name]] for name in (figure.of, figure.against))
        return median(of) / median(against), [a / b for a, b in zip(of, against, strict=True)]

    def cpu_ratio(self, figure: Figure) -> float:
        """Return how many checks the one does in the CPU time in which the other does one."""
        of, against = (median(run.cpu_us for run in self.runs[name]) for name in (figure.of, figure.against))
        return against / of

    def as_json(self) -> dict[str, Any]:
        """Return everything that was measured."""
        figures = []
        for figure in self.figures:
            ratio, by_round = self.ratio(figure)
            figures.append(
                {
                    "of": figure.of,
                    "against": figure.against,
                    "ratio": ratio,
                    "by_round": by_round,
                    "cpu_ratio": self.cpu_ratio(figure),
                    "target": figure.target,
                    "met": figure.target is None or ratio >= figure.target,
                }
            )
        runs = {name: [asdict(run) for run in runs] for name, runs in self.runs.items()}
        return {
            "title": self.title,
            "figures": figures,
            "runs": runs,
            "stolen": self.stolen,
            "does_not_show": self.does_not_show,
        }


def bench_local(plan: Plan, *, quick: bool) -> dict[str, Any]:
    """Single checks against nginx and an aiohttp application, and batches against single checks."""
    del quick
    with Stage() as stage:
        node = stage.standalone({RULE: NUMBERS}, cpu=plan.server_cpu)
        nginx = stage.nginx(cpu=plan.server_cpu)
        app = stage.aiohttp_app(cpu=plan.server_cpu)
        keyfile = _keyfile(stage, keys_of_13_bytes(KEYS, seed=plan.seed))
        group = Group(
            f"local: one standalone node, {KEYS:,} keys in shuffled order, {CONNECTIONS} connections",
            subjects=[
                Subject("node GET", node),
                Subject("nginx return 200, GET", nginx),
                Subject("aiohttp dict, GET", app),
                Subject("node POST", node, "post"),
                Subject("nginx return 200, POST", nginx, "post"),
                Subject("aiohttp dict, POST", app, "post"),
                Subject(f"node batch of {CHECKS_PER_BATCH}", node, "batch"),
            ],
            figures=[
                Figure("node GET", "nginx return 200, GET", 0.70),
                Figure("node GET", "aiohttp dict, GET", 2.5),
                Figure("node POST", "nginx return 200, POST", None),
                Figure("node POST", "aiohttp dict, POST", None),
                Figure("node POST", "node GET", None),
                # 250,000 decisions/s where the single check does 65,000.
                Figure(f"node batch of {CHECKS_PER_BATCH}", "node GET", 250 / 65),
            ],
            does_not_show=(
                "a network, TLS, denials, several rules; latencies are those of a core kept\n"
                "  busy by 32 clients; nginx sends an empty body, and the aiohttp application knows one rule"
            ),
        )
        group.run(plan, keyfile)
    group.show()
    return group.as_json()


def bench_forward(plan: Plan, *, quick: bool) -> dict[str, Any]:
    """Checks that the asked node passes on to their owner, both on one core."""
    with Stage() as stage:
        etcd = stage.etcd(cpu=plan.load_cpu)
        put(etcd, f"/limiter/rules/{RULE}", NUMBERS)
        asked, owner = (
            stage.node(name, ["--etcd", etcd], cpu=plan.server_cpu) for name in ("bench-asked", "bench-owner")
        )
        alone = stage.standalone({RULE: NUMBERS}, cpu=plan.server_cpu)
        keys = keys_of_13_bytes(2 * (KEYS_OWNED_QUICK if quick else KEYS_OWNED), seed=plan.seed)
        owned = [key for key, name in zip(keys, owners(asked.admin, keys), strict=True) if name == "bench-owner"]
        keyfile = _keyfile(stage, owned)
        group = Group(
            f"forwarded: two nodes on one core and a real etcd, {len(owned):,} keys of the node not asked",
            subjects=[
                Subject("forwarded GET", asked, behind=(owner,)),
                Subject("local GET, asking the owner", owner, behind=(asked,)),
                Subject("local GET, standalone node", alone),
                Subject("forwarded POST", asked, "post", behind=(owner,)),
                Subject("local POST, asking the owner", owner, "post", behind=(asked,)),
                Subject("forwarded batch of 100", asked, "batch", behind=(owner,)),
            ],
            figures=[
                Figure("forwarded GET", "local GET, asking the owner", 0.55),
                Figure("forwarded GET", "local GET, standalone node", None),
                Figure("forwarded POST", "local POST, asking the owner", None),
                Figure("forwarded batch of 100", "forwarded GET", None),
            ],
            does_not_show=(
                "the round trip of a network, and what a second core would give: here the\n"
                "  asked node and the owner take turns on one"
            ),
        )
        group.run(plan, keyfile)
    group.show()
    return group.as_json()


def bench_cores(plan: Plan, *, quick: bool) -> dict[str, Any]:
    """Several workers on two cores, which their load is on too, against one on one."""
    del quick
    both = f"{plan.server_cpu},{plan.load_cpu}"
    with Stage() as stage:
        # On cores that others use as well, a worker that has to wait for its turn must not pass for dead.
        one, two, four = (
            stage.standalone(
                {RULE: NUMBERS},
                cpu=both if count > 1 else plan.server_cpu,
                name=f"workers-{count}",
                options=("--workers", str(count), "--peer-timeout", "1000"),
            )
            for count in (1, 2, 4)
        )
        keyfile = _keyfile(stage, keys_of_13_bytes(KEYS, seed=plan.seed))
        modes: tuple[Mode, ...] = ("get", "batch")
        nodes = [("1 worker on 1 core", one, "")]
        nodes += [("2 workers on 2 cores", two, both), ("4 workers on 2 cores", four, both)]
        group = Group(
            f"cores: nodes of 1, 2 and 4 workers, {KEYS:,} keys in shuffled order, {4 * CONNECTIONS} connections",
            subjects=[
                Subject(f"{name}, {mode}", node, mode, load_cpus=cpus, connections=4 * CONNECTIONS)
                for mode in modes
                for name, node, cpus in nodes
            ],
            figures=[
                Figure("4 workers on 2 cores, get", "1 worker on 1 core, get", 1.5),
                Figure("2 workers on 2 cores, get", "1 worker on 1 core, get", None),
                Figure("4 workers on 2 cores, batch", "1 worker on 1 core, batch", None),
                Figure("2 workers on 2 cores, batch", "1 worker on 1 core, batch", None),
            ],
            does_not_show=(
                "cores without the load on them; keys that a client asks again while they are\n"
                "  denied; of n workers each owns 1/n of the keys, so all but 1/n of the checks are passed on"
            ),
        )
        group.run(plan, keyfile)
    group.show()
    return group.as_json()


def bench_memory(plan: Plan, *, quick: bool) -> dict[str, Any]:
    """Bytes per key, and that they are given back."""
    return memory.measure(quick=quick, seed=plan.seed, cpu=plan.server_cpu)


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "local": bench_local,
    "forward": bench_forward,
    "cores": bench_cores,
    "memory": bench_memory,
}


def main() -> None:
    """Parse the command line and run the parts asked for."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Ratios of a limiter node to servers measured beside it."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--seconds", type=int, default=3, help="length of one run (default 3)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s: that it runs, no figures")
    parser.add_argument("--seed", type=int, default=1, help="order of the keys (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    server_cpu, load_cpu = _two_cores()
    plan = Plan(
        rounds=2 if options.quick else options.rounds,
        seconds=1 if options.quick else options.seconds,
        seed=options.seed,
        server_cpu=server_cpu,
        load_cpu=load_cpu,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    facts = machine.describe(options.seed)
    facts["runs"] = f"{plan.rounds} rounds of {plan.seconds} s; servers on core {server_cpu}, wrk on core {load_cpu}"
    machine.show(facts)
    results: dict[str, Any] = {"facts": facts, "parts": {}}
    try:
        for name in options.parts or PARTS:
            results["parts"][name] = PARTS[name](plan, quick=options.quick)
    except ServerError as failure:
        sys.exit(f"\n{failure}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def _two_cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one for the server, one for the load generator")
    return cores[0], cores[1]


def _keyfile(stage: Stage, keys: Sequence[str]) -> Path:
    path = stage.folder / "keys"
    path.write_text("".join(f"{key}\n" for key in keys))
    return path


def _word(ratio: float, figure: Figure) -> str:
    return "met" if figure.target is None or ratio >= figure.target else "MISSED"


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
    elif text:
        print(f"  {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
