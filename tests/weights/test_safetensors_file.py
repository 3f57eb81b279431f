"""One file: what is refused, and that a slice is read exactly and alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.paddle import save_file

from sd3par.errors import CheckpointError
from sd3par.weights import file_part
from sd3par.weights.safetensors_file import HEADER_LIMIT, SafetensorsFile
from tests.arrays import array
from tests.weights import malformed

ROOT = Path(__file__).resolve().parents[2]
INDICES = [(), (slice(3, 6),), (slice(None), slice(2, 5)), (slice(1, 9), slice(0, 3)), (slice(4, 4),)]


@pytest.mark.parametrize("name", malformed.CASES)
def test_malformed_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    data, words = malformed.CASES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    start = time.monotonic()
    with pytest.raises(CheckpointError) as error:
        SafetensorsFile(path)
    text = str(error.value)
    assert time.monotonic() - start < 2
    assert text.startswith(f"{path}: ") and words in text and text.isprintable() and len(text) < 800


def test_malformed_table_is_not_refused_for_another_reason(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(malformed.file({"a": malformed.tensor([2], 0, 8)}, np.float32([1, 2]).tobytes()))
    assert SafetensorsFile(path).read("a").tolist() == [1.0, 2.0]


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "broken link"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    {
        "missing": lambda: None,
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "broken link": lambda: path.symlink_to(tmp_path / "nowhere"),
    }[kind]()
    with pytest.raises(CheckpointError, match="not a file|no such file"):
        SafetensorsFile(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch(mode=0o000)
    with pytest.raises(CheckpointError, match="cannot be read"):
        SafetensorsFile(path)


def test_malformed_files_cost_no_memory(tmp_path: Path) -> None:
    padded = malformed.file(b'{"a":[' + b"[]," * 5_500_000 + b"[]]}")  # just under HEADER_LIMIT
    assert HEADER_LIMIT - 400_000 < len(padded) < HEADER_LIMIT
    for i, data in enumerate((padded, malformed.CASES["header over 100 MB"][0] + bytes(malformed.HEADER_TOO_LARGE))):
        (tmp_path / f"{i}.safetensors").write_bytes(data)
    code = """
import sys, resource
from pathlib import Path
from sd3par.errors import CheckpointError
from sd3par.weights.safetensors_file import SafetensorsFile
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in Path(sys.argv[1]).iterdir():
    try:
        SafetensorsFile(path)
    except CheckpointError:
        continue
    raise SystemExit(f"{path} was taken")
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
raise SystemExit(0 if grown < 50 else f"{grown} MB")
"""
    run(code, tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_slices_are_exact(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "model.safetensors"
    stored = paddle.to_tensor(array("slices", (12, 6))).astype(dtype)
    save_file({"a.weight": paddle.ones([3]).astype("float16"), "b.weight": stored}, str(path))  # b is not aligned
    file = SafetensorsFile(path)
    assert file.shapes() == {"a.weight": (3,), "b.weight": (12, 6)}
    for index in INDICES:
        read = file.read("b.weight", index)
        assert read.dtype == stored.dtype and read.place.is_cpu_place()
        want = stored[index] if index else stored
        np.testing.assert_array_equal(read.astype("float64").numpy(), want.astype("float64").numpy())


@pytest.mark.parametrize("block", [1, 4, 100, 1 << 20])  # innermost axes one by one, rows, blocks of rows, all at once
def test_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(file_part, "BLOCK", block)
    path = tmp_path / "model.safetensors"
    stored = array("blocks", (7, 5, 3))
    save_file({"a": paddle.to_tensor(stored)}, str(path))
    file = SafetensorsFile(path)
    for index in ((slice(1, 6), slice(2, 4)), (slice(None), slice(None), slice(1, 2)), (slice(2, 2), slice(0, 1)), ()):
        np.testing.assert_array_equal(file.read("a", index).numpy(), stored[index])


@pytest.mark.parametrize("index", [(), (slice(None), slice(0, 2))])
def test_a_file_that_changes_after_opening(tmp_path: Path, index: tuple[slice, ...]) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": paddle.ones([300, 4])}, str(path))
    file = SafetensorsFile(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(CheckpointError, match=r"a: cannot be read any more \(it has changed\)"):
        file.read("a", index)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"a: cannot be read any more \(No such file or directory\)"):
        file.read("a", index)


def test_a_file_that_ends_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(100))
    for index in ((), (slice(None), slice(0, 2))):
        part = file_part.Part(10, (20, 5), np.dtype(np.uint8), index)
        with path.open("rb", buffering=0) as file, pytest.raises(EOFError):
            part.read(file, np.empty(part.shape, part.dtype))


def test_no_file_stays_open_and_the_folder_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": paddle.ones([8, 4])}, str(tmp_path / "model.safetensors"))
    monkeypatch.chdir(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    file = SafetensorsFile(Path("model.safetensors"))
    monkeypatch.chdir("/")
    assert file.read("a", (slice(None), slice(0, 2))).shape == [8, 2]
    assert len(os.listdir("/proc/self/fd")) == before
    assert "model.safetensors" not in Path("/proc/self/maps").read_text()


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"scalar": paddle.to_tensor(3.5), "empty": paddle.zeros([0, 4])}, str(path))
    assert SafetensorsFile(path).read("scalar").item() == 3.5
    assert SafetensorsFile(path).read("empty").shape == [0, 4]


def test_what_was_read_is_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": paddle.ones([4])}, str(path))
    file = SafetensorsFile(path)
    file.read("a").add_(paddle.ones([4]))
    assert file.read("a").tolist() == [1.0] * 4


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_where_they_are_read(tmp_path: Path, dtype: str, value: float) -> None:
    path = tmp_path / "model.safetensors"
    values = paddle.ones([8, 3])
    values[7, 2] = value
    save_file({"a.weight": values.astype(dtype)}, str(path))
    file = SafetensorsFile(path)
    assert file.read("a.weight", (slice(0, 7),)).shape == [7, 3]
    with pytest.raises(CheckpointError, match=r"model\.safetensors: a\.weight: NaN or infinity"):
        file.read("a.weight")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_fp8_is_refused(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(malformed.file({"a.weight": malformed.tensor([8], 0, 8, dtype)}, bytes(8)))
    file = SafetensorsFile(path)
    for attempt in (lambda: file.read("a.weight"), lambda: file.check_fp8(["a.weight"])):
        with pytest.raises(CheckpointError, match=r"a\.weight: fp8 files are not supported"):
            attempt()


def test_integers_stand_there_but_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"position_ids": paddle.arange(4)}, str(path))
    file = SafetensorsFile(path)
    assert file.shapes() == {"position_ids": (4,)}
    with pytest.raises(CheckpointError, match="position_ids: dtype I64"):
        file.read("position_ids")
    with pytest.raises(CheckpointError, match="other: missing"):
        file.read("other")


def test_a_quarter_costs_a_quarter_of_the_memory(tmp_path: Path) -> None:
    rows, columns = 5120, 10240  # 200 MiB in fp32
    header = malformed.file({"a": malformed.tensor([rows, columns], 0, 4 * rows * columns)})
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 4 * rows * columns)  # sparse: zeros without a disk
    code = """
import sys
from pathlib import Path
from sd3par.weights.safetensors_file import SafetensorsFile

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

file = SafetensorsFile(Path(sys.argv[1]) / "model.safetensors")
file.read("a", (slice(0, 1),))
for index in ((slice(1280, 2560),), (slice(None), slice(2560, 5120))):
    before = anonymous()
    part = file.read("a", index)
    grown = anonymous() - before
    if not 45 < grown < 60:
        raise SystemExit(f"{index}: {grown} MB for a part of 50 MB")
    del part
"""
    run(code, tmp_path)


def run(code: str, folder: Path) -> None:
    """Runs `code` in a process of its own, `folder` its argument."""
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_damaged_file_gives_tensors_or_a_checkpoint_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {"a": malformed.tensor([2, 3], 0, 24), "b": malformed.tensor([4], 24, 32, "BF16")}
    whole = malformed.file({"__metadata__": {"format": "pt"}, **header}, np.ones(8, np.float32).tobytes())
    random, refused = np.random.RandomState(0), 0
    for _ in range(500):
        data = bytearray(whole)
        for at in random.randint(0, len(data), random.randint(1, 4)):
            data[at] = random.randint(256)
        path.write_bytes(data[: random.randint(1, 2 * len(data))])
        try:
            file = SafetensorsFile(path)
            for name in file.shapes():
                file.read(name, (slice(0, 1),) if file.shapes()[name] else ())
        except CheckpointError as error:
            assert str(error).isprintable()
            refused += 1
    assert 100 < refused < 500
