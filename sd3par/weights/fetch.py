"""Files that will be read: the system reads them from the disk while Paddle is imported. Nothing here needs Paddle.

A checkpoint that lies in the system's memory already costs 0.02 s a GB so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from sd3par.errors import CheckpointError
from sd3par.weights.choice import DIFFUSERS_STEM, TRANSFORMERS_STEM, choose, weight_map
from sd3par.weights.manifest import BLOCK, THREADS

_STEMS = {
    "transformer": DIFFUSERS_STEM, "vae": DIFFUSERS_STEM, "text_encoder": TRANSFORMERS_STEM,
    "text_encoder_2": TRANSFORMERS_STEM, "text_encoder_3": TRANSFORMERS_STEM,
}  # fmt: skip
_SHARE = 4  # what is fetched is at most one part of so many of the machine's memory: other pages have to go for it


def fetch(file: IO[bytes], start: int, stop: int) -> None:
    """Has the system read bytes [start, stop) of a file that are not in its memory; nothing is copied.

    `posix_fadvise` reads no more a call than the disk reads ahead, 128 KiB to 8 MiB.

    Raises:
        OSError: the file cannot be read so.
    """
    with open(os.devnull, "wb", buffering=0) as nowhere:
        while start < stop and (count := os.sendfile(nowhere.fileno(), file.fileno(), start, stop - start)):
            start += count


def weights_of(model: str, text_encoder_3: bool = True) -> list[Path]:
    """Returns the files of a checkpoint's weights, in the order in which they are loaded.

    None where it is no checkpoint, or something is wrong with it: who opens it says what.
    """
    names = [name for name in _STEMS if text_encoder_3 or name != "text_encoder_3"]
    try:
        place = Path(os.path.expanduser(model))
        if place.is_file():
            return [place]
        return [file for name in names if (place / name).is_dir() for file in _files(place / name, _STEMS[name])]
    except (OSError, CheckpointError, ValueError):  # what no path can be, too
        return []


def _files(folder: Path, stem: str) -> list[Path]:
    choice = choose(folder, stem)
    return [folder / name for name in sorted({*weight_map(choice.path).values()})] if choice.is_index else [choice.path]


@contextlib.contextmanager
def fetched(paths: Sequence[Path], rank: int = 0, world: int = 1) -> Iterator[None]:
    """Within it threads fetch files, block by block, in their order; ranks of a world share the blocks.

    What cannot be fetched is left to who reads it.
    """
    with contextlib.ExitStack() as ends:
        blocks = [*_blocks(paths, ends)][rank::world]
        pool = ThreadPoolExecutor(THREADS, "sd3par-fetch")
        ends.callback(pool.shutdown, cancel_futures=True)  # and then the files are closed
        for file, at in blocks:
            pool.submit(fetch, file, at, at + BLOCK)
        yield


def _blocks(paths: Sequence[Path], ends: contextlib.ExitStack) -> Iterator[tuple[IO[bytes], int]]:
    """Yields the blocks of files that there is room for; `ends` closes them."""
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _SHARE
    with contextlib.suppress(OSError):
        for path in paths:
            file = ends.enter_context(path.open("rb"))
            for at in range(0, min(os.fstat(file.fileno()).st_size, room), BLOCK):
                room -= BLOCK
                yield file, at
