"""The bounds on what one client connection of the check API may take: bytes, answers, time."""

TARGET_BYTES_MAX = 8 << 10
HEAD_BYTES_MAX = 16 << 10
HEAD_BYTES_TORN = 64 << 10
"""A head that has not ended by here will not: answered, and the connection closed."""

BODY_BYTES_MAX = 1 << 20
HEAD_DETAIL = f"the headers are longer than {HEAD_BYTES_MAX} bytes"
BODY_DETAIL = f"the body is longer than {BODY_BYTES_MAX} bytes"

CONNECTIONS_MAX = 20_000
"""Open at a time; each takes 5 KB while it is idle."""

PIPELINE_MAX = 256
"""Answers a connection may wait for before its reading pauses."""

REQUEST_TIME_MAX_NS = 10_000_000_000
IDLE_TIME_MAX_NS = 120_000_000_000
"""Twice nginx's idle time for upstream connections, so that the balancer and not this side ends an idle one."""

READ_BYTES_SHORT = 2 << 10
"""Reads above this may hold a batch or many pipelined requests: how long they take is watched (see `http_server`)."""

READ_BYTES_LONG = 64 << 10
"""After a read above this a connection reads no more until that has been handled: 256 KiB of pipelined GETs make some
1.3 MB of answers."""

PIECE_BYTES_MAX = 16 << 10
"""Input is handled in pieces of this size, and others' in between: 160 pipelined GETs take 2 ms."""

UNREAD_TIME_MAX_NS = 30_000_000_000
"""How long a client may leave its answers unread."""

LINGER_TIME_MAX_NS = 2_000_000_000
"""How long to read on after a refusal, so that a reset does not overtake the answer."""
