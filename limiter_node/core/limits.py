"""Limits: so many tokens in so long, by one of five algorithms; rates and calendar periods as people write them.

A limit is a frozen value with its defaults filled in. What a document may say of one is `rules`' business.
"""

from __future__ import annotations

import re
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from limiter_node.core.model import DURATION_MAX_NS

COUNT_MAX = 10**12
"""Largest count in a rate and largest burst, in tokens: exact in JSON everywhere, and below `model.COST_MAX`."""

PERIOD_MAX_S = 366 * 86_400
LOG_COUNT_MAX = 1_000
"""Largest count of a `sliding_log`: it keeps and copies every grant of a period (see `model.VALUES_PER_FRAME`)."""

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "week": 7 * 86_400, "month": 30 * 86_400}
CALENDAR = {"d": "day", "week": "week", "month": "month"}
"""Periods that begin when the calendar says so."""

BUCKETS = ("token_bucket", "leaky_bucket")
"""Algorithms that have a `burst`."""

WINDOWS = ("fixed_window", "sliding_window", "sliding_log")
"""Those that have none."""

RATE_PATTERN = r"([0-9]{1,13})/(?:([0-9]{0,9})([smhd])|(week|month))"
match_rate = re.compile(RATE_PATTERN, re.ASCII).fullmatch

RATE_ALLOWED = (
    f"COUNT/PERIOD such as 100/s, 10/30s or 1000/d: COUNT 1 to {COUNT_MAX}, "
    "PERIOD s, m, h, d or a whole number of them up to 366d; with fixed_window also week and month"
)

TIMEZONE_ALLOWED = "an IANA name such as Europe/Berlin"


class Limit(msgspec.Struct, frozen=True):
    """A limit with its defaults filled in: `count` tokens per `period_s` seconds, at most `burst` at once."""

    rate: str
    count: int
    period_s: int
    burst: int
    algorithm: str | None = "token_bucket"  # None: of a key's own numbers, until it is known what they are numbers of
    timezone: str | None = None  # None: UTC

    @property
    def window_s(self) -> int:
        """Seconds in which an empty bucket is full again at multiplier 1, rounded up."""
        return min(-(-self.burst * self.period_s // self.count), DURATION_MAX_NS)

    @property
    def calendar(self) -> str | None:
        """`day`, `week` or `month`, where the period is one of them; a month has no fixed length."""
        return CALENDAR.get(self.rate.partition("/")[2])

    def under(self, base: Limit) -> Limit:
        """With what this limit does not say for itself: the algorithm, and the time zone, of the one it replaces.

        Where it has what that algorithm cannot have: one with a month or a time zone is a fixed window, one with a
        burst a token bucket, and one too large for a log a sliding window.
        """
        if self.algorithm is not None:
            return self
        algorithm, timezone = base.algorithm, self.timezone
        if timezone is not None or self.calendar == "month":
            algorithm = "fixed_window"
        elif self.burst != self.count and algorithm in WINDOWS:
            algorithm = "token_bucket"
        elif self.count > LOG_COUNT_MAX and algorithm == "sliding_log":
            algorithm = "sliding_window"
        if algorithm == base.algorithm and timezone is None and self.calendar:
            timezone = base.timezone
        return msgspec.structs.replace(self, algorithm=algorithm, timezone=timezone)

    def describe(self) -> dict[str, Any]:
        """As a document with every default spelled out."""
        document: dict[str, Any] = {"rate": self.rate, "algorithm": self.algorithm}
        if self.algorithm in BUCKETS:
            document["burst"] = self.burst
        if self.timezone is not None:
            document["timezone"] = self.timezone
        return document


Limits = tuple[Limit, ...]
"""Limits that must all allow, at least one."""


def describe_limits(limits: Limits) -> dict[str, Any]:
    """As the fields of a document."""
    return limits[0].describe() if len(limits) == 1 else {"limits": [limit.describe() for limit in limits]}


PLAIN = Limit("1/s", 1, 1, 1)
"""What a limit that says nothing else is: a token bucket."""


def under(limits: Limits, base: Limits) -> Limits:
    """Limits in the place of those of `base`: one that replaces one takes its algorithm, unless it says another."""
    if len(limits) == len(base) == 1:
        return (limits[0].under(base[0]),)
    return tuple(limit.under(PLAIN) for limit in limits)


def parse_rate(text: str) -> tuple[int, int]:
    """(tokens, seconds) of a rate such as `100/s` or `10/30s`; raises ValueError that says what is allowed."""
    match = match_rate(text)
    if match:
        count, period_s = int(match[1]), int(match[2] or 1) * SECONDS[match[3] or match[4]]
        if 1 <= count <= COUNT_MAX and 1 <= period_s <= PERIOD_MAX_S:
            return count, period_s
    raise ValueError(f"{text!r} is no rate; allowed: {RATE_ALLOWED}")


def check_timezone(name: str) -> None:
    """Raise ValueError, saying what is allowed, for what is no IANA time zone."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone; allowed: {TIMEZONE_ALLOWED}") from None
