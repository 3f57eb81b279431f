"""Training pictures and captions of the bundled model: numpy and Pillow only."""

from __future__ import annotations

from multiprocessing import Pool
from typing import NamedTuple

import numpy as np

from sd3par.launch.bench.shapes import COLOURS, SHAPES, SIZES, TEMPLATES, combinations, draw_mask, phrase, with_article

IMAGE_SIZE = 128
RADII = {"": (24.0, 46.0), "small": (20.0, 26.0), "large": (38.0, 47.0)}
REACH = 16.0
CASES = (str, str, str.capitalize, lambda text: text + ".", str.title, str.upper)


class Pictures(NamedTuple):
    """Pictures uint8 [n, 128, 128, 3] and, for each, the row of ``caption_table`` that tells of it: int64 [n]."""

    images: np.ndarray
    rows: np.ndarray


def caption_rows() -> list[tuple[str, str, str, str]]:
    """Every (shape, colour, background, size word) that training may tell of, in a fixed order."""
    return [(*combo, size) for combo in combinations(heldout=False) for size in SIZES]


def captions_of(shape: str, colour: str, background: str, size: str) -> list[str]:
    """All captions of one row: every phrasing in every letter case, and one that leaves the background out."""
    texts = [phrase(template, shape, colour, background, size) for template in TEMPLATES]
    texts.append(with_article(f"{size} {colour} {shape}".strip()))
    return [case(text) for text in texts for case in CASES]


def caption_table() -> list[list[str]]:
    """Captions [rows][variants]; row i tells of ``caption_rows()[i]``."""
    return [captions_of(*row) for row in caption_rows()]


def _paint(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return canvas + mask[..., None] * (colour - canvas)


def draw(shape: str, colour: str, background: str, size: str, rng: np.random.Generator) -> np.ndarray:
    """One picture uint8 [128, 128, 3] with random place, size, slight rotation and a touch of colour variation."""
    radius = rng.uniform(*RADII[size])
    room = min(REACH, IMAGE_SIZE / 2 - 1.12 * radius - 6)
    centre = IMAGE_SIZE / 2 + rng.uniform(-room, room, size=2)
    mask = draw_mask(shape, IMAGE_SIZE, tuple(centre), radius, rng.uniform(-8, 8))
    ground, figure = (np.array(COLOURS[name]) + rng.normal(0, 4, 3) for name in (background, colour))
    picture = _paint(np.broadcast_to(ground, (IMAGE_SIZE, IMAGE_SIZE, 3)), mask, figure)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def draw_scene(rng: np.random.Generator) -> np.ndarray:
    """A busier picture uint8 [128, 128, 3] in any colours, so that the autoencoder is no slave to the palette."""
    ramp = np.linspace(0, 1, IMAGE_SIZE)[:, None, None]
    top, bottom = rng.uniform(0, 255, (2, 1, 1, 3))
    picture = np.broadcast_to(top + ramp * (bottom - top), (IMAGE_SIZE, IMAGE_SIZE, 3))
    if rng.random() < 0.5:
        picture = picture.transpose(1, 0, 2)
    for _ in range(rng.integers(1, 6)):
        shape = SHAPES[rng.integers(len(SHAPES))]
        centre = tuple(rng.uniform(0, IMAGE_SIZE, 2))
        mask = draw_mask(shape, IMAGE_SIZE, centre, rng.uniform(8, 56), rng.uniform(0, 360))
        picture = _paint(picture, mask, rng.uniform(0, 255, 3))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _chunk(job: tuple[int, int]) -> Pictures:
    count, seed = job
    rng = np.random.default_rng(seed)
    told = caption_rows()
    rows = rng.integers(len(told), size=count)
    return Pictures(np.stack([draw(*told[row], rng) for row in rows]), rows)


def _scene_chunk(job: tuple[int, int]) -> np.ndarray:
    count, seed = job
    rng = np.random.default_rng(seed)
    return np.stack([draw_scene(rng) for _ in range(count)])


def make_pictures(count: int, seed: int = 0, workers: int = 8, chunk: int = 500) -> Pictures:
    """Training pictures of ``caption_rows`` drawn at random, the same for the same count and seed."""
    with Pool(workers) as pool:
        parts = pool.map(_chunk, [(min(chunk, count - at), seed + at) for at in range(0, count, chunk)])
    return Pictures(np.concatenate([p.images for p in parts]), np.concatenate([p.rows for p in parts]))


def make_scenes(count: int, seed: int = 10**9, workers: int = 8, chunk: int = 500) -> np.ndarray:
    """Busier pictures uint8 [count, 128, 128, 3] for the autoencoder alone."""
    with Pool(workers) as pool:
        parts = pool.map(_scene_chunk, [(min(chunk, count - at), seed + at) for at in range(0, count, chunk)])
    return np.concatenate(parts)
