"""A process that died, stopped or failed takes the whole mesh down within seconds, with the reason.

gloo gives up after 30 s, NCCL never, and ranks that share no group with the dead one go on computing. So every rank
beats to every other over UDP, looks after those of its own machine, and tells all what it learns. `guard` does so for a
rank whose threads are held.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import paddle

from sd3par.config import RANK_TIMEOUTS_S, ParallelConfig, check_number
from sd3par.device import synchronize
from sd3par.errors import OutOfMemory, RankFailure, describe
from sd3par.guard import Guard
from sd3par.heartbeat import Kind, Line, Process, machine
from sd3par.mesh import Mesh
from sd3par.watch import BEAT_S, News, Peer, Watch

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the request
TIMEOUT_S = 20.0
_NEWS_S = 3.0  # how long an error of a collective waits for the news that explains it
ALIKE_S = 5.0  # how long an error waits for the others to raise it, too; gloo gives up on a rank after 30 s
_LAST_WORDS_S = 5.0  # how long writing the reason may hold up the end of a process
_LOST = re.compile(r"gloo|nccl|connection (reset|refused|closed)|broken pipe|timed? ?out", re.IGNORECASE)
_PERHAPS_LOST = "CustomDevice error"  # all that Paddle says of an error behind a plug-in, NCCL's among them

log = logging.getLogger(__name__)


class Watchdog:
    """A daemon thread that ends this process with code 75 when another rank is lost."""

    def __init__(self, line: Line | None, peers: list[Peer], rank: int, timeout_s: float) -> None:
        self.rank, self._watch = rank, Watch(line, peers, timeout_s)
        self._guard = Guard(self._watch, rank)
        self._parent = os.getppid()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._failure = ""  # why this rank cannot go on
        self._waits_since: float | None = None  # for all others
        self._asks: tuple[float, str] | None = None  # since when, with which error, it asks whether all have that
        self._shared: Exception | None = None  # an error that all have
        self._thread = threading.Thread(target=self._look_out, name="sd3par-watchdog", daemon=True)

    @classmethod
    def start(cls, mesh: Mesh, timeout_s: float = TIMEOUT_S) -> Watchdog:
        """Returns a running watchdog; a collective of the whole mesh. With one process it does nothing.

        A process that loads several models has one for all of them, unless they wait for different times.

        Args:
            timeout_s: how long a rank may be silent; gloo itself gives up after 30 s.

        Raises:
            ConfigError: timeout_s is not from 2 to 3600.
        """
        check_number("rank_timeout_s", timeout_s, *RANK_TIMEOUTS_S)
        if mesh.world.size == 1:
            return cls(None, [], 0, timeout_s)
        running = next((dog for dog in _running if dog._watch.timeout_s == timeout_s and not dog._over.is_set()), None)
        if not mesh.any(running is None) and running is not None:
            return running
        line = Line.open(mesh.host, mesh.world.rank)
        dog = cls(line, _introduce(mesh, line), mesh.world.rank, timeout_s)
        dog._thread.start()
        atexit.register(dog._at_exit)
        _running.append(dog)
        return dog

    def fail(self, reason: str) -> None:
        """Tells the other ranks that this one cannot go on: each logs `reason` and exits with 75, wherever it waits.

        This process goes on, to say itself what happened.
        """
        if self._end():
            self._failure = reason
            self._watch.tell(Kind.FAILED, f"rank {self.rank}: {reason}")

    def check(self) -> None:
        """Raises RankFailure where this rank has failed before: the others were told to end, and nobody watches."""
        if self._failure and self._watch.peers:
            raise RankFailure(f"rank {self.rank} failed before, which ended the mesh: {self._failure}")

    def stop(self) -> None:
        """Says goodbye: this rank needs the others no more. They go on watching each other."""
        if self._end():
            self._watch.tell(Kind.BYE)

    @contextmanager
    def told_of_errors(self) -> Iterator[None]:
        """Within it an error on this rank is told to the others, and an error that another rank caused names that rank.

        OutOfMemory is one of all ranks, as is what they raise `alike`, and nobody ends with it.

        Raises:
            RankFailure: a collective failed, and no rank is known to be lost; or this rank has failed before.
        """
        self.check()
        try:
            yield
        except OutOfMemory:
            raise
        except BaseException as error:
            if error is self._shared:
                self._shared = None
                raise
            peers = self._watch.peers
            lost = bool(peers) and _names_lost(error)
            if (lost or (peers and _PERHAPS_LOST in str(error))) and not self._over.is_set():
                time.sleep(_NEWS_S)  # where a rank is lost, the thread ends this process meanwhile, with the reason
            self.fail(describe(error))
            if lost:
                raise RankFailure(f"rank {self.rank}: {describe(error)}{self._who_left()}") from error
            raise

    @contextmanager
    def alike(self, mesh: Mesh, where: str) -> Iterator[None]:
        """Within it, and within `told_of_errors`, no rank of the mesh waits for another but in collectives of all.

        An error that all ranks raise, the same at the same place, is one of what they were asked for: it passes
        `told_of_errors`, and the mesh goes on. Nothing is sent unless there is an error, which waits for the others
        for `ALIKE_S`. Where one does not raise it, perhaps because it waits for this rank, the error is told.

        Args:
            where: which place it is, for all ranks.
        """
        try:
            yield
        except OutOfMemory:
            raise
        except Exception as error:
            if self._raised_by_all(mesh, where, error):
                self._shared = error
            raise

    def _raised_by_all(self, mesh: Mesh, where: str, error: Exception) -> bool:
        """Returns whether all ranks have come here with such an error, and their devices have done all their work.

        A device that waits for one that failed elsewhere never has, and the thread ends this process: see `_unheard`.
        """
        if self._over.is_set() or isinstance(error, RankFailure) or _names_lost(error) or _PERHAPS_LOST in str(error):
            return False
        text = describe(error)
        self._asks = time.monotonic(), text
        try:
            synchronize()
            mesh.meet(f"{where} failed/{zlib.crc32(text.encode()):08x}", ALIKE_S)
            return True
        except RankFailure:
            return False
        finally:
            self._asks = None

    def _unheard(self) -> News | None:
        """Returns an error for which this rank has waited too long, as its device does not end its work."""
        asks = self._asks
        if asks is None or time.monotonic() - asks[0] < 2 * ALIKE_S:
            return None
        return News(f"rank {self.rank}: {asks[1]}")

    @contextmanager
    def waiting_for_all(self) -> Iterator[None]:
        """The same around a collective that every rank comes to: one that has finished is waited for in vain."""
        self._waits_since = time.monotonic()
        try:
            with self.told_of_errors():
                yield
        finally:
            self._waits_since = None

    def _missed(self) -> News | None:
        """Returns that a rank has finished for which this one waits, and not only because it is slow itself."""
        since = self._waits_since
        if since is None:
            return None
        for peer in self._watch.peers:
            if peer.left and time.monotonic() - max(since, peer.heard) > _NEWS_S:
                return News(f"{peer} has finished, and rank {self.rank} waits for it: all ranks make the same calls")
        return None

    def _who_left(self) -> str:
        left = [str(peer.rank) for peer in self._watch.peers if peer.left]
        return f" (had finished: rank {', '.join(left)})" if left else ""

    def _end(self) -> bool:
        """Ends the thread; returns whether there is someone to tell: False the second time."""
        with self._lock:
            was_over = self._over.is_set()
            self._over.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_WORDS_S)
        self._guard.rest()
        return not was_over

    def _at_exit(self) -> None:
        """An interpreter that ends because of an error that no one caught has not finished its work.

        A device that waits for a rank that is gone would keep it from ending, but for its guard.
        """
        error = getattr(sys, "last_value", None)
        self.stop() if error is None or isinstance(error, OutOfMemory) else self.fail(describe(error))
        self._guard.end()

    def _look_out(self) -> None:
        """The thread: beats, listens, checks, until the end."""
        next_beat = 0.0
        while not self._over.is_set():
            if time.monotonic() >= next_beat:
                self._watch.tell(Kind.BEAT)
                next_beat = time.monotonic() + BEAT_S
            news = self._watch.look() or self._missed() or self._unheard()
            if any(peer.left for peer in self._watch.peers):  # the mesh comes to its end
                self._guard.rest()
            else:
                self._guard.beat()
            if news is None and os.getppid() != self._parent:
                news = News(f"the launcher (pid {self._parent}) is gone")
            if news is not None:
                self._bring_down(news)

    def _bring_down(self, news: News) -> None:
        """Ends this process with code 75, after saying why to the others and to the log."""
        with self._lock:
            if self._over.is_set():  # the main thread has finished, or failed and says so itself
                return
            self._over.set()
        threading.Thread(target=_exit_later, daemon=True).start()  # a log that blocks must not keep a rank alive
        self._watch.spread(news)
        log.critical("%s", news.reason)
        self._guard.rest()
        os._exit(EXIT_CODE)  # the main thread may be in a collective that never returns


_running: list[Watchdog] = []  # of this process


def connect(parallel: ParallelConfig, timeout_s: float = TIMEOUT_S) -> tuple[Mesh, Watchdog]:
    """Returns the mesh of the processes that were started, and what watches over it.

    Raises:
        ConfigError: their number is not dp * mp * sp, or timeout_s is out of range.
        RankFailure: another process did not come up, or this one has failed before.
    """
    check_number("rank_timeout_s", timeout_s, *RANK_TIMEOUTS_S)
    for dog in _running:
        dog.check()
    mesh = Mesh.from_env(parallel)
    return mesh, Watchdog.start(mesh, timeout_s)


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


def _names_lost(error: BaseException) -> bool:
    """Whether an error is that of a collective whose other rank may be lost."""
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def _exit_later() -> None:
    time.sleep(_LAST_WORDS_S)
    os._exit(EXIT_CODE)
