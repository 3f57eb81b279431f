"""A folder that appears when all of it is written, and what becomes of those that never were."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sd3par.config import require
from sd3par.errors import ConfigError

log = logging.getLogger(__name__)
SUFFIX = ".exporting"


@contextmanager
def appearing(place: Path) -> Iterator[Path]:
    """Yields a new folder beside `place`, which becomes `place` if nothing goes wrong.

    A process that is killed leaves that folder; who next writes to the same place takes it away.

    Raises:
        ConfigError: there is something at that place, or it cannot be written.
    """
    require(not os.path.lexists(place), "out", str(place), "a folder that does not exist yet")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        temporary, held = _begin(place)
    except OSError as error:
        raise ConfigError("out", str(place), f"a folder that can be made ({error.strerror})") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        os.rename(temporary, place)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):  # no room, or another export was there first
            raise ConfigError("out", str(place), f"a folder that can be written ({error.strerror})") from None
        raise
    finally:
        os.close(held)


def _begin(place: Path) -> tuple[Path, int]:
    """Returns a new folder and what holds it while this process lives; it gets its name when it is held already."""
    made = Path(tempfile.mkdtemp(prefix=".", dir=place.parent))
    held = os.open(made, os.O_RDONLY)
    _hold(held)
    temporary = made.with_name(f".{place.name}-{made.name[1:]}{SUFFIX}")
    try:
        made.rename(temporary)
    except OSError:
        made.rmdir()
        os.close(held)
        raise
    return temporary, held


def _sweep(place: Path) -> None:
    """Removes what exports to this place left that were killed: their folders are held by nobody."""
    name = re.compile(rf"\.{re.escape(place.name)}-\w+{re.escape(SUFFIX)}")
    for folder in sorted(path for path in place.parent.iterdir() if name.fullmatch(path.name)):
        with suppress(OSError):  # it was removed by another one, or cannot be
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _hold(held):
                    shutil.rmtree(folder)
                    log.warning("removed %s, which an export that was killed left", folder)
            finally:
                os.close(held)


def _hold(folder: int) -> bool:
    """Returns whether this process holds an open folder now; False too where a file system has no such locks."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _umask() -> int:
    """Returns what this user's new folders do not allow; a temporary one allows less."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
