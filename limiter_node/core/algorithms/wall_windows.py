"""Numbered windows of the wall clock: even ones since 1970, and days, weeks and months as a time zone has them.

Window `n` lasts from `begin_ns(n)` until `begin_ns(n + 1)`, in nanoseconds since 1970 in UTC. A day of the calendar
begins at local midnight, or where the clocks skip midnight at the end of what they skip, so days of 23 and 25 hours
are what they are on the wall. Knows zones (by zoneinfo) and no limits.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, tzinfo
from typing import Protocol
from zlib import crc32
from zoneinfo import ZoneInfo

SECOND_NS = 1_000_000_000
DAY_S = 86_400

NUMBER_BITS_MAX = 24
"""Days since the year 1 fit this until the year 45000."""


class Windows(Protocol):
    """How the wall's time is cut."""

    mark: int
    """Added to a number, tells it from those of other kinds of windows; the periods of even ones do that themselves."""

    longest_ns: int

    def number_at(self, wall_ns: int) -> int:
        """The window in which a time is."""

    def begin_ns(self, number: int) -> int:
        """When a window begins."""


class EvenWindows:
    """Windows of one length, the first beginning with 1970 in UTC."""

    def __init__(self, period_s: int) -> None:
        self.mark = 0
        self.longest_ns = period_s * SECOND_NS

    def number_at(self, wall_ns: int) -> int:
        """As `Windows` has it."""
        return wall_ns // self.longest_ns

    def begin_ns(self, number: int) -> int:
        """As `Windows` has it."""
        return number * self.longest_ns


class CalendarWindows:
    """Days, weeks from Monday, or months of a time zone."""

    def __init__(self, unit: str, timezone: str | None) -> None:
        self._unit = unit
        self._zone: tzinfo = UTC if timezone is None else ZoneInfo(timezone)
        self.mark = crc32(f"{unit} {timezone}".encode()) << NUMBER_BITS_MAX
        # With a day more than the wall ever shows: zones have moved across the date line.
        self.longest_ns = ({"day": 1, "week": 7, "month": 31}[unit] + 1) * DAY_S * SECOND_NS

    def number_at(self, wall_ns: int) -> int:
        """As `Windows` has it."""
        number = self._number(datetime.fromtimestamp(wall_ns // SECOND_NS, self._zone).date())
        # Where clocks are put back across midnight the date goes back too; windows do not.
        while self.begin_ns(number + 1) <= wall_ns:
            number += 1
        return number

    def begin_ns(self, number: int) -> int:
        """As `Windows` has it."""
        first = self._first(number)
        # Of a midnight that is skipped this is the moment at which it would have been, of one that comes twice the
        # first (PEP 495, fold=0).
        return int(datetime(first.year, first.month, first.day, tzinfo=self._zone).timestamp()) * SECOND_NS

    def _number(self, day: date) -> int:
        if self._unit == "day":
            return day.toordinal()
        if self._unit == "week":
            return (day.toordinal() - 1) // 7  # 1 January of the year 1 was a Monday
        return day.year * 12 + day.month - 1

    def _first(self, number: int) -> date:
        if self._unit == "day":
            return date.fromordinal(number)
        if self._unit == "week":
            return date.fromordinal(number * 7 + 1)
        return date(number // 12, number % 12 + 1, 1)
