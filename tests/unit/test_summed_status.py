"""The status of several workers made one."""

from typing import Any

from limiter_node.app import Node
from limiter_node.edge.summed_status import summed
from limiter_node.settings import parse
from tests.unit.test_settings import OPTIONS

GATE = {
    "state": "open",
    "share": 0.5,
    "in_flight": 1.5,
    "admitted": 10,
    "denied": {"rate": 1, "guard": 2},
    "would_deny": 0,
}
BACKEND = {"multiplier": 1.0, "state": "normal", "signal_age": None, "rejected": 1, "gate": {**GATE, "would_deny": 0}}


def status(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "node": name,
        "standalone": False,
        "etcd": {"connected": True, "revision": 9},
        "leader": "n.2",
        "ring": {"revision": 5, "members": []},
        "links": {},
        "gone": [],
        "fenced": False,
        "handover": {"waiting_for": [], "surveying": False, "due": {}},
        "replication_lag_ms": 0.0,
        "config": {"revision": 9, "rules": 2, "problems": []},
        "backends": {},
        "keys": 100,
        **changes,
    }


def test_one_worker_is_told_as_it_is() -> None:
    assert summed([status("n.1")]) == status("n.1")


def test_counts_are_added_and_the_worst_is_told() -> None:
    problem = {"key": "rules/x", "error": "rate: is required"}
    whole = summed(
        [
            status("n.1", links={"m": "up", "n.2": "up"}, gone=["x"], replication_lag_ms=3.0),
            status(
                "n.2",
                etcd={"connected": False, "revision": 7},
                links={"m": "down", "n.1": "up"},
                fenced=True,
                config={"revision": 7, "rules": 1, "problems": [problem]},
                handover={"waiting_for": ["m"], "surveying": True, "due": {"m": 3}},
            ),
            status("n.3", config={"revision": 9, "rules": 2, "problems": [problem]}, links={"m": "up"}),
        ]
    )
    assert whole["etcd"] == {"connected": False, "revision": 7}
    assert whole["links"] == {"m": "down", "n.1": "up", "n.2": "up"}
    assert (whole["gone"], whole["fenced"], whole["replication_lag_ms"]) == (["x"], True, 3.0)
    assert whole["config"] == {"revision": 7, "rules": 2, "problems": [problem]}
    assert whole["handover"] == {"waiting_for": ["m"], "surveying": True, "due": {"m": 3}}
    assert whole["keys"] == 300


def test_the_newest_ring_is_told() -> None:
    newer = {"revision": 6, "members": [{"id": "n.1"}]}
    assert summed([status("n.1"), status("n.2", ring=newer), status("n.3")])["ring"] == newer


def test_a_backend_is_told_by_the_word_of_the_leader_and_its_gates_are_added() -> None:
    led = {**BACKEND, "multiplier": 0.5, "signal_age": 0.4}
    backends = [{"orders": BACKEND}, {"orders": led}, {}]
    told = summed([status(f"n.{number}", backends=known) for number, known in enumerate(backends, 1)])["backends"]
    assert (told["orders"]["multiplier"], told["orders"]["signal_age"]) == (0.5, 0.4)
    # The third has not heard of it yet.
    assert told["orders"]["gate"]["denied"] == {"rate": 2, "guard": 4}
    assert (told["orders"]["gate"]["admitted"], told["orders"]["rejected"]) == (20, 2)


def test_the_document_of_a_real_node_can_be_added() -> None:
    document = Node(parse(OPTIONS)).describe()
    assert summed([document, document]).keys() == document.keys()
