"""Parameters of programs: tensors in the memory that they were read into."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import paddle
from paddle import Tensor

from sd3par.device import on_device
from sd3par.static.reader import Entry, Reader


def tensors(reader: Reader, name: str) -> Iterator[Tensor]:
    """Yields the tensors of a file, in its order, on the current device; on the CPU without a copy.

    Raises:
        CheckpointError: the file is not what was exported.
    """
    for entry, memory in reader.parts(name):
        yield on_device(_tensor(entry, memory))


def _tensor(entry: Entry, memory: mmap.mmap | memoryview) -> Tensor:
    """Returns a CPU tensor of an entry's shape and dtype in its memory."""
    dtype = np.int16 if entry.dtype == "bfloat16" else entry.dtype  # NumPy has none of that
    values = np.frombuffer(memory, dtype, np.prod(entry.shape, dtype=int)).reshape(entry.shape)
    tensor: Tensor = paddle.utils.dlpack.from_dlpack(values)
    return tensor.view(entry.dtype) if entry.dtype == "bfloat16" else tensor
