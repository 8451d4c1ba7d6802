"""The metrics of a node from those of its workers: pages in Prometheus' text format are added up.

Counters and histograms are sums, and never go back: what a worker had counted when it was last looked at stays counted
when it dies. Gauges are sums too, of the workers that answer, but for those of which a sum means nothing.

Pure: text in, text out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LARGEST = frozenset(
    {
        # What every worker knows of the whole, or is bad enough in one of them.
        "limiter_rules",
        "limiter_config_problems",
        "limiter_ring_members",
        "limiter_peers_gone",
        "limiter_fenced",
        "limiter_overloaded",
        "limiter_handover_pending_peers",
        "limiter_replication_lag_seconds",
        "limiter_loop_stall_max_seconds",
        "limiter_leader",
        "limiter_backend_rate",
        "limiter_backend_state",
        # Of the leader only.
        "limiter_backend_signal_latency_seconds",
        "limiter_backend_signal_error_ratio",
        "limiter_backend_signal_answers_per_second",
    }
)
SMALLEST = frozenset(
    {
        # What holds of a node that is as good as its worst worker.
        "limiter_config_revision",
        "limiter_ring_revision",
        "limiter_peer_up",
        "limiter_etcd_connected",
        "limiter_backend_multiplier",
        "limiter_backend_signal_age_seconds",
        "process_start_time_seconds",
        "process_max_fds",
    }
)
OF_THE_NODE = frozenset({"limiter_ready", "limiter_node_info"})
"""What the supervisor says, and no worker can."""

GROWING = frozenset({"counter", "histogram"})


@dataclass(slots=True)
class Family:
    """A metric: the lines that tell of it, its kind, and {name with labels: number}."""

    head: list[str] = field(default_factory=list)
    kind: str = "untyped"
    samples: dict[str, float] = field(default_factory=dict)


Page = dict[str, Family]


def parse(text: str) -> Page:
    """A page as `metrics.Exposition` writes it, by name."""
    page: Page = {}
    family = Family()
    for line in text.splitlines():
        if line.startswith("# "):
            _, word, name, *rest = line.split(" ", 3)
            family = page.setdefault(name, Family())
            family.head.append(line)
            if word == "TYPE":
                family.kind = rest[0]
        elif line:
            # A label may hold a space; a number does not.
            sample, _, number = line.rpartition(" ")
            family.samples[sample] = float(number)
    return page


def render(page: Page) -> str:
    """The text of a page."""
    lines = []
    for family in page.values():
        lines += family.head
        lines += [f"{sample} {number!r}" for sample, number in family.samples.items()]
    return "\n".join(lines) + "\n"


def joined(pages: Iterable[Page]) -> Page:
    """One page from those of several workers, without what is not theirs to say."""
    whole: Page = {}
    for page in pages:
        for name, family in page.items():
            if name in OF_THE_NODE:
                continue
            known = whole.setdefault(name, Family(family.head, family.kind))
            join = _join(name)
            for sample, number in family.samples.items():
                before = known.samples.get(sample)
                known.samples[sample] = number if before is None else join(before, number)
    return whole


def _join(name: str) -> Callable[[float, float], float]:
    if name in LARGEST:
        return max
    return min if name in SMALLEST else float.__add__


def growing(page: Page) -> Page:
    """What of a page must never go back."""
    return {name: family for name, family in page.items() if family.kind in GROWING}


class Ledger:
    """What the workers of a node have counted, those that are dead included."""

    def __init__(self) -> None:
        self._ended: Page = {}  # of workers' lives that are over
        self._last: dict[int, Page] = {}  # by worker, of the present life

    def end(self, worker: int) -> None:
        """A life of a worker is over; what it counted after it was last looked at is lost."""
        if worker in self._last:
            self._ended = joined([self._ended, growing(self._last.pop(worker))])

    def total(self, now: dict[int, Page]) -> Page:
        """The whole, from the pages of the workers that have just answered."""
        silent = [growing(page) for worker, page in self._last.items() if worker not in now]
        self._last.update(now)
        return joined([self._ended, *now.values(), *silent])
