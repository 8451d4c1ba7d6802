"""The errors of the core, by who is at fault and what the caller can do about it."""

from __future__ import annotations

import msgspec

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be; the last for values nested too deep."""


class LimiterError(Exception):
    """Root of everything this package raises on purpose."""


class ConfigError(LimiterError):
    """Settings or a rules file that cannot be used; `problems` lists every reason at once."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class BadRule(LimiterError):
    """A document (rule, key entry, multiplier) that breaks the contract; the last good one stays in force.

    `problems` are sentences that name the field, what is wrong and what is allowed.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class BadMessage(LimiterError):
    """Bytes from a peer that are no frame of ours: the sender's fault, the connection is closed."""
