"""Do the bundled model's pictures show what was asked for? python -m benchmarks.heldout

Renders prompts whose combination of shape, colour and background was never trained, reads the pictures back as
launch/bench/shapes.py does, and appends a row with the share that is right. --sheet FILE draws ten on one sheet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from benchmarks.record import Run
from sd3par.launch.bench.shapes import describe, heldout_prompts
from sd3par.launch.environment import prepare_process

COLUMNS, MARGIN, CAPTION, SCALE = 5, 8, 26, 2


def sheet(pictures: list[Image.Image], captions: list[str]) -> Image.Image:
    """Returns the pictures in rows of five, twice their size, with captions in two lines below."""
    width, height = (SCALE * side for side in pictures[0].size)
    rows = -(-len(pictures) // COLUMNS)
    size = (COLUMNS * (width + MARGIN) + MARGIN, rows * (height + MARGIN + CAPTION) + MARGIN)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = MARGIN + (i % COLUMNS) * (width + MARGIN), MARGIN + (i // COLUMNS) * (height + MARGIN + CAPTION)
        canvas.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (x, y))
        words = caption.split()
        half = -(-len(words) // 2)
        draw.multiline_text((x, y + height), f"{' '.join(words[:half])}\n{' '.join(words[half:])}", "black", spacing=0)
    return canvas


def parse() -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description="Share of held-out prompts whose picture is right.")
    parser.add_argument("--prompts", type=int, default=200, help="how many, at most 200 (default 200)")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance_scale", type=float, default=7.0)
    parser.add_argument("--max_sequence_length", type=int, default=256, help="tokens that T5 reads (default 256)")
    parser.add_argument("--no-t5", action="store_true", help="without T5")
    parser.add_argument("--sheet", type=Path, help="write ten pictures to this PNG, and measure nothing")
    return parser.parse_args()


def main() -> None:
    """Renders and counts, or draws the sheet."""
    options = parse()
    prepare_process(1)
    from sd3par import SD3Pipeline

    pipe = SD3Pipeline.from_pretrained("tiny", text_encoder_3=not options.no_t5)
    wanted = heldout_prompts(10 if options.sheet else options.prompts)
    pictures, right = [], 0
    for seed, (prompt, shape, colour, background) in enumerate(tqdm(wanted, unit="picture")):
        out = pipe(prompt, seed=seed, num_inference_steps=options.steps, guidance_scale=options.guidance_scale,
                   max_sequence_length=options.max_sequence_length, progress=False)  # fmt: skip
        pictures.append(out.images[0])
        seen = describe(np.asarray(out.images[0]))
        right += tuple(seen) == (shape, colour, background)
        if tuple(seen) != (shape, colour, background):
            tqdm.write(f"{prompt!r} (seed {seed}): {' '.join(seen)}")
    print(f"{right} of {len(wanted)} right")
    if options.sheet:
        few = sheet(pictures, [prompt for prompt, *_ in wanted]).quantize(256)  # colours: a third of the bytes
        few.save(options.sheet, optimize=True)
        return
    Run("heldout", "cpu").add(
        who="sd3par", model="tiny", height=128, width=128, steps=options.steps, guidance=options.guidance_scale,
        text_tokens=77 + options.max_sequence_length, t5=not options.no_t5, dtype="float32", engine="eager",
        dp=1, mp=1, sp=1, world=1, images=len(wanted), right=right, accuracy=right / len(wanted),
    )  # fmt: skip


if __name__ == "__main__":
    main()
