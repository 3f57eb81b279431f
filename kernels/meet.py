"""A barrier of GPUs that map each other's memory: one warp tells all that it is here, and waits for all others.

Or only one of the two: what follows upon `tell` waits for nobody, and what has nothing to tell waits by `hear`.
"""

from __future__ import annotations

from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.runtime import check_like, globaltimer, jit, launch, next_power_of_2, on_stream, tl

LIMIT_S = 600  # the watchdog finds a dead process within seconds; a process that only compiles may take a minute
TRIAL = 100_000_000  # times to look, at about 0.5 us: others may still compile this kernel


def meet_triton(flags: Tensor, targets: Tensor, limit_s: int = LIMIT_S, most: int = 0) -> None:
    """Behind it on the stream, all that any of the processes has stored anywhere before it can be read.

    flags: [n + 1] int32, this process's: how often process i was here, for each i, and how often this one itself.
    targets: [n] int64, where the processes have their flag for this one.
    limit_s: how late another may be before the process's work on the device ends, 0 for any time.
    most: how often to look for the others before going on without them, 0 for no end.
    """
    size = _size(flags, targets, 1)
    launch(_meet, (1,), flags, targets, SIZE=size, WIDTH=next_power_of_2(size), LIMIT_NS=limit_s * 10**9, MOST=most,
           num_warps=1)  # fmt: skip


def tell_triton(flags: Tensor, targets: Tensor, stream: int) -> None:
    """Lets all others know of what was given to `stream`, CUDA's handle, before: whoever hears it can read that.

    flags: [n + 2] int32, this process's: how often process i has told, for each i, how often this one has, and how
    often it has heard. targets: [n] int64, where the processes have their flag for this one.
    """
    size = _size(flags, targets, 2)
    with on_stream(stream):
        launch(_tell, (1,), flags, targets, SIZE=size, WIDTH=next_power_of_2(size), num_warps=1)


def hear_triton(flags: Tensor, limit_s: int = LIMIT_S) -> None:
    """Waits on Paddle's stream until all have told as often as this process has asked; flags: [n + 2], as above.

    limit_s: as of `meet_triton`.
    """
    size = flags.shape[0] - 2
    launch(_hear, (1,), flags, SIZE=size, WIDTH=next_power_of_2(size), LIMIT_NS=limit_s * 10**9, num_warps=1)


def _size(flags: Tensor, targets: Tensor, counts: int) -> int:
    """Returns how many processes there are."""
    size = targets.shape[0]
    check_like(flags, [size + counts], flags=flags)
    require(targets.ndim == 1, "targets", f"shape {targets.shape}", "[n] addresses")
    return size


@jit
def _told(flags: tl.tensor, targets: tl.tensor, SIZE: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:
    """Counts, and tells the count to all; returns it."""
    number = tl.arange(0, WIDTH)
    turn = tl.load(flags + SIZE) + 1
    tl.store(flags + SIZE, turn)
    target = tl.load(targets + number, mask=number < SIZE, other=0).to(tl.pointer_type(tl.int32))
    tl.atomic_xchg(target, turn, mask=number < SIZE, sem="release", scope="sys")
    return turn


@jit
def _wait(  # type: ignore[no-untyped-def]
    flags, turn, SIZE: tl.constexpr, WIDTH: tl.constexpr, LIMIT_NS: tl.constexpr, MOST: tl.constexpr
):
    """Until all have told that count. Counts wrap, so it is their difference that counts."""
    number = tl.arange(0, WIDTH)
    late = number < SIZE
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


@jit
def _meet(  # type: ignore[no-untyped-def]
    flags, targets, SIZE: tl.constexpr, WIDTH: tl.constexpr, LIMIT_NS: tl.constexpr, MOST: tl.constexpr
):
    """One program."""
    turn = _told(flags, targets, SIZE, WIDTH)
    _wait(flags, turn, SIZE, WIDTH, LIMIT_NS, MOST)


@jit
def _tell(flags, targets, SIZE: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program."""
    _told(flags, targets, SIZE, WIDTH)


@jit
def _hear(flags, SIZE: tl.constexpr, WIDTH: tl.constexpr, LIMIT_NS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program. The count is one that no other kernel touches: this process may tell meanwhile."""
    turn = tl.load(flags + SIZE + 1) + 1
    tl.store(flags + SIZE + 1, turn)
    _wait(flags, turn, SIZE, WIDTH, LIMIT_NS, 0)
