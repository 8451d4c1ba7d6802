"""The fleet in virtual time: random runs from seeds, named scenarios from files, and broken nodes that must be caught.

    LIMITER_SIM_SEEDS=1000   that many seeds instead of SEEDS
    LIMITER_SIM_SEED=17      this one alone, as a failure tells you

`scripts/simulate` runs more of them outside pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from limiter_node import app, cli
from limiter_node.core.engine import Engine
from limiter_node.core.model import Answer, Ask
from limiter_node.core.router import Router
from tests.sim import node as sim_node
from tests.sim import scenario as scenarios
from tests.sim.faults import Delay, Flaky, Freeze, Kill, Leave, Partition, Start
from tests.sim.fleet import Failed, run
from tests.sim.scenario import DocumentChange, Expect, Load, NodeSpec, Scenario

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

    from limiter_node.core.forward import Forward
    from limiter_node.core.links import Link
    from limiter_node.core.model import Check, Copies, Outcome, Reply, Request, UnknownRule, Verdict
    from limiter_node.core.ring import Ring
    from limiter_node.core.rules import Rule

SEEDS = 30
"""The whole file takes 25 s of one core with these."""

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((Path(__file__).parent / "scenarios").glob("*.yaml"))


def seeds() -> list[int]:
    one = os.environ.get("LIMITER_SIM_SEED")
    return [int(one)] if one else list(range(int(os.environ.get("LIMITER_SIM_SEEDS", SEEDS))))


@pytest.mark.parametrize("seed", seeds())
def test_a_steady_fleet_keeps_its_promises_whatever_happens_to_messages(seed: int) -> None:
    run(scenarios.generate(seed), seed)


@pytest.mark.parametrize("seed", seeds()[: max(1, len(seeds()) // 4)])
def test_a_fleet_whose_members_come_and_go_keeps_its_counts(seed: int) -> None:
    run(scenarios.generate_moving(seed), seed)


def named() -> list[ParameterSet]:
    params = []
    for file in FILES:
        bug = scenarios.load(file).expect.known_bug
        marks = [pytest.mark.xfail(raises=Failed, reason=bug, strict=True)] if bug else []
        params.append(pytest.param(file, id=file.stem, marks=marks))
    return params


@pytest.mark.parametrize("file", named())
def test_a_named_scenario_holds(file: Path) -> None:
    scenario = scenarios.load(file)
    for seed in range(2):
        run(scenario, seed)


def test_a_scenario_survives_being_written_down(tmp_path: Path) -> None:
    for seed in range(20):
        file = tmp_path / f"{seed}.yaml"
        file.write_text(scenarios.dump(scenarios.generate(seed)))
        assert scenarios.load(file) == scenarios.generate(seed)


def test_the_same_seed_takes_the_same_steps() -> None:
    for seed in (1, 2):
        assert run(scenarios.generate(seed), seed) == run(scenarios.generate(seed), seed)


def test_another_seed_takes_other_steps() -> None:
    scenario = scenarios.generate(1)
    assert run(scenario, 1).fingerprint != run(scenario, 2).fingerprint


def test_the_same_seed_takes_the_same_steps_in_processes_that_hash_differently() -> None:
    prints = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.sim", "--seeds", "4", "--start", "1", "--fingerprints"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        prints.add(done.stdout)
    assert len(prints) == 1


def test_the_simulated_node_keeps_the_times_of_the_real_one() -> None:
    defaults = cli.serve.make_context("serve", []).params
    assert sim_node.TICK_NS == app.TICK_S * 1e9
    assert defaults["peer_timeout"] * 1e6 == sim_node.PEER_TIMEOUT_NS
    assert defaults["lease_ttl"] * 1e9 == sim_node.LEASE_TTL_NS
    assert sim_node.LEAVE_SEEN_NS == app.LEAVE_SEEN_S * 1e9


# Broken nodes: each must be caught, else the judge is not worth its name.


class GreedyRouter(Router):
    """Decides for every key, whoever owns it."""

    def check(self, check: Check, now_ns: int) -> Outcome | Forward:
        return self.engine.check(check, now_ns)


class ObligingRouter(Router):
    """Decides whatever a peer asks for, as one that never heard of a new ring."""

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        if self.ring.revision == 0:
            super().set_ring(ring, now_ns)


class EchoingRouter(Router):
    """Gives every outcome twice."""

    def on_reply(self, link: Link, reply: Reply, now_ns: int) -> None:
        forwards = list(link.pending.get(reply.id, ())) if isinstance(reply, Answer) else []
        super().on_reply(link, reply, now_ns)
        if isinstance(reply, Answer):
            link.pending[reply.id] = forwards
            super().on_reply(link, reply, now_ns)


class PatientRouter(Router):
    """Lets deadlines pass."""

    def tick(self, now_ns: int) -> None:
        pass


class ForgetfulRouter(Router):
    """Forgets who was waiting when a link breaks."""

    def on_down(self, link: Link, now_ns: int, *, refused_ns: int | None = None) -> None:
        link.take_all()
        super().on_down(link, now_ns, refused_ns=refused_ns)


class MisaddressingRouter(Router):
    """Gives the answers of a frame to its checks in the wrong order."""

    def flush(self, link: Link, now_ns: int) -> list[Request]:
        requests = super().flush(link, now_ns)
        for request in requests:
            if isinstance(request, Ask):
                link.pending[request.id].reverse()
        return requests


class MuteRouter(Router):
    """Sends no copies, to a replica or to a new owner."""

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        self.keeper.replication.frames = _no_frames  # type: ignore[method-assign]
        super().set_ring(ring, now_ns)


def _no_frames(name: str, now_ns: int) -> list[Copies]:
    return []


class CarelessRouter(Router):
    """Says that it has kept the copies in answers, and has not."""

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        self.keeper.replication.keep = _nothing_is_kept  # type: ignore[method-assign]
        super().set_ring(ring, now_ns)


def _nothing_is_kept(link: Link, forwards: list[Forward], answer: Answer, now_ns: int) -> None:
    link.kept.append(answer.id)


class RashRouter(Router):
    """Decides for a silent owner without asking whether others hear of it."""

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        self.keeper.can_stand_in = self.keeper.fence.is_silent  # type: ignore[method-assign,assignment]
        super().set_ring(ring, now_ns)


class UnfencedRouter(Router):
    """Decides as owner whatever has happened meanwhile."""

    def check(self, check: Check, now_ns: int) -> Outcome | Forward:
        if self.ring.owner(check.key) == self.node_id:
            return self.engine.check(check, now_ns)
        return super().check(check, now_ns)


class HastyRouter(Router):
    """Decides the keys that it takes over before it has been told of them."""

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        self.keeper.custody.begin = _nothing_begins  # type: ignore[method-assign]
        super().set_ring(ring, now_ns)


def _nothing_begins(ring: Ring, others: set[str], *, missed: bool) -> None:
    pass


class StingyRouter(Router):
    """Hands nothing over when the ring changes."""

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        self.keeper.replication.begin_survey = _nothing_is_surveyed  # type: ignore[method-assign]
        super().set_ring(ring, now_ns)


def _nothing_is_surveyed(ring: Ring) -> None:
    pass


class GenerousEngine(Engine):
    """Doubles every burst."""

    def set_rule(self, name: str, rule: Rule | None, now_ns: int) -> None:
        if rule is not None:
            limits = {
                segment: tuple(replace(limit, count=2 * limit.count, burst=2 * limit.burst) for limit in limits)
                for segment, limits in rule.limits.items()
            }
            rule = replace(rule, limits=limits)
        super().set_rule(name, rule, now_ns)


class ChargingEngine(Engine):
    """Spends twice the cost."""

    def check(self, check: Check, now_ns: int) -> Verdict | UnknownRule:
        return super().check(replace(check, cost=2 * check.cost), now_ns)


class FastEngine(Engine):
    """Its clock gains a hundredth."""

    def check(self, check: Check, now_ns: int) -> Verdict | UnknownRule:
        return super().check(check, now_ns + now_ns // 100)


class AmnesicEngine(Engine):
    """A change of a rule forgets what was spent."""

    def set_rule(self, name: str, rule: Rule | None, now_ns: int) -> None:
        super().set_rule(name, None, now_ns)
        super().set_rule(name, rule, now_ns)


class LavishEngine(Engine):
    """Gives a node that is alone the whole plan."""

    def check_alone(self, check: Check, parts: int, now_ns: int) -> Verdict | UnknownRule:
        return super().check_alone(check, 1, now_ns)


class DeafEngine(Engine):
    """Hears of no multiplier."""

    def rescale(self, backend: str, now_ns: int) -> None:
        pass


TROUBLE = Scenario(
    name="trouble",
    about="a bit of everything that a broken node could trip over",
    nodes=tuple(NodeSpec(id=f"n{number}", offset_ms=1000 * number) for number in range(1, 5)),
    documents={"rules/api": {"rate": "10/s", "burst": 20, "backend": "orders"}},
    changes=(
        DocumentChange(at_ms=700, key="rules/api", value={"rate": "9/s", "burst": 30, "backend": "orders"}),
        DocumentChange(at_ms=2000, key="multipliers/orders", value={"multiplier": 0.5, "pinned": True}),
    ),
    load=Load(checks_per_s=100, keys=("a", "b", "c", "d"), costs=(1, 2), batch_max=8),
    faults=(
        Delay(at_ms=300, until_ms=1000, links=("*|*",), least_ms=0, most_ms=30),
        Flaky(at_ms=300, until_ms=1000, links=("*|*",), breaks_per_s=20),
        Partition(at_ms=1200, until_ms=1700, links=("n1|*",)),
    ),
)
SCARCE = Scenario(
    name="scarce",
    about="many keys that hardly refill, spent to the end",
    nodes=tuple(NodeSpec(id=f"n{number}") for number in range(1, 5)),
    documents={"rules/api": {"rate": "1/m", "burst": 20}},
    load=Load(checks_per_s=200, keys=tuple("abcdefghijklmnop")),
)
DELIVERS_WITHIN_MS = 50
"""Contract, section 5: the last replication interval and the time to deliver it, on a healthy network."""
KILL = replace(
    SCARCE,
    faults=(Kill(at_ms=1200, nodes=("n2",)), Kill(at_ms=1400, nodes=("n3",))),
    expect=Expect(settles_within_ms=9_000, delivers_within_ms=DELIVERS_WITHIN_MS),
)
FREEZE = replace(SCARCE, faults=(Freeze(at_ms=400, until_ms=2200, nodes=("n2",)),))
CUT = replace(SCARCE, faults=(Partition(at_ms=400, until_ms=2200, links=("n2|n3",)),))
ROLL = replace(
    SCARCE,
    faults=(
        *(Leave(at_ms=500 + 1000 * number, nodes=(f"n{number}",)) for number in range(1, 4)),
        *(Start(at_ms=2500 + 1000 * number, nodes=(f"n{number}",)) for number in range(1, 4)),
    ),
)
JOIN = replace(
    TROUBLE,
    nodes=(*TROUBLE.nodes, NodeSpec(id="n5", is_founder=False)),
    faults=(Start(at_ms=500, nodes=("n5",)),),
)


def test_what_breaks_a_broken_node_is_no_trouble_for_a_sound_one() -> None:
    for seed in range(2):
        for scenario in (TROUBLE, JOIN, KILL, FREEZE, CUT, ROLL):
            run(scenario, seed)


@pytest.mark.parametrize(
    ("engine_class", "complaint"),
    [
        (GenerousEngine, "tokens too many|says limit"),
        (ChargingEngine, "remaining|tokens left"),
        (FastEngine, "too many|remaining"),
        (AmnesicEngine, "too many|remaining"),
        (LavishEngine, "alone: says limit"),
        (DeafEngine, "says limit|too many"),
    ],
)
def test_a_broken_engine_is_caught(engine_class: type[Engine], complaint: str) -> None:
    for seed in range(2):
        with pytest.raises(Failed, match=complaint):
            run(TROUBLE, seed, engine_class=engine_class)


@pytest.mark.parametrize(
    ("router_class", "scenario", "complaint"),
    [
        (GreedyRouter, TROUBLE, "decided as owner, but"),
        (ObligingRouter, JOIN, "its ring is|not decided by its owner"),
        (EchoingRouter, TROUBLE, "a second outcome"),
        (PatientRouter, TROUBLE, "no outcome in"),
        (ForgetfulRouter, TROUBLE, "no outcome in"),
        (MisaddressingRouter, TROUBLE, "nobody decided"),
        (MuteRouter, KILL, "too many"),
        (CarelessRouter, KILL, "too many"),
        (RashRouter, CUT, "too many"),
        (UnfencedRouter, FREEZE, "too many"),
        (HastyRouter, ROLL, "too many"),
        (StingyRouter, ROLL, "too many"),
    ],
)
def test_a_broken_router_is_caught(router_class: type[Router], scenario: Scenario, complaint: str) -> None:
    for seed in range(2):
        with pytest.raises(Failed, match=complaint):
            run(scenario, seed, router_class=router_class)


def test_a_failure_names_its_seed_and_what_led_to_it() -> None:
    with pytest.raises(Failed) as failed:
        run(TROUBLE, 42, engine_class=GenerousEngine)
    text = str(failed.value)
    assert "fails with seed 42" in text
    assert "VIOLATION" in text.splitlines()[-1]
