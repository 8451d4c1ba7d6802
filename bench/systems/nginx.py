"""nginx, one process if not told otherwise: an answer without work behind it, and its own rate limiting by `limit_req`.

`limit_req` counts in a shared memory zone by the key of the query; it knows one machine and no live rules. It works
in a phase that `return` would cut short, so the answer is nginx' own empty picture, from memory too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.servers import System, answers, free_port

if TYPE_CHECKING:
    from bench.servers import Cores, Numbers, Stage

CONF = """\
daemon off;
{processes}
pid {folder}/{name}.pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    {zone}
    server {{
        listen {address}{shared};
        location / {{ {answer} }}
    }}
}}
"""
ZONE = "limit_req_zone $arg_key zone=keys:64m rate={rate}; limit_req_status 429;"
LIMITED = "limit_req zone=keys burst={burst} nodelay; empty_gif;"


def returning(stage: Stage, cores: Cores, numbers: Numbers) -> System:
    """Start an nginx that only says 200."""
    del numbers
    return _start(stage, "nginx", zone="", answer="return 200;", cpu=cores.server)


def with_workers(stage: Stage, cores: int | str, count: int) -> System:
    """Start one that only says 200 and has so many workers, which know nothing of each other, on these cores."""
    system = _start(stage, f"nginx-{count}", zone="", answer="return 200;", cpu=cores, workers=count)
    children = Path(f"/proc/{system.server.pid}/task/{system.server.pid}/children")
    system.server.wait_until("complete", lambda: len(children.read_text().split()) == count)
    return replace(system, workers=tuple(map(int, children.read_text().split())))


def limiting(stage: Stage, cores: Cores, numbers: Numbers) -> System:
    """Start an nginx that limits each key; its rates are whole numbers a second or a minute, 1/m at least."""
    rate = f"{numbers.count // numbers.period_s}r/s" if numbers.count >= numbers.period_s else "1r/m"
    answer = LIMITED.format(burst=numbers.burst)
    return _start(stage, "nginx-limit-req", zone=ZONE.format(rate=rate), answer=answer, cpu=cores.server)


def _start(stage: Stage, name: str, *, zone: str, answer: str, cpu: int | str, workers: int = 0) -> System:
    address = f"127.0.0.1:{free_port()}"
    conf = stage.folder / f"{name}.conf"
    processes, shared = (f"worker_processes {workers};", " reuseport") if workers else ("master_process off;", "")
    conf.write_text(
        CONF.format(
            folder=stage.folder,
            name=name,
            address=address,
            zone=zone,
            answer=answer,
            processes=processes,
            shared=shared,
        )
    )
    server = stage.start(name, ["nginx", "-e", "stderr", "-c", str(conf)], cpu=cpu)
    server.wait_until("listening", lambda: answers(f"http://{address}/?key=ready"))
    return System(address, (server,))
