"""What kernels in Gluon do in clusters of two blocks, 2i and 2i + 1, by lines of PTX (clusters_ptx.py)."""

from __future__ import annotations

from sd3par.kernels.clusters_ptx import ARRIVE, COPY
from sd3par.kernels.runtime import gl, gluon_jit, hopper

if gl is not None:
    _COPY = gl.constexpr(f"{COPY}\n\tmov.u32 $0, 0;")
    _ARRIVE = gl.constexpr(f"{ARRIVE}\n\tmov.u32 $0, 0;")
    _FENCE = gl.constexpr("fence.mbarrier_init.release.cluster;\n\tmov.u32 $0, 0;")
    _MEET = gl.constexpr("barrier.cluster.arrive.relaxed;\n\tbarrier.cluster.wait.acquire;\n\tmov.u32 $0, 0;")


@gluon_jit
def _copy_to_both(source, coord, ready, target):  # type: ignore[no-untyped-def]
    """Starts a copy by TMA to where `target` lies in each of both blocks, whose own `ready` is told of its bytes."""
    gl.inline_asm_elementwise(_COPY, "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    hopper.tma.async_copy_global_to_shared(source, coord, ready, target)


@gluon_jit
def _arrive(bar, CLUSTER: gl.constexpr):  # type: ignore[no-untyped-def]
    """Arrives at a barrier, in a cluster at that of each of both blocks.

    It says that a buffer was read, no more: a release to the whole cluster would wait for all stores to memory.
    """
    if CLUSTER > 1:
        gl.inline_asm_elementwise(_ARRIVE, "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    hopper.mbarrier.arrive(bar)


@gluon_jit
def _show_barriers(CLUSTER: gl.constexpr):  # type: ignore[no-untyped-def]
    """Makes barriers that were initialised known to both blocks when they next meet."""
    if CLUSTER > 1:
        gl.inline_asm_elementwise(_FENCE, "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon_jit
def _meet(CLUSTER: gl.constexpr):  # type: ignore[no-untyped-def]
    """Waits for all threads of both blocks: each of them must call it as often as all others.

    It shows the other block what `_show_barriers` says, and nothing else.
    """
    if CLUSTER > 1:
        gl.inline_asm_elementwise(_MEET, "=r", [], dtype=gl.int32, is_pure=False, pack=1)
