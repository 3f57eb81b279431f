"""`sd3par bench quality`: how far pictures are from those of one device, and whether they show what they should."""

from __future__ import annotations

import itertools
import shlex
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sd3par.config import ParallelConfig, require
from sd3par.launch import endings, record
from sd3par.launch.bench import metrics
from sd3par.launch.bench.case import Case, Group, name_of
from sd3par.launch.bench.runner import Files, Machine, Result, run
from sd3par.launch.bench.shapes import describe, heldout_prompts
from sd3par.launch.bench.sweep import Defaults, add_flags, sweep_of
from sd3par.launch.endings import Place
from sd3par.launch.environment import prepare_process
from sd3par.launch.flags import DEFAULT_MODEL
from sd3par.launch.flags import Group as Flags
from sd3par.launch.parser import Parser, number, whole
from sd3par.launch.report import table

Row = dict[str, Any]
NAME, MOST_PROMPTS, SMOKE_PROMPTS = "quality", 200, 2
STANDARD = Defaults(mesh=("auto",), what="pictures kept", repeats=1)
ABOUT = """\
Draws the same pictures in several ways, and compares each with those of one device, drawn with engine eager and the
first dtype: PSNR in dB, SSIM, the largest difference in levels of 255, and the error of the latents relative to their
norm. The bundled model draws prompts that were held out of its training, and a picture that does not show the right
shape, colour and background counts as wrong; any other draws text states of random numbers.

  sd3par bench quality --mesh dp2 mp2,dp2 --prompts 20
  sd3par bench quality --mesh one dp2 --engine graph --random_weights sd3-medium --least_psnr 30"""


def quality(argv: Sequence[str]) -> int:
    """Draws and compares; returns the exit code, 1 where a limit is not kept."""
    options = _parser().parse(argv)
    require(1 <= options.prompts <= MOST_PROMPTS, "prompts", options.prompts, f"1 to {MOST_PROMPTS}")
    require(options.peers is None, "peers", options.peers, "nothing: pictures are compared with our own")
    prepare_process(1)
    options.repeats = min(options.prompts, SMOKE_PROMPTS) if options.smoke else options.prompts
    sweep = sweep_of(NAME, STANDARD, Namespace(**{**vars(options), "smoke": False}))
    machine, files = Machine.of(options), Files([NAME], options.results, options.json)
    endings.prepare(Place())
    shared = record.surroundings(NAME, f"sd3par bench {NAME} {shlex.join(argv)}", options.commit, machine.gpu)
    with tempfile.TemporaryDirectory(prefix="sd3par-") as scratch:
        pairs = [(group, replace(case, warm_ups=0, keep=str(Path(scratch) / f"{index}.npz")))
                 for index, (group, case) in enumerate(_with_reference(sweep.pairs))]  # fmt: skip
        results = run(machine, pairs, shared, lambda row: None, options.quiet)
        rows = compared(results)
    for row in rows:
        files.add(row)
    Place().show(shown(rows))
    return endings.DONE if all(_right(row, options) for row in rows) else endings.INTERNAL


def _parser() -> Parser:
    from sd3par.launch.bench.kinds import add_result_flags

    parser = Parser(prog=f"sd3par bench {NAME}", description=ABOUT)
    add_flags(parser, STANDARD)
    gate = Flags(parser, "the gate: exit code 1 where one of these is not reached")
    gate.value("prompts", "N", f"pictures of each way, 1 to {MOST_PROMPTS}", whole, 8)
    gate.value("least_psnr", "DB", "of the worst picture", number)
    gate.value("least_ssim", "X", "of the worst picture", number)
    gate.value("least_right", "X", "share of the bundled model's pictures that show what they should", number)
    add_result_flags(parser, NAME)
    return parser


def _with_reference(pairs: Sequence[tuple[Group, Case]]) -> list[tuple[Group, Case]]:
    """Returns the pairs behind those that they are compared with: of one device, once for each picture."""
    first = pairs[0][0]
    wanted = {(replace(group, parallel=ParallelConfig(), dtype=first.dtype), replace(case, engine="eager")): None
              for group, case in pairs}  # fmt: skip
    return list(dict.fromkeys([*wanted, *pairs]))


def compared(results: Sequence[Result]) -> list[Row]:
    """Returns the rows with what the kept pictures show; those that failed as they are."""
    references: dict[tuple[Any, ...], Any] = {}
    rows = []
    for group, case, row in results:
        if "failed" in row:
            rows.append(row)
            continue
        with np.load(case.keep) as kept:
            pictures, latents = kept["pictures"], kept["latents"]
        key = (group.model, replace(case, engine="", keep=""))
        reference = references.setdefault(key, (pictures, latents, f"{name_of(group.parallel)}, {row['engine']}"))
        rows.append({**row, **_distances(pictures, latents, *reference), **_seen(group.model, pictures)})
    return rows


def _distances(pictures: np.ndarray, latents: np.ndarray, first: np.ndarray, before: np.ndarray, error: str) -> Row:
    """Returns how far pictures [N, H, W, 3] and latents [N, C, h, w] are from the first ones at most."""
    pairs = list(zip(pictures, first, strict=True))
    worst = min(itertools.starmap(metrics.psnr, pairs))
    equal = worst == float("inf")  # which JSON does not know
    return {
        **({} if equal else {"psnr_db": worst}), "ssim": min(itertools.starmap(metrics.ssim, pairs)),
        "levels": max(itertools.starmap(metrics.levels, pairs)), "latents_error": metrics.relative(latents, before),
        "error": f"against {error}",
    }  # fmt: skip


def _seen(model: str, pictures: np.ndarray) -> Row:
    """Returns how many of the bundled model's pictures are right; nothing of another model's."""
    if model != DEFAULT_MODEL:
        return {}
    wanted = [tuple(prompt)[1:] for prompt in heldout_prompts(len(pictures))]
    right = sum(describe(picture) == each for picture, each in zip(pictures, wanted, strict=True))
    return {"right": right, "accuracy": right / len(pictures)}


def _right(row: Row, options: Namespace) -> bool:
    """Whether a row keeps the limits."""
    limits = (("psnr_db", options.least_psnr), ("ssim", options.least_ssim), ("accuracy", options.least_right))
    kept = all(least is None or row.get(name, least) >= least for name, least in limits)
    return "failed" not in row and kept


def shown(rows: Sequence[Row]) -> str:
    """Returns the rows as a table under its title."""
    return f"{rows[0]['model']}; {rows[0].get('gpu', 'CPU')}; run {rows[0]['run_id']}\n{table(cells(rows))}"


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Returns rows as lines of a table, the heading first."""
    lines: list[tuple[str, ...]] = [
        ("mesh", "engine", "dtype", "size", "steps", "pictures", "PSNR dB", "SSIM", "levels", "latents", "right", "")
    ]
    for row in rows:
        size = f"{row['width']} x {row['height']}"
        what = (name_of(row), str(row["engine"]), str(row.get("dtype", "")), size, str(row["steps"]))
        if "failed" in row:
            lines.append((*what, "", "", "", "", "", "", f"failed: {row['failed']}"))
            continue
        share = f"{row['right']} of {row['pictures']}" if "right" in row else ""
        distance = (f"{row.get('psnr_db', float('inf')):.1f}", f"{row['ssim']:.5f}", str(row["levels"]))
        lines.append((*what, str(row["pictures"]), *distance, f"{row['latents_error']:.1e}", share, ""))
    return lines
