"""What all tests share."""

from __future__ import annotations

import os

# Paddle's launcher counts an empty value as one GPU; tests run on the CPU, and so do the processes that they start.
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
