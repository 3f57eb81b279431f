"""Writes tests/golden/mmdit.npz: outputs of diffusers' SD3Transformer2DModel. Run: python -m tests.make.golden_mmdit"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import SD3Transformer2DModel

from tests.arrays import weight
from tests.mmdit_cases import CASES, VARIANTS, inputs, key

OUT = Path(__file__).parent.parent / "golden" / "mmdit.npz"


def main() -> None:
    """Runs every variant on every case and writes outputs and tensor shapes."""
    arrays: dict[str, np.ndarray] = {}
    for variant, shape in VARIANTS.items():
        model = SD3Transformer2DModel(**shape).eval().double()  # the reference has no rounding of its own
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        state = {name: torch.from_numpy(weight(name, shape)).double() for name, shape in shapes.items()}
        model.load_state_dict(state, strict=True)
        names = sorted(state)
        arrays[f"{variant}/names"] = np.array([f"{name} {','.join(map(str, state[name].shape))}" for name in names])
        for case in CASES:
            x = {name: torch.from_numpy(value).double() for name, value in inputs(variant, case).items()}
            with torch.no_grad():
                out = model(x["latents"], x["context"], x["pooled"], x["timestep"].float(), return_dict=False)[0]
            arrays[key(variant, case)] = out.float().numpy()
            print(variant, case, "std", float(out.std()))
    np.savez_compressed(OUT, **arrays)
    print(OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
