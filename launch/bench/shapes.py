"""What the bundled model draws, and the automatic check that it drew it.

Numpy and Pillow only: the check must not depend on the code under test. A picture is one flat shape on one flat
background. ``describe`` names shape, colour and background of a picture, or says ``"unknown"``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

UNKNOWN = "unknown"

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (226, 30, 34),
    "green": (32, 156, 56),
    "blue": (34, 72, 222),
    "yellow": (250, 218, 36),
    "orange": (248, 134, 20),
    "purple": (142, 46, 178),
    "white": (244, 244, 244),
    "black": (22, 22, 22),
}

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")

SIZES = ("", "small", "large")

# {thing} is "[small|large] colour shape" with its article where one is due, {bg} the background colour.
TEMPLATES = (
    "{a_thing} on {a_bg} background",
    "{thing}, {bg} background",
    "{a_thing} on {bg}",
    "a picture of {a_thing} on {a_bg} background",
    "{thing} on {a_bg} background",
    "{a_bg} background with {a_thing}",
    "{bg} background, {thing}",
    "draw {a_thing} on {a_bg} background",
    "an image of {a_thing} against {a_bg} background",
    "{a_thing} in front of {a_bg} background",
    "{thing} on {bg}",
)


class Prompt(NamedTuple):
    """A held-out prompt and what its picture must show."""

    text: str
    shape: str
    colour: str
    background: str


def is_heldout(shape: str, colour: str, background: str) -> bool:
    """Whether no training picture and no training caption has this combination (one in seven has not)."""
    names = list(COLOURS)
    return (SHAPES.index(shape) + 3 * names.index(colour) + 5 * names.index(background)) % 7 == 0


def combinations(heldout: bool) -> list[tuple[str, str, str]]:
    """All (shape, colour, background) of the one side of the split; colour and background always differ."""
    every = [(s, c, b) for s in SHAPES for c in COLOURS for b in COLOURS if c != b]
    return [combo for combo in every if is_heldout(*combo) == heldout]


def with_article(words: str) -> str:
    """``"a "`` or ``"an "`` before the words."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def phrase(template: str, shape: str, colour: str, background: str, size: str = "") -> str:
    """One caption from a template of ``TEMPLATES``."""
    thing = f"{size} {colour} {shape}".strip()
    return template.format(thing=thing, a_thing=with_article(thing), bg=background, a_bg=with_article(background))


def heldout_prompts(n: int = 200) -> list[Prompt]:
    """The first n prompts of a fixed list: held-out combinations in varied phrasings and letter cases."""
    combos = combinations(heldout=True)
    cases = (str, str, str.capitalize, str.lower, str.title, str.upper)
    prompts = []
    for i in range(n):
        combo = combos[(i * 23) % len(combos)]
        text = phrase(TEMPLATES[i % len(TEMPLATES)], *combo, size=SIZES[(i // 2) % 3])
        prompts.append(Prompt(cases[i % len(cases)](text), *combo))
    return prompts


def _circle(radius: float) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 97)[:-1]
    return radius * np.stack([np.sin(turn), -np.cos(turn)], axis=1)


def _star() -> np.ndarray:
    turn = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.12, 0.46)[:, None]
    return radius * np.stack([np.sin(turn), -np.cos(turn)], axis=1)


def _cross(arm: float = 0.34) -> np.ndarray:
    quarter = np.array([(arm, -1.0), (arm, -arm), (1.0, -arm)])
    points = []
    for _ in range(4):
        points.append(quarter)
        quarter = np.stack([-quarter[:, 1], quarter[:, 0]], axis=1)
    return np.concatenate(points)


def _heart() -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 97)[:-1]
    across = 16 * np.sin(turn) ** 3
    down = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
    return np.stack([across, down - 1.5], axis=1) / 16.0


def outlines(shape: str) -> list[np.ndarray]:
    """Polygons [points, 2] (x right, y down) of about unit radius; a second polygon is a hole."""
    if shape == "circle":
        return [_circle(0.95)]
    if shape == "ring":
        return [_circle(1.0), _circle(0.56)]
    if shape == "square":
        return [0.84 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float)]
    if shape == "triangle":
        return [np.array([(0, -1.12), (1.02, 0.68), (-1.02, 0.68)])]
    if shape == "diamond":
        return [np.array([(0, -1.12), (0.7, 0), (0, 1.12), (-0.7, 0)])]
    return [{"star": _star, "cross": _cross, "heart": _heart}[shape]()]


def draw_mask(shape: str, size: int, centre: tuple[float, float], radius: float, degrees: float) -> np.ndarray:
    """Coverage [size, size] in 0..1 of a shape, anti-aliased by drawing it four times as large."""
    angle = np.deg2rad(degrees)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    canvas = Image.new("L", (4 * size, 4 * size), 0)
    pen = ImageDraw.Draw(canvas)
    for fill, outline in zip((255, 0), outlines(shape), strict=False):
        points = 4 * (outline @ turn * radius + np.array(centre))
        pen.polygon([(float(x), float(y)) for x, y in points], fill=fill)
    return np.asarray(canvas.reduce(4), dtype=np.float32) / 255.0


def nearest_colour(rgb: np.ndarray) -> np.ndarray:
    """Index into ``COLOURS`` of the nearest colour, for rgb [..., 3]."""
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    return np.square(rgb[..., None, :].astype(np.float32) - palette).sum(-1).argmin(-1)


def _normalise(mask: np.ndarray, cells: int = 48) -> np.ndarray | None:
    """The mask [H, W] seen from its centre of mass at unit area: bool [cells, cells]; None if it is tiny."""
    area = float(mask.sum())
    if area < 0.004 * mask.size:
        return None
    rows, columns = np.nonzero(mask)
    reach = 1.25 * np.sqrt(area) * ((np.arange(cells) + 0.5) / cells * 2 - 1)
    y = np.rint(rows.mean() + reach).astype(int)
    x = np.rint(columns.mean() + reach).astype(int)
    inside = ((y >= 0) & (y < mask.shape[0]))[:, None] & ((x >= 0) & (x < mask.shape[1]))[None, :]
    seen = mask[np.clip(y, 0, mask.shape[0] - 1)][:, np.clip(x, 0, mask.shape[1] - 1)]
    return seen & inside


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """Normalised masks [templates, cells, cells] of every shape at small rotations, and the shape index of each."""
    masks: list[np.ndarray] = []
    owners: list[int] = []
    for owner, shape in enumerate(SHAPES):
        for degrees in range(-16, 17, 4):
            mask = _normalise(draw_mask(shape, 192, (96, 96), 56, degrees) > 0.5)
            if mask is not None:  # none is tiny
                masks.append(mask)
                owners.append(owner)
    return np.stack(masks), np.array(owners)


def match_shape(mask: np.ndarray, least: float = 0.78, lead: float = 0.05) -> tuple[str, float]:
    """The shape whose outline overlaps the mask [H, W] best, and its intersection over union.

    It counts as that shape if it overlaps well enough and better than every other shape by a lead. That is strict:
    small stars with a bent arm fail it and stay stars to anyone who looks.
    """
    seen = _normalise(mask)
    if seen is None:
        return UNKNOWN, 0.0
    masks, owners = _templates()
    overlap = (masks & seen).sum((1, 2)) / (masks | seen).sum((1, 2))
    best = np.array([overlap[owners == owner].max() for owner in range(len(SHAPES))])
    second, first = np.sort(best)[-2:]
    sure = first >= least and first - second >= lead
    return (SHAPES[int(best.argmax())] if sure else UNKNOWN), float(first)


def describe(image: np.ndarray) -> tuple[str, str, str]:
    """(shape, colour, background) of a picture, uint8 [H, W, 3]; ``"unknown"`` for what cannot be told."""
    names = list(COLOURS)
    labels = nearest_colour(image)
    edge = max(2, image.shape[0] // 32)
    border = np.concatenate([labels[:edge].ravel(), labels[-edge:].ravel(), labels[:, 0], labels[:, -1]])
    counts = np.bincount(border, minlength=len(names))
    background = int(counts.argmax())
    if counts[background] < 0.9 * border.size:
        return UNKNOWN, UNKNOWN, UNKNOWN
    inner = np.bincount(labels[labels != background], minlength=len(names))
    colour = int(inner.argmax())
    if inner[colour] < 0.004 * labels.size:
        return UNKNOWN, UNKNOWN, names[background]
    ground, figure = (np.array(COLOURS[names[i]], dtype=np.float32) for i in (background, colour))
    along = ((image.astype(np.float32) - ground) @ (figure - ground)) / np.square(figure - ground).sum()
    return match_shape(along > 0.5)[0], names[colour], names[background]


def flatness(image: np.ndarray, colour: str, background: str, within: float = 60.0) -> float:
    """Share of the pixels of a picture [H, W, 3] that lie near one of its two colours: about 0.97 when clean."""
    palette = np.array([COLOURS[colour], COLOURS[background]], dtype=np.float32)
    distance = np.sqrt(np.square(image[:, :, None, :].astype(np.float32) - palette).sum(-1)).min(-1)
    return float((distance < within).mean())
