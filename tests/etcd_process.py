"""A real etcd for tests: started on free loopback ports, killed, frozen and started again at will.

Everything here blocks; from a test on an event loop that must go on turning, call it in a thread
(`await asyncio.to_thread(etcd.start)`). Waiting means polling etcd's own health page up to a deadline. Only
processes started here are ever signalled, each through its Popen.

    with EtcdProcess() as etcd:                 # running and healthy
        etcd.etcdctl("put", "/limiter/rules/api", '{"rate": "1/s"}')
        etcd.kill(); etcd.start()               # same ports, same data
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.ports import HOST, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

READY_DEADLINE_S = 20.0
STOP_DEADLINE_S = 10.0
POLL_S = 0.02
# Ten times the speed of the defaults would be elections without end on a busy machine; twice is safe, and
# lets leases be as short as 1 s (etcd grants no less than 1.5 election timeouts).
HEARTBEAT_MS = 50
ELECTION_MS = 500


@dataclass(frozen=True)
class Certificates:
    """PEM files: a CA, and a certificate good for both a server at 127.0.0.1 and a client."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def make(cls, directory: Path, *, common_name: str = "limiter") -> Certificates:
        """Make a new CA and one certificate of it."""
        directory.mkdir(parents=True, exist_ok=True)
        ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca_name, name = (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in ("test CA", common_name)
        )
        ca = _certificate(ca_name, ca_name, ca_key, ca_key, is_ca=True)
        leaf = _certificate(name, ca_name, key, ca_key, is_ca=False)
        made = cls(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
        made.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        made.cert.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return made


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if not is_ca:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


class EtcdProcess:
    """One etcd member, in a temporary directory of its own; a context manager that starts and ends it."""

    def __init__(
        self,
        *,
        name: str = "default",
        tls: bool = False,
        client_port: int | None = None,
        peer_port: int | None = None,
        cluster: str | None = None,
    ) -> None:
        ports = free_ports(3)
        self.name = name
        self.directory = Path(tempfile.mkdtemp(prefix="limiter-etcd-"))
        self.certificates = Certificates.make(self.directory / "tls") if tls else None
        self.client_port = client_port or ports[0]
        self._peer_url = f"http://{HOST}:{peer_port or ports[1]}"
        self._health_url = f"http://{HOST}:{ports[2]}"
        self._cluster = cluster or f"{name}={self._peer_url}"
        self._login: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"{'https' if self.certificates else 'http'}://{HOST}:{self.client_port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log_path(self) -> Path:
        """What etcd has written, of all its lives."""
        return self.directory / "log"

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- life ----------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start, with the data of an earlier life if there was one, and wait until it is healthy."""
        self.launch()
        self.wait_ready()
        return self

    def launch(self) -> None:
        """Start without waiting: a member of a cluster is not healthy before the others are there."""
        if self.is_running:
            raise RuntimeError(f"etcd {self.name} is running already")
        with self.log_path.open("ab") as log_file:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file
            )

    def wait_ready(self) -> None:
        """Wait until it serves and has a leader."""
        deadline = time.monotonic() + READY_DEADLINE_S
        # Whether it runs is asked last: had it found its ports taken, who took them would answer in its place.
        while not (self._is_healthy() and self.is_running):
            if not self.is_running or time.monotonic() > deadline:
                raise RuntimeError(f"etcd {self.name} did not get ready:\n{self._last_words()}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it in order (SIGTERM); SIGKILL when it takes too long."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL): connections are reset, nothing is said."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Forget all data; it must not be running."""
        shutil.rmtree(self.directory / "data", ignore_errors=True)

    def close(self) -> None:
        """Kill it and remove its directory."""
        if self.is_running:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- use -----------------------------------------------------------------------------------------

    def etcdctl(self, *args: str, input: str | None = None) -> str:  # noqa: A002 - as in subprocess.run
        """Run etcdctl against this member; what it printed. `input` is its stdin, as for txn."""
        command = ["etcdctl", "--endpoints", self.url, "--dial-timeout=5s", "--command-timeout=10s"]
        if tls := self.certificates:
            command += [f"--cacert={tls.ca}", f"--cert={tls.cert}", f"--key={tls.key}"]
        done = subprocess.run(
            [*command, *self._login, *args],
            input=input,
            env={"PATH": os.environ["PATH"], "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"etcdctl {' '.join(args)}: {done.stderr or done.stdout}")
        return done.stdout

    def enable_auth(self, password: str, **others: str) -> None:
        """Create root, and other users with their passwords who may do everything, and demand a log-in.

        From here on `etcdctl` logs in as root.
        """
        self.etcdctl("role", "add", "root")
        for user, user_password in {"root": password, **others}.items():
            self.etcdctl("user", "add", f"{user}:{user_password}")
            self.etcdctl("user", "grant-role", user, "root")
        self.etcdctl("auth", "enable")
        self._login = (f"--user=root:{password}",)

    # --- details -------------------------------------------------------------------------------------

    def _command(self) -> list[str]:
        command = [
            *("etcd", "--name", self.name, "--data-dir", str(self.directory / "data")),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", self._peer_url, "--initial-advertise-peer-urls", self._peer_url),
            *("--initial-cluster", self._cluster, "--listen-metrics-urls", self._health_url),
            *("--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS)),
            *("--unsafe-no-fsync", "--bcrypt-cost=4", "--logger=zap", "--log-level=error"),
        ]
        if tls := self.certificates:
            command += ["--client-cert-auth", f"--trusted-ca-file={tls.ca}"]
            command += [f"--cert-file={tls.cert}", f"--key-file={tls.key}"]
        return command

    def _is_healthy(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self._health_url}/health", timeout=2) as answer:
                return b"true" in answer.read()
        except OSError:
            return False

    def _last_words(self) -> str:
        return self.log_path.read_text()[-4000:] if self.log_path.exists() else "(never started)"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"etcd {self.name} is not running:\n{self._last_words()}")
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        self._signal(number)
        assert self._process is not None
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_DEADLINE_S)


@contextmanager
def etcd_cluster(size: int = 3) -> Iterator[list[EtcdProcess]]:
    """Run a cluster of so many members, all healthy."""
    ports = free_ports(2 * size)
    pairs = list(zip(ports[:size], ports[size:], strict=True))
    cluster = ",".join(f"m{n}=http://{HOST}:{peer}" for n, (_, peer) in enumerate(pairs))
    members = [
        EtcdProcess(name=f"m{n}", client_port=client, peer_port=peer, cluster=cluster)
        for n, (client, peer) in enumerate(pairs)
    ]
    try:
        for member in members:
            member.launch()
        for member in members:
            member.wait_ready()
        yield members
    finally:
        for member in members:
            member.close()
