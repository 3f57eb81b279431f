"""Judges a packed model with diffusers' own pipeline and the automatic check of launch/bench/shapes.py.

PYTHONPATH=. python tests/make/tiny_check.py FOLDER --guidance 7 4 --lengths 256 77 --sheet sheet.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from sd3par.launch.bench.shapes import Prompt, describe, flatness, heldout_prompts


def draw(pipe: StableDiffusion3Pipeline, prompts: list[Prompt], guidance: float, length: int, steps: int) -> np.ndarray:
    """Pictures uint8 [n, 128, 128, 3] of the prompts, each with the seed of its place."""
    parts = []
    for at in range(0, len(prompts), 100):
        some = prompts[at : at + 100]
        seeds = [torch.Generator("cpu").manual_seed(at + i) for i in range(len(some))]
        images = pipe(
            [prompt.text for prompt in some],
            height=128,
            width=128,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=length,
            generator=seeds,
            output_type="np",
        ).images
        parts.append((images * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def judge(images: np.ndarray, prompts: list[Prompt]) -> dict[str, float]:
    """Shares of right shapes, colours, backgrounds and all three, and the median flatness."""
    seen = [describe(image) for image in images]
    right = np.array([[a == b for a, b in zip(s, p[1:], strict=True)] for s, p in zip(seen, prompts, strict=True)])
    flat = [flatness(image, p.colour, p.background) for image, p in zip(images, prompts, strict=True)]
    shares = dict(zip(("shape", "colour", "background"), right.mean(0).tolist(), strict=True))
    return {"all": float(right.all(1).mean()), **shares, "flat": float(np.median(flat))}


def failures(images: np.ndarray, prompts: list[Prompt]) -> list[int]:
    """Places of the pictures that do not show what was asked for."""
    return [i for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)) if describe(image) != prompt[1:]]


def save_sheet(images: np.ndarray, path: Path, columns: int = 10) -> None:
    """Saves the first pictures as a contact sheet."""
    rows = [np.concatenate(list(images[i : i + columns]), axis=1) for i in range(0, len(images), columns)]
    Image.fromarray(np.concatenate([row for row in rows if row.shape == rows[0].shape], axis=0)).save(path)


def main() -> None:
    """Prints one line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--guidance", type=float, nargs="+", default=[7.0, 4.0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 77], help="0: without T5")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    pipe = StableDiffusion3Pipeline.from_pretrained(args.folder, torch_dtype=torch.float32)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu").set_progress_bar_config(disable=True)
    prompts, t5 = heldout_prompts(args.prompts), pipe.text_encoder_3
    for guidance in args.guidance:
        for length in args.lengths:
            pipe.text_encoder_3 = t5 if length else None
            began = time.time()
            images = draw(pipe, prompts, guidance, length or 256, args.steps)
            figures = " ".join(f"{key} {value:.3f}" for key, value in judge(images, prompts).items())
            print(f"guidance {guidance} length {length}: {figures} ({time.time() - began:.0f}s)", flush=True)
            print("  wrong:", [(i, describe(images[i]), prompts[i][1:]) for i in failures(images, prompts)][:12])
            if args.sheet:
                name = f"{args.sheet.stem}_{guidance:g}_{length}{args.sheet.suffix}"
                save_sheet(images[:60], args.sheet.with_name(name))


if __name__ == "__main__":
    main()
