"""Threads that a test runs beside itself."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, Self

JOIN_S = 15.0


class Threads:
    """Calls `work` with each of these values, in a thread of its own, from entering the context until it is left.

    Whatever `work` does has to end soon after `stop` is set.
    """

    def __init__(self, work: Callable[[Any], None], values: Iterable[Any]) -> None:
        self.stop = threading.Event()
        self._threads = [threading.Thread(target=work, args=(value,)) for value in values]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(JOIN_S)
