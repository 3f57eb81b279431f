"""Files of parameters: read as they were written, whatever their blocks cut; a changed byte is refused."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

from sd3par.config import ParallelConfig
from sd3par.device import choose
from sd3par.errors import CheckpointError
from sd3par.mesh import Mesh
from sd3par.pipeline import SD3Pipeline
from sd3par.static import checked, parameters, reader
from sd3par.static.parameters import Parameters, tensors
from sd3par.static.reader import Reader
from sd3par.weights import open_model
from sd3par.weights.ahead import Ahead
from sd3par.weights.export_files import Export
from tests.ranks import ROOT
from tests.static import exports

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


def digests(path: Path) -> list[str]:
    data = path.read_bytes()
    return [hashlib.sha256(data[at : at + reader.BLOCK]).hexdigest() for at in range(0, len(data), reader.BLOCK)]


def read(path: Path, wanted: list[str], target: str = "cpu") -> list[Tensor]:
    """Returns what a reader finds in a file."""
    manifest: Any = SimpleNamespace(files={path.name: {"sha256": wanted}}, target=target)
    with closing(Reader(path.parent, manifest, [path.name])) as found:
        return list(tensors(found, path.name))


@pytest.mark.parametrize("block, chunk, ahead", [(1 << 20, 1 << 20, 1), (64, 1 << 20, 0), (7, 3, 2), (100, 1, 99)])
def test_read_as_written(
    written: tuple[Path, list[Tensor]], monkeypatch: pytest.MonkeyPatch, block: int, chunk: int, ahead: int
) -> None:
    for name, value in (("BLOCK", block), ("CHUNK", chunk), ("AHEAD", ahead)):
        monkeypatch.setattr(reader, name, value)
    path, wanted = written
    for target in ("cpu", "cuda"):
        found = read(path, digests(path), target)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert (one.dtype, one.shape, one.place) == (other.dtype, other.shape, other.place)
            assert bool((one.astype("float32") == other.astype("float32")).all())


def test_every_byte_counts(written: tuple[Path, list[Tensor]], tmp_path: Path) -> None:
    path, _ = written
    data, wanted, changed = path.read_bytes(), digests(path), tmp_path / "changed"
    others = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data))]
    for other in [*others, *(data[:size] for size in range(len(data))), data + b"0"]:
        changed.write_bytes(other)
        with pytest.raises(CheckpointError, match="changed since it was exported"):
            read(changed, wanted)


def test_no_tensor_before_its_digest(written: tuple[Path, list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks before a changed one give their tensors, it and those behind it none."""
    monkeypatch.setattr(reader, "BLOCK", 64)
    path, _ = written
    wrong = digests(path)
    wrong[3] = wrong[2]
    manifest: Any = SimpleNamespace(files={path.name: {"sha256": wrong}}, target="cpu")
    entries = []
    said = f"allowed: sha256 {wrong[3]}"
    with closing(Reader(path.parent, manifest, [path.name])) as found, pytest.raises(CheckpointError, match=said):
        for entry, _ in found.parts(path.name):
            entries.append(entry)
    assert len(entries) > 0 and entries[-1].stop <= 3 * 64


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path / "none", ["0"])


def test_no_more_is_read_ahead_than_asked_for(
    written: tuple[Path, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a GPU memory of the host holds some blocks, not the file."""
    monkeypatch.setattr(reader, "BLOCK", 16)
    monkeypatch.setattr(reader, "AHEAD", 2)
    path, _ = written
    begun: list[int] = []
    monkeypatch.setattr(reader, "_read", lambda path, block, views, wanted: begun.append(block))
    manifest: Any = SimpleNamespace(files={path.name: {"sha256": digests(path)}}, target="cuda")
    found = Reader(path.parent, manifest, [path.name])
    entry, _ = next(found.parts(path.name))
    found.close()
    assert max(begun) < -(-entry.stop // 16) + 2 < len(digests(path)) / 2


def test_a_second_interrupt_leaves_nothing_pinned(
    written: tuple[Path, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the wait for those who read, what they read into is given back behind it."""
    ends: list[str] = []

    @contextmanager
    def beside() -> Iterator[Ahead]:
        with Ahead(0, 1) as ahead:
            try:
                yield ahead
            finally:
                ends.append("ahead")

    def interrupted(found: Reader) -> None:
        close(found)
        ends.append("reader")
        raise KeyboardInterrupt

    close = Reader.close
    monkeypatch.setattr(parameters, "beside_device", beside)
    monkeypatch.setattr(Reader, "close", interrupted)
    path, _ = written
    manifest: Any = SimpleNamespace(files={path.name: {"sha256": digests(path)}}, target="cpu")
    copies = Parameters(Reader(path.parent, manifest, [path.name]), [path.name])
    with pytest.raises(KeyboardInterrupt):
        copies.close()
    assert ends == ["reader", "ahead"]
    assert not [one for one in threading.enumerate() if one.name.startswith("sd3par-copy")]


@pytest.mark.parametrize("device", [False, True])
def test_who_makes_tensors(written: tuple[Path, list[Tensor]], monkeypatch: pytest.MonkeyPatch, device: bool) -> None:
    """On the CPU no thread does beside the one that makes programs ready, which would wait for it."""
    makers, make = set(), parameters._tensor

    def noted(*given: Any) -> Tensor:
        makers.add(threading.current_thread() is threading.main_thread())
        return make(*given)

    monkeypatch.setattr(parameters, "_tensor", noted)
    if device:
        monkeypatch.setattr(parameters, "beside_device", lambda: Ahead(0, 1))
    path, wanted = written
    manifest: Any = SimpleNamespace(files={path.name: {"sha256": digests(path)}}, target="cpu")
    with closing(Parameters(Reader(path.parent, manifest, [path.name]), [path.name])) as copies:
        got = copies.take(path.name)
    assert makers == {not device} and [one.shape for one in got] == [one.shape for one in wanted]


@pytest.mark.parametrize("room", [0, 256, 1 << 20])
def test_read_ahead_as_written(
    written: tuple[Path, list[Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """All dtypes, a file that was compared before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checked, "SETTLED_NS", 0)
    path, wanted = written
    read(path, digests(path))
    manifest: Any = SimpleNamespace(files={path.name: {"sha256": digests(path)}}, target="cuda")
    with closing(Reader(path.parent, manifest, [path.name])) as found, Ahead(room, 2) as ahead:
        assert found.files[path.name].direct
        got = list(tensors(found, path.name, ahead))
    for one, other in zip(got, wanted, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert bool((one.astype("float32") == other.astype("float32")).all())


def resident(path: Path) -> int:
    """Returns how many pages of a file are in the system's memory."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as all_,
    ):
        found, first = (ctypes.c_ubyte * -(-len(all_) // mmap.PAGESIZE))(), ctypes.c_char.from_buffer(all_)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(len(all_)), found)
        del first
    assert not failed
    return sum(one & 1 for one in found)


def test_a_file_that_was_compared_is_fetched_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, from a disk that reads ahead no more than some MiB, before anybody asks for a tensor."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checked, "SETTLED_NS", 0)
    path, count = tmp_path / "large.pdiparams", 24 << 18
    described = bytes([8, 5, 16, 0x80 | count & 127, 0x80 | count >> 7 & 127, 0x80 | count >> 14 & 127, count >> 21])
    head = bytes(16) + len(described).to_bytes(4, "little") + described
    path.write_bytes(head + np.arange(count, dtype=np.float32).tobytes())
    wanted = digests(path)
    read(path, wanted)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path):
        pytest.skip("this file system keeps files in memory")
    manifest: Any = SimpleNamespace(files={path.name: {"sha256": wanted}}, target="cuda")
    found = Reader(tmp_path, manifest, [path.name])
    found._pool.shutdown()
    found.close()
    assert resident(path) == -(-path.stat().st_size // mmap.PAGESIZE)


def test_begun_where_there_is_an_export(tmp_path: Path) -> None:
    folder = exports.write(tmp_path / "export")
    for model in ("tiny", str(tmp_path), "", "~nobody-of-this-name", "a\0b", 4000 * "a"):
        assert reader.begin(model, 0) is None
    assert reader.begin(str(folder), 1) is None  # of two processes, which whoever opens it refuses
    found = reader.begin(str(folder), 0, text_encoder_3=False)
    assert found is not None
    export = Export.open(folder)
    assert found.manifest == export.manifest
    files, target = open_model(folder, text_encoder_3=False), choose("float32", "cpu")
    pipe = SD3Pipeline.load(replace(files, export=export.read_by(found)), target, Mesh.single(), ParallelConfig())
    assert len(next(found.parts("step-0.pdiparams"))[1]) == 1  # its memory is the program's
    given = exports.options("one")
    wanted = SD3Pipeline.load(files, target, Mesh.single(), ParallelConfig())(**given).images
    assert bool((pipe(**given).images == wanted).all())


def test_a_reader_needs_no_paddle() -> None:
    code = "import sys, sd3par.static.reader; sys.exit('paddle' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
