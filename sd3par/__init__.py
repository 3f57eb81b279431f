"""Stable Diffusion 3 on PaddlePaddle: one image on many cards, the same image whatever their number."""

from __future__ import annotations

import os.path

__version__ = "0.1.0"

# A plain checkout has kernels/ and launch/ beside this folder; installed, they are inside it (setup.py).
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if all(os.path.exists(os.path.join(_ROOT, name)) for name in ("setup.py", "kernels", "launch")):
    __path__.append(_ROOT)
