"""What a rank concludes of the others: from what it hears, from silence, and from the processes of its machine."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from sd3par.heartbeat import Kind, Line, Message, Process

BEAT_S = 1.0
_TICK_S = 0.25


@dataclass
class Peer:
    """Another rank. born: its start time if it is on this machine, else 0. heard: when, on this process's clock."""

    rank: int
    address: tuple[str, int]
    pid: int
    born: int
    heard: float
    sequence: int = 0
    left: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid})"


class News(NamedTuple):
    """Why no rank can go on. tell: whether the others may not know. kill: a process that does not end by itself.

    doubt: that it is the cause: 1 where nobody knows how a rank ended, 2 where it aborted, perhaps because of another.
    """

    reason: str
    tell: bool = True
    kill: int | None = None
    doubt: int = 0


class Watch:
    """Listens to the other ranks and looks after those of this machine.

    Args:
        line: None for the only rank there is.
        peers: the other ranks.
        timeout_s: how long one may be silent.
    """

    def __init__(self, line: Line | None, peers: list[Peer], timeout_s: float) -> None:
        self.line, self.peers, self.timeout_s = line, peers, timeout_s
        self._last = time.monotonic()

    def look(self) -> News | None:
        """Returns what brings all ranks down, if anything has happened; takes a quarter of a second."""
        news = self._listen(_TICK_S)
        now = time.monotonic()
        self._forgive(now - self._last - _TICK_S)
        self._last = now
        found = [one for one in [news, *map(self._check, self.peers)] if one is not None]
        return min(found, key=lambda one: one.doubt, default=None)

    def tell(self, kind: Kind, reason: str = "") -> None:
        """Tells every peer; what matters goes three times, as UDP may lose it."""
        if self.line is not None:
            for _ in range(1 if kind is Kind.BEAT else 3):
                self.line.tell([peer.address for peer in self.peers], kind, reason)

    def spread(self, news: News) -> None:
        """Lets all know, and ends the process that does not end by itself."""
        if news.tell:
            self.tell(Kind.FAILED, news.reason)
        if news.kill is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(news.kill, signal.SIGKILL)  # a stopped process ignores SIGTERM

    def _forgive(self, late_s: float) -> None:
        """Who was stopped itself, or starved, has not listened: that time does not count against the others."""
        if late_s > BEAT_S:
            for peer in self.peers:
                peer.heard += late_s

    def _listen(self, wait_s: float) -> News | None:
        messages = [] if self.line is None else self.line.hear(wait_s)
        found = [self._take(message) for message in messages]
        return next((news for news in found if news is not None), None)

    def _take(self, message: Message) -> News | None:
        """Notes a message; repeated ones are dropped."""
        for peer in self.peers:
            if peer.rank == message.rank and message.sequence > peer.sequence:
                peer.sequence, peer.heard = message.sequence, time.monotonic()
                peer.left = peer.left or message.kind is Kind.BYE
                if message.kind is Kind.FAILED:
                    return News(message.reason, tell=False)
        return None

    def _check(self, peer: Peer) -> News | None:
        """Returns whether `peer` is dead or silent, and how."""
        process = Process.look(peer.pid) if peer.born else None
        dead = process is not None and (process.dead or process.born != peer.born)
        if not dead and not self._silent(peer):
            return None
        words = self._listen(0.0)  # its last ones may be waiting
        if words is not None or peer.left:
            return words
        if process is not None and dead:
            doubt = 2 if process.aborted else 0 if process.killed_by else 1
            return News(f"{peer} {process.how_it_ended()}", doubt=doubt)
        if not self._silent(peer):
            return None
        stopped = ": it is stopped" if process is not None and process.stopped else ""
        kill = None if process is None else peer.pid
        return News(f"{peer} has not answered for {self.timeout_s:g} s{stopped}", kill=kill)

    def _silent(self, peer: Peer) -> bool:
        return time.monotonic() - peer.heard > self.timeout_s
