"""Files of parameters: read as they were written, whatever their blocks cut; a changed byte is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

from sd3par.errors import CheckpointError
from sd3par.static import parameters
from sd3par.static.parameters import Parameters

pytestmark = pytest.mark.usefixtures("on_the_cpu")


class Held(nn.Layer):
    """Parameters of several dtypes and sizes, in the order of their names, which is that of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.own: list[Tensor] = []
        shapes = ([3, 5], "float32"), ([7], "bfloat16"), ([], "float32"), ([1, 11], "int64"), ([130], "float16")
        for index, (shape, dtype) in enumerate((*shapes, ([2, 1, 3], "int32"), ([9], "bool"))):
            values = paddle.to_tensor(np.arange(int(np.prod(shape))).reshape(shape) % 5 - 1.0)
            value = values.astype(dtype)
            value.name = f"x{index}"
            self.register_buffer(value.name, value)
            self.own.append(value)

    def forward(self, x: Tensor) -> Tensor:
        """x: [1] fp32 -> [1]."""
        return sum((one.astype("float32").sum() for one in self.own), x)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensor]]:
    """A file of parameters, and what is in it."""
    folder, held = tmp_path_factory.mktemp("held"), Held()
    paddle.jit.save(held, str(folder / "held"), input_spec=[paddle.static.InputSpec([1], "float32", "x")])
    return folder / "held.pdiparams", held.own


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Two threads."""
    with ThreadPoolExecutor(2) as found:
        yield found


def digests(path: Path, block: int) -> list[str]:
    data = path.read_bytes()
    return [hashlib.sha256(data[start : start + block]).hexdigest() for start in range(0, len(data), block)]


@pytest.mark.parametrize("block, chunk, ahead", [(1 << 20, 1 << 20, 1), (64, 1 << 20, 0), (7, 3, 2), (100, 1, 99)])
def test_read_as_written(
    written: tuple[Path, list[Tensor]], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, block: int,
    chunk: int, ahead: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(parameters, "BLOCK", block)
    monkeypatch.setattr(parameters, "CHUNK", chunk)
    path, wanted = written
    file = Parameters(path, digests(path, block), pool, ahead)
    found = list(file.tensors())
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert bool((one.astype("float32") == other.astype("float32")).all())


def test_every_byte_counts(written: tuple[Path, list[Tensor]], pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    path, _ = written
    data, wanted, changed = path.read_bytes(), digests(path, parameters.BLOCK), tmp_path / "changed"
    for place in range(len(data)):
        changed.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match="changed since it was exported"):
            list(Parameters(changed, wanted, pool, 1).tensors())
    for size in range(len(data)):
        changed.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="changed since it was exported"):
            list(Parameters(changed, wanted, pool, 1).tensors())


def test_no_tensor_before_its_digest(
    written: tuple[Path, list[Tensor]], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks before a changed one give their tensors, it and those behind it none."""
    monkeypatch.setattr(parameters, "BLOCK", 64)
    path, wanted = written
    wrong = digests(path, 64)
    wrong[3] = wrong[2]
    found = Parameters(path, wrong, pool, 0).tensors()
    with pytest.raises(CheckpointError, match=f"allowed: sha256 {wrong[3]}"):
        for count, _ in enumerate(found, 1):
            assert count < len(wanted)


def test_a_file_that_is_gone(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Parameters(tmp_path / "none", ["0"], pool, 1)


def test_no_more_is_read_ahead_than_asked_for(
    written: tuple[Path, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a GPU memory of the host holds some blocks, not the file."""
    monkeypatch.setattr(parameters, "BLOCK", 16)
    path, _ = written
    begun: list[int] = []
    monkeypatch.setattr(parameters, "_read", lambda path, block, views, wanted: begun.append(block))
    with ThreadPoolExecutor(1) as pool:
        tensors = Parameters(path, digests(path, 16), pool, 2).tensors()
        next(tensors)
    assert len(begun) < len(digests(path, 16)) / 2
