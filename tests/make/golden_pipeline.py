"""Writes tests/golden/pipeline.npz: diffusers' pipelines on the bundled model.

Run: python -m tests.make.golden_pipeline

Again after every change of sd3par/tiny. Latents of each case with random weights, and some pictures by the trained
ones, as 8-bit levels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from PIL import Image

from tests.pipeline_cases import CASES, PARTS, TRAINED, picture, random_weight

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "tests" / "golden" / "pipeline.npz"


def render(pipe: StableDiffusion3Pipeline, case: dict[str, Any], output_type: str) -> np.ndarray:
    """Returns latents [B, 16, h, w] or pictures [B, H, W, 3] of one case."""
    options = {name: value for name, value in case.items() if name not in ("seed", "strength", "text_encoder_3")}
    texts = len(case["prompt"]) if isinstance(case["prompt"], list) else 1
    count, seed = texts * case.get("num_images_per_prompt", 1), case.get("seed", 0)
    options["generator"] = [torch.Generator("cpu").manual_seed(seed + i) for i in range(count)]
    if case.get("text_encoder_3") is False:
        pipe = StableDiffusion3Pipeline(**{**pipe.components, "text_encoder_3": None, "tokenizer_3": None})
    if "strength" in case:
        pipe = StableDiffusion3Img2ImgPipeline(**pipe.components)
        options |= dict(image=Image.fromarray(picture()), strength=case["strength"])
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        out = pipe(output_type=output_type, **options).images
    return out.float().numpy() if output_type == "latent" else np.stack([np.asarray(image) for image in out])


def randomize(pipe: StableDiffusion3Pipeline) -> None:
    """Gives every part of the pipeline the random weights of tests.pipeline_cases."""
    for part in PARTS:
        module = getattr(pipe, part)
        state = {n: torch.from_numpy(random_weight(part, n, tuple(t.shape))) for n, t in module.state_dict().items()}
        if part == "text_encoder_3":
            state["encoder.embed_tokens.weight"] = state["shared.weight"]
        module.load_state_dict(state, strict=True)


def main() -> None:
    """Renders every case."""
    pipe = StableDiffusion3Pipeline.from_pretrained(ROOT / "sd3par" / "tiny", torch_dtype=torch.float32)
    arrays = {f"{name}/pixels": render(pipe, CASES[name], "pil") for name in TRAINED}
    randomize(pipe)
    for name, case in CASES.items():
        arrays[f"{name}/latents"] = render(pipe, case, "latent")
        print(name, arrays[f"{name}/latents"].shape, "std", arrays[f"{name}/latents"].std())
    np.savez_compressed(OUT, **arrays)
    print(OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
