"""Errors become one line and a code; what the library logs becomes lines too."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sd3par.errors import Cancelled, CheckpointError, ConfigError, RankFailure, Sd3parError
from sd3par.launch import endings
from sd3par.launch.endings import Place, Terminated
from sd3par.watchdog import EXIT_CODE
from tests.ranks import ROOT


def ends(error: BaseException) -> int:
    def fails() -> int:
        raise error

    return endings.run(fails, Place())


@pytest.mark.parametrize("error, code, line", [
    (ConfigError("seed", -1, "0 or more"), 2, "seed: got -1; allowed: 0 or more"),
    (CheckpointError("a.safetensors", "truncated", "all of it"), 2, "a.safetensors: truncated; allowed: all of it"),
    (RankFailure("rank 1 is gone"), 75, "rank 1 is gone"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (Cancelled(), 130, "interrupted"),
    (Terminated("terminated by SIGTERM"), 143, "terminated by SIGTERM"),
    (Sd3parError("two\nlines"), 1, "two lines"),
    (FileNotFoundError(2, "No such file or directory", "a\nb"), 1, "a\\nb: No such file or directory"),
    (OSError(28, "No space left on device", "a.png"), 1, "a.png: No space left on device"),
    (OSError(28, "No space left on device"), 1, "what is printed cannot be written: No space left on device"),
    (ValueError("one\ntwo"), 1, "internal error: ValueError: one; --debug shows the traceback"),
    (MemoryError(), 1, "out of memory: smaller pictures, a larger --mp_size, or --no_t5 need less (MemoryError)"),
    (RuntimeError("\n\nResourceExhaustedError: \n\nno more"), 1,
     "out of memory: smaller pictures, a larger --mp_size, or --no_t5 need less (ResourceExhaustedError: no more)"),
])  # fmt: skip
def test_error(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(error) == code
    assert capsys.readouterr() == ("", f"sd3par: error: {line}\n")


def test_code_of_the_watchdog() -> None:
    assert endings.RANK_FAILURE == EXIT_CODE


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> int:
        raise ValueError("here")

    assert endings.run(fails, Place(), debug=True) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "in fails" in err
    assert err.endswith("sd3par: error: internal error: ValueError: here\n")


def test_ending_of_a_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Place(2, 4).end(75, "reason") == 75
    assert capsys.readouterr().err == "sd3par: error: [rank 2] reason\n"
    assert Place(2, 4, tmp_path).end(75, "grün\n") == 75
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["ending.2.json"]
    assert json.loads((tmp_path / "ending.2.json").read_text()) == {"rank": 2, "code": 75, "reason": "grün\n"}


@pytest.fixture
def prepared() -> Iterator[None]:
    """Puts back what `prepare` changes in this process."""
    logger, handler = logging.getLogger("sd3par"), signal.getsignal(signal.SIGTERM)
    before = logger.handlers, logger.propagate
    yield
    logger.handlers, logger.propagate = before
    signal.signal(signal.SIGTERM, handler)


def test_logging(prepared: None, capsys: pytest.CaptureFixture[str]) -> None:
    endings.prepare(Place(1, 2))
    logging.getLogger("sd3par.weights").info("not shown")
    logging.getLogger("sd3par.weights").warning("a warning")
    logging.getLogger("sd3par.watchdog").critical("rank 0 is gone")
    assert capsys.readouterr().err == "sd3par: warning: a warning\nsd3par: error: [rank 1] rank 0 is gone\n"


def test_error_stands_below_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    with tqdm(total=2):
        Place().say("reason")
    assert "\nsd3par: error: reason\n" in capsys.readouterr().err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, tmp_path: Path) -> None:
    command = f"exec {sys.executable} -W ignore -m sd3par generate x --num_inference_steps 1 --output {tmp_path}/a.png"
    assert subprocess.run(["bash", "-c", f"{command} {closed}"], cwd=ROOT, timeout=60).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_closed_pipe() -> None:
    command = f"{sys.executable} -m sd3par --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
