"""What tests of commands share."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An own current folder; puts back what a command changes in its process."""
    monkeypatch.chdir(tmp_path)
    logger, handler = logging.getLogger("sd3par"), signal.getsignal(signal.SIGTERM)
    before = logger.handlers, logger.propagate
    yield tmp_path
    logger.handlers, logger.propagate = before
    signal.signal(signal.SIGTERM, handler)
