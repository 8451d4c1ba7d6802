"""nginx before the backend, as a user would write it: a check for each request, and each outcome told to a reporter.

`/guarded/` asks the limiter first; `/open/` goes to an equal backend and asks nobody. nginx cannot post a report by
itself, so it sends a line of JSON per outcome over UDP (its syslog) to `reporter`, which posts them. `auth_request`
knows only 2xx, 401 and 403: a denial comes as 403 and is turned into 429 here, with the Retry-After that came with it.
Requests that were turned away have reached no backend and are no outcomes.
"""

from __future__ import annotations

from tests.overload.scenario import BACKEND, RULE

GUARDED, OPEN = "/guarded/", "/open/"
SIDES = {"with": GUARDED, "without": OPEN}

HTTP_CONFIG = """
    log_format outcome escape=json
        '{{"backend": "{backend}", "seconds": "$upstream_response_time", "status": "$upstream_status"}}';
    map $upstream_status $reached {{ "" 0; default 1; }}
    upstream guarded {{ server {guarded} max_fails=0; keepalive 64; }}
    upstream open {{ server {unguarded} max_fails=0; keepalive 64; }}
"""

SERVER_CONFIG = """
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_connect_timeout 1s;
    proxy_read_timeout {timeout_s:g}s;

    location = /limit {{
        internal;
        proxy_pass http://limiter/v1/check?rule={rule}&key=$http_x_user&segment=$http_x_segment&deny_status=403;
        proxy_pass_request_body off;
        proxy_set_header Content-Length "";
        proxy_set_header Connection "";
        proxy_next_upstream error timeout http_503;
    }}
    location {guarded_path} {{
        auth_request /limit;
        auth_request_set $again $upstream_http_retry_after;
        error_page 403 = @turned_away;
        proxy_pass http://guarded/work;
        access_log syslog:server={reporter},nohostname outcome if=$reached;
    }}
    location @turned_away {{
        add_header Retry-After $again always;
        return 429;
    }}
    location {open_path} {{ proxy_pass http://open/work; }}
"""


def http_config(guarded: str, unguarded: str) -> str:
    """What goes into the http block; addresses of the two backends."""
    return HTTP_CONFIG.format(backend=BACKEND, guarded=guarded, unguarded=unguarded)


def server_config(reporter: str, timeout_s: float) -> str:
    """What goes into the server block; an upstream called `limiter` must exist."""
    return SERVER_CONFIG.format(rule=RULE, reporter=reporter, timeout_s=timeout_s, guarded_path=GUARDED, open_path=OPEN)
