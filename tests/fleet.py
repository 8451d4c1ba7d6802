"""A fleet for black-box tests: nodes below one prefix of a real etcd, and people writing there with etcdctl.

with EtcdProcess() as etcd, Fleet(etcd) as fleet:        # three nodes, ready, in one ring
    fleet.put("rules/api", {"rate": "1/d", "burst": 5})  # returns once every node has applied it
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from tests.harness import NodeProcess, check, eventually, get_json, key_path, request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.etcd_process import EtcdProcess

# A scheduling hiccup of a shared machine, with a whole test suite on it, must not pass for a dead peer.
PATIENT = ("--peer-timeout", "2000")


def say(text: str) -> None:
    """Show a measured figure or a seed: pytest prints it with -s, and with a test that failed."""
    sys.stdout.write(f"{text}\n")


class Fleet:
    """Nodes n1, n2, …; leaving the context kills those that still run."""

    def __init__(
        self,
        etcd: EtcdProcess,
        *,
        size: int = 3,
        prefix: str = "/limiter",
        args: Sequence[str] = (),
        ways: Sequence[str] | None = None,
    ) -> None:
        """`ways` are the URLs by which each node reaches etcd, where they have not the same."""
        self.etcd = etcd
        self.prefix = prefix
        self.nodes = [
            NodeProcess(f"n{number}", etcd=url, args=("--prefix", prefix, *args))
            for number, url in enumerate(ways or [etcd.url] * size, 1)
        ]

    def __enter__(self) -> Self:
        try:
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                list(pool.map(NodeProcess.start, self.nodes))
            self.wait_members(self.nodes)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs."""
        for node in self.nodes:
            node.close()

    # What people do

    def put(self, key: str, document: Any) -> int:
        """Write a document, or text as it is, and wait until every running node has applied it."""
        value = document if isinstance(document, str) else json.dumps(document)
        return self._written("put", f"{self.prefix}/{key}", value)

    def delete(self, key: str) -> int:
        """Delete a key and wait until every running node has applied that."""
        return self._written("del", f"{self.prefix}/{key}")

    def _written(self, *command: str) -> int:
        answer = json.loads(self.etcd.etcdctl("--write-out=json", *command))
        revision: int = answer["header"]["revision"]
        eventually(
            lambda: all(status["config"]["revision"] >= revision for status in self.statuses()),
            what=f"every node at revision {revision}",
        )
        return revision

    # What nodes say

    @property
    def running(self) -> list[NodeProcess]:
        """The nodes that were started and have not exited."""
        return [node for node in self.nodes if node.running]

    def statuses(self) -> list[Any]:
        """/v1/status of every running node."""
        return [get_json(node.admin, "/v1/status") for node in self.running]

    def members(self) -> list[list[str]]:
        """The ring's members as each running node sees them."""
        return [members_of(status) for status in self.statuses()]

    def wait_members(self, nodes: Sequence[NodeProcess], deadline_s: float = 5.0) -> None:
        """Wait until every running node has exactly these nodes in its ring, and a link to each."""
        ids = sorted(str(node.node_id) for node in nodes)

        def agree() -> bool:
            return all(
                members_of(status) == ids and all(state == "up" for state in status["links"].values())
                for status in self.statuses()
            )

        eventually(agree, deadline_s, f"a ring of {ids} everywhere")

    def has_replicated(self) -> bool:
        """Whether every running node's copies are where they are to be."""
        return all(metric(node, "limiter_replication_due_copies") == 0 for node in self.running) and all(
            not any(status["handover"]["due"].values()) and status["replication_lag_ms"] == 0
            for status in self.statuses()
        )

    def problems(self) -> list[list[str]]:
        """The keys of `config.problems` of each running node."""
        return [[problem["key"] for problem in status["config"]["problems"]] for status in self.statuses()]

    def rules(self) -> list[Any]:
        """The rules in force on each running node."""
        return [get_json(node.admin, "/v1/rules")["rules"] for node in self.running]

    def owner(self, key: str) -> str:
        """The owner of a client key, by the word of the first running node."""
        owner: str = get_json(self.running[0].admin, f"/v1/owner?key={quote(key, safe='')}")["owner"]
        return owner

    def owned_by(self, owner: NodeProcess, count: int, stem: str = "client") -> list[str]:
        """So many client keys that belong to this node."""
        keys: list[str] = []
        number = 0
        while len(keys) < count:
            key = f"{stem}:{number}"
            number += 1
            if self.owner(key) == owner.node_id:
                keys.append(key)
        return keys

    def bucket(self, rule: str, key: str, node: NodeProcess | None = None) -> Any:
        """What the admin API of a node, or of the first running one, says of a bucket."""
        return get_json((node or self.running[0]).admin, key_path(rule, key))


def members_of(status: Any) -> list[str]:
    """The ids of the ring's members in a status document, sorted."""
    return sorted(member["id"] for member in status["ring"]["members"])


def metric(node: NodeProcess, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    total = 0.0
    for line in str(request(node.admin, "GET", "/metrics").body).splitlines():
        sample, _, value = line.rpartition(" ")
        if sample.partition("{")[0] == name and all(pair in sample for pair in wanted):
            total += float(value)
    return total


def remaining(node: NodeProcess, rule: str, key: str, **how: Any) -> int:
    """Spend a token, which must be granted, and say what is left."""
    answer = check(node, rule, key, **how)
    assert (answer.status, answer.body["degraded"]) == (200, False), answer
    left: int = answer.body["remaining"]
    return left


def limit(node: NodeProcess, rule: str, key: str, segment: str | None = None) -> int:
    """Say what the key can hold, without spending."""
    capacity: int = check(node, rule, key, cost=0, segment=segment).body["limit"]
    return capacity


def daily(burst: int, **more: Any) -> dict[str, Any]:
    """Write a rule that practically never refills."""
    return {"rate": "1/d", "burst": burst, **more}
