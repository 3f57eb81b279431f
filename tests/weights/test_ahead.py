"""Reading ahead: in order, in bounded memory, the same tensors; who reads says what is wrong, and ends."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file
from safetensors.paddle import save_file as save_tensors

from sd3par import cuda_driver
from sd3par.errors import CheckpointError
from sd3par.weights import ahead as reading
from sd3par.weights import fill as filling
from sd3par.weights.ahead import Ahead, beside_device
from sd3par.weights.file_part import Part
from sd3par.weights.ring import Ring, Span
from sd3par.weights.safetensors_file import SafetensorsFile
from sd3par.weights.single_file import SingleFile
from sd3par.weights.views import ViewCheckpoint
from tests.arrays import array
from tests.weights.test_fill import SHAPES, Block, bits, checkpoint, source
from tests.weights.test_single_file import whole_file
from tests.weights.test_views import CASES, STORED

pytestmark = pytest.mark.usefixtures("on_the_cpu")
SIZE = 1000


class FakeFile:
    """Part number n holds n everywhere; `read` lists what was read, in order."""

    def __init__(self, broken: int = -1) -> None:
        self.read: list[int] = []
        self._broken = broken

    def begin(self, ahead: Ahead, number: int, size: int = SIZE) -> Callable[[], paddle.Tensor]:
        return ahead.begin(Part(number, (size,), np.dtype(np.uint8), ()), self._read)

    def _read(self, part: Part, values: np.ndarray) -> None:
        self.read.append(part.start)
        if part.start == self._broken:
            raise CheckpointError("file: tensor 3", "NaN or infinity", "finite values")
        values[...] = part.start


def wait_for(read: list[int], count: int) -> None:
    """Until so many were read; and a little, in which no more should be."""
    end = time.monotonic() + 10
    while len(read) < count and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.05)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sd3par-weights")]


def test_reads_in_order_and_no_further_than_there_is_memory() -> None:
    file = FakeFile()
    with Ahead(4 * 1024, 1) as ahead:
        begun = [file.begin(ahead, number) for number in range(10)]
        for number, tensor in enumerate(begun):
            wait_for(file.read, min(4 + number, 10))
            assert file.read == list(range(min(4 + number, 10)))
            assert tensor().tolist() == [number] * SIZE
    assert threads() == []


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]])
def test_any_order_gives_the_same(order: list[int]) -> None:
    file = FakeFile()
    with Ahead(2 * 1024, 2) as ahead:
        begun = [file.begin(ahead, number) for number in range(6)]
        tensors = {number: begun[number]() for number in order}
    assert all(tensor.tolist() == [number] * SIZE for number, tensor in tensors.items())
    assert sorted(file.read) == list(range(6))


def test_what_is_larger_than_all_memory_is_read_in_its_turn() -> None:
    file = FakeFile()
    with Ahead(2 * 1024, 2) as ahead:
        begun = [file.begin(ahead, number, size) for number, size in enumerate((SIZE, 10 * SIZE, 0, SIZE))]
        assert [tensor().tolist() for tensor in begun] == [[0] * SIZE, [1] * 10 * SIZE, [], [3] * SIZE]


def test_an_error_names_its_tensor_and_ends_the_reading() -> None:
    file = FakeFile(broken=3)
    with pytest.raises(CheckpointError, match="tensor 3: NaN"), Ahead(4 * 1024, 2) as ahead:
        for tensor in [file.begin(ahead, number) for number in range(100)]:
            tensor()
    assert max(file.read) < 8
    assert threads() == []


def test_what_is_interrupted_ends_the_reading() -> None:
    file = FakeFile()
    with pytest.raises(KeyboardInterrupt), Ahead(4 * 1024, 2) as ahead:
        for number in range(100):
            file.begin(ahead, number)
        raise KeyboardInterrupt
    assert max(file.read) < 4
    assert threads() == []


class FakeDriver:
    """Notes what is pinned and unpinned."""

    def __init__(self, goes: bool = True) -> None:
        self.calls: list[tuple[object, ...]] = []
        self._goes = goes

    def pin(self, index: int, address: int, count: int) -> bool:
        self.calls.append(("pin", index, address, count))
        return self._goes

    def unpin(self, index: int, address: int) -> bool:
        self.calls.append(("unpin", index, address))
        return True


def pinned(monkeypatch: pytest.MonkeyPatch, goes: bool = True) -> FakeDriver:
    """Returns the driver of a device, to which copies go as to the CPU."""
    driver = FakeDriver(goes)
    monkeypatch.setattr(reading, "cuda_driver", driver)
    monkeypatch.setattr(reading, "current", lambda: "gpu:3")
    monkeypatch.setattr(reading, "current_index", lambda: 3)
    return driver


@pytest.mark.parametrize("count, goes, pins, unpins", [(8, True, 0, 0), (30, True, 1, 1), (30, False, 1, 0)])
def test_memory_that_is_used_often_is_pinned(
    monkeypatch: pytest.MonkeyPatch, count: int, goes: bool, pins: int, unpins: int
) -> None:
    """Once; until all is copied, and no longer."""
    driver, file = pinned(monkeypatch, goes), FakeFile()
    with Ahead(4 * 1024, 2) as ahead:
        address = ahead._ring.address
        for number, tensor in enumerate([file.begin(ahead, number) for number in range(count)]):
            assert tensor().tolist() == [number] * SIZE
        assert driver.calls == pins * [("pin", 3, address, 4 * 1024)]
    assert driver.calls[pins:] == unpins * [("unpin", 3, address)]


def test_nothing_is_pinned_after_a_second_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy out of what comes to lie there would read the pages that were there before."""
    driver, file = pinned(monkeypatch), FakeFile()
    ahead = Ahead(4 * 1024, 1)
    shutdown = ahead._pool.shutdown

    def interrupted(**options: bool) -> None:
        shutdown(**options)
        raise KeyboardInterrupt

    monkeypatch.setattr(ahead._pool, "shutdown", interrupted)
    with pytest.raises(KeyboardInterrupt), ahead:
        for number in range(100):
            file.begin(ahead, number)
    assert [one[0] for one in driver.calls] == ["pin", "unpin"]


def test_any_thread_may_unpin(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that called nothing of CUDA's has no context; and what broke the device before is the news, not this."""
    calls: list[str] = []
    monkeypatch.setattr(cuda_driver, "_context", lambda index: index)
    monkeypatch.setattr(cuda_driver, "_call", lambda function, *_: calls.append(function))
    assert cuda_driver.pin(3, 4096, 4096) and cuda_driver.unpin(3, 4096)
    assert calls == ["cuCtxSetCurrent", "cuMemHostRegister_v2", "cuCtxSetCurrent", "cuMemHostUnregister"]

    def broken(function: str, *_: object) -> None:
        raise RuntimeError(f"{function} failed with 700: an illegal memory access was encountered")

    monkeypatch.setattr(cuda_driver, "_call", broken)
    assert not cuda_driver.unpin(3, 4096) and not cuda_driver.pin(3, 4096, 4096)


def test_a_ring_gives_no_byte_twice() -> None:
    random, ring, held, given = np.random.RandomState(0), Ring(10_000), list[Span](), 0
    for _ in range(5000):
        span = ring.take(int(random.randint(0, 4000)))
        if span is not None:
            assert 0 <= span.start < span.stop <= 10_000
            assert all(span.stop <= other.start or other.stop <= span.start for other in held)
            held.append(span)
            given += 1
        if held and (span is None or random.randint(2)):
            held.pop(random.randint(2) % len(held)).free = True
    assert given > 1000
    for span in held:
        span.free = True
    whole = ring.take(9_900)
    assert whole is not None and len(whole.memory) == 9_900 and ring.take(1) is None


@pytest.mark.parametrize("index", [(), (slice(1, 6),), (slice(None), slice(2, 4)), (slice(2, 7), slice(0, 3))])
@pytest.mark.parametrize("most", [1, 50, 1000])
def test_pieces_are_the_whole(tmp_path: Path, index: tuple[slice, ...], most: int) -> None:
    stored = array("pieces", (7, 5, 3))
    stored.tofile(tmp_path / "file")
    part = Part(0, stored.shape, stored.dtype, index)
    values = np.zeros(part.shape, part.dtype)
    with (tmp_path / "file").open("rb", buffering=0) as file:
        for rows, piece in part.split(most):
            assert piece.nbytes <= most or piece.shape[0] == 1
            piece.read(file, values[rows])
    np.testing.assert_array_equal(values, stored[index])


@pytest.mark.parametrize("room", [0, 300, 1 << 20])
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_views_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, piece: int) -> None:
    monkeypatch.setattr(reading, "_PIECE", piece)
    save_file(STORED, tmp_path / "file.safetensors")
    file = SafetensorsFile(tmp_path / "file.safetensors")
    views = ViewCheckpoint(file, {name: view for name, (view, _) in CASES.items()})
    with Ahead(room, 2) as ahead:
        for index in ((), (slice(1, 3),)):
            begun = {name: views.begin(name, index, ahead) for name in CASES}
            for name, (_, whole) in CASES.items():
                np.testing.assert_array_equal(begun[name]().numpy(), whole[index], name)


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_single_file(tmp_path: Path, room: int) -> None:
    file = SingleFile(whole_file(tmp_path))
    for found in (file.transformer().checkpoint, file.vae().checkpoint):
        with Ahead(room, 2) as ahead:
            begun = {name: found.begin(name, (), ahead) for name in found.shapes()}
            for name, tensor in begun.items():
                np.testing.assert_array_equal(tensor().numpy(), found.read(name).numpy(), name)


def filled(tmp_path: Path, rank: int, mp: int) -> dict[str, np.ndarray]:
    """A model's parameters."""
    block = Block(rank, mp, "bfloat16")
    filling.fill(block, checkpoint(tmp_path, "bfloat16"), source)
    return {name: bits(parameter) for name, parameter in block.named_parameters()}


@pytest.mark.parametrize(("rank", "mp"), [(0, 1), (0, 2), (1, 2)])
def test_a_model_is_filled_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, mp: int) -> None:
    want = filled(tmp_path, rank, mp)
    monkeypatch.setattr(filling, "beside_device", lambda: Ahead(1000, 2))
    got = filled(tmp_path, rank, mp)
    assert want.keys() == got.keys()
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], values, name)
    assert threads() == []


@pytest.mark.parametrize("change", ["nan", "cut"])
def test_a_model_that_cannot_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    monkeypatch.setattr(filling, "beside_device", lambda: Ahead(1 << 20, 2))
    file = checkpoint(tmp_path)
    name, (path,) = "up.weight", tmp_path.iterdir()
    entry = file._entries[name]
    with path.open("r+b") as opened:
        if change == "nan":
            opened.seek(file._start + entry.stop - 4)
            opened.write(np.float32(np.nan).tobytes())
        else:
            opened.truncate(file._start + entry.start + 4)
    if change == "nan":
        file = SafetensorsFile(path)
    words = {"nan": f"{name}: NaN or infinity", "cut": r"cannot be read any more \(it has changed\)"}[change]
    with pytest.raises(CheckpointError, match=words):
        filling.fill(Block(0, 1, "float32"), file, source)
    assert threads() == []


def test_ranks_share_what_a_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = reading._room()
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "1000")
    assert 0 < reading._room() <= alone // 2 <= reading.ROOM // 2


def test_nothing_is_read_ahead_on_the_cpu(tmp_path: Path) -> None:
    nobody: AbstractContextManager[Ahead | None] = beside_device()
    with nobody as ahead:
        assert ahead is None
    file = checkpoint(tmp_path)
    tensor = file.begin(next(iter(SHAPES)))
    tmp_path.joinpath("block.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read any more"):
        tensor()


def test_bfloat16_and_scalars_keep_their_bits(tmp_path: Path) -> None:
    values = {"bf16": paddle.to_tensor(array("bits", (7, 3))).astype("bfloat16"), "scalar": paddle.to_tensor(3.5)}
    save_tensors(values, str(tmp_path / "file.safetensors"))
    file = SafetensorsFile(tmp_path / "file.safetensors")
    with Ahead(1 << 20, 2) as ahead:
        for name, begun in {name: file.begin(name, (), ahead) for name in values}.items():
            tensor = begun()
            assert tensor.dtype == values[name].dtype and tensor.shape == values[name].shape
            np.testing.assert_array_equal(bits(tensor), bits(values[name]))


def test_an_error_does_not_hold_the_memory() -> None:
    """Not even until Python looks for cycles, though its traceback is kept by nobody else."""

    def failed() -> weakref.ref[Ring]:
        with pytest.raises(CheckpointError), Ahead(4 * 1024, 1) as ahead:
            memory = weakref.ref(ahead._ring)
            FakeFile(broken=3).begin(ahead, 3)()
        return memory

    gc.collect()
    gc.disable()
    try:
        assert failed()() is None
    finally:
        gc.enable()
