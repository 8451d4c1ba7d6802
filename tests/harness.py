"""Real processes for black-box tests: limiter nodes, an nginx before them, and small HTTP clients.

Nothing here imports the product: a node is `python -m limiter_node serve`, known by its options, its log, its
exit code and its three ports. Every wait is a poll with a deadline; a node's log is echoed to this process's
stderr as it arrives, so pytest shows it with the test that failed.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 20.0
POLL_INTERVAL_S = 0.02
LOG_TAIL_LINES = 40

T = TypeVar("T")


def eventually(predicate: Callable[[], T], deadline_s: float = 5.0, what: str = "the condition") -> T:
    """Poll until the predicate is truthy and return its value.

    A refused connection or a failed assertion inside the predicate counts as "not yet"; at the deadline the
    last value or failure is in the message.
    """
    end = time.monotonic() + deadline_s
    while True:
        last: object
        try:
            value = predicate()
            if value:
                return value
            last = value
        except (AssertionError, OSError, http.client.HTTPException) as failure:
            last = failure
        if time.monotonic() >= end:
            raise AssertionError(f"{what} did not come true within {deadline_s} s; last: {last!r}")
        time.sleep(POLL_INTERVAL_S)


# HTTP


class Answer(NamedTuple):
    """One HTTP answer; header names are in lower case, values of a repeated header are joined with commas."""

    status: int
    headers: dict[str, str]
    body: Any  # decoded when the content type is JSON, else text


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port"."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class HttpClient:
    """One keep-alive connection, opened with the first request."""

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        host, port = split_address(address)
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout_s)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request and read its answer."""
        payload = body.encode() if isinstance(body, str) else body
        self._connection.request(method, path, body=payload, headers=dict(headers or {}))
        response = self._connection.getresponse()
        return _answer(response.status, response.getheaders(), response.read())

    def check(self, rule: str, key: str, cost: int | None = None, segment: str | None = None) -> Answer:
        """POST /v1/check."""
        return self.request("POST", "/v1/check", check_body(rule, key, cost, segment))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_body(rule: str, key: str, cost: int | None = None, segment: str | None = None) -> str:
    """Write a check as JSON, leaving out what is None."""
    fields = {"rule": rule, "key": key, "cost": cost, "segment": segment}
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def request(
    address: str,
    method: str,
    path: str,
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
) -> Answer:
    """Send one request on a connection of its own."""
    with HttpClient(address, timeout_s) as client:
        return client.request(method, path, body, headers)


def check(
    node: "NodeProcess | NginxProcess | str",
    rule: str,
    key: str,
    cost: int | None = None,
    segment: str | None = None,
) -> Answer:
    """POST /v1/check on a connection of its own."""
    address = node if isinstance(node, str) else node.http
    with HttpClient(address) as client:
        return client.check(rule, key, cost, segment)


def get_json(address: str, path: str) -> Any:
    """GET a JSON document that must be there."""
    answer = request(address, "GET", path)
    assert answer.status == 200, (path, answer)
    return answer.body


def key_path(rule: str, key: str) -> str:
    """Write the admin path of one bucket."""
    return f"/v1/keys/{quote(rule, safe='')}/{quote(key, safe='')}"


def _answer(status: int, headers: Sequence[tuple[str, str]], body: bytes) -> Answer:
    joined: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        joined[lower] = f"{joined[lower]}, {value}" if lower in joined else value
    media_type = joined.get("content-type", "").partition(";")[0].strip().lower()
    if body and (media_type == "application/json" or media_type.endswith("+json")):
        return Answer(status, joined, json.loads(body))
    return Answer(status, joined, body.decode("utf-8", "replace"))


class RawConnection:
    """A socket that says exactly what it is told and reads answers one by one."""

    def __init__(self, address: str, timeout_s: float = 5.0, receive_buffer_bytes: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(split_address(address))
        self._buffer = b""

    def send(self, data: bytes | str) -> None:
        """Send everything, or fail."""
        self.socket.sendall(data.encode() if isinstance(data, str) else data)

    def send_until_refused(self, data: bytes) -> None:
        """Send as much as the other side takes: it may well close while it is being talked to."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def read_answer(self, *, to_head: bool = False) -> Answer:
        """Read one answer; EOFError when the connection ends before its first byte."""
        head = self._until(b"\r\n\r\n").decode("latin-1")
        status_line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        version, status, *_ = status_line.split(" ", 2)
        assert version in {"HTTP/1.1", "HTTP/1.0"}, status_line
        pairs = []
        for line in lines:
            name, colon, value = line.partition(":")
            assert colon, line
            pairs.append((name, value.strip()))
        headers = _answer(int(status), pairs, b"").headers
        bodiless = to_head or int(status) < 200 or int(status) in {204, 304}
        return _answer(int(status), pairs, b"" if bodiless else self._body(headers))

    def read_to_end(self) -> list[Answer]:
        """Read answers until the other side closes; fails if it leaves the connection open."""
        answers = []
        while True:
            try:
                answers.append(self.read_answer())
            except EOFError:
                return answers

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while size := int(self._until(b"\r\n").partition(b";")[0], 16):
                body += self._exactly(size + 2)[:-2]
            self._until(b"\r\n")
            return body
        return self._exactly(int(headers["content-length"]))

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._receive()
        end = self._buffer.index(mark) + len(mark)
        taken, self._buffer = self._buffer[:end], self._buffer[end:]
        return taken

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._receive()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _receive(self) -> None:
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        if data:
            self._buffer += data
            return
        assert not self._buffer, f"closed in the middle of an answer: {self._buffer!r}"
        raise EOFError

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Processes


Rules = Mapping[str, Any] | Path | str | None


class NodeProcess:
    """One `limiter-node serve` on free ports of 127.0.0.1, the same ones again after a restart.

    `rules` is a file, or a document that is written to a file of this node's own (`rules_path`,
    `write_rules`). Leaving the context kills what still runs; `stop` is the graceful way.
    """

    def __init__(
        self,
        node_id: str | None = None,
        *,
        etcd: str | None = None,
        rules: Rules = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        listen_by_env: bool = False,
    ) -> None:
        self.node_id = node_id
        self.http = self.admin = self.peer = "127.0.0.1:0"
        self.log_lines: deque[str] = deque(maxlen=10_000)
        self.rules_path: Path | None = None
        self._etcd = etcd
        self._args = list(args)
        self._env = dict(env or {})
        self._listen_by_env = listen_by_env
        self._directory = tempfile.TemporaryDirectory(prefix="limiter-node-")
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._listening = threading.Event()
        if isinstance(rules, Mapping):
            self.rules_path = Path(self._directory.name) / "rules.json"
            self.write_rules(rules)
        elif rules is not None:
            self.rules_path = Path(rules)

    # What it is

    @property
    def process(self) -> subprocess.Popen[str]:
        """The process of the last start."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not exited."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_events(self) -> list[dict[str, Any]]:
        """The log lines that are JSON objects, decoded."""
        decoded = (_json_object(line) for line in list(self.log_lines))
        return [event for event in decoded if event is not None]

    @property
    def memory_bytes(self) -> int:
        """Resident memory now."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS: the process has ended")

    def log_tail(self) -> str:
        """The end of its log, for a message."""
        return "\n".join(list(self.log_lines)[-LOG_TAIL_LINES:])

    # Its life

    def start(self, *, wait_ready: bool = True) -> Self:
        """Start it and wait until it listens, and unless told otherwise until it is ready."""
        assert not self.running, "already running"
        self._listening.clear()
        self._process = subprocess.Popen(
            self._command(),
            cwd=ROOT,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, args=(self._process,), daemon=True)
        self._reader.start()
        try:
            self._wait(self._listening.is_set, "log that it listens")
            if wait_ready:
                self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def wait_ready(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Wait until /readyz is 200."""
        self._wait(self.is_ready, "become ready", deadline_s)

    def is_ready(self) -> bool:
        """Whether /readyz is 200 now; False while nothing answers there."""
        try:
            return request(self.admin, "GET", "/readyz", timeout_s=2.0).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def terminate(self) -> None:
        """Send SIGTERM and do not wait."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline_s: float = STOP_DEADLINE_S) -> int:
        """Wait until it exits and return its exit code; one that does not is killed and is a failure."""
        try:
            code = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self} did not exit within {deadline_s} s\n{self.log_tail()}") from None
        self._close_log()
        return code

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> int:
        """SIGTERM, then wait; returns the exit code."""
        self.terminate()
        return self.wait(deadline_s)

    def kill(self) -> None:
        """SIGKILL, frozen or not; nothing happens to one that has ended."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._signal_group(signal.SIGKILL)
            self._process.wait()
        self._close_log()

    def restart(self, *, wait_ready: bool = True) -> Self:
        """Stop it gracefully if it runs, then start it on the same ports."""
        if self.running:
            self.stop()
        return self.start(wait_ready=wait_ready)

    def pause(self) -> None:
        """Freeze it (SIGSTOP)."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen one go on (SIGCONT)."""
        self._signal_group(signal.SIGCONT)

    def write_rules(self, rules: Mapping[str, Any]) -> None:
        """Replace the rules file at once, as a careful editor does."""
        assert self.rules_path is not None, "this node has no rules file"
        replace_file(self.rules_path, json.dumps(rules))

    def close(self) -> None:
        """Kill it if it runs and remove its files."""
        self.kill()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"NodeProcess({self.node_id}, http={self.http}, admin={self.admin}, peer={self.peer})"

    # How it is run

    def _command(self) -> list[str]:
        options: list[str] = []
        if not self._listen_by_env:
            options += ["--http", self.http, "--admin", self.admin, "--peer", self.peer]
        if self.node_id is not None:
            options += ["--node-id", self.node_id]
        if self._etcd is not None:
            options += ["--etcd", self._etcd]
        if self.rules_path is not None:
            options += ["--rules", str(self.rules_path)]
        return [sys.executable, "-m", "limiter_node", "serve", *options, *self._args]

    def _environment(self) -> dict[str, str]:
        listen = {}
        if self._listen_by_env:
            listen = {"LIMITER_HTTP": self.http, "LIMITER_ADMIN": self.admin, "LIMITER_PEER": self.peer}
        return {**clean_environment(), **listen, **self._env}

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            text = line.rstrip("\n")
            self.log_lines.append(text)
            event = _json_object(text)
            if event is not None and event.get("event") == "listening" and "http" in event:
                self.http, self.admin, self.peer = event["http"], event["admin"], event["peer"]
                self._listening.set()
            with contextlib.suppress(ValueError):  # pytest has closed its capture: nobody is left to read
                sys.stderr.write(f"[{self.node_id}] {text}\n")

    def _wait(self, condition: Callable[[], bool], what: str, deadline_s: float = START_DEADLINE_S) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            code = self.process.poll()
            if code is not None:
                self._close_log()
                raise AssertionError(f"{self} exited with {code} before it could {what}\n{self.log_tail()}")
            if time.monotonic() >= end:
                raise AssertionError(f"{self} did not {what} within {deadline_s} s\n{self.log_tail()}")
            time.sleep(POLL_INTERVAL_S)

    def _signal_group(self, number: signal.Signals) -> None:
        # Its own session: workers, if it has any, share its fate.
        os.killpg(self.pid, number)

    def _close_log(self) -> None:
        if self._reader is not None:
            self._reader.join(5.0)
        if self.process.stderr is not None:
            self.process.stderr.close()


def run_cli(*args: str, env: Mapping[str, str] | None = None, deadline_s: float = 30.0) -> "CliResult":
    """Run a `limiter-node` command that ends by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "limiter_node", *args],
        cwd=ROOT,
        env={**clean_environment(), **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline_s,
        check=False,
    )
    return CliResult(done.returncode, done.stdout, done.stderr)


class CliResult(NamedTuple):
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Everything it printed."""
        return self.stdout + self.stderr


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of a node that the developer may have exported."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LIMITER_")}


def replace_file(path: Path, text: str) -> None:
    """Write beside the file, then rename over it: a reader sees the old text or the new, never half."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.replace(path)


RETRIES = "proxy_next_upstream error timeout http_503;"
"""For nginx: a GET that one node cannot answer goes to the next; one that starts says 503 until it knows the ring."""


class NginxProcess:
    """A real nginx that sends requests round-robin to upstreams over kept-alive connections.

    `http_config`, `server_config` and `location_config` are added to those blocks as they are; `http` is its
    address.
    """

    def __init__(
        self,
        upstreams: Sequence[str],
        *,
        http_config: str = "",
        server_config: str = "",
        location_config: str = "",
    ) -> None:
        self.http = ""
        self._upstreams = list(upstreams)
        self._blocks = (http_config, server_config, location_config)
        self._directory = tempfile.TemporaryDirectory(prefix="limiter-nginx-")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it on a free port and wait until it accepts connections."""
        for attempts_left in reversed(range(5)):
            self.http = f"127.0.0.1:{free_port()}"
            if self._started():
                return self
            if not attempts_left:
                raise AssertionError(f"nginx did not start\n{self.log()}")
        raise AssertionError("unreachable")

    def log(self) -> str:
        """Its error log."""
        path = Path(self._directory.name) / "error.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """Stop it and remove its files."""
        self._end()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> bool:
        config = Path(self._directory.name) / "nginx.conf"
        config.write_text("\n".join(self._config()))
        self._process = subprocess.Popen(
            ["nginx", "-p", self._directory.name, "-c", str(config), "-e", "error.log"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + START_DEADLINE_S
        while self._process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(split_address(self.http), 1.0):
                return True
            time.sleep(POLL_INTERVAL_S)
        self._end()
        return False

    def _end(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _config(self) -> Iterator[str]:
        http_config, server_config, location_config = self._blocks
        if os.geteuid() == 0:
            yield "user root;"  # its temporary files are in a directory that only we may enter
        yield "daemon off; worker_processes 1; pid nginx.pid; error_log error.log info;"
        yield "events { worker_connections 1024; }"
        yield "http { access_log off;"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            yield f"{kind}_temp_path {kind};"
        # max_fails=0: else nginx shuns a node for 10 s after one refusal, and soon all of a fleet rolled faster.
        servers = " ".join(f"server {address} max_fails=0;" for address in self._upstreams)
        yield f"upstream limiter {{ {servers} keepalive 32; }}"
        yield http_config
        yield f"server {{ listen {self.http};"
        yield server_config
        yield "location / { proxy_pass http://limiter; proxy_http_version 1.1;"
        yield 'proxy_set_header Connection "";'
        yield location_config
        yield "} } }"


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
