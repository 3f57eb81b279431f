"""PNG files: whole or not at all, and never over another file unasked."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from sd3par.config import require
from sd3par.errors import ConfigError
from sd3par.images.metadata import ImageMetadata

FIELD = "output"


def check_writable(path: str | os.PathLike[str], overwrite: bool, *others: str | os.PathLike[str]) -> None:
    """Checks, before any work is done, that `save_png` will be able to write `path`; leaves nothing behind.

    Args:
        others: more names in the same folder.

    Raises:
        ConfigError: not a .png name, no such folder, a folder that cannot be written, or an existing file that may not
            be replaced.
    """
    target = Path(path)
    require(target.suffix.lower() == ".png", FIELD, str(path), "a file name that ends in .png")
    with _as_config_error(path):
        require(target.parent.is_dir(), FIELD, str(path), "a file in a folder that exists")
        for one in (target, *others):
            _check_existing(Path(one), overwrite)
        part, file = _create_part(target)
        file.close()
        part.unlink()


def save_png(
    path: str | os.PathLike[str], image: np.ndarray | Image.Image, metadata: ImageMetadata | None, overwrite: bool
) -> None:
    """Writes a PNG file; whoever reads `path` meanwhile sees the old file, none, or the whole new one.

    Args:
        image: [H, W, 3] uint8, or a Pillow picture.
        metadata: what to write into the file; None for nothing.
        overwrite: whether an existing file is replaced.

    Raises:
        ConfigError: as `check_writable`, or the disk is full.
    """
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    chunks = metadata.to_png() if metadata else None
    _write_whole(path, overwrite, lambda file: picture.save(file, format="PNG", pnginfo=chunks))


def _write_whole(path: str | os.PathLike[str], overwrite: bool, write: Callable[[BinaryIO], None]) -> None:
    """Writes into a file beside `path`, then gives it the name."""
    check_writable(path, overwrite)
    target = Path(path)
    with _as_config_error(path):
        part, file = _create_part(target)
        try:
            with file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            _publish(part, target, overwrite)
        finally:
            part.unlink(missing_ok=True)


def _create_part(target: Path) -> tuple[Path, BinaryIO]:
    """Returns a new hidden file beside `target`, with the permissions that any new file gets."""
    part = target.parent / f".{secrets.token_hex(8)}.part"
    return part, open(part, "xb")


def _publish(part: Path, target: Path, overwrite: bool) -> None:
    """Gives `part` the name `target`; without `overwrite` a file that appeared meanwhile stays as it is."""
    if overwrite:
        part.replace(target)
        return
    try:
        target.hardlink_to(part)  # unlike a rename, fails where the name is taken
    except FileExistsError:
        _check_existing(target, overwrite)
    except OSError:  # a file system without links
        _check_existing(target, overwrite)
        part.replace(target)


def _check_existing(target: Path, overwrite: bool) -> None:
    """Refuses an existing `target`, unless it is a file that may be replaced."""
    try:
        target.lstat()
    except FileNotFoundError:
        return
    require(overwrite, FIELD, str(target), "a new file, or --overwrite: this one exists")
    require(target.is_file(), FIELD, str(target), "a file; this is none")


@contextmanager
def _as_config_error(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the file system says into one line."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(FIELD, str(path), f"a file that can be written ({reason})") from None
