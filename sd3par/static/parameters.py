"""Parameters of programs: tensors in the memory that they were read into."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
from paddle import Tensor

from sd3par.device import on_device
from sd3par.static.reader import Entry, Reader
from sd3par.weights.host_tensor import tensor_over


def tensors(reader: Reader, name: str) -> Iterator[Tensor]:
    """Yields the tensors of a file, in its order, on the current device; on the CPU without a copy.

    Raises:
        CheckpointError: the file is not what was exported.
    """
    for entry, memory in reader.parts(name):
        yield on_device(_tensor(entry, memory))


def _tensor(entry: Entry, memory: mmap.mmap | memoryview) -> Tensor:
    """Returns a CPU tensor of an entry's shape and dtype in its memory."""
    dtype = np.uint16 if entry.dtype == "bfloat16" else entry.dtype
    return tensor_over(np.frombuffer(memory, dtype, np.prod(entry.shape, dtype=int)).reshape(entry.shape))
