"""Tests, and the hundreds of processes that they start: Paddle is imported as the commands do it, in 0.3 s less.

A thread each: two workers of pytest with two threads each wait for each other's, and all tests took 8 min 35 s instead
of 7 min 2 s on 2 cores.
"""

import os

from sd3par.launch.environment import importing

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
with importing():
    import paddle  # noqa: F401
