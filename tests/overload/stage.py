"""Everything of the experiment, running: etcd, three nodes, two equal backends, the reporter, nginx, and the clients.

One backend stands behind the limiter and one does not; both get the same requests and the same overload at the same
time. All is on loopback, all processes are children of this one and end with the context.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.etcd_process import EtcdProcess
from tests.fleet import PATIENT, Fleet, metric
from tests.harness import ROOT, NginxProcess, clean_environment, eventually, get_json, request
from tests.overload.clients import Clients, arrivals
from tests.overload.front import SIDES, http_config, server_config
from tests.overload.record import Run, Sample, watch
from tests.overload.scenario import BACKEND, PRIORITIES, RULE, RULE_DOCUMENT, Mode, Plan, Way
from tests.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.overload.clients import Shot

CAUSES = ("priority", "rate", "guard")
"""Why a node turns a check away: the published fraction of its priority, the published rate, the node's own guard."""


class Child:
    """One `python -m tests.overload.…`, its output in a file."""

    def __init__(self, log: Path, module: str, *args: str) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"tests.overload.{module}", *args],
                cwd=ROOT,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def said(self) -> str:
        """Its output."""
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        """End it: politely, then not."""
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(slots=True)
class Stage:
    """What runs; addresses are host:port."""

    fleet: Fleet
    front: str
    backends: list[str]
    reporter: Child

    def set_mode(self, mode: Mode) -> None:
        """Change how both backends work."""
        for backend in self.backends:
            answer = request(backend, "PUT", "/control", json.dumps(asdict(mode)))
            assert answer.status == 200, answer


@contextmanager
def stage(plan: Plan) -> Iterator[Stage]:
    """Start everything, in order; it is ready when the context begins."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="limiter-overload-")))
        etcd = stack.enter_context(EtcdProcess())
        fleet = stack.enter_context(Fleet(etcd, args=PATIENT))
        fleet.put(f"backends/{BACKEND}", {"slo_ms": plan.slo_ms})
        fleet.put(f"rules/{RULE}", RULE_DOCUMENT)
        ports = free_ports(3)
        backends = [f"127.0.0.1:{port}" for port in ports[:2]]
        for port in ports[:2]:
            child = Child(folder / f"backend-{port}.log", "backend", *backend_options(port, plan))
            stack.callback(child.stop)
        listen = f"127.0.0.1:{ports[2]}"
        nodes = [option for node in fleet.nodes for option in ("--node", node.http)]
        reporter = Child(
            folder / "reporter.log", "reporter", "--listen", listen, "--batch-ms", str(plan.batch_ms), *nodes
        )
        stack.callback(reporter.stop)
        for backend in backends:
            eventually(lambda backend=backend: get_json(backend, "/control"), 20.0, "a backend")  # type: ignore[misc]
        eventually(lambda: "listening" in reporter.said(), 20.0, "the reporter")
        nginx = stack.enter_context(
            NginxProcess(
                [node.http for node in fleet.nodes],
                http_config=http_config(*backends),
                server_config=server_config(listen, plan.timeout_s),
            )
        )
        eventually(lambda: all(status["leader"] for status in fleet.statuses()), 20.0, "a controller")
        yield Stage(fleet, nginx.http, backends, reporter)


def backend_options(port: int, plan: Plan) -> list[str]:
    """How a backend is started."""
    return [
        *("--port", str(port), "--workers", str(plan.workers), "--service-ms", str(plan.service_ms)),
        *("--spread", str(plan.spread), "--seed", str(plan.seed)),
    ]


def perform(way: Way, plan: Plan) -> Run:
    """Play health, overload and recovery once on a stage of its own."""
    with stage(plan) as running:
        shots, samples = asyncio.run(_play(running, way, plan))
        running.reporter.stop()
        return Run(way, plan, shots, samples, denied(running.fleet), running.reporter.said().splitlines()[-1])


def denied(fleet: Fleet) -> dict[str, dict[str, int]]:
    """What the nodes have turned away, by cause and segment."""
    name = "limiter_backend_denied_checks_total"
    return {
        cause: {
            segment: round(sum(metric(node, name, cause=cause, priority=str(priority)) for node in fleet.nodes))
            for segment, priority in PRIORITIES.items()
        }
        for cause in CAUSES
    }


async def _play(running: Stage, way: Way, plan: Plan) -> tuple[list[Shot], list[Sample]]:
    samples: list[Sample] = []
    admins = {str(node.node_id): node.admin for node in running.fleet.nodes}
    urls = {side: f"http://{running.front}{path}" for side, path in SIDES.items()}
    clients = Clients(urls, asyncio.get_running_loop().time())
    watching = asyncio.create_task(watch(admins, clients.now_s, samples))
    turning = asyncio.create_task(_turn(running, clients, way, plan))
    try:
        await clients.send(arrivals(lambda now_s: way.demand_s(plan, now_s), plan.total_s, plan.seed))
    finally:
        watching.cancel()
        turning.cancel()
        await asyncio.gather(watching, turning, return_exceptions=True)
    return clients.shots, samples


async def _turn(running: Stage, clients: Clients, way: Way, plan: Plan) -> None:
    """Begin the overload, and end it."""
    await asyncio.sleep(plan.overload_from_s - clients.now_s())
    await asyncio.to_thread(running.set_mode, way.mode(plan))
    await asyncio.sleep(plan.overload_until_s - clients.now_s())
    await asyncio.to_thread(running.set_mode, plan.normal)
