"""Exports for GPUs, of meshes: python -m tests.static.for_gpus FOLDER

Prints a JSON list, of each mesh what was written. Paddle traces half precision where a plug-in has kernels for it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sd3par.config import ParallelConfig
from sd3par.errors import ConfigError
from sd3par.pipeline import SD3Pipeline
from sd3par.static.export import Target, export
from sd3par.static.write import collectives
from sd3par.weights import open_model
from tests.static import exports

MESHES = (ParallelConfig(mp=2), ParallelConfig(sp=2), ParallelConfig(dp=2, mp=2, sp=2))


def written(parallel: ParallelConfig, folder: Path) -> dict[str, Any]:
    files = replace(open_model("tiny"), text_encoder=None)
    made = export(files, folder, Target(parallel, "bfloat16", "cuda", (90,)), exports.LIMITS)
    programs = [folder / pair[0] for pair in made.programs["step"]]
    try:
        SD3Pipeline.from_pretrained(folder, device="cpu")
        refused = ""
    except ConfigError as error:
        refused = str(error)
    return {"target": made.target, "dtype": made.dtype, "architectures": made.architectures, "refused": refused,
            "collectives": [dict(collectives(path)) for path in programs],
            "different": len({path.read_bytes() for path in programs})}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps([written(mesh, Path(sys.argv[1]) / str(i)) for i, mesh in enumerate(MESHES)]))
