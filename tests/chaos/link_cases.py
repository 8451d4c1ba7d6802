"""Faults of the links between machines: one cut between two nodes, all of one node's cut, all of them slow and lossy.

Clients reach every node throughout, so that what a node answers while it is cut off is seen. Needs root.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.chaos.cases import ARGS, LEASE_TTL_S, addresses, grants_of, plenty, see_all_tokens, spend, wait_replicated
from tests.chaos.hosts import HostedEtcd, HostedFleet, Network
from tests.chaos.load import Load
from tests.fleet import daily

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from tests.chaos.report import Options, Report

NODES = ("n1", "n2", "n3")
NOTICED_S = 1.0
"""After so long a node has told that another is silent (0.8 x 250 ms), and the ring's copies are acted upon."""


@contextmanager
def hosted_fleet() -> Iterator[tuple[Network, HostedFleet]]:
    """Three nodes and an etcd, each on a host of its own."""
    with ExitStack() as stack:
        network = stack.enter_context(Network(["etcd", *NODES]))
        etcd = stack.enter_context(HostedEtcd(network["etcd"]))
        yield network, stack.enter_context(HostedFleet(etcd, network, NODES, ARGS))


def link_cut(report: Report, options: Options) -> None:
    """The link n1-n2 is cut, n3 reaches both: n1's checks for n2's keys are exact and not degraded."""
    burst = int(
        options.rate_per_s / 6 * options.hold_s * 0.8
    )  # per key: spent to the end just before the link is mended
    with hosted_fleet() as (network, fleet):
        background = plenty(report, fleet)
        fleet.put("rules/scarce", daily(burst, on_unreachable="deny"))
        one, two, _ = fleet.nodes
        keys = [*fleet.owned_by(two, 4), *fleet.owned_by(one, 2)]
        with (
            Load(addresses(fleet.nodes), "plenty", background, options.rate_per_s) as others,
            Load(addresses([one, two]), "scarce", keys, options.rate_per_s) as load,
        ):
            time.sleep(0.5)
            report.say("cutting the link between n1 and n2")
            network.cut(("n1", "n2"))
            cut_s = load.now_s
            time.sleep(options.hold_s)
            report.say("mending it")
            network.mend()
            fleet.wait_members(fleet.nodes, 10.0)
            time.sleep(0.5)
        report.count(others, "background load")
        report.count(load, "n1 and n2, each other's keys")
        see_all_tokens(report, fleet, others)
        left = Counter(verdict["allowed"] for node in fleet.nodes for verdict in spend(node, "scarce", keys))
        report.require(left == {False: 3 * len(keys)}, f"the keys were to be spent to the end: {left}")
    granted = load.granted()
    report.grants({key: granted[key] - burst for key in keys})
    # The answer to a check may be lost with the link: it is asked again by way of n3, and may have been spent twice.
    under_way = Counter(check.key for check in load.checks if check.intended_s <= cut_s < check.done_s)
    report.require(all(granted[key] >= burst - under_way[key] for key in keys), f"tokens were lost: {granted}")


def cut_off(report: Report, options: Options) -> None:
    """n1 is cut from etcd and all nodes: it says degraded and grants its share, 1/3; that is all that is extra."""
    burst, share = 30, 10
    with hosted_fleet() as (network, fleet):
        background = plenty(report, fleet)
        fleet.put("rules/scarce", daily(burst))
        lone, *others = fleet.nodes
        keys = [key for node in fleet.nodes for key in fleet.owned_by(node, 5, f"scarce-{node.node_id}")]
        alone, together = Counter[str](), Counter[str]()
        with (
            Load(addresses(others), "plenty", background, options.rate_per_s) as load,
            Load([lone.http], "plenty", background, options.rate_per_s) as lone_load,
        ):
            time.sleep(0.5)
            report.say("cutting n1 from all")
            network.isolate("n1")
            time.sleep(NOTICED_S)
            verdicts: list[Any] = []
            for turn in range(burst + share + 5):
                asked = spend(lone, "scarce", keys)
                alone += grants_of(keys, asked)
                verdicts += asked
                together += grants_of(keys, spend(others[turn % 2], "scarce", keys))
            time.sleep(max(options.hold_s, LEASE_TTL_S + 1.0))  # past the lease
            asked = spend(lone, "scarce", keys)
            alone += grants_of(keys, asked)
            verdicts += asked
            report.say("mending its links")
            network.mend()
            fleet.wait_members(fleet.nodes, 15.0)
            healed_s = lone_load.now_s
            wait_replicated(fleet)
            after = Counter[str]()
            for node in fleet.nodes:
                after += grants_of(keys, spend(node, "scarce", keys))
            time.sleep(0.5)
        _see_share(report, keys, verdicts, alone, share)
        report.require(not after, f"granted after healing: {after}")
        report.require(all(together[key] == burst for key in keys), f"the others granted {together}, not {burst} each")
        report.count(load, "background load at the others")
        report.count(lone_load, "background load at n1", degraded_max=None)
        late = [check for check in lone_load.degraded if check.intended_s > healed_s]
        report.require(not late, f"{len(late)} answers degraded after healing")
    report.grants({key: alone[key] + together[key] + after[key] - burst for key in keys}, share)


def _see_share(report: Report, keys: Sequence[str], verdicts: Sequence[Any], alone: Counter[str], share: int) -> None:
    own_word = sum(not verdict["degraded"] for verdict in verdicts)
    report.require(own_word == 0, f"{own_word} of {len(verdicts)} answers of the cut-off node did not say degraded")
    report.note(f"the cut-off node granted at most {max(alone.values(), default=0)} of a key; its share is {share}")
    report.require(all(alone[key] <= share for key in keys), f"more than its share: {alone}")


def links_slow(report: Report, options: Options) -> None:
    """All links between machines take 20 +- 10 ms and lose 1 %: exact, and no check fails."""
    burst = int(options.rate_per_s / 6 * options.hold_s)  # per key: spent to the end while the links are slow
    with hosted_fleet() as (network, fleet):
        background = plenty(report, fleet)
        fleet.put("rules/scarce", daily(burst, on_unreachable="deny"))
        keys = [key for node in fleet.nodes for key in fleet.owned_by(node, 2)]
        network.slow(delay_ms=20.0, jitter_ms=10.0, loss=0.01)
        report.say("the links are slow now")
        with (
            Load(addresses(fleet.nodes), "plenty", background, options.rate_per_s) as others,
            Load(addresses(fleet.nodes), "scarce", keys, options.rate_per_s) as load,
        ):
            time.sleep(options.hold_s * 1.5)
        report.say("the links are good again")
        network.mend()
        fleet.wait_members(fleet.nodes, 10.0)
        left = Counter(verdict["allowed"] for node in fleet.nodes for verdict in spend(node, "scarce", keys))
        report.require(left == {False: 3 * len(keys)}, f"the keys were to be spent to the end: {left}")
        report.count(others, "background load", degraded_max=None)
        report.count(load, "scarce keys", degraded_max=None)
        see_all_tokens(report, fleet, others)
    report.note(f"p50 {others.latency_s(0.5) * 1e3:.0f} ms, p99 {others.latency_s(0.99) * 1e3:.0f} ms")
    report.grants({key: granted - burst for key, granted in load.granted().items()})
