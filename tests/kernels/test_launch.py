"""`runtime.launch` starts the same compiled code with the same arguments as Triton, found without asking Triton."""

from __future__ import annotations

from tests.kernels.test_kernels import needs_triton, run


@needs_triton
def test_a_launch_from_memory_is_tritons() -> None:
    found = run("launched")
    kept, compiled = found.pop("kept"), found.pop("compiled")
    assert [name for name, equal in found.items() if not equal] == []
    assert len(found) == 108
    # For each size of a block: a float, an address, and integers of 64 bits that divide by 16 alike change nothing;
    # to Triton, strides of 0 and 48 are the same, and 5 and -1.
    assert kept == 2 * (18 - 3)
    assert compiled == 2 * (18 - 5)
