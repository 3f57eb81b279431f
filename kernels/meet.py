"""A barrier of GPUs that map each other's memory: one warp tells all that it is here, and waits for all others."""

from __future__ import annotations

from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.runtime import check_like, globaltimer, jit, launch, next_power_of_2, tl

LIMIT_S = 600  # the watchdog finds a dead process within seconds; a process that only compiles may take a minute
TRIAL = 100_000_000  # times to look, at about 0.5 us: others may still compile this kernel


def meet_triton(flags: Tensor, targets: Tensor, limit_s: int = LIMIT_S, most: int = 0) -> None:
    """Behind it on the stream, all that any of the processes has stored anywhere before it can be read.

    flags: [n + 1] int32, this process's: how often process i was here, for each i, and how often this one itself.
    targets: [n] int64, where the processes have their flag for this one.
    limit_s: how late another may be before the process's work on the device ends, 0 for any time.
    most: how often to look for the others before going on without them, 0 for no end.
    """
    size = targets.shape[0]
    check_like(flags, [size + 1], flags=flags)
    require(targets.ndim == 1, "targets", f"shape {targets.shape}", "[n] addresses")
    launch(_meet, (1,), flags, targets, SIZE=size, WIDTH=next_power_of_2(size), LIMIT_NS=limit_s * 10**9, MOST=most,
           num_warps=1)  # fmt: skip


@jit
def _meet(  # type: ignore[no-untyped-def]
    flags, targets, SIZE: tl.constexpr, WIDTH: tl.constexpr, LIMIT_NS: tl.constexpr, MOST: tl.constexpr
):
    """One program. Counts wrap, so it is their difference that counts."""
    number = tl.arange(0, WIDTH)
    here = number < SIZE
    turn = tl.load(flags + SIZE) + 1
    tl.store(flags + SIZE, turn)
    target = tl.load(targets + number, mask=here, other=0).to(tl.pointer_type(tl.int32))
    tl.atomic_xchg(target, turn, mask=here, sem="release", scope="sys")
    late = here
    looks = 0
    if LIMIT_NS > 0:
        end = globaltimer() + LIMIT_NS
    while tl.max(late.to(tl.int32), 0) > 0:
        seen = tl.atomic_add(flags + number, 0, mask=late, sem="acquire", scope="sys")
        late = late & (seen - turn < 0)
        if LIMIT_NS > 0:  # noqa: SIM102 (two conditions: the interpreter has no such timer)
            if globaltimer() > end:
                tl.inline_asm_elementwise("trap; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)
        if MOST > 0:  # a count, which all threads agree on: they leave together
            looks += 1
            late = late & (looks < MOST)
