"""Tell whoever listens how far long work has come. The library calls `track`; a terminal or a web page listens."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int | None], None]
"""Called with what is being done, how many items are finished, and how many there are (None: not known)."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and report each one when it is finished; costs nothing when nobody listens.

    `total`: how many there are, where the items do not know.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    tell = _listener.get()
    if tell is None:
        yield from items
        return
    tell(what, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        tell(what, done, total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside: `listener` hears all progress of this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
