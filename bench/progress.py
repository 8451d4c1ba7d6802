"""Says on standard error what goes on, while standard output gets the results."""

from __future__ import annotations

import sys


def tell(text: str) -> None:
    """Show a line: on a terminal in place of the last one (nothing clears it), else below it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
    elif text:
        print(f"  {text}", file=sys.stderr, flush=True)
