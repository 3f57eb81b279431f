"""What the watchdog sees and says: processes of this machine, and authenticated datagrams between ranks."""

from __future__ import annotations

import hashlib
import hmac
import os
import signal
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

from sd3par.errors import shorten

REASON_BYTES = 240
_MAGIC, _DIGEST_BYTES = b"sd3w", 16
_BODY = struct.Struct(f"!4sBHQ{REASON_BYTES}s")  # magic, kind, sender's rank, sequence number, reason
_SIZE = _BODY.size + _DIGEST_BYTES


class Kind(IntEnum):
    """What a datagram says."""

    BEAT = 0
    FAILED = 1
    BYE = 2


@dataclass(frozen=True)
class Message:
    """One datagram of this run. sequence: higher than that of the same rank's message before."""

    kind: Kind
    rank: int
    sequence: int
    reason: str = ""

    def seal(self, key: bytes) -> bytes:
        """Returns the bytes of a datagram that only holders of `key` can write."""
        text = self.reason.encode("ascii", "backslashreplace")[:REASON_BYTES]
        body = _BODY.pack(_MAGIC, self.kind, self.rank, self.sequence, text)
        return body + _digest(body, key)

    @classmethod
    def open(cls, data: bytes, key: bytes) -> Message | None:
        """Returns the message in `data`; None for bytes that are not of this run."""
        body, digest = data[: _BODY.size], data[_BODY.size :]
        if len(data) != _SIZE or not hmac.compare_digest(digest, _digest(body, key)):
            return None
        _, kind, rank, sequence, text = _BODY.unpack(body)
        return cls(Kind(kind), rank, sequence, shorten(text.rstrip(b"\0").decode("ascii"), 2 * REASON_BYTES))


def _digest(body: bytes, key: bytes) -> bytes:
    return hashlib.blake2s(body, key=key, digest_size=_DIGEST_BYTES).digest()


class Line:
    """The UDP socket of one rank; its guard has it, too."""

    def __init__(self, end: socket.socket, rank: int, key: bytes = b"") -> None:
        self._socket, self._rank, self._sequence = end, rank, 0
        self.key = key

    @classmethod
    def open(cls, host: str, rank: int) -> Line:
        """Returns a new one at an address of this machine."""
        end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        end.bind((host, 0))
        return cls(end, rank)

    @classmethod
    def of(cls, number: int, rank: int, key: bytes) -> Line:
        """Returns the one that another process has opened, by the number of its file here."""
        return cls(socket.socket(fileno=number), rank, key)

    @property
    def number(self) -> int:
        """The number of its file."""
        return self._socket.fileno()

    @property
    def address(self) -> tuple[str, int]:
        """(IPv4 address, port) by which the others reach this rank."""
        host, port = self._socket.getsockname()
        return host, port

    def use_key(self, key: bytes) -> None:
        """Sets the key of this run, which all its ranks share and nobody else knows."""
        self.key = key

    def tell(self, addresses: Iterable[tuple[str, int]], kind: Kind, reason: str = "") -> None:
        """Sends a message to each address; lost ones are lost."""
        # By the machine's clock, which the rank and its guard share: whoever speaks later has the higher number.
        self._sequence = max(self._sequence + 1, time.monotonic_ns() // 1000)
        data = Message(kind, self._rank, self._sequence, reason).seal(self.key)
        for address in addresses:
            with suppress(OSError):
                self._socket.sendto(data, address)

    def hear(self, wait_s: float) -> list[Message]:
        """Returns the messages that are there, after waiting for the first; 64 at most, so that a flood ends."""
        messages: list[Message] = []
        for turn in range(64):
            self._socket.settimeout(0.0 if turn else wait_s)
            try:
                message = Message.open(self._socket.recv(2 * _SIZE), self.key)
            except OSError:  # nothing there
                break
            if message is not None:
                messages.append(message)
        return messages

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


@dataclass(frozen=True)
class Process:
    """A process as the kernel sees it. born: start time in ticks after boot; it tells the process from a later one of
    the same pid. state: "T" stopped, "Z" dead and not yet waited for, "" no such process. status: as of waitpid."""

    pid: int
    born: int = 0
    state: str = ""
    status: int = 0

    @classmethod
    def look(cls, pid: int) -> Process:
        """Returns process `pid` of this machine as it is now."""
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            return cls(pid, int(fields[19]), fields[0], int(fields[49]))
        except (OSError, IndexError, ValueError):
            return cls(pid)

    @property
    def dead(self) -> bool:
        """Whether it does not run any more."""
        return self.state in ("", "Z", "X")

    @property
    def stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it."""
        return self.state in ("T", "t")

    @property
    def killed_by(self) -> int:
        """The number of the signal that ended it; 0 where it ended otherwise, or the kernel does not say any more."""
        return self.status & 0x7F if self.state == "Z" else 0

    @property
    def aborted(self) -> bool:
        """Whether it ended itself, as C++ does with an exception that nothing catches."""
        return self.killed_by == signal.SIGABRT

    def how_it_ended(self) -> str:
        """Returns how a dead process ended, as far as the kernel still says."""
        if not self.killed_by:
            return "ended without a word"
        known = self.killed_by in list(signal.Signals)  # not real-time ones, but the first and the last
        name = signal.Signals(self.killed_by).name if known else f"signal {self.killed_by}"
        return f"was killed by {name}" + (" (out of memory?)" if self.killed_by == signal.SIGKILL else "")


def machine() -> int:
    """Returns a number of 64 bits that two processes share if they see each other's pids: same boot, same namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            name = file.read() + os.readlink("/proc/self/ns/pid")
    except OSError:
        name = f"{socket.gethostname()} {os.getpid()}"  # nothing is known: a machine of its own
    return int.from_bytes(hashlib.blake2s(name.encode(), digest_size=8).digest(), "big", signed=True)
