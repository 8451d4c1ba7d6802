"""What somebody probably meant who wrote something else: the end of an error message.

Only ever a question, and only where one answer is much nearer than the others; nothing is corrected by itself.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

NEAR = 0.65
"""Of difflib's ratio: `brust` is 0.8 like `burst`, `slo` 0.67 like `slo_ms`; `comment` is 0.53 like `segments`."""

_UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "d"),
    **dict.fromkeys(("w", "week", "weeks"), "week"),
    **dict.fromkeys(("mo", "month", "months"), "month"),
}
_LOOSE_RATE = re.compile(r"([0-9][0-9_,']*)(?:/|per|an?|every|each)([0-9]*)([a-z]+)")


def did_you_mean(written: object, allowed: Iterable[object]) -> str:
    """`; did you mean "burst"?`, or nothing where no allowed text is near to what was written.

    To YAML `on` and `off` are true and false, unless they are in quotes.
    """
    text = ("off", "on")[written] if isinstance(written, bool) else str(written).lower()
    near = get_close_matches(text, [str(each) for each in allowed], 1, NEAR)
    return f'; did you mean "{near[0]}"?' if near else ""


def plain_rate(written: str) -> str:
    """`100/s` for `100 per second`, `1,000 / Min` and the like; nothing where it looks like no rate."""
    match = _LOOSE_RATE.fullmatch("".join(written.lower().split()))
    if match is None or match[3] not in _UNITS:
        return ""
    return f"{re.sub('[^0-9]', '', match[1])}/{match[2]}{_UNITS[match[3]]}"
