"""One key that everybody asks for, at a node that does not own it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.comparison import Comparison, Figure, Plan, Subject
from bench.load import CONNECTIONS, command, drive, drive_together
from bench.progress import tell
from bench.servers import RULE, Numbers, Stage, put, read_json
from bench.speed import owned_keys, write_keys
from bench.stats import Spread, ratio
from bench.systems import limiter

if TYPE_CHECKING:
    from pathlib import Path

    from bench.load import Expected

SPENT = Numbers(count=1, period_s=86_400, burst=1)
ELSEWHERE, AT_OWNER = "denied key, asked elsewhere", "denied key, asking the owner"


def compare_denied(plan: Plan) -> dict[str, Any]:
    """A key that has nothing left: what its owner has promised, the asked node says by itself."""
    with Stage() as stage:
        pair = limiter.pair(stage, plan.cores, SPENT)
        key = owned_keys(pair, 50, seed=plan.seed)[0]
        assert read_json(f"http://{pair.owner.http}/v1/check?rule={RULE}&key={key}")["allowed"]
        keyfile = write_keys(stage, [key])
        comparison = Comparison(
            f"denied: two nodes on one core and a real etcd, one key that has nothing left, {CONNECTIONS} connections",
            [
                Subject(ELSEWHERE, pair.asked, expected="denied"),
                Subject(AT_OWNER, pair.owner, expected="denied"),
            ],
            [Figure(ELSEWHERE, AT_OWNER, 0.90)],
            does_not_show="a key that gets tokens back while it is asked for: each of them is a question to the owner",
        )
        found = comparison.run(plan, keyfile)
        if not plan.wants(ELSEWHERE):
            return found
        busy = owner_busy(pair, keyfile, plan)
        print(f"  the owner's share of a core while another node is asked: {busy:.1%}\n", flush=True)
        return {**found, "owner_busy": busy}


PLENTY = Numbers(count=1_000_000, period_s=1, burst=1_000_000)
LENT, KEPT, KEPT_AT_OWNER = "hot key, leases", "hot key, no leases", "hot key, no leases, asking the owner"


def compare_leases(plan: Plan) -> dict[str, Any]:
    """A key within its limit: what its owner has lent, the asked node grants by itself."""
    with Stage() as stage:
        lent = limiter.pair(stage, plan.cores, PLENTY)
        kept = limiter.pair(stage, plan.cores, replace(PLENTY, lease=False), name="kept")
        files = [
            write_keys(stage, owned_keys(pair, 50, seed=plan.seed)[:1], name=pair.owner_id) for pair in (lent, kept)
        ]
        comparison = Comparison(
            f"leases: two nodes on one core and a real etcd, one key within its limit, {CONNECTIONS} connections",
            [
                Subject(LENT, lent.asked, keyfile=files[0]),
                Subject(KEPT, kept.asked, keyfile=files[1]),
                Subject(KEPT_AT_OWNER, kept.owner, keyfile=files[1]),
            ],
            [Figure(LENT, KEPT), Figure(LENT, KEPT_AT_OWNER)],
            does_not_show=(
                "a core for each node: there the owner, which takes part in every check without leases and in next to\n"
                "  none with them, bounds the fleet, as the three nodes below say"
            ),
        )
        found = comparison.run(plan, files[0])
        if not plan.wants(LENT):
            return found
        busy = owner_busy(lent, files[0], plan, expected="allowed")
        print(f"  the owner's share of a core while another node is asked: {busy:.1%}\n", flush=True)
    return {**found, "owner_busy": busy, "fleet": measure_fleet(plan)}


NODES = 3
FLEET_TARGET = 2.0


def measure_fleet(plan: Plan) -> dict[str, Any]:
    """The same key, asked for at all of three nodes at once: what they carry, had each a core of its own.

    Two cores are all there is, so that is reckoned from processor time: a fleet carries what its busiest node can.
    """
    busiest: dict[str, list[float]] = {LENT: [], KEPT: []}
    with Stage() as stage:
        fleets = {
            LENT: _HotFleet(stage, plan, PLENTY, "lent"),
            KEPT: _HotFleet(stage, plan, replace(PLENTY, lease=False), "kept"),
        }
        for turn in range(plan.rounds + 1):
            for name, fleet in fleets.items():
                found = fleet.busiest_us()
                if turn:
                    busiest[name].append(found)
                    tell(f"round {turn}/{plan.rounds}  {NODES} nodes, {name}  {found:.1f} us at the busiest")
    times = ratio(busiest[KEPT], busiest[LENT])
    word = "met" if times.median >= FLEET_TARGET else "MISSED"
    us = {name: Spread.of(found).median for name, found in busiest.items()}
    tell("")
    print(
        f"  {NODES} nodes, each asked for the key, from the busiest one's CPU time a check of all"
        f" ({us[LENT]:.1f} us with leases, {us[KEPT]:.1f} without):\n  leases / none, had each node a core:"
        f" {times.median:.2f} ({times.low:.2f}-{times.high:.2f})   target >= {FLEET_TARGET:g}  {word}\n",
        flush=True,
    )
    return {"nodes": NODES, "busiest_us": busiest, "ratio": times, "target": FLEET_TARGET}


class _HotFleet:
    """Three nodes on one core, and a key that one of them owns."""

    def __init__(self, stage: Stage, plan: Plan, numbers: Numbers, name: str) -> None:
        etcd = stage.etcd(cpu=plan.cores.load, name=f"{name}-etcd")
        put(etcd, f"/limiter/rules/{RULE}", numbers.rule)
        names = [f"{name}-{number}" for number in range(NODES)]
        self._nodes = stage.nodes(names, ["--etcd", etcd], cpu=plan.cores.server)
        self._keyfile = write_keys(stage, [name], name)
        self._plan = plan

    def busiest_us(self) -> float:
        """CPU time of the node that is busiest, per check of all three."""
        cores, connections = self._plan.cores, CONNECTIONS // NODES
        argvs = [
            command(
                node.http,
                "get",
                self._keyfile,
                rule=RULE,
                seconds=self._plan.seconds,
                cpu=cores.load,
                connections=connections,
            )
            for node in self._nodes
        ]
        return max(drive_together(argvs, [node.pids[0] for node in self._nodes]).values())


def owner_busy(pair: limiter.Pair, keyfile: Path, plan: Plan, *, expected: Expected = "denied") -> float:
    """The share of a core that the owner is busy while the other node is asked."""
    argv = command(pair.asked.http, "get", keyfile, rule=RULE, seconds=plan.seconds, cpu=plan.cores.load)
    run = drive(argv, pair.owner.pids[:1], expected=expected)
    return run.cpu_us * run.checks_per_s / 1e6
