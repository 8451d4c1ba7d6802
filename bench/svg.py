"""What all pictures have in common: written by hand, small, and the same bytes for the same figures."""

from __future__ import annotations

WIDTH = 720
LEFT = 50
COLOURS = ("#0b6e4f", "#c8553d", "#3d5a98", "#8a6fae", "#888888", "#c9a227")


def opened(width: int, height: int, title: str) -> list[str]:
    """The first lines of a picture; `</svg>` is to come."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="16" font-size="13">{escaped(title)}</text>',
    ]


def escaped(words: str) -> str:
    """Words as text of a picture."""
    return words.replace("&", "&amp;").replace("<", "&lt;")
