"""Answers as bytes: verdicts with their rate limit headers, problems (RFC 9457).

Pure formatting. Rule names need no escaping anywhere: they are `A-Z a-z 0-9 . _ -`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from limiter_node.core.model import Verdict

NS = 1_000_000_000

STATUS_LINES = {
    status: f"HTTP/1.1 {status} {reason}\r\n"
    for status, reason in {
        200: "OK",
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
    return text + "}"


def verdict_answer(rule: str, verdict: Verdict, deny_status: int, date: str, connection: str) -> bytes:
    """The whole answer for a verdict: 200, or `deny_status` with `Retry-After`.

    Headers follow draft-ietf-httpapi-ratelimit-headers and the X-RateLimit custom; `Retry-After` is in whole seconds,
    rounded up, so that who waits that long is let in.
    """
    limit, remaining, reset_ns = verdict.limit, verdict.remaining, verdict.reset_ns
    reset_s = -(-reset_ns // NS)
    if verdict.allowed and not verdict.degraded and verdict.would_allow is None and verdict.window_s:
        # What follows, for the answer that nearly all get: spelled out, it takes two thirds of the time.
        body = (
            f'{{"allowed":true,"rule":"{rule}","limit":{limit},"remaining":{remaining},'
            f'"reset_after":{reset_ns / NS},"retry_after":0.0,"degraded":false}}'
        )
        return (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{date}{connection}"
            f'RateLimit-Policy: "{rule}";q={limit};w={verdict.window_s}\r\n'
            f'RateLimit: "{rule}";r={remaining};t={reset_s}\r\nX-RateLimit-Limit: {limit}\r\n'
            f"X-RateLimit-Remaining: {remaining}\r\nX-RateLimit-Reset: {reset_s}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
    body = verdict_json(rule, verdict)
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


def json_answer(body: bytes, date: str, connection: str) -> bytes:
    """A 200 with a JSON body."""
    head = f"{STATUS_LINES[200]}Content-Type: application/json\r\n{date}{connection}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
