"""What answers requests that have waited too long: an application that only says 503, for a fraction of a check's time.

It has nothing looked up, decided or put together. Retry-After differs from answer to answer, so that those who were
refused together do not return together.
"""

from __future__ import annotations

import re
from itertools import cycle
from typing import TYPE_CHECKING

from limiter_node.edge.answers import Problem, problem_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.edge.exchange import Slot
    from limiter_node.edge.http import HttpConnection

RETRY_AFTER_S = (1, 2, 3)
DETAIL = "the node has more to do than it can; this waited too long"

_is_get = re.compile(rb"GET /[!-~]*").fullmatch


def overload(retry_after_s: int) -> Problem:
    """The problem of a node that has too much to do."""
    return Problem(503, DETAIL, headers=f"Retry-After: {retry_after_s}\r\n")


class Refusing:
    """An `Application` that refuses every request."""

    def __init__(self, count_problem: Callable[[int], None]) -> None:
        self.refused = 0
        self._count_problem = count_problem
        self._retry_after_s = cycle(RETRY_AFTER_S)
        self._answers = cycle([problem_answer(overload(seconds), "", "") for seconds in RETRY_AFTER_S])

    def handle(self, request: HttpConnection, slot: Slot) -> bytes | None:
        """Refuse one that the parser has taken apart."""
        self.refused += 1
        raise overload(next(self._retry_after_s))

    def handle_plain_get(self, line: bytes, request: HttpConnection, slot: Slot) -> bytes | bool | None:
        """Refuse a GET whose headers are known to be good; 5xx answers need no Date (RFC 9110, 6.6.1)."""
        if not _is_get(line):
            return False
        self.refused += 1
        self._count_problem(503)
        return next(self._answers)
