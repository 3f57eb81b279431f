"""A machine that others use too: what they work meanwhile, and measuring again when it was too much."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Row = dict[str, Any]
MOST = 0.1  # of one core: what others may work while something is measured
_LOOK_S = 0.5


class Quiet:
    """Measures when the machine is quiet, for at most so many seconds; then whatever it is. 0: at once.

    Every measurement is judged alike, by what others worked, not by what it found.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def measure(self, start: Callable[[], Row]) -> Row:
        """Returns what `start` does, which runs in child processes, with `others`: the cores that others took."""
        while True:
            while time.monotonic() < self._end and _others(lambda: time.sleep(_LOOK_S))[0] > MOST:
                pass
            others, row = _others(start)
            if others <= MOST or time.monotonic() >= self._end:
                return {**row, "others": others}


def children_s() -> float:
    """Returns the seconds that ended children of this process worked."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _others(work: Callable[[], T]) -> tuple[float, T]:
    """Returns how many cores others took while `work` ran, and what that returned."""
    begin, busy, own = time.monotonic(), _busy_s(), children_s() + time.process_time()
    done = work()
    wall, own = time.monotonic() - begin, children_s() + time.process_time() - own
    return max(0.0, (_busy_s() - busy - own) / wall), done


def _busy_s() -> float:
    """Returns the seconds that all cores have worked since boot."""
    numbers = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    user, nice, system, _, _, *rest = numbers  # the others are idle, and waiting for a disk
    return (user + nice + system + sum(rest)) / float(os.sysconf("SC_CLK_TCK"))
