"""Every case by its name, and how one is run: alone, to its end, its failures told in its report."""

from __future__ import annotations

import http.client
import os
import subprocess
from typing import TYPE_CHECKING

from tests.chaos import batch_cases, cases, link_cases
from tests.chaos.report import Options, Report

if TYPE_CHECKING:
    from collections.abc import Callable

    Case = Callable[[Report, Options], None]

CASES: dict[str, Case] = {
    "killed": cases.killed,
    "killed-sync": cases.killed_sync,
    "killed-in-batches": batch_cases.killed_in_batches,
    "frozen": cases.frozen,
    "rolled": cases.rolled,
    "etcd-killed": cases.etcd_killed,
    "leader-lost": cases.leader_lost,
    "link-cut": link_cases.link_cut,
    "cut-off": link_cases.cut_off,
    "links-slow": link_cases.links_slow,
    "joined": cases.joined,
}
NEED_ROOT = frozenset({"link-cut", "cut-off", "links-slow"})


def run(name: str, options: Options, report: Report | None = None) -> Report:
    """Run one case; what it could not do, and a wait that came to no end, is a broken promise as well."""
    report = report or Report(name)
    if name in NEED_ROOT and os.geteuid() != 0:
        report.skipped = "needs root"
        return report
    try:
        CASES[name](report, options)
    except (AssertionError, RuntimeError, OSError, http.client.HTTPException, subprocess.SubprocessError) as failure:
        report.require(False, f"{type(failure).__name__}: {failure}")
    return report
