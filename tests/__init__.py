"""Tests, and the hundreds of processes that they start: Paddle is imported as the commands do it, in 0.3 s less."""

from sd3par.launch.environment import importing

with importing():
    import paddle  # noqa: F401
