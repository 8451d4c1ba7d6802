"""Answers as bytes: verdicts with their rate limit headers, problems (RFC 9457).

Pure formatting. Rule names need no escaping anywhere: they are `A-Z a-z 0-9 . _ -`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from limiter_node.core.model import Check, Explanation, LimitVerdict, Refunded, Verdict
    from limiter_node.core.plan import Grant
    from limiter_node.edge.tally import Series

NS = 1_000_000_000

STATUS_LINES = {
    status: f"HTTP/1.1 {status} {reason}\r\n"
    for status, reason in {
        200: "OK",
        202: "Accepted",
        400: "Bad Request",
        401: "Unauthorized",
        403: "Forbidden",
        404: "Not Found",
        405: "Method Not Allowed",
        408: "Request Timeout",
        413: "Content Too Large",
        414: "URI Too Long",
        415: "Unsupported Media Type",
        429: "Too Many Requests",
        431: "Request Header Fields Too Large",
        500: "Internal Server Error",
        503: "Service Unavailable",
    }.items()
}

TITLES = {
    400: "bad request",
    404: "not found",
    405: "method not allowed",
    408: "request timeout",
    413: "content too large",
    414: "target too long",
    415: "unsupported media type",
    431: "headers too large",
    500: "internal error",
    503: "service unavailable",
}


class Problem(Exception):
    """A request that cannot be answered as asked; `detail` says what is wrong and what is allowed."""

    def __init__(
        self, status: int, detail: str, *, title: str | None = None, headers: str = "", closes: bool = False
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.title = title or TITLES[status]
        self.headers = headers  # whole header lines
        self.closes = closes

    def document(self) -> dict[str, object]:
        """Status, title and detail, as in the results of a batch."""
        return {"status": self.status, "title": self.title, "detail": self.detail}


def unknown_rule(rule: str) -> Problem:
    """The problem of a rule that does not exist."""
    return Problem(404, f"rule: {rule!r} does not exist", title="unknown rule")


def problem_document(problem: Problem) -> dict[str, object]:
    """The body of an answer that is a problem."""
    name = problem.title.replace(" ", "-")
    return {"type": f"urn:limiter-node:problem:{name}", **problem.document()}


def problem_answer(problem: Problem, date: str, connection: str) -> bytes:
    """The whole answer for a problem. `date` and `connection` are header lines or empty."""
    body = msgspec.json.encode(problem_document(problem))
    head = (
        f"{STATUS_LINES[problem.status]}Content-Type: application/problem+json\r\n{date}{connection}"
        f"{problem.headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


REDUCED_CAPACITY = ',"type":"https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"'
"""The problem type of draft-ietf-httpapi-ratelimit-headers for a service that takes less than it promised."""


def verdict_json(rule: str, verdict: Verdict) -> str:
    """The verdict as in the contract; seconds as floats."""
    retry_ns = verdict.retry_ns
    text = (
        f'{{"allowed":{"true" if verdict.allowed else "false"},"rule":"{rule}","limit":{verdict.limit},'
        f'"remaining":{verdict.remaining},"reset_after":{verdict.reset_ns / NS},'
        f'"retry_after":{"null" if retry_ns < 0 else retry_ns / NS},'
        f'"degraded":{"true" if verdict.degraded else "false"}'
    )
    if verdict.would_allow is not None:
        text += f',"shadow":true,"would_allow":{"true" if verdict.would_allow else "false"}'
    if verdict.reason is not None:
        text += f',"reason":"{verdict.reason}"'
        if verdict.reason == "backend_overload":
            text += REDUCED_CAPACITY
    if verdict.wait_ns is not None:
        text += f',"wait_ms":{verdict.wait_ns / 1_000_000}'
    if verdict.limits is not None:
        text += f',"limits":{_limits_json(verdict.limits)}'
    return text + "}"


def limit_document(limit: LimitVerdict) -> dict[str, object]:
    """One of several limits."""
    return {
        "rate": limit.rate,
        "algorithm": limit.algorithm,
        "limit": limit.limit,
        "remaining": limit.remaining,
        "reset_after": limit.reset_ns / NS,
        "retry_after": None if limit.retry_ns < 0 else limit.retry_ns / NS,
    }


def refund_json(rule: str, refunded: Refunded) -> bytes:
    """What a refund has come to; seconds as floats."""
    return (
        f'{{"refunded":{refunded.tokens},"rule":"{rule}","limit":{refunded.limit},'
        f'"remaining":{refunded.remaining},"reset_after":{refunded.reset_ns / NS}}}'
    ).encode()


def _limits_json(limits: list[LimitVerdict]) -> str:
    return msgspec.json.encode(list(map(limit_document, limits))).decode()


def explanation_json(explanation: Explanation, check: Check, owner: str | None, replica: str | None) -> str:
    """What led to a verdict."""
    about = {
        "rule": check.rule,
        "key": check.key,
        "segment": explanation.segment,
        "segment_from": explanation.segment_from,
        "limits_from": explanation.limits_from,
        "multiplier": explanation.multiplier,
        "backend": explanation.backend,
        "priority": explanation.priority,
        "used": explanation.used,
        "owner": owner,
        "replica": replica,
        "decided_by": explanation.node,
    }
    return msgspec.json.encode(about | {"limits": list(map(limit_document, explanation.limits))}).decode()


def verdict_answer(
    rule: str, verdict: Verdict, deny_status: int, date: str, connection: str, *, explanation: str = ""
) -> bytes:
    """The whole answer for a verdict: 200, or `deny_status` with `Retry-After`.

    Headers follow draft-ietf-httpapi-ratelimit-headers and the X-RateLimit custom; `Retry-After` is in whole seconds,
    rounded up, so that who waits that long is let in.
    """
    reset_s = -(-verdict.reset_ns // NS)
    body = verdict_json(rule, verdict)
    if explanation:
        body = f'{body[:-1]},"explain":{explanation}}}'
    retry = ""
    if not verdict.allowed and verdict.retry_ns >= 0:
        retry = f"Retry-After: {max(1, -(-verdict.retry_ns // NS))}\r\n"
    policy = f'RateLimit-Policy: "{rule}";q={verdict.limit};w={verdict.window_s}\r\n' if verdict.window_s else ""
    return (
        f"{STATUS_LINES[200 if verdict.allowed else deny_status]}Content-Type: application/json\r\n"
        f'{date}{connection}{policy}RateLimit: "{rule}";r={verdict.remaining};t={reset_s}\r\n'
        f"X-RateLimit-Limit: {verdict.limit}\r\nX-RateLimit-Remaining: {verdict.remaining}\r\n"
        f"X-RateLimit-Reset: {reset_s}\r\n{retry}Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def usual_grant(verdict: Verdict) -> Grant | None:
    """What `UsualAnswers` makes an answer of; None for a verdict that has more to say."""
    has_more = verdict.degraded or verdict.would_allow is not None or verdict.wait_ns is not None or verdict.limits
    return (
        None
        if has_more or not verdict.allowed
        else ((verdict.limit, verdict.window_s), verdict.remaining, verdict.reset_ns)
    )


class UsualAnswers:
    """The answers for checks of one rule that were allowed and have nothing else to say, which nearly all get.

    What they have in common is put together once a second and change of numbers: an answer takes 0.6 us so, not 1.3.
    Checks of keys that were full, as most are of many keys, are all answered alike: the last answer is kept, 0.1 us.
    """

    __slots__ = (
        "_answer",
        "_date",
        "_grant",
        "_head",
        "_length",
        "_middle",
        "_numbers",
        "_result",
        "_result_grant",
        "_result_start",
        "rule",
        "series",
    )

    def __init__(self, rule: str, series: Series) -> None:
        self.rule = rule
        self.series = series
        self._numbers = 0, 0
        self._date = ""
        self._grant: Grant | None = None  # what `_answer` is for
        self._result_grant: Grant | None = None  # and `_result`
        self._answer = b""
        self._result = ""

    def answer(self, grant: Grant, date: str) -> bytes:
        """As `verdict_answer` has it."""
        if grant == self._grant and date is self._date:
            return self._answer
        self._grant = grant
        numbers, remaining, reset_ns = grant
        if numbers != self._numbers or date is not self._date:
            self._put_together(numbers, date)
        left = NUMERALS[remaining] if remaining < NUMERALS_END else str(remaining)
        reset, reset_s = repr(reset_ns / NS), -(-reset_ns // NS)
        whole = NUMERALS[reset_s] if reset_s < NUMERALS_END else str(reset_s)
        self._answer = (
            f"{self._head}{left};t={whole}{self._middle}{left}\r\nX-RateLimit-Reset: {whole}\r\n"
            f"Content-Length: {NUMERALS[self._length + len(left) + len(reset)]}\r\n\r\n"
            f"{self._result_start}{left}{RESET_AFTER}{reset}{RESULT_END}"
        ).encode()
        return self._answer

    def result(self, grant: Grant) -> str:
        """As `verdict_json` has it."""
        if grant is self._result_grant or grant == self._result_grant:
            return self._result
        self._result_grant = grant
        numbers, remaining, reset_ns = grant
        if numbers != self._numbers:
            self._put_together(numbers, "")
        left = NUMERALS[remaining] if remaining < NUMERALS_END else str(remaining)
        self._result = f"{self._result_start}{left}{RESET_AFTER}{reset_ns / NS}{RESULT_END}"
        return self._result

    def _put_together(self, numbers: tuple[int, int], date: str) -> None:
        rule, (limit, window_s) = self.rule, numbers
        self._numbers, self._date = numbers, date
        self._head = (
            f"{STATUS_LINES[200]}Content-Type: application/json\r\n{date}"
            f'RateLimit-Policy: "{rule}";q={limit};w={window_s}\r\nRateLimit: "{rule}";r='
        )
        self._middle = f"\r\nX-RateLimit-Limit: {limit}\r\nX-RateLimit-Remaining: "
        self._result_start = f'{{"allowed":true,"rule":"{rule}","limit":{limit},"remaining":'
        self._length = len(self._result_start) + len(RESET_AFTER) + len(RESULT_END)


NUMERALS_END = 10_000
NUMERALS = tuple(map(str, range(NUMERALS_END)))
"""To make a text of an integer takes divisions: three of them were a twelfth of a node's time. 0.6 MB."""

RESET_AFTER = ',"reset_after":'
RESULT_END = ',"retry_after":0.0,"degraded":false}'


def json_answer(body: bytes, date: str, connection: str, status: int = 200) -> bytes:
    """A success with a JSON body."""
    head = (
        f"{STATUS_LINES[status]}Content-Type: application/json\r\n{date}{connection}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
