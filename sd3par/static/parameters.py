"""The parameters of programs: read once, by several threads that compare digests on the way, into tensors."""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import paddle
from paddle import Tensor

from sd3par.device import on_device
from sd3par.errors import CheckpointError
from sd3par.weights.manifest import BLOCK, THREADS, Manifest, changed, unreadable

CHUNK = 8 << 20  # bytes that are hashed at a time: between two a thread waits for Python's lock, for up to 5 ms
AHEAD = THREADS + 2  # blocks that are read before what they hold has gone to the device
# Paddle's VarType.Type (framework.proto) -> its name, and bytes of a number.
_DTYPES = {0: ("bool", 1), 2: ("int32", 4), 3: ("int64", 8), 4: ("float16", 2), 5: ("float32", 4), 22: ("bfloat16", 2)}


@dataclass(frozen=True)
class _Entry:
    """One tensor in a file: its bytes are [start, stop)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Parameters:
    """A file of tensors, as `paddle.jit.save` writes it.

    Args:
        digests: the SHA-256 of each `BLOCK` of the file.
        pool: threads that read.
        ahead: how many blocks are read before `tensors` asks for them.

    Raises:
        CheckpointError: the file cannot be read, or is not what was exported.
    """

    def __init__(self, path: Path, digests: Sequence[str], pool: ThreadPoolExecutor, ahead: int) -> None:
        self._path, self._digests, self._pool, self._ahead = path, digests, pool, ahead
        try:
            with path.open("rb") as file:
                self._entries = _entries(file, path.stat().st_size)
        except OSError as error:
            raise unreadable(path, error) from None
        except ValueError:
            raise changed(path, digests[0]) from None
        self._tensors: dict[int, Tensor] = {}  # number of an entry -> where it is read into
        self._reads: list[Future[None]] = []
        self._checked = 0  # blocks
        self._read_on(ahead)

    def tensors(self) -> Iterator[Tensor]:
        """Yields the tensors in the order of the file, on the current device; their bytes are those of the export.

        Raises:
            CheckpointError: a block is not what was exported.
        """
        for index, entry in enumerate(self._entries):
            self._check(-(-entry.stop // BLOCK))
            self._tensor(index)
            yield on_device(self._tensors.pop(index))
        self._check(len(self._digests))

    def _check(self, blocks: int) -> None:
        """Waits until the first `blocks` blocks are read, as they were exported."""
        while self._checked < min(blocks, len(self._digests)):
            self._read_on(self._checked + 1 + self._ahead)
            self._reads[self._checked].result()
            self._checked += 1

    def _tensor(self, index: int) -> Tensor:
        """Returns the CPU tensor of an entry, to be filled.

        NumPy asks for huge pages, and the kernel took three to five times as long to find those for 1 GB as small ones
        (Linux 6.18, a virtual machine with 20 of 23 GB free).
        """
        if index not in self._tensors:
            entry = self._entries[index]
            self._tensors[index] = paddle.empty(entry.shape, dtype=entry.dtype, device="cpu")
        return self._tensors[index]

    def _read_on(self, blocks: int) -> None:
        """Lets the first `blocks` blocks be read."""
        for block in range(len(self._reads), min(blocks, len(self._digests))):
            views = list(self._views(block * BLOCK, (block + 1) * BLOCK))
            self._reads.append(self._pool.submit(_read, self._path, block, views, self._digests[block]))

    def _views(self, start: int, stop: int) -> Iterator[memoryview]:
        """Yields, in order, where the bytes [start, stop) of the file go, in pieces of at most `CHUNK`."""
        at = start
        for index, entry in enumerate(self._entries):
            if entry.stop <= at or at >= stop:
                continue
            if at < entry.start:  # the description of a tensor, which nobody needs again
                yield memoryview(bytearray(min(entry.start, stop) - at))
                at = min(entry.start, stop)
            if at < stop:
                end = min(entry.stop, stop)
                memory = _bytes(self._tensor(index), entry.stop - entry.start)[at - entry.start : end - entry.start]
                yield from (memory[first : first + CHUNK] for first in range(0, len(memory), CHUNK))
                at = end


class Reader:
    """Reads the parameters of several programs, in the order in which they are asked for.

    Args:
        names: of the files.

    Raises:
        CheckpointError: a file cannot be read, or is not what was exported.
    """

    def __init__(self, folder: Path, manifest: Manifest, names: Sequence[str]) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "sd3par-read")
        # On the CPU the memory that is read into is the tensor's own; elsewhere it is given back when that is copied.
        ahead = max(len(manifest.files[name]["sha256"]) for name in names) if manifest.target == "cpu" else AHEAD
        try:
            self.files = {
                name: Parameters(folder / name, manifest.files[name]["sha256"], self._pool, ahead) for name in names
            }
        except CheckpointError:
            self.close()
            raise

    def close(self) -> None:
        """Ends the threads; what is not read yet is not read any more."""
        self._pool.shutdown(cancel_futures=True)


def _read(path: Path, block: int, views: Sequence[memoryview], wanted: str) -> None:
    """Reads a block of a file into memory, and compares its digest."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            file.seek(block * BLOCK)
            for view in views:
                if file.readinto(view) != len(view):
                    raise changed(path, wanted)
                found.update(view)
    except OSError as error:
        raise unreadable(path, error) from None
    if found.hexdigest() != wanted:
        raise changed(path, wanted)


def _bytes(tensor: Tensor, size: int) -> memoryview:
    """Returns the memory of a CPU tensor of `size` bytes, which lives as long as it."""
    memory = (ctypes.c_uint8 * size).from_address(tensor.data_ptr())
    memory.tensor = tensor
    return memoryview(memory).cast("B")


def _entries(file: IO[bytes], size: int) -> list[_Entry]:
    """Returns what a file of `size` bytes holds. Each tensor is: 16 zero bytes (versions, no levels), the length of a
    description (4 bytes), it (a protobuf message), and the numbers.

    Raises:
        ValueError: something else.
    """
    found: list[_Entry] = []
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
        found.append(_Entry(dtype, shape, start, at))
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
