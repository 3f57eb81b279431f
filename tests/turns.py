"""Ranks of a mesh as threads of one process, of which one runs at a time: a seed says who goes on at each pause."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

T = TypeVar("T")
LIMIT_S = 60.0  # of a whole run: ranks that wait for each other are found at once, this is for what hangs besides


class Stuck(AssertionError):
    """No rank can go on."""


class _Over(BaseException):
    """Ends a rank after another has failed."""


class Turns:
    """Runs a function on each rank, in one of the orders that real ranks might have.

    Each of the n ranks does two kinds of work, of which none orders the other: its own, number i, and what it has asked
    to be done beside that, number n + i.

    clocks: [2 n, 2 n]: how much of each work has come before what work i does now, as far as they have met.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.works = count, 2 * count
        self.clocks = np.eye(self.works, dtype=np.int64)
        self._random = random.Random(seed)
        self._gates = [threading.Semaphore(0) for _ in range(count)]
        self._ready: list[Callable[[], bool] | None] = [lambda: True] * count  # None: has finished
        self._errors: list[BaseException] = []
        self._here = threading.local()

    @property
    def me(self) -> int:
        """The rank whose turn it is."""
        return self._here.rank

    @property
    def work(self) -> int:
        """Which of all kinds of work it does."""
        return self._here.rank + self.count * self._here.aside

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within it the rank does what goes on beside its own work."""
        before, self._here.aside = self._here.aside, True
        try:
            yield
        finally:
            self._here.aside = before

    def run(self, function: Callable[[int], T]) -> list[T]:
        """Returns function(rank) of each; raises the first error of any."""
        results: list[T | None] = [None] * self.count

        def work(rank: int) -> None:
            self._here.rank, self._here.aside = rank, False
            self._gates[rank].acquire()
            try:
                if not self._errors:
                    results[rank] = function(rank)
            except _Over:
                pass
            except BaseException as error:
                self._errors.append(error)
            self._ready[rank] = None
            self._wake_next()

        self._ready = [lambda: True] * self.count
        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        self._wake_next()
        for thread in threads:
            thread.join(LIMIT_S)
        if self._errors:
            raise self._errors[0]
        assert not any(thread.is_alive() for thread in threads), "a rank hangs outside of its pauses"
        return results

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Lets others go on, and returns when `ready` holds and it is this rank's turn again."""
        self._ready[self.me] = ready
        self._wake_next()
        self._gates[self.me].acquire()
        if self._errors:
            raise _Over

    def publish(self) -> np.ndarray:
        """Returns what has come before now, [2 n], for those who see a sign of it; what comes after is not in it."""
        known = self.clocks[self.work].copy()
        self.clocks[self.work, self.work] += 1
        return known

    def learn(self, known: np.ndarray) -> None:
        """From now on this work comes after all of that, [2 n]."""
        self.clocks[self.work] = np.maximum(self.clocks[self.work], known)

    def _wake_next(self) -> None:
        waiting = [rank for rank, ready in enumerate(self._ready) if ready is not None]
        able = waiting if self._errors else [rank for rank in waiting if self._ready[rank]()]
        if waiting and not able:
            self._errors.append(Stuck(f"ranks {waiting} of {self.count} wait for each other"))
            able = waiting
        if able:
            self._gates[self._random.choice(able)].release()
