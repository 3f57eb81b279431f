"""Parameters of programs: tensors in the memory that they were read into, or on a device."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import numpy as np
from paddle import Tensor

from sd3par.device import on_device
from sd3par.static.reader import Entry, File, Reader
from sd3par.weights.ahead import Ahead, beside_device
from sd3par.weights.file_part import Part
from sd3par.weights.host_tensor import tensor_over
from sd3par.weights.manifest import changed, unreadable


class Parameters:
    """Parameters that a thread reads and copies to the current device, file by file.

    On the CPU there is nothing to copy: `take` makes tensors of what was read, without that thread, which would ask for
    Python's lock while programs get ready.

    Args:
        reader: of the files; `close` ends it, too.
        names: of files, in the order in which they are read.
    """

    def __init__(self, reader: Reader, names: Sequence[str]) -> None:
        pool = ThreadPoolExecutor(1, "sd3par-copy")
        with ExitStack() as ends:  # from its last line up, and each whatever becomes of those below
            ahead = ends.enter_context(beside_device())
            ends.callback(pool.shutdown, cancel_futures=True)
            ends.callback(reader.close)
            self._copies: dict[str, Callable[[], list[Tensor]]] = {}
            for name in names:
                copy = partial(_all, reader, name, ahead)
                self._copies[name] = copy if ahead is None else pool.submit(copy).result
            self._ends = ends.pop_all()

    def take(self, name: str) -> list[Tensor]:
        """Returns the tensors of a file when they are there; once.

        Raises:
            CheckpointError: the file is not what was exported.
        """
        return self._copies.pop(name)()

    def close(self) -> None:
        """Ends what still reads and copies."""
        self._ends.close()


def _all(reader: Reader, name: str, ahead: Ahead | None) -> list[Tensor]:
    return list(tensors(reader, name, ahead))


def tensors(reader: Reader, name: str, ahead: Ahead | None = None) -> Iterator[Tensor]:
    """Yields the tensors of a file, in its order, on the current device; on the CPU without a copy.

    Args:
        ahead: beside a device reads what was compared before.

    Raises:
        CheckpointError: the file is not what was exported.
    """
    file = reader.files[name]
    if not file.direct:
        yield from (on_device(_tensor(entry, memory)) for entry, memory in reader.parts(name))
        return
    assert ahead is not None
    read = partial(_read, file)
    begun = [ahead.begin(Part(one.start, one.shape, _dtype(one), ()), read) for one in file.entries]
    yield from (tensor() for tensor in begun)
    file.end()


def _tensor(entry: Entry, memory: mmap.mmap) -> Tensor:
    """Returns a CPU tensor of an entry's shape and dtype in its memory."""
    count = np.prod(entry.shape, dtype=int)
    return tensor_over(np.frombuffer(memory, _dtype(entry), count).reshape(entry.shape))


def _dtype(entry: Entry) -> np.dtype:
    return np.dtype(np.uint16 if entry.dtype == "bfloat16" else entry.dtype)


def _read(file: File, part: Part, values: np.ndarray) -> None:
    """Reads a part of a file; in threads, and so nothing of Paddle's."""
    try:
        part.read(file.file, values)
    except OSError as error:
        raise unreadable(file.path, error) from None
    except EOFError:
        raise changed(file.path, file.digests[0]) from None
