"""Triton's cache of compiled kernels with a lock for each: of processes that start together, one compiles it.

Triton keeps kernels per user (`~/.triton/cache`, or TRITON_CACHE_DIR), a folder each. Without a lock all processes that
do not find one compile it: eight at once on a machine's first start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Any

WAIT_S = 120.0  # for another process's compilation; a large kernel takes 10 s on a busy machine
_PAUSE_S = 0.02


class FileLock:
    """A lock that the system takes back when its process ends, however that ends.

    Args:
        path: of the lock's own file, in a folder that is there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._file is not None

    def try_acquire(self) -> bool:
        """Takes the lock if it is free; returns False only where another process holds it.

        Where files cannot be locked there is nobody to wait for: nothing is held then, and True is returned.
        """
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError:
            os.close(file)
            return True
        self._file = file
        return True

    @contextlib.contextmanager
    def waited_for(self, wait_s: float) -> Iterator[bool]:
        """Takes the lock when it is free, and gives it back; yields False where another held it for wait_s seconds."""
        end = time.monotonic() + wait_s
        while not (taken := self.try_acquire()) and time.monotonic() < end:
            time.sleep(_PAUSE_S)
        try:
            yield taken
        finally:
            self.release()

    def release(self) -> None:
        """Gives the lock back, if it is held."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # a forked process that has the file too must not keep the lock
            os.close(file)

    def __del__(self) -> None:
        self.release()  # whoever was to compile has failed


def shared_cache() -> type:
    """Returns a class for `triton.knobs.cache.manager_class`.

    Triton asks for a kernel, or for a module in C, and where it gets none makes it and puts it there; in between this
    holds the lock. What another process made meanwhile is found.
    """
    from triton.runtime.cache import FileCacheManager

    class SharedCacheManager(FileCacheManager):  # type: ignore[misc]  # Triton has no types
        """Locks between a question that has no answer and the answer."""

        def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
            super().__init__(key, override, dump)
            self._lock = None if override or dump else FileLock(f"{self.cache_dir}/lock")
            self._wanted = ""

        def get_file(self, filename: str) -> str | None:
            """Returns a file's path; None means that the caller makes it now."""
            return self._found_or_locked(filename, super().get_file)

        def get_group(self, filename: str) -> dict[str, str] | None:
            """Returns paths by name of all files of a kernel; None means that the caller makes it now."""
            group = super().get_group

            def whole(name: str) -> dict[str, str] | None:
                found: dict[str, str] = group(name) or {}
                return found if name in found else None

            return self._found_or_locked(filename, whole, f"__grp__{filename}")

        def put(self, data: Any, filename: str, binary: bool = True) -> str:
            """Writes a file and returns its path; the one that was asked for is the last."""
            path: str = super().put(data, filename, binary)
            if self._lock is not None and filename == self._wanted:
                self._lock.release()
            return path

        def _found_or_locked(self, filename: str, find: Any, last: str = "") -> Any:
            found = find(filename)
            if found is not None or self._lock is None or self._lock.held:
                return found
            self._wanted = last or filename
            end = time.monotonic() + WAIT_S
            while found is None and not self._lock.try_acquire() and time.monotonic() < end:
                time.sleep(_PAUSE_S)
                found = find(filename)
            if found is None:
                found = find(filename)  # made before this one got the lock
            if found is not None:
                self._lock.release()
            return found

    return SharedCacheManager
