"""A process that died, stopped or failed takes the whole mesh down within seconds, with the reason.

gloo gives up after 30 s, NCCL never, and ranks that share no group with the dead one go on computing. So every rank
beats to every other over UDP, looks after those of its own machine, and tells all what it learns.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import paddle

from sd3par.config import require
from sd3par.errors import RankFailure, shorten
from sd3par.heartbeat import Kind, Line, Message, Process, machine
from sd3par.mesh import Mesh

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the request
TIMEOUT_S = 20.0
_BEAT_S, _TICK_S = 1.0, 0.25
_NEWS_S = 3.0  # how long an error of a collective waits for the news that explains it
_LAST_WORDS_S = 5.0  # how long writing the reason may hold up the end of a process
_LOST = re.compile(r"gloo|nccl|connection (reset|refused|closed)|broken pipe|timed? ?out", re.IGNORECASE)
_PERHAPS_LOST = "CustomDevice error"  # all that Paddle says of an error behind a plug-in, NCCL's among them

log = logging.getLogger(__name__)


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


class Watchdog:
    """A daemon thread that ends this process with code 75 when another rank is lost."""

    def __init__(self, line: Line | None, peers: list[Peer], rank: int, timeout_s: float) -> None:
        self.rank, self.timeout_s = rank, timeout_s
        self._line, self._peers = line, peers
        self._parent = os.getppid()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sd3par-watchdog", daemon=True)

    @classmethod
    def start(cls, mesh: Mesh, timeout_s: float = TIMEOUT_S) -> Watchdog:
        """Returns a running watchdog; a collective of the whole mesh. With one process it does nothing.

        Args:
            timeout_s: how long a rank may be silent; gloo itself gives up after 30 s.

        Raises:
            ConfigError: timeout_s is not from 2 to 3600.
        """
        require(2.0 <= timeout_s <= 3600.0, "rank_timeout_s", timeout_s, "seconds from 2 to 3600")
        if mesh.world.size == 1:
            return cls(None, [], 0, timeout_s)
        line = Line(mesh.host, mesh.world.rank)
        dog = cls(line, _introduce(mesh, line), mesh.world.rank, timeout_s)
        dog._thread.start()
        atexit.register(dog._at_exit)
        return dog

    def fail(self, reason: str) -> None:
        """Tells the other ranks that this one cannot go on: each logs `reason` and exits with 75, wherever it waits.

        This process goes on, to say itself what happened.
        """
        if self._end():
            self._tell(Kind.FAILED, f"rank {self.rank}: {reason}")

    def stop(self) -> None:
        """Says goodbye: this rank needs the others no more. They go on watching each other."""
        if self._end():
            self._tell(Kind.BYE)

    @contextmanager
    def told_of_errors(self) -> Iterator[None]:
        """Within it an error on this rank is told to the others, and an error that another rank caused names that rank.

        Raises:
            RankFailure: a collective failed, and no rank is known to be lost.
        """
        try:
            yield
        except BaseException as error:
            lost = bool(self._peers) and isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
            if (lost or (self._peers and _PERHAPS_LOST in str(error))) and not self._over.is_set():
                time.sleep(_NEWS_S)  # where a rank is lost, the thread ends this process meanwhile, with the reason
            self.fail(describe(error))
            if lost:
                raise RankFailure(f"rank {self.rank}: {describe(error)}{self._who_left()}") from error
            raise

    def _who_left(self) -> str:
        left = [str(peer.rank) for peer in self._peers if peer.left]
        return f" (had finished: rank {', '.join(left)})" if left else ""

    def _end(self) -> bool:
        """Ends the thread; returns whether there is someone to tell: False the second time."""
        with self._lock:
            was_over = self._over.is_set()
            self._over.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_WORDS_S)
        return not was_over

    def _at_exit(self) -> None:
        """An interpreter that ends because of an error that no one caught has not finished its work."""
        error = getattr(sys, "last_value", None)
        self.stop() if error is None else self.fail(describe(error))

    def _watch(self) -> None:
        """The thread: beats, listens, checks, until the end."""
        last, next_beat = time.monotonic(), 0.0
        while not self._over.is_set():
            if time.monotonic() >= next_beat:
                self._tell(Kind.BEAT)
                next_beat = time.monotonic() + _BEAT_S
            self._listen(_TICK_S)
            last, late_s = time.monotonic(), time.monotonic() - last - _TICK_S
            self._forgive(late_s)
            for peer in self._peers:
                self._check(peer)
            if os.getppid() != self._parent:
                self._bring_down(f"the launcher (pid {self._parent}) is gone")

    def _forgive(self, late_s: float) -> None:
        """Who was stopped itself, or starved, has not listened: that time does not count against the others."""
        if late_s > _BEAT_S:
            for peer in self._peers:
                peer.heard += late_s

    def _listen(self, wait_s: float) -> None:
        if self._line is not None:
            for message in self._line.hear(wait_s):
                self._take(message)

    def _take(self, message: Message) -> None:
        """Acts on a message; repeated ones are dropped."""
        for peer in self._peers:
            if peer.rank == message.rank and message.sequence > peer.sequence:
                peer.sequence, peer.heard = message.sequence, time.monotonic()
                peer.left = peer.left or message.kind is Kind.BYE
                if message.kind is Kind.FAILED:
                    self._bring_down(message.reason, tell=False)

    def _check(self, peer: Peer) -> None:
        """Brings the mesh down if `peer` is dead or silent."""
        process = Process.look(peer.pid) if peer.born else None
        dead = process is not None and (process.dead or process.born != peer.born)
        if not dead and not self._silent(peer):
            return
        self._listen(0.0)  # its last words may be waiting
        if peer.left:
            return
        if process is not None and dead:
            self._bring_down(f"{peer} {process.how_it_ended()}")
        elif self._silent(peer):
            stopped = ": it is stopped" if process is not None and process.stopped else ""
            kill = None if process is None else peer.pid
            self._bring_down(f"{peer} has not answered for {self.timeout_s:g} s{stopped}", kill=kill)

    def _silent(self, peer: Peer) -> bool:
        return time.monotonic() - peer.heard > self.timeout_s

    def _bring_down(self, reason: str, tell: bool = True, kill: int | None = None) -> None:
        """Ends this process with code 75, after saying why to the others and to the log, and process `kill`."""
        with self._lock:
            if self._over.is_set():  # the main thread has finished, or failed and says so itself
                return
            self._over.set()
        threading.Thread(target=_exit_later, daemon=True).start()  # a log that blocks must not keep a rank alive
        if tell:
            self._tell(Kind.FAILED, reason)
        if kill is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(kill, signal.SIGKILL)  # a stopped process ignores SIGTERM
        log.critical("%s", reason)
        os._exit(EXIT_CODE)  # the main thread may be in a collective that never returns

    def _tell(self, kind: Kind, reason: str = "") -> None:
        """Tells every peer; what matters goes three times, as UDP may lose it."""
        if self._line is not None:
            for _ in range(1 if kind is Kind.BEAT else 3):
                self._line.tell([peer.address for peer in self._peers], kind, reason)


def describe(error: BaseException) -> str:
    """Returns an error of any kind as one line, Paddle's many lines included."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")] or [""]
    # Paddle writes a C++ stack first; what happened begins with an error type, on its line or on the next.
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.match(r"\w*(Error|Exception):", line):
            return shorten(f"{line} {following}" if line.endswith(":") else line, 220)
    kind = "" if isinstance(error, RankFailure) else type(error).__name__
    return shorten(": ".join(filter(None, [kind, lines[0]])), 220)


def _introduce(mesh: Mesh, line: Line) -> list[Peer]:
    """Exchanges addresses and processes, and rank 0's key; a collective. Returns the other ranks."""
    key = [int.from_bytes(os.urandom(8), "big", signed=True) for _ in range(4)]
    (host, port), own = line.address, Process.look(os.getpid())
    mine = [*key, int.from_bytes(socket.inet_aton(host), "big"), port, own.pid, own.born, machine()]
    rows = mesh.all_gather(mesh.world, paddle.to_tensor(mine, dtype="int64")).numpy().tolist()  # [world, 9]
    line.use_key(b"".join(number.to_bytes(8, "big", signed=True) for number in rows[0][:4]))
    peers = []
    for rank, (*_, host, port, pid, born, where) in enumerate(rows):
        address = socket.inet_ntoa(host.to_bytes(4, "big")), port
        peers.append(Peer(rank, address, pid, born if where == mine[-1] else 0, time.monotonic()))
    return [peer for peer in peers if peer.rank != mesh.world.rank]


def _exit_later() -> None:
    time.sleep(_LAST_WORDS_S)
    os._exit(EXIT_CODE)
