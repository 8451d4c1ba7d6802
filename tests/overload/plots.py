"""Pictures of a run as SVG, written by hand: lines over seconds, several charts below each other in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 760, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 38
COLOURS = ("#999999", "#3d5a98", "#0b6e4f", "#c8553d", "#8a6fae", "#c9a227")
TICKS = 4


class Line(NamedTuple):
    """Values over time; None where there is none."""

    points: Sequence[tuple[float, float]]  # seconds, value
    colour: str | None = None
    dashed: bool = False


def chart(title: str, lines: Mapping[str, Line], *, seconds: float, shaded: tuple[float, float], top: float) -> str:
    """One chart, with the time of the overload shaded; values above `top` are drawn at it."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(second: float) -> float:
        return round(LEFT + width * second / seconds, 1)

    def y(value: float) -> float:
        return round(TOP + height * (1 - min(max(value, 0.0), top) / top), 1)

    found = [
        f'<text x="{LEFT}" y="16" font-size="13">{_text(title)}</text>',
        f'<rect x="{x(shaded[0])}" y="{TOP}" width="{x(shaded[1]) - x(shaded[0]):.1f}" height="{height}"'
        ' fill="#f3efe6"/>',
    ]
    for part in range(TICKS + 1):
        value = top * part / TICKS
        found.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}" stroke="#ddd"/>')
        found.append(f'<text x="{LEFT - 5}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>')
    found += [
        f'<text x="{x(second)}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{second}</text>'
        for second in range(0, int(seconds) + 1, 5)
    ]
    for number, (name, line) in enumerate(lines.items()):
        colour = line.colour or COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(second)},{y(value)}" for second, value in line.points)
        dashes = ' stroke-dasharray="4 3"' if line.dashed else ""
        found.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>')
        left = LEFT + number * width / len(lines)
        found.append(f'<text x="{left:.0f}" y="{HEIGHT - 6}" fill="{colour}">{_text(name)}</text>')
    return "\n".join(found)


def picture(charts: Sequence[str]) -> str:
    """One file of several charts."""
    height = HEIGHT * len(charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for number, one in enumerate(charts):
        parts.append(f'<g transform="translate(0 {number * HEIGHT})">\n{one}\n</g>')
    return "\n".join([*parts, "</svg>", ""])


def by_second(values: Sequence[float]) -> list[tuple[float, float]]:
    """Values of whole seconds, each drawn in the middle of its second."""
    return [(second + 0.5, value) for second, value in enumerate(values)]


def _text(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;")
