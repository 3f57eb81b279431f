"""The bundled model's picture on the GPU in fp32 against the CPU's, and whether any op left the GPU.

python -m benchmarks.gpu.picture
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from sd3par import SD3Pipeline
from sd3par.kernels.nvgpu import fallbacks

PROMPT = "a red circle on a blue background"
WHOLE_IMAGE = f"""
from sd3par import SD3Pipeline
pipe = SD3Pipeline.from_pretrained({{model!r}}, dtype={{dtype!r}}, device={{device!r}})
pipe({PROMPT!r}, num_inference_steps=2, progress=False)
"""


def draw(device: str, dtype: str) -> np.ndarray:
    """Returns the picture [H, W, 3] uint8."""
    pipe = SD3Pipeline.from_pretrained("tiny", dtype=dtype, device=device)
    return np.asarray(pipe(PROMPT, seed=0, progress=False).images[0])


def main() -> int:
    """Compares; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="nvgpu")
    parser.add_argument("--models", nargs="*", default=["tiny", "random:sd3-medium"], help="whose ops are counted")
    parser.add_argument("--output", type=Path, help="write the GPU's picture here, as PNG")
    options = parser.parse_args()
    wanted, failed = draw("cpu", "float32").astype(int), False
    for dtype in ("float32", "bfloat16"):
        picture = draw(options.device, dtype)
        levels = int(np.abs(picture.astype(int) - wanted).max())
        failed |= dtype == "float32" and levels > 2
        print(json.dumps({"bench": "picture", "who": "sd3par", "model": "tiny", "dtype": dtype, "levels": levels}))
        if options.output and dtype == "float32":
            from PIL import Image

            Image.fromarray(picture).save(options.output)
    for model in options.models:
        for dtype in ("float32", "bfloat16") if model == "tiny" else ("bfloat16",):
            script = WHOLE_IMAGE.format(model=model, dtype=dtype, device=options.device)
            run = fallbacks.count(["-W", "ignore", "-c", script])
            failed |= bool(run.fallbacks) or run.code != 0
            row = {"bench": "fallbacks", "model": model, "dtype": dtype, "fallbacks": run.fallbacks, "code": run.code}
            print(json.dumps(row), flush=True)
            if run.code:
                sys.stderr.write(run.tail)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
