"""Files whose digests were compared since this machine was started, and which nobody changed since: not hashed again.

As git's index has it, a file is the same while device, inode, size and both of its times are. The record of one is an
empty file in the user's cache, named by a digest of all that and of the file's own digests: there is nothing in it to
be broken, ranks that keep the same one at once keep it, and who deletes them has everything compared again.

Nothing here needs Paddle: files are read while that is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

# A file that changed just before it was read may change again within the same tick of its times. Ticks are 1 s at
# most on the file systems below.
SETTLED_NS = 2 * 10**9
MOST = 1024  # records; then the older half goes
# Types of file systems (linux/magic.h) that lie in this machine and whose ctime no program can set. Of those on a
# network others may change files, with another clock, before this machine hears of it; FAT has no ctime to speak of.
LOCAL = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # Btrfs
        0xCA451A4E,  # bcachefs
        0xF2F52010,  # F2FS
        0x2FC12FC1,  # ZFS
        0x01021994,  # tmpfs
        0x794C7630,  # overlayfs
    }
)
# Another one after every start: what a crash left of a file is compared again, and so is the same disk elsewhere.
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class _State(NamedTuple):
    """What tells an open file from others, and from itself after a change."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, file: IO[bytes]) -> _State:
        found = os.fstat(file.fileno())
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Record:
    """Whether an open file was compared with its digests before. To be made before any of it is read.

    Args:
        file: stays open for as long as the record is asked.
        digests: SHA-256 of its blocks.

    `known` is whether it was, with just these digests, and is the same since.
    """

    def __init__(self, file: IO[bytes], digests: Sequence[str]) -> None:
        now = time.time_ns()
        self._file, self._state = file, _State.of(file)
        settled = max(self._state.mtime_ns, self._state.ctime_ns) <= now - SETTLED_NS
        self._path = _path(self._state, digests) if settled and _is_local(file) else None
        self.known = self._path is not None and os.path.isfile(self._path)

    def is_same(self) -> bool:
        """Returns whether nobody changed the file since this was made."""
        return _State.of(self._file) == self._state

    def keep(self) -> None:
        """Keeps that the file was compared since this was made, unless it changed; does nothing where it cannot."""
        if self._path is None or self.known or not self.is_same():
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            _make_room(self._path.parent)


def folder() -> Path | None:
    """Returns where records are kept, None where this user has no place for them."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sd3par" / "checked"
    except RuntimeError:  # no home
        return None


def _path(state: _State, digests: Sequence[str]) -> Path | None:
    """Returns where a file's record is, if there is one."""
    place = folder()
    try:
        text = "\n".join([_BOOT.read_text(encoding="ascii"), *map(str, state), *digests])
    except (OSError, ValueError):
        return None
    return None if place is None else place / hashlib.sha256(text.encode()).hexdigest()


def _is_local(file: IO[bytes]) -> bool:
    """Returns whether a file lies on one of the file systems that are `LOCAL`."""
    found = ctypes.create_string_buffer(1024)  # a struct statfs, of 120 bytes: its first 8 are the type
    failed = ctypes.CDLL(None).fstatfs(file.fileno(), found)
    return not failed and int.from_bytes(found.raw[:8], sys.byteorder) in LOCAL


def _make_room(place: Path) -> None:
    """Takes away the older half of too many records."""
    with os.scandir(place) as entries:
        records = sorted((entry.stat().st_mtime_ns, entry.path) for entry in entries if len(entry.name) == 64)
    for _, path in records[: -MOST // 2] if len(records) > MOST else []:
        with contextlib.suppress(FileNotFoundError):  # by another process
            os.unlink(path)
