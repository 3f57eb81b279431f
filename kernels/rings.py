"""Rings of buffers in shared memory, between a warp that copies and groups that multiply, for kernels in Gluon."""

from __future__ import annotations

from sd3par.kernels.runtime import gl, gluon_jit, hopper


@gluon_jit
def _next(index, phase, COUNT: gl.constexpr):  # type: ignore[no-untyped-def]
    """The next buffer of a ring, and the phase of its barriers, which changes with every round."""
    index += 1
    wraps = index == COUNT
    return gl.where(wraps, 0, index), gl.where(wraps, phase ^ 1, phase)


@gluon_jit
def _barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):  # type: ignore[no-untyped-def]
    """COUNT barriers, each of which that many arrivals complete."""
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], hopper.mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        hopper.mbarrier.init(bars.index(i), count=ARRIVALS)
    return bars
