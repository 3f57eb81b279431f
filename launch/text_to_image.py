"""Draws pictures: a script for `python`, and for `python -m paddle.distributed.launch`; see --help."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Python put launch/ first on the path. A plain checkout needs the folder above it there; an install needs neither.
    root = Path(__file__).resolve().parent.parent
    sys.path[:1] = [str(root)] if (root / "sd3par" / "__init__.py").exists() else []

    from sd3par.launch.environment import prepare_process

    prepare_process(int(os.environ.get("PADDLE_TRAINERS_NUM", "1")))
    from sd3par.launch.worker import main

    sys.exit(main())
