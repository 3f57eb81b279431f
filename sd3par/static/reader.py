"""Files of parameters: read once, into memory, by several threads that compare digests on the way.

A file that was compared before (`checked`) is not hashed again. Beside a GPU it is not held in memory either: whoever
copies it to the device reads it piece by piece (`parameters`).

Nothing here needs Paddle, so that it may begin while that is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

from sd3par.errors import CheckpointError
from sd3par.static.checked import Record
from sd3par.weights.manifest import BLOCK, THREADS, Manifest, changed, is_export, unreadable
from sd3par.weights.read_into import read_into

CHUNK = 16 << 20  # bytes that are hashed at a time: between two a thread waits for Python's lock, for up to 5 ms
AHEAD = 32  # blocks of 64 MiB that are in memory before they are asked for, where tensors do not stay in it
PROGRAMS = ("prepare", "step", "text_encoder", "text_encoder_2", "text_encoder_3", "decode", "encode")
# Paddle's VarType.Type (framework.proto) -> its name, and bytes of a number.
_DTYPES = {0: ("bool", 1), 2: ("int32", 4), 3: ("int64", 8), 4: ("float16", 2), 5: ("float32", 4), 22: ("bfloat16", 2)}


class Entry(NamedTuple):
    """One tensor in a file: its bytes are [start, stop)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class File:
    """A file of tensors, as `paddle.jit.save` writes it.

    Args:
        first: which of all blocks is its first.
        stays: whether it is read into memory even if it was compared before.

    `direct` is whether who needs its tensors reads them from `file`; else `Reader` does, and `take` gives them.
    """

    def __init__(self, path: Path, digests: Sequence[str], first: int, stays: bool) -> None:
        self.path, self.digests, self.first = path, digests, first
        self.memory: dict[int, mmap.mmap] = {}  # number of an entry -> where it is read into
        try:
            self.file = path.open("rb")
        except OSError as error:
            raise unreadable(path, error) from None
        with contextlib.ExitStack() as stack:
            stack.callback(self.file.close)
            self.record = Record(self.file, digests)
            self.entries = self._found()
            self.direct = self.record.known and not stays
            stack.pop_all()

    def _found(self) -> list[Entry]:
        """Returns what is in it."""
        try:
            return _entries(self.file, os.fstat(self.file.fileno()).st_size)
        except OSError as error:
            raise unreadable(self.path, error) from None
        except ValueError:
            raise changed(self.path, self.digests[0]) from None

    def take(self, index: int) -> mmap.mmap:
        """Returns the memory of an entry, which this file needs no more."""
        return self.memory.pop(index, None) or _memory(0)

    def end(self) -> None:
        """To be called when all of it was taken, and is where it was needed.

        Raises:
            CheckpointError: it was changed while it was read.
        """
        if self.direct and not self.record.is_same():
            raise changed(self.path, self.digests[0])
        self.record.keep()
        self.file.close()

    def views(self, block: int) -> Iterator[memoryview]:
        """Yields, in order, where the bytes of a block go, in pieces of at most `CHUNK`."""
        at, stop = block * BLOCK, (block + 1) * BLOCK
        for index, entry in enumerate(self.entries):
            if entry.stop <= at or at >= stop:
                continue
            if at < entry.start:  # the description of a tensor, which nobody needs again
                yield memoryview(bytearray(min(entry.start, stop) - at))
                at = min(entry.start, stop)
            if at < stop:
                if index not in self.memory:
                    self.memory[index] = _memory(entry.stop - entry.start)
                end = min(entry.stop, stop)
                whole = memoryview(self.memory[index])[at - entry.start : end - entry.start]
                yield from (whole[first : first + CHUNK] for first in range(0, len(whole), CHUNK))
                at = end


class Reader:
    """Begins to read files; `parts` gives what is in them.

    Args:
        folder, manifest: of an export.
        names: of files, in the order in which they will be asked for; another order takes more memory.

    Raises:
        CheckpointError: a file cannot be read, or is not what was exported.
    """

    def __init__(self, folder: Path, manifest: Manifest, names: Sequence[str]) -> None:
        self.manifest = manifest
        self.files: dict[str, File] = {}
        self._blocks: list[tuple[File, int]] = []
        stays = manifest.target == "cpu"  # in this memory: what others write to a file later must not be seen there
        for name in names:
            file = File(folder / name, manifest.files[name]["sha256"], len(self._blocks), stays)
            self.files[name] = file
            self._blocks += [(file, block) for block in range(len(file.digests)) if not file.direct]
        self._ahead = len(self._blocks) if stays else AHEAD
        self._pool = ThreadPoolExecutor(THREADS, "sd3par-read")
        self._reads: list[Future[None]] = []
        self._checked = 0  # blocks
        self._read_on(self._ahead)
        for file in self.files.values():
            for block in range(len(file.digests) if file.direct else 0):
                self._pool.submit(_fetch, file, block)

    def parts(self, name: str) -> Iterator[tuple[Entry, mmap.mmap]]:
        """Yields the tensors of a file that is not `direct`, in its order, with their bytes, those of the export; once.

        Raises:
            CheckpointError: a block is not what was exported.
        """
        file = self.files[name]
        for index, entry in enumerate(file.entries):
            self._check(file.first - (-entry.stop // BLOCK))
            yield entry, file.take(index)
        self._check(file.first + len(file.digests))
        file.end()

    def close(self) -> None:
        """Ends the threads; what is not read yet is not read any more."""
        self._pool.shutdown(cancel_futures=True)
        for file in self.files.values():
            file.file.close()

    def _check(self, blocks: int) -> None:
        """Waits until the first `blocks` blocks are read, as they were exported."""
        while self._checked < min(blocks, len(self._blocks)):
            self._read_on(self._checked + 1 + self._ahead)
            self._reads[self._checked].result()
            self._checked += 1

    def _read_on(self, blocks: int) -> None:
        """Lets the first `blocks` blocks be read."""
        for file, block in self._blocks[len(self._reads) : blocks]:
            views = list(file.views(block))
            self._reads.append(self._pool.submit(_read, file, block, views, file.digests[block]))


def parameters_of(manifest: Manifest, rank: int, names: Sequence[str]) -> list[str]:
    """Returns the files of parameters that a rank reads for programs."""
    pairs = [manifest.programs[name][rank] for name in names if name in manifest.programs]
    return [pair[1] for pair in pairs if pair is not None]


def begin(model: str, rank: int, text_encoder_3: bool = True) -> Reader | None:
    """Begins to read the parameters of a rank.

    Returns None where the model is no export, or something is wrong with it: who opens it says what.
    """
    names = [name for name in PROGRAMS if text_encoder_3 or name != "text_encoder_3"]
    try:
        if not is_export(model):
            return None
        folder = Path(os.path.expanduser(model))
        manifest = Manifest.read(folder)
        manifest.check_present(folder)
        return Reader(folder, manifest, parameters_of(manifest, rank, names))
    except (OSError, CheckpointError, LookupError, RuntimeError, TypeError, ValueError):  # what no path can be, too
        return None


def _read(file: File, block: int, views: Sequence[memoryview], wanted: str) -> None:
    """Reads a block of a file into memory, and compares its digest unless the file was compared before."""
    found, at, known = hashlib.sha256(), block * BLOCK, file.record.known
    try:
        for view in views:
            if read_into(view, file.file.fileno(), at) != len(view):
                raise changed(file.path, wanted)
            at += len(view)
            if not known:
                found.update(view)
        if known and file.record.is_same():
            return
    except OSError as error:
        raise unreadable(file.path, error) from None
    for view in views if known else ():  # it was changed between
        found.update(view)
    if found.hexdigest() != wanted:
        raise changed(file.path, wanted)


def _fetch(file: File, block: int) -> None:
    """Has the system read what is not in its memory of a block, for whoever reads that next; 1 GB that is took 0.02 s.

    Nothing is copied. `posix_fadvise` reads no more a call than the disk reads ahead, 128 KiB to 8 MiB.
    """
    at, stop = block * BLOCK, (block + 1) * BLOCK
    with open(os.devnull, "wb", buffering=0) as nowhere:
        while at < stop and (count := os.sendfile(nowhere.fileno(), file.file.fileno(), at, stop - at)):
            at += count


def _memory(size: int) -> mmap.mmap:
    """Returns new memory of some bytes.

    NumPy would ask for huge pages, and the kernel took three to five times as long to find those for 1 GB as small ones
    (Linux 6.18, a virtual machine with 20 of 23 GB free).
    """
    return mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _entries(file: IO[bytes], size: int) -> list[Entry]:
    """Returns what a file of `size` bytes holds. Each tensor is: 16 zero bytes (versions, no levels), the length of a
    description (4 bytes), it (a protobuf message), and the numbers.

    Raises:
        ValueError: something else.
    """
    found: list[Entry] = []
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(20)
        length = int.from_bytes(head[16:], "little")
        if len(head) < 20 or any(head[:16]) or length > 1024:
            raise ValueError("no tensor")
        kind, shape = _described(file.read(length))
        dtype, width = _DTYPES[kind]
        start = at + 20 + length
        at = start + math.prod(shape) * width
        found.append(Entry(dtype, shape, start, at))
    if at != size:
        raise ValueError("the last tensor is cut")
    return found


def _described(message: bytes) -> tuple[int, tuple[int, ...]]:
    """Returns dtype and shape of a VarType.TensorDesc: field 1 and fields 2, all of them varints."""
    numbers, kind, shape = _varints(message), -1, []
    for key, value in zip(numbers[::2], numbers[1::2], strict=True):
        if key == 1 << 3:
            kind = value
        elif key == 2 << 3:
            shape.append(value)
        else:
            raise ValueError("another field")
    if kind not in _DTYPES or any(one >= 1 << 40 for one in shape):
        raise ValueError("another dtype")
    return kind, tuple(shape)


def _varints(message: bytes) -> list[int]:
    """Returns the numbers in a message of nothing but varints: seven bits a byte, the lowest first."""
    found, value, shift = [], 0, 0
    for byte in message:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(value)
            value, shift = 0, 0
    return found
