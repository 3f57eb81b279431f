"""An export's folder: whole or not there, and what a process that was killed left is taken away."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sd3par.errors import ConfigError
from sd3par.static.folder import appearing
from tests.ranks import ROOT

WRITER = """
import sys, time
from pathlib import Path
from sd3par.static.folder import appearing
with appearing(Path(sys.argv[1])) as folder:
    (folder / "part").write_text("some")
    print(folder, flush=True)
    time.sleep(60)
"""


def writer(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """Starts a process that writes a folder and does not come to its end; returns it and where it writes."""
    command = [sys.executable, "-W", "ignore", "-c", WRITER, str(place)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_whole(tmp_path: Path) -> None:
    with appearing(tmp_path / "deep" / "x") as folder:
        (folder / "part").write_text("some")
        assert names(tmp_path / "deep") == [folder.name] != ["x"]
    assert names(tmp_path / "deep") == ["x"] and names(tmp_path / "deep" / "x") == ["part"]
    assert (tmp_path / "deep" / "x").stat().st_mode == (tmp_path / "deep").stat().st_mode


def test_nothing_stays_of_one_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError), appearing(tmp_path / "x") as folder:
        (folder / "part").write_text("some")
        raise ValueError
    assert names(tmp_path) == []


def test_what_a_killed_one_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another one that is at work keeps its own, and so does a place whose name begins alike."""
    lost, left = writer(tmp_path / "x")
    busy, kept = writer(tmp_path / "x")
    other, beside = writer(tmp_path / "x-y")
    for process in (lost, other):
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    (tmp_path / ".x-notes").mkdir()
    try:
        with caplog.at_level(logging.WARNING, "sd3par"), appearing(tmp_path / "x"):
            assert not left.exists() and kept.is_dir() and beside.is_dir()
        assert [record.getMessage() for record in caplog.records] == [
            f"removed {left}, which an export that was killed left"
        ]
    finally:
        busy.kill()
        busy.wait(10)
    assert names(tmp_path) == sorted([".x-notes", kept.name, beside.name, "x"])


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere")])
def test_a_place_that_is_taken(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "x")
    with pytest.raises(ConfigError, match="a folder that does not exist yet"), appearing(tmp_path / "x"):
        pass
    assert names(tmp_path) == ["x"]


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "x", tmp_path / ("x" * 250), tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=r"a folder that can be made \(\w"), appearing(place):
            pass
    assert names(tmp_path) == ["file"]
