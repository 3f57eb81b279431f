"""Named ranges of the host's time: encode, denoise, step, block, decode. Profilers show what ran in each.

Nobody listens unless `listening` says so, and then a range costs next to nothing. A recorded step is one launch for the
host: only engine eager has blocks in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import NamedTuple, Protocol

from sd3par.errors import ConfigError


class Listener(Protocol):
    """What is told where ranges begin and end; they nest."""

    def begin(self, name: str) -> None:
        """A range begins."""

    def end(self) -> None:
        """The range that began last ends."""


class Span(NamedTuple):
    """A range that is over: when it began and how long it took, in seconds of time.perf_counter(), and how deep."""

    name: str
    begin: float
    seconds: float
    depth: int


class Recorder:
    """Keeps all ranges."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._open: list[tuple[str, float]] = []

    def begin(self, name: str) -> None:
        """A range begins."""
        self._open.append((name, time.perf_counter()))

    def end(self) -> None:
        """The range that began last ends."""
        name, begin = self._open.pop()
        self.spans.append(Span(name, begin, time.perf_counter() - begin, len(self._open)))


class Nvtx:
    """Hands ranges to NVIDIA's tools, as Nsight Systems.

    Raises:
        ConfigError: the package nvtx is not installed.
    """

    def __init__(self) -> None:
        try:
            self._nvtx = import_module("nvtx")
        except ImportError:
            raise ConfigError("nvtx", "no package nvtx here", "it after pip install 'sd3par[profile]'") from None

    def begin(self, name: str) -> None:
        """A range begins."""
        self._nvtx.push_range(name, domain="sd3par")

    def end(self) -> None:
        """The range that began last ends."""
        self._nvtx.pop_range(domain="sd3par")


_listeners: list[Listener] = []  # of this process; empty unless it is being profiled
_NOTHING = nullcontext()


def span(name: str) -> AbstractContextManager[None]:
    """Returns what makes a range of a block."""
    return _told(name) if _listeners else _NOTHING


@contextmanager
def _told(name: str) -> Iterator[None]:
    listeners = list(_listeners)
    for listener in listeners:
        listener.begin(name)
    try:
        yield
    finally:
        for listener in reversed(listeners):
            listener.end()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within it a listener is told of this process's ranges."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
