"""Measures some cases of `sd3par bench`: the script that Paddle's launcher starts for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # As in text_to_image.py: a plain checkout needs the folder above on the path in place of launch/.
    root = Path(__file__).resolve().parent.parent
    sys.path[:1] = [str(root)] if (root / "sd3par" / "__init__.py").exists() else []

    from sd3par.launch.environment import prepare_process

    prepare_process(int(os.environ.get("PADDLE_TRAINERS_NUM", "1")))
    from sd3par.launch.bench.rank import main

    sys.exit(main())
