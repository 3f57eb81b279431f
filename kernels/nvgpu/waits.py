"""Static programs inside a CUDA graph's capture: Paddle waits for its stream behind each, on which nothing runs yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int

from sd3par.kernels.nvgpu.info import call


@contextmanager
def skipped() -> Iterator[None]:
    """Within it, a wait for a stream that is captured returns at once, where it would fail; all others wait.

    Events are not recorded on such a stream: those of a program are for Paddle's own waits.
    What a program copies to the host is refused as ever.

    Raises:
        PluginError: no plug-in is loaded.
    """
    call("nvgpu_skip_waits", c_int(1))
    try:
        yield
    finally:
        call("nvgpu_skip_waits", c_int(-1))
