"""The choice of cuBLASLt's algorithms on the dry device, whose second algorithm is the fastest of three."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.nvgpu.test_dry import output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first of them builds

PRODUCT = """
import paddle
paddle.set_device("nvgpu:0")
def product(rows, dtype="bfloat16", columns=1024, gelu="none"):
    x, y = paddle.zeros([rows, 1024], dtype=dtype), paddle.zeros([1024, columns], dtype=dtype)
    return paddle._C_ops.fused_gemm_epilogue(x, y, paddle.zeros([columns], dtype=dtype), False, False, gelu)[0]
"""
INTO = """
from sd3par import kernels
sizes = [3072, 1024], [1024, 1024], [1024], [3072, 1024]
x, weight, bias, out = (paddle.zeros(size, dtype="bfloat16") for size in sizes)
for gelu in (False, True):
    kernels.linear_into(kernels.Product(x[1024:], weight, bias), out[1024:], gelu)
"""
CAPTURED = """
from paddle.device.cuda.graphs import CUDAGraph
graph = CUDAGraph()
graph.capture_begin()
product(1024)
graph.capture_end()
product(1024)
"""
FASTEST = "|" + f"{2:016x}" + 7 * f"{0:016x}" + "|3 timed, first 1100.0 us, this 1000.0 us|"


def lines(file: Path) -> list[str]:
    """Returns the kept choices."""
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def test_the_fastest_is_kept_for_later_processes(dry_plugin: Path, tmp_path: Path) -> None:
    """Once per product: the second process finds all and writes nothing, the third times only what is new."""
    file = tmp_path / "new" / "gemm.txt"
    for _ in range(2):
        output(dry_plugin, PRODUCT + "product(1024); product(1024); product(2048)", NVGPU_TUNING=str(file))
        written = file.stat().st_ino  # a file that is written anew is another
    assert [FASTEST in line for line in lines(file)] == [True, True]
    output(dry_plugin, PRODUCT + "product(1024); product(2048)", NVGPU_TUNING=str(file))
    assert file.stat().st_ino == written
    output(dry_plugin, PRODUCT + "product(1024); product(4096)", NVGPU_TUNING=str(file))
    assert len(lines(file)) == 3
    assert sorted(path.name for path in file.parent.iterdir()) == ["gemm.txt", "gemm.txt.lock"]


def test_products_into_memory_that_is_there_are_those_of_operators(dry_plugin: Path, tmp_path: Path) -> None:
    """Their call of C goes through ctypes, which checks no arguments: sizes and GELU arrive as an operator's do."""
    kept = []
    for name, code in (("there", INTO), ("new", 'for gelu in ("none", "gelu"): product(2048, gelu=gelu)')):
        output(dry_plugin, PRODUCT + code, NVGPU_TUNING=str(tmp_path / name))
        kept.append([line.split("|")[0].split() for line in lines(tmp_path / name)])
    there, new = ([product[:-3] for product in products] for products in kept)  # without pitches
    assert there == new and there[0] != there[1]
    assert [product[-3:] for product in kept[0]] == 2 * [["1024"] * 3]


@pytest.mark.parametrize(
    "code", ["product(64)", "product(2048, 'float32')", CAPTURED, "product(2048, columns=0)"],
    ids=["small", "fp32", "captured first", "empty"],
)  # fmt: skip
def test_nothing_is_timed(dry_plugin: Path, tmp_path: Path, code: str) -> None:
    """What was first met in a capture keeps its algorithm, since a replay must equal the same step run eagerly."""
    output(dry_plugin, PRODUCT + code, NVGPU_TUNING=str(tmp_path / "gemm.txt"))
    assert list(tmp_path.iterdir()) == []


def test_off_is_off(dry_plugin: Path, tmp_path: Path) -> None:
    output(dry_plugin, PRODUCT + "product(2048)", NVGPU_TUNING="off", XDG_CACHE_HOME=str(tmp_path))
    assert not (tmp_path / "sd3par").exists()


def test_default_is_in_the_users_cache(dry_plugin: Path, tmp_path: Path) -> None:
    output(dry_plugin, PRODUCT + "product(2048)", NVGPU_TUNING="", XDG_CACHE_HOME=str(tmp_path))
    assert len(lines(tmp_path / "sd3par" / "gemm.txt")) == 1


@pytest.mark.parametrize("broken", ["cut", "changed", "unknown", "binary"])
def test_a_broken_line_is_passed_over(dry_plugin: Path, tmp_path: Path, broken: str) -> None:
    """Also one that is whole, but whose algorithm cuBLASLt refuses."""
    file = tmp_path / "gemm.txt"
    output(dry_plugin, PRODUCT + "product(1024); product(2048)", NVGPU_TUNING=str(file))
    kept, whole = lines(file)[0], file.read_bytes()
    other = {"cut": kept[:-30], "changed": kept.replace(f"{2:016x}", f"{3:016x}"), "binary": "\0|\xff|",
             "unknown": with_algorithm(kept, 9)}[broken]  # fmt: skip
    file.write_text(f"{other}\n{lines(file)[1]}\n", encoding="utf-8")
    output(dry_plugin, PRODUCT + "product(1024); product(2048)", NVGPU_TUNING=str(file))
    assert file.read_bytes() == whole


def with_algorithm(line: str, number: int) -> str:
    """Returns a line of the file, right in itself, with another algorithm; its checksum is FNV-1a of 64 bits."""
    text = f"{line.split('|')[0]}|{number:016x}{7 * f'{0:016x}'}|by hand"
    total = 14695981039346656037
    for byte in text.encode():
        total = (total ^ byte) * 1099511628211 % 2**64
    return f"{text}|{total:016x}"


def test_a_folder_that_cannot_be_written_is_no_error(dry_plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output(dry_plugin, PRODUCT + "product(2048)", NVGPU_TUNING=str(tmp_path / "file" / "gemm.txt"))


def test_one_process_times_and_the_others_take_it(dry_plugin: Path, tmp_path: Path) -> None:
    """While another holds the lock a process waits, and then takes what it finds."""
    file = tmp_path / "gemm.txt"
    output(dry_plugin, PRODUCT + "product(2048)", NVGPU_TUNING=str(file))
    found = with_algorithm(lines(file)[0], 3)
    file.unlink()
    environment = {**os.environ, "CUSTOM_DEVICE_ROOT": str(dry_plugin), "NVGPU_TUNING": str(file)}
    code = PRODUCT + "product(64); print('ready', flush=True); product(2048)"
    with open(f"{file}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as waiting:
            assert waiting.stdout is not None and waiting.stdout.readline() == b"ready\n"
            time.sleep(1)
            assert waiting.poll() is None and lines(file) == []
            file.write_text(found + "\n", encoding="utf-8")
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert waiting.wait(timeout=60) == 0
    assert lines(file) == [found]


def test_a_process_that_hangs_is_not_waited_for(dry_plugin: Path, tmp_path: Path) -> None:
    file, start = tmp_path / "gemm.txt", time.monotonic()
    with open(f"{file}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output(dry_plugin, PRODUCT + "product(4096)", NVGPU_TUNING=str(file))
    assert not file.exists()
    assert 10 < time.monotonic() - start < 60
