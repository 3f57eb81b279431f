"""A process that died, stopped or failed takes the whole mesh down within seconds, with the reason.

gloo gives up after 30 s, NCCL never, and ranks that share no group with the dead one go on computing. So every rank
beats to every other over UDP, and what one rank learns all are told.
"""

from __future__ import annotations

import atexit
import hashlib
import hmac
import logging
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import paddle

from sd3par.config import require
from sd3par.errors import Cancelled, ConfigError, RankFailure, shorten
from sd3par.mesh import Mesh

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the request
BEAT_S, TICK_S = 1.0, 0.25
NEWS_S = 3.0  # how long an error of a collective waits for the news that explains it
LAST_WORDS_S = 5.0  # how long a process that ends may be held up by writing why

_BEAT, _FAILED, _BYE = range(3)
_MESSAGE = struct.Struct("!4sBHI240s")  # magic, kind, sender's rank, sequence number, reason
_MAGIC = b"sd3w"
_DIGEST_BYTES = 16
_LOST_CONNECTION = re.compile(r"gloo|nccl|connection (reset|refused|closed)|broken pipe|timed? ?out", re.IGNORECASE)

log = logging.getLogger(__name__)


@dataclass
class Peer:
    """Another rank. born: its start time, which tells it from a later process of the same pid; 0 on another machine."""

    rank: int
    address: tuple[str, int]
    pid: int
    born: int
    heard: float
    sequence: int = 0
    left: bool = False

    @property
    def local(self) -> bool:
        """Whether this machine knows it by its pid."""
        return self.born != 0

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid})"


class Watchdog:
    """Beats to all other ranks from a daemon thread, which ends this process with code 75 when one of them is lost."""

    def __init__(self, rank: int, peers: list[Peer], endpoint: socket.socket, key: bytes, timeout_s: float) -> None:
        self.rank, self.timeout_s = rank, timeout_s
        self._peers, self._socket, self._key = peers, endpoint, key
        self._parent = os.getppid()
        self._sequence = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def start(cls, mesh: Mesh, timeout_s: float = 20.0) -> Watchdog:
        """Returns a running watchdog; a collective of the whole mesh. With one process it does nothing.

        Args:
            timeout_s: how long a rank may be silent; gloo itself gives up after 30 s.

        Raises:
            ConfigError: timeout_s is not from 2 to 3600.
        """
        require(2.0 <= timeout_s <= 3600.0, "rank_timeout_s", timeout_s, "seconds from 2 to 3600")
        endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if mesh.world.size == 1:
            return cls(0, [], endpoint, b"", timeout_s)
        endpoint.bind((mesh.host, 0))
        key, peers = _introduce(mesh, endpoint.getsockname())
        dog = cls(mesh.world.rank, peers, endpoint, key, timeout_s)
        dog._thread = threading.Thread(target=dog._watch, name="sd3par-watchdog", daemon=True)
        dog._thread.start()
        atexit.register(dog._at_exit)
        return dog

    def fail(self, reason: str) -> None:
        """Tells the other ranks that this one cannot go on: each logs `reason` and exits with 75, wherever it waits.

        This process goes on, to say itself what happened.
        """
        if self._end():
            self._tell(_FAILED, f"rank {self.rank}: {reason}")

    def stop(self) -> None:
        """Says goodbye: this rank needs the others no more. They go on watching each other."""
        if self._end():
            self._tell(_BYE)
            self._socket.close()

    @contextmanager
    def told_of_errors(self) -> Iterator[None]:
        """Within it an error on this rank is told to the others, and an error that another rank caused names it.

        ConfigError and Cancelled are not told: every rank raises them by itself.

        Raises:
            RankFailure: a collective failed, and no rank is known to be lost.
        """
        try:
            yield
        except (ConfigError, Cancelled):
            raise
        except BaseException as error:
            lost = self._peers and isinstance(error, RuntimeError) and _LOST_CONNECTION.search(str(error))
            if lost and not self._over.is_set():
                time.sleep(NEWS_S)  # if a rank is lost, the thread ends this process meanwhile, with the reason
            self.fail(reason := describe(error))
            if lost and not isinstance(error, RankFailure):
                raise RankFailure(f"{reason}; ranks that had left: {self._left() or 'none'}") from error
            raise

    def _end(self) -> bool:
        """Ends the thread; returns False where it had ended or there is nobody to tell."""
        with self._lock:
            was_over = self._over.is_set()
            self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(LAST_WORDS_S)
        return bool(self._peers) and not was_over

    def _at_exit(self) -> None:
        """An interpreter that ends because of an error no one caught has not finished its work."""
        error = getattr(sys, "last_value", None)
        self.stop() if error is None else self.fail(describe(error))

    def _left(self) -> str:
        return ", ".join(str(peer.rank) for peer in self._peers if peer.left)

    def _watch(self) -> None:
        """The thread: beats, listens, checks, until the end."""
        last, next_beat = time.monotonic(), 0.0
        self._socket.settimeout(TICK_S)
        while not self._over.is_set():
            now = time.monotonic()
            self._forgive(now - last - TICK_S)
            last = now
            if now >= next_beat:
                self._tell(_BEAT)
                next_beat = now + BEAT_S
            self._listen()
            for peer in self._peers:
                self._check(peer)
            if os.getppid() != self._parent:
                self._bring_down(f"the launcher (pid {self._parent}) is gone")

    def _forgive(self, late_s: float) -> None:
        """Who was stopped itself, or starved, has not listened: that time does not count against the others."""
        if late_s > BEAT_S:
            for peer in self._peers:
                peer.heard += late_s

    def _listen(self) -> None:
        """Takes all datagrams that are there; waits TICK_S for the first."""
        waiting = True
        while waiting and not self._over.is_set():
            try:
                data = self._socket.recv(2 * _MESSAGE.size)
            except TimeoutError:
                return
            except OSError:  # closed, or an ICMP error of an earlier send
                return self._over.wait(TICK_S) and None
            self._take(data)
            waiting = self._pending()

    def _pending(self) -> bool:
        """Whether another datagram is there."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def _take(self, data: bytes) -> None:
        """Acts on one datagram; what is not of this run, or is out of order, is dropped."""
        message = _open(data, self._key)
        if message is None:
            return
        kind, rank, sequence, reason = message
        for peer in self._peers:
            if peer.rank == rank and sequence > peer.sequence:
                peer.sequence, peer.heard = sequence, time.monotonic()
                peer.left = peer.left or kind == _BYE
                if kind == _FAILED:
                    self._bring_down(reason, tell=False)

    def _check(self, peer: Peer) -> None:
        """Brings the mesh down if `peer` is gone or silent."""
        state, born, status = _process(peer.pid) if peer.local else ("", 0, 0)
        gone = peer.local and (state in ("", "Z", "X") or born != peer.born)
        silent = time.monotonic() - peer.heard > self.timeout_s
        if not gone and not silent:
            return
        while self._pending():  # its last words may be in the queue
            self._listen()
        if peer.left:
            return
        if gone:
            self._bring_down(f"{peer} {_how(state, status)}")
        elif time.monotonic() - peer.heard > self.timeout_s:
            if peer.local:  # a stopped process ignores SIGTERM
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(peer.pid, signal.SIGKILL)
            stopped = ": it is stopped" if state in ("T", "t") else ""
            self._bring_down(f"{peer} has not answered for {self.timeout_s:g} s{stopped}")

    def _bring_down(self, reason: str, tell: bool = True) -> None:
        """Ends this process with code 75, after saying why to the others and to the log."""
        with self._lock:
            if self._over.is_set():  # the main thread failed or finished first
                return
            self._over.set()
        threading.Thread(target=_exit_later, daemon=True).start()  # a log that blocks must not keep a rank alive
        if tell:
            self._tell(_FAILED, reason)
        log.critical("%s", reason)
        os._exit(EXIT_CODE)  # the main thread may be in a collective that never returns

    def _tell(self, kind: int, reason: str = "") -> None:
        """Sends a message to every peer; what matters goes three times, as UDP may lose it."""
        for _ in range(1 if kind == _BEAT else 3):
            self._sequence += 1
            data = _seal(kind, self.rank, self._sequence, reason, self._key)
            for peer in self._peers:
                with suppress(OSError):
                    self._socket.sendto(data, peer.address)


def describe(error: BaseException) -> str:
    """Returns an error of any kind, Paddle's many lines included, as one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    # Paddle writes a C++ stack first; the line that says what happened names an error type.
    telling = [line for line in lines if re.match(r"\w*(Error|Exception)\b: ", line)]
    text = (telling or lines or [""])[0]
    name = type(error).__name__
    return shorten(text if isinstance(error, RankFailure) or text.startswith(name) else f"{name}: {text}", 200)


def _introduce(mesh: Mesh, address: tuple[str, int]) -> tuple[bytes, list[Peer]]:
    """Exchanges addresses, pids and the key of this run; a collective. Returns (key, the other ranks)."""
    _, born, _ = _process(os.getpid())
    host = int.from_bytes(socket.inet_aton(address[0]), "big")
    secret = [int.from_bytes(os.urandom(8), "big", signed=True) for _ in range(4)]
    mine = [*secret, host, address[1], os.getpid(), born, _machine()]
    rows = mesh.all_gather(mesh.world, paddle.to_tensor(mine, dtype="int64")).numpy().tolist()  # [world, 9]
    key = b"".join(number.to_bytes(8, "big", signed=True) for number in rows[0][:4])
    now = time.monotonic()
    peers = [
        Peer(
            rank, (socket.inet_ntoa(row[4].to_bytes(4, "big")), row[5]), row[6], row[7] if row[8] == mine[8] else 0, now
        )
        for rank, row in enumerate(rows)
        if rank != mesh.world.rank
    ]
    return key, peers


def _machine() -> int:
    """Returns a number that two processes share if they see each other's pids: same boot, same pid namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            name = file.read() + os.readlink("/proc/self/ns/pid")
    except OSError:
        name = f"{socket.gethostname()} {os.getpid()}"  # nothing is known: a machine of its own
    return int.from_bytes(hashlib.blake2s(name.encode(), digest_size=8).digest(), "big", signed=True)


def _process(pid: int) -> tuple[str, int, int]:
    """Returns (state letter, start time, wait status once it is dead) of a process; ("", 0, 0) if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return fields[0], int(fields[19]), int(fields[49])
    except (OSError, IndexError, ValueError):
        return "", 0, 0


def _how(state: str, status: int) -> str:
    """Returns how a process ended, as far as the kernel still says."""
    if state == "Z" and status & 0x7F:
        killer = signal.Signals(status & 0x7F).name
        return f"was killed by {killer}" + (": out of memory?" if killer == "SIGKILL" else "")
    return "ended without a word"


def _exit_later() -> None:
    time.sleep(LAST_WORDS_S)
    os._exit(EXIT_CODE)


def _seal(kind: int, rank: int, sequence: int, reason: str, key: bytes) -> bytes:
    text = reason.encode("ascii", "backslashreplace")[:240]
    body = _MESSAGE.pack(_MAGIC, kind, rank, sequence, text)
    return body + hashlib.blake2s(body, key=key, digest_size=_DIGEST_BYTES).digest()


def _open(data: bytes, key: bytes) -> tuple[int, int, int, str] | None:
    """Returns (kind, rank, sequence, reason) of a datagram of this run, else None."""
    if len(data) != _MESSAGE.size + _DIGEST_BYTES:
        return None
    body, digest = data[: _MESSAGE.size], data[_MESSAGE.size :]
    if not hmac.compare_digest(digest, hashlib.blake2s(body, key=key, digest_size=_DIGEST_BYTES).digest()):
        return None
    _, kind, rank, sequence, text = _MESSAGE.unpack(body)
    reason = text.rstrip(b"\0").decode("ascii", "replace")
    return kind, rank, sequence, shorten(reason, 300)
