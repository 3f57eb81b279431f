"""Kernels inside static programs: operators of Paddle in C++ that launch what Triton compiled ahead of time.

While a program is traced (`tracing`), kernels/__init__.py writes these operators into it. `write_operators` puts beside
it what runs them: one library, and one file of compiled kernels. Neither needs Python, Triton or a compiler. A program
finds the kernels beside the library, so Paddle's own `load_op_meta_info_and_register_op` is all that it needs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sd3par.config import ModelConfig, require
from sd3par.kernels.static import build, library, stand_ins
from sd3par.kernels.static.build import triton_version
from sd3par.kernels.static.stand_ins import Maps
from sd3par.kernels.tracing import Target, targeted

__all__ = [
    "ARCHITECTURES", "Maps", "load_operators", "tracing", "triton_version",
    "write_operators",
]  # fmt: skip
ARCHITECTURES = (80, 90, 100)  # compute capabilities that Triton compiles for: 8.0 and later 8.x, 9.0, 10.0
_HALF = ("bfloat16", "float16")  # what has kernels; float32 has collectives


def _check(dtype: str, architectures: Sequence[int]) -> None:
    require(dtype in (*_HALF, "float32"), "dtype", dtype, f"{', '.join(_HALF)} or float32")
    known = ", ".join(map(str, ARCHITECTURES))
    for one in architectures:
        require(one in ARCHITECTURES, "architectures", one, known)
    require(len(architectures) > 0, "architectures", list(architectures), f"one or more of {known}")


@contextmanager
def tracing(dtype: str, architectures: Sequence[int]) -> Iterator[None]:
    """Within it, programs that Paddle traces hold our kernels wherever their tensors are of half precision.

    Needs no GPU: nothing is run. The operators' library is built at the first call (g++, about 10 s) and kept.

    Args:
        dtype: of the model.
        architectures: those that the program will find kernels for.

    Raises:
        ConfigError: another dtype or architecture, or there is no g++.
        BuildError: the library was not built.
    """
    _check(dtype, architectures)
    if not library.registered():
        library.register(build.library())
    with targeted(Target(dtype, tuple(architectures))):
        yield


def write_operators(
    folder: Path,
    dtype: str,
    architectures: Sequence[int],
    model: ModelConfig,
    heads: Sequence[int] | None = None,
    maps: Maps | None = None,
    peers: int = 0,
) -> list[str]:
    """Writes the library and, in half precision, the kernels that programs of a model launch; returns the files' names.

    Compiles with Triton, in a process of its own: some 10 s an architecture, next to none where Triton has them in its
    cache.

    Args:
        folder: where programs look for them, which is there.
        dtype: of the model.
        architectures: compute capabilities, 90 for 9.0.
        model: the transformer's shape.
        heads: how many heads ranks hold, in all ways that the mesh has; by default all of the model's.
        maps: of the autoencoder, None for none.
        peers: how many ranks store to each other's memory, 0 where none does.

    Raises:
        ConfigError: another dtype or architecture, no g++, or no Triton of the tested version.
        BuildError: a kernel or the library did not compile.
    """
    _check(dtype, architectures)
    made = build.library()
    shutil.copyfile(made, folder / made.name)
    if dtype not in _HALF:
        return [made.name]
    ways = tuple(heads or (model.num_attention_heads,))
    order = stand_ins.Order(dtype, tuple(sorted(architectures)), model, ways, maps, peers)
    build.kernels(folder / build.KERNELS, order)
    return [made.name, build.KERNELS]


def load_operators(folder: Path) -> None:
    """Registers the operators of a folder in this process, if need be, and lets them find its kernels.

    Raises:
        ConfigError: a file is missing, or the current GPU's architecture has no kernel.
    """
    require((folder / build.LIBRARY).is_file(), "export", str(folder), f"a folder that holds {build.LIBRARY}")
    library.register(folder / build.LIBRARY)
    if (folder / build.KERNELS).is_file():
        library.open_kernels(folder / build.KERNELS)
        library.check_device()
