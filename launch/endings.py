"""How a command ends: one line on stderr that says why, and an exit code."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sd3par.errors import (
    Cancelled,
    CheckpointError,
    ConfigError,
    RankFailure,
    Sd3parError,
    describe,
    is_out_of_memory,
    shorten,
)
from sd3par.launch.environment import USELESS_WARNINGS

DONE, INTERNAL, REFUSED, RANK_FAILURE, INTERRUPTED, TERMINATED = 0, 1, 2, 75, 130, 143
# Paddle's launcher sends SIGTERM to all because one rank is lost; the watchdog says which one within that time.
_NEWS_S = 1.0


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@dataclass(frozen=True)
class Place:
    """Which process of how many this is. run_dir: where `sd3par generate` wants to read how each of them ended."""

    rank: int = 0
    world: int = 1
    run_dir: Path | None = None

    @classmethod
    def here(cls, run_dir: str | None = None) -> Place:
        """Returns the place that Paddle's launcher gave this process."""
        rank, world = (os.environ.get(name, default) for name, default in _LAUNCHER.items())
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise ConfigError(", ".join(_LAUNCHER), f"{rank}, {world}", "what Paddle's launcher sets")
        return cls(int(rank), int(world), None if run_dir is None else Path(run_dir))

    def say(self, text: str) -> None:
        """Writes an error line to stderr."""
        prefix = f"[rank {self.rank}] " if self.rank else ""
        _write(f"sd3par: error: {prefix}{text}\n")

    @contextmanager
    def door(self) -> Iterator[None]:
        """Within it every rank makes the same checks, so that rank 0 alone says what is wrong."""
        try:
            yield
        except (ConfigError, CheckpointError):
            if self.rank == 0:
                raise
            raise SystemExit(REFUSED) from None

    def show(self, text: str) -> None:
        """Writes the report to stdout, or where `sd3par generate` reads it."""
        if self.run_dir is None:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        else:
            (self.run_dir / "report.txt").write_text(text, encoding="utf-8")

    def end(self, code: int, reason: str) -> int:
        """Says why this process ends, to the user or to `sd3par generate`; returns `code`."""
        if self.run_dir is None:
            self.say(reason)
        else:
            ending = json.dumps({"rank": self.rank, "code": code, "reason": reason})
            whole = self.run_dir / f"ending.{self.rank}.json"
            part = whole.with_suffix(".part")  # who reads while this process writes, or is killed, finds all or nothing
            part.write_text(ending, encoding="ascii")
            part.replace(whole)
        return code


_LAUNCHER = {"PADDLE_TRAINER_ID": "0", "PADDLE_TRAINERS_NUM": "1"}


def run(command: Callable[[], int], place: Place, debug: bool = False) -> int:
    """Returns the exit code of `command`; an error becomes one line."""
    for message in USELESS_WARNINGS:
        warnings.filterwarnings("ignore", message)
    _open_streams()
    try:
        return command()
    except SystemExit as error:  # --help
        return error.code if isinstance(error.code, int) else DONE
    except BrokenPipeError:  # sd3par show FILE | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERNAL
    except BaseException as error:
        code = code_of(error)
        if debug or (place.rank > 0 and code == INTERNAL):  # into this rank's own log
            traceback.print_exc()
        return place.end(code, reason_of(error, debug))


def _open_streams() -> None:
    """Opens those of stdin, stdout and stderr that are closed: the next file would take their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def code_of(error: BaseException) -> int:
    """Returns the exit code for an error."""
    if isinstance(error, Terminated):
        return TERMINATED
    if isinstance(error, (KeyboardInterrupt, Cancelled)):
        return INTERRUPTED
    if isinstance(error, (ConfigError, CheckpointError)):
        return REFUSED
    return RANK_FAILURE if isinstance(error, RankFailure) else INTERNAL


def reason_of(error: BaseException, debug: bool = False) -> str:
    """Returns an error as one line."""
    if isinstance(error, (KeyboardInterrupt, Cancelled)):
        return str(error) or "interrupted"
    if isinstance(error, Sd3parError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        return f"{shorten(str(error.filename))}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"what is printed cannot be written: {error.strerror}"
    text = describe(error)
    if is_out_of_memory(error):
        return f"out of memory: smaller pictures, a larger --mp_size, or --no_t5 need less ({text})"
    return f"internal error: {text}" + ("" if debug else "; --debug shows the traceback")


class _Lines(logging.Handler):
    """What the library logs, as lines of this command; a critical line is the watchdog's last."""

    def __init__(self, place: Place) -> None:
        super().__init__(logging.WARNING)
        self._place = place

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        if record.levelno >= logging.CRITICAL:
            self._place.end(RANK_FAILURE, record.getMessage())
        else:
            _write(f"sd3par: {record.levelname.lower()}: {record.getMessage()}\n")


def prepare(place: Place) -> None:
    """Sets up logging and signals of a process that renders; call it after Paddle was imported."""
    logger = logging.getLogger("sd3par")
    logger.handlers, logger.propagate = [_Lines(place)], False
    # Before its import Paddle's own handler would take the place of this one, and write a C++ stack.
    signal.signal(signal.SIGTERM, _on_sigterm if place.world > 1 else _on_sigterm_alone)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    time.sleep(_NEWS_S)
    raise Terminated("terminated by SIGTERM")


def _on_sigterm_alone(number: int, frame: FrameType | None) -> None:
    raise Terminated("terminated by SIGTERM")


def _write(line: str) -> None:
    """Writes a line to stderr, below a progress bar that stands there."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)  # not imported here: `doctor` runs without it, too
    try:
        sys.stderr.write(f"\n{line}" if getattr(bars, "_instances", None) else line)
        sys.stderr.flush()
    except (OSError, ValueError):  # stderr is closed; the exit code says enough
        pass
