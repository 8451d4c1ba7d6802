"""The status of a node from those of its workers: documents of `GET /v1/status` made one. Pure."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

Document = dict[str, Any]


def summed(documents: list[Document]) -> Document:
    """One document from one or more: counts are added up, and of the rest the worst is told.

    What the node is, where it listens and whether it is ready is the supervisor's to say.
    """
    newest = max(documents, key=lambda document: int(document["ring"]["revision"]))
    return {
        **newest,
        "etcd": {
            "connected": all(document["etcd"]["connected"] for document in documents),
            "revision": min(document["etcd"]["revision"] for document in documents),
        },
        "links": _links(documents),
        "gone": sorted({name for document in documents for name in document["gone"]}),
        "fenced": any(document["fenced"] for document in documents),
        "handover": {
            "waiting_for": sorted({name for document in documents for name in document["handover"]["waiting_for"]}),
            "surveying": any(document["handover"]["surveying"] for document in documents),
            "due": _added(document["handover"]["due"] for document in documents),
        },
        "replication_lag_ms": max(document["replication_lag_ms"] for document in documents),
        "config": _config([document["config"] for document in documents]),
        "backends": _backends(documents),
        "keys": sum(document["keys"] for document in documents),
    }


def _links(documents: list[Document]) -> dict[str, str]:
    """How each peer is connected; where the workers do not agree, what is wrong."""
    states: dict[str, str] = {}
    for document in documents:
        for name, state in document["links"].items():
            if states.get(name, "up") == "up":
                states[name] = state
    return states


def _config(configs: list[Document]) -> Document:
    problems = {(problem["key"], problem["error"]) for config in configs for problem in config["problems"]}
    return {
        "revision": min(config["revision"] for config in configs),
        "rules": max(config["rules"] for config in configs),
        "problems": [{"key": key, "error": error} for key, error in sorted(problems)],
    }


def _backends(documents: list[Document]) -> Document:
    """The leader hears all signals, so it is told by the word of a worker that leads, where there is one."""
    first = next((document for document in documents if document["node"] == document["leader"]), documents[0])
    return {
        name: {**backend, **_added_backends([one["backends"][name] for one in documents if name in one["backends"]])}
        for name, backend in first["backends"].items()
    }


def _added_backends(backends: list[Document]) -> Document:
    ages = [backend["signal_age"] for backend in backends if backend["signal_age"] is not None]
    gates = [backend["gate"] for backend in backends]
    return {
        "signal_age": min(ages, default=None),
        "rejected": sum(backend["rejected"] for backend in backends),
        "gate": {
            **gates[0],
            **{name: sum(gate[name] for gate in gates) for name in ("share", "in_flight", "admitted", "would_deny")},
            "denied": _added(gate["denied"] for gate in gates),
        },
    }


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    def add(total: dict[str, int], more: dict[str, int]) -> dict[str, int]:
        return {**total, **{name: total.get(name, 0) + count for name, count in more.items()}}

    return reduce(add, counts, {})
