"""The library of operators in this process: one, whichever file it came from first; kernels of any number of files."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t
from pathlib import Path

from sd3par import cuda_driver, device
from sd3par.config import require
from sd3par.errors import ConfigError

_TEXT = 2048  # bytes of a message
_loaded: list[ctypes.CDLL] = []


def registered() -> bool:
    """Returns whether operators are registered already."""
    return bool(_loaded)


def register(file: Path) -> None:
    """Registers the library's operators with Paddle, unless those of another copy are already."""
    if _loaded:
        return
    from paddle.utils.cpp_extension import load_op_meta_info_and_register_op

    load_op_meta_info_and_register_op(str(file.absolute()))
    _loaded.append(ctypes.CDLL(str(file.absolute())))


def open_kernels(file: Path) -> None:
    """Lets operators find the kernels in a file.

    Raises:
        ConfigError: it is not such a file, or of another version.
    """
    _call("sd3par_open_kernels", c_char_p(str(file.absolute()).encode()))


def check_device() -> None:
    """Refuses the current device, if it is a GPU, where none of the kernels were compiled for its architecture."""
    if device.current().split(":")[0] == "cpu":
        return
    major, minor = cuda_driver.capability(int(device.current().split(":")[1]))
    has = c_int()
    _call("sd3par_has_kernels", c_int(10 * major + minor), byref(has))
    require(bool(has.value), "GPU", f"sm_{major}{minor}", "an architecture that the export has kernels for")


def tell_peers(rank: int, size: int, flags: int, targets: int) -> None:
    """Tells operators of the ranks that store to each other's memory; addresses of their meeting's tensors, 0: none."""
    _loaded[0].sd3par_peers(*map(ctypes.c_int64, (rank, size, flags, targets)))


def tell_pool(which: int, bases: tuple[int, ...], room: int) -> None:
    """Tells operators where all ranks have a pool of shared memory, `room` numbers each; which: as in src/peers.h."""
    _loaded[0].sd3par_peer_pool(c_int(which), (ctypes.c_int64 * len(bases))(*bases), ctypes.c_int64(room))


def planned(tiles: int, blocks: int, programs: int) -> tuple[int, int, int, int]:
    """Returns attention's plan as the library makes it, and how many programs have something to do."""
    found = (ctypes.c_int64 * 4)()
    _loaded[0].sd3par_planned(*map(ctypes.c_int64, (tiles, blocks, programs)), found)
    return tuple(found)  # type: ignore[return-value]


def tiles(streams: list[list[tuple[int, int, int]]], terms: int, columns: int, programs: int) -> list[int]:
    """Returns the numbers of the table of tiles as the library makes it, for products [M, terms] x [terms, columns].

    streams: of each product its rectangles of whole rows: first row, rows, and where they go.
    """
    room = 1 << 20
    numbers = [number for stream in streams for rectangle in stream for number in rectangle]
    found, given = (ctypes.c_int64 * room)(), (ctypes.c_int64 * len(numbers))(*numbers)
    counts = (ctypes.c_int64 * len(streams))(*map(len, streams))
    sizes = map(ctypes.c_int64, (len(streams), terms, columns, programs))
    _loaded[0].sd3par_tiles.restype = ctypes.c_int64
    return list(found[: _loaded[0].sd3par_tiles(given, counts, *sizes, found, ctypes.c_int64(room))])


def _call(name: str, *arguments: object) -> None:
    why = ctypes.create_string_buffer(_TEXT)
    if getattr(_loaded[0], name)(*arguments, why, c_size_t(_TEXT)) != 0:
        text = why.value.decode(errors="replace").rsplit("sd3par operators: ", 1)[-1]
        raise ConfigError("export", text, "kernels that its own library can read")
