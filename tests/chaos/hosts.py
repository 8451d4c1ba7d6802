"""Machines for nodes and etcd, each a network namespace, joined by a wire whose links can be cut and slowed.

    with Network(["etcd", "n1", "n2", "n3"]) as network, HostedEtcd(network["etcd"]) as etcd:
        with HostedFleet(etcd, network) as fleet:
            network.cut(("n1", "n2"))

While the context lasts, this thread, and whatever it starts, lives in a namespace of its own too, at the wire's end
`CLIENTS`. Namespaces have no names: the kernel ends each one, its devices with it, once no process and no descriptor
holds it, so that not even a killed run leaves any behind, and nothing outside them is ever touched. Needs root.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import json
import os
import random
import struct
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

from tests.etcd_process import EtcdProcess
from tests.fleet import Fleet
from tests.harness import ROOT, NodeProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLIENTS = "clients"
DEVICE = "wire"
SUBNET = "10.77.0"
TXQUEUE_PACKETS = 1_000
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET; os.unshare and os.setns are Python 3.12's
_TUN_SET_INTERFACE, _TUN_WITHOUT_HEADER = 0x400454CA, 0x1001  # TUNSETIFF; IFF_TUN | IFF_NO_PI
_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """One namespace with loopback and one address on the wire."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.address = f"{SUBNET}.{number}"
        with _left_again():
            _succeed(_libc.unshare(_NEW_NETWORK))
            self._namespace = _present()
            self.device = os.open("/dev/net/tun", os.O_RDWR)
            request = struct.pack("16sH", DEVICE.encode(), _TUN_WITHOUT_HEADER)
            fcntl.ioctl(self.device, _TUN_SET_INTERFACE, request)
            _ip("link", "set", "lo", "up")
            _ip("address", "add", f"{self.address}/24", "dev", DEVICE)
            _ip("link", "set", DEVICE, "up", "txqueuelen", str(TXQUEUE_PACKETS))

    def enter(self) -> None:
        """Move this thread, and what it starts from now on, to this host."""
        _succeed(_libc.setns(self._namespace, _NEW_NETWORK))

    def command(self, command: Sequence[str]) -> list[str]:
        """Make a command line run here."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._namespace}", *command]

    def close(self) -> None:
        """Let go of it."""
        os.close(self.device)
        os.close(self._namespace)


class Network:
    """Hosts of these names, and one for the clients; all links are good until cut or slowed."""

    def __init__(self, names: Sequence[str], *, seed: int | None = None) -> None:
        self._names = [CLIENTS, *names]
        self._seed = random.randrange(2**32) if seed is None else seed
        self._stack = ExitStack()
        self._hosts: dict[str, Host] = {}
        self._wire: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for number, name in enumerate(self._names, start=1):
                self._hosts[name] = Host(name, number)
                stack.callback(self._hosts[name].close)
            ends = [f"{host.address}={host.device}" for host in self._hosts.values()]
            self._wire = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.wire", str(self._seed), *ends],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[host.device for host in self._hosts.values()],
                start_new_session=True,
            )
            stack.callback(self._end_wire, self._wire)
            self.mend()
            stack.enter_context(_left_again())
            self[CLIENTS].enter()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def cut(self, *links: tuple[str, str]) -> None:
        """Cut exactly these links; nothing crosses them, in either direction, and nobody is told."""
        self._set(cut=links)

    def isolate(self, name: str) -> None:
        """Cut a host from all but the clients."""
        self.cut(*((name, other) for other in self._servers if other != name))

    def slow(self, *, delay_ms: float, jitter_ms: float, loss: float) -> None:
        """Delay what servers send one another by delay +- jitter, each way, and lose that part of the packets."""
        self._set(
            slow=tuple(itertools.combinations(self._servers, 2)), delay_ms=delay_ms, jitter_ms=jitter_ms, loss=loss
        )

    def mend(self) -> None:
        """Make every link good."""
        self._set()

    @property
    def _servers(self) -> list[str]:
        return [name for name in self._names if name != CLIENTS]

    def _set(
        self,
        *,
        cut: Sequence[tuple[str, str]] = (),
        slow: Sequence[tuple[str, str]] = (),
        delay_ms: float = 0.0,
        jitter_ms: float = 0.0,
        loss: float = 0.0,
    ) -> None:
        pairs = {
            name: [(self[one].address, self[other].address) for one, other in links]
            for name, links in {"cut": cut, "slow": slow}.items()
        }
        assert self._wire is not None
        assert self._wire.stdin is not None
        assert self._wire.stdout is not None
        links = {**pairs, "delay_ms": delay_ms, "jitter_ms": jitter_ms, "loss": loss}
        self._wire.stdin.write(json.dumps(links) + "\n")
        self._wire.stdin.flush()
        assert self._wire.stdout.readline() == "done\n", "the wire has ended"

    @staticmethod
    def _end_wire(wire: subprocess.Popen[str]) -> None:
        wire.kill()
        wire.communicate()


class HostedNode(NodeProcess):
    """A node on a host of its own."""

    def __init__(self, host: Host, *, etcd: str, args: Sequence[str] = ()) -> None:
        super().__init__(host.name, etcd=etcd, args=args)
        self._host = host
        self.http, self.admin, self.peer = (f"{host.address}:{port}" for port in (8080, 8081, 8082))

    def _command(self) -> list[str]:
        return self._host.command(super()._command())


class HostedFleet(Fleet):
    """Nodes, each on the host of its name."""

    def __init__(
        self, etcd: EtcdProcess, network: Network, names: Sequence[str] = ("n1", "n2", "n3"), args: Sequence[str] = ()
    ) -> None:
        super().__init__(etcd, size=0)
        args = ("--prefix", self.prefix, *args)
        self.nodes = [HostedNode(network[name], etcd=etcd.url, args=args) for name in names]


class HostedEtcd(EtcdProcess):
    """An etcd on a host of its own."""

    def __init__(self, host: Host) -> None:
        self._host = host
        super().__init__()
        self._health_url = self._health_url.replace("127.0.0.1", host.address)

    @property
    def url(self) -> str:
        return f"http://{self._host.address}:{self.client_port}"

    def _command(self) -> list[str]:
        return self._host.command(super()._command())


@contextmanager
def _left_again() -> Iterator[None]:
    """Bring this thread back to the namespace that it is in now."""
    home = _present()
    try:
        yield
    finally:
        _succeed(_libc.setns(home, _NEW_NETWORK))
        os.close(home)


def _present() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _succeed(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _ip(*arguments: str) -> None:
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    subprocess.run(["ip", *arguments], check=True, env={**os.environ, "PATH": path})
