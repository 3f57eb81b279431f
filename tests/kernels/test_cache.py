"""Processes that start together compile each kernel once, and none waits for one that is gone."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sd3par.kernels import cache
from sd3par.kernels.cache import FileLock
from tests.kernels.test_kernels import needs_triton


@contextlib.contextmanager
def compiling(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Yields a process that is about to compile, in the cache `folder`."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile_one", *arguments]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def go(process: subprocess.Popen[str]) -> None:
    """Lets it compile."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Returns what a process says at its end."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


@needs_triton
@pytest.mark.timeout(240)
def test_four_at_once_compile_once(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(compiling(tmp_path)) for _ in range(4)]
        for process in processes:
            go(process)
        reports = [told(process) for process in processes]
    assert sorted(made for report in reports for made in report["made"]) == ["kernel", "module"]
    assert len({report["cubin"] for report in reports}) == 1 and reports[0]["cubin"] > 0


@needs_triton
@pytest.mark.timeout(240)
def test_a_process_that_is_killed_while_it_compiles_holds_up_nobody(tmp_path: Path) -> None:
    with compiling(tmp_path, "HOLD") as holder, compiling(tmp_path) as other:
        go(holder)
        assert holder.stdout is not None and holder.stdout.readline() == "compiling\n"
        go(other)
        time.sleep(1)
        assert other.poll() is None
        holder.kill()
        assert told(other)["made"] == ["kernel", "module"]


@needs_triton
def test_a_compilation_that_hangs_or_fails_is_waited_for_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache, "WAIT_S", 0.2)
    manager = cache.shared_cache()
    first, second = manager("key"), manager("key")
    assert first.get_file("x.so") is None
    assert second.get_file("x.so") is None and not second._lock.held  # after WAIT_S
    assert second.get_group("x.json") is None
    del first
    third = manager("key")
    assert third.get_file("x.so") is None and third._lock.held
    path = third.put(b"so", "x.so")
    assert not third._lock.held and manager("key").get_file("x.so") == path


@needs_triton
def test_a_kernel_is_there_when_its_last_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    manager = cache.shared_cache()
    first = manager("key")
    assert first.get_group("x.json") is None
    group = {name: first.put("text", name) for name in ("x.cubin", "x.json")}
    assert first._lock.held
    first.put_group("x.json", group)
    assert not first._lock.held and manager("key").get_group("x.json") == group


def test_a_lock_is_one_processs(tmp_path: Path) -> None:
    one, other = FileLock(str(tmp_path / "lock")), FileLock(str(tmp_path / "lock"))
    assert one.try_acquire() and one.held
    assert not other.try_acquire() and not other.held
    one.release()
    assert other.try_acquire() and other.held
    nowhere = FileLock(str(tmp_path / "none" / "lock"))
    assert nowhere.try_acquire() and not nowhere.held
