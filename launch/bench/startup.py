"""`sd3par bench startup`: from the shell to a picture's file, by `sd3par generate` in fresh processes."""

from __future__ import annotations

import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sd3par import cuda_driver
from sd3par.config import require
from sd3par.errors import Sd3parError
from sd3par.launch import endings, record
from sd3par.launch.bench.quiet import MOST, Quiet, children_s
from sd3par.launch.bench.runner import Files
from sd3par.launch.endings import Place
from sd3par.launch.flags import DEFAULT_MODEL, RANDOM_MODELS
from sd3par.launch.flags import Group as Flags
from sd3par.launch.parser import Parser, number, one_of, whole
from sd3par.launch.report import table

Row = dict[str, Any]
NAME = "startup"
ABOUT = """\
From the shell to a picture's file: of the model, and of what sd3par export makes of it, in turn, both from files (those
of made-up weights are written before, next to the export's: 2 x 15 GB for sd3-medium). Three kinds of starts:
cold (no compiled kernels, no parameters of the export compared yet), warm, and warm with a single step: its denoise is
what comes before the loop, the recording and one replay. What the command's report does not name is imports: Python,
Paddle, the device, and writing the file. Seconds are medians; cpu s is what all cores worked, the end of the process
included."""
PROMPT = "a red circle on a blue background"
PARTS = ("load", "encode", "denoise", "decode")
SECONDS = ("imports", *PARTS, "file", "process", "cpu")
STATIC = "static"


@dataclass(frozen=True)
class Request:
    """One picture. size: its height and width in pixels, None for the model's own; tokens: that T5 reads."""

    size: int | None
    tokens: int
    steps: int

    @property
    def flags(self) -> list[str]:
        """As `sd3par generate` takes it."""
        size = [] if self.size is None else ["--height", str(self.size), "--width", str(self.size)]
        return [*size, "--max_sequence_length", str(self.tokens), "--num_inference_steps", str(self.steps)]


def seconds_of(report: str) -> dict[str, float]:
    """Returns the seconds of each part in what `sd3par generate` prints."""
    found = {name: re.search(rf"^{name} +([\d.]+) s", report, re.MULTILINE) for name in PARTS}
    missing = [name for name, match in found.items() if match is None]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in the report:\n{report}")
    return {name: float(match[1]) for name, match in found.items() if match}


def gpu_of(report: str) -> Row:
    """Returns the GPU that such a report names, as rows have it; nothing where it names none."""
    device = re.search(r"^where +\w+:(\d+) ", report, re.MULTILINE)
    return {"gpu": f"1 x {cuda_driver.name(int(device[1]))}"} if device else {}


def run(flags: Sequence[str], folder: Path, cache: Path) -> Row:
    """Starts `sd3par generate` with flags; returns the engine that it chose, its GPU, and `SECONDS`: from the process's
    start to the file, to its end, of each part, and of the cores."""
    from sd3par.images import read_metadata

    output, before = folder / f"{time.time_ns()}.png", children_s()
    begin = time.time()
    report = _command("generate", PROMPT, *flags, "--output", str(output), env={"TRITON_CACHE_DIR": str(cache)})
    end = time.time()
    file_s, parts = output.stat().st_mtime - begin, seconds_of(report)
    row = {"file_s": file_s, "process_s": end - begin, "cpu_s": children_s() - before}
    row |= {"imports_s": file_s - sum(parts.values())} | {f"{name}_s": seconds for name, seconds in parts.items()}
    return {"engine": read_metadata(output)["engine"], **gpu_of(report), **row}


def starts(
    models: Sequence[Sequence[str]], request: Request, repeats: int, quiet_s: float, folder: Path
) -> Iterator[Row]:
    """Yields a row for every kind of start of every model; they take turns.

    Args:
        models: flags that name one.
        repeats: of warm starts; each model has one cold one before.
        quiet_s: for how long starts are made again during which others used the machine; not cold ones, which would not
            be cold any more.
    """
    pairs, quiet = [(model, folder / f"triton{index}") for index, model in enumerate(models)], Quiet(quiet_s)
    for kind, steps, times in (
        ("cold", request.steps, 1), ("warm", request.steps, repeats), ("warm, one step", 1, repeats),
    ):  # fmt: skip
        flags = replace(request, steps=steps).flags
        measure = quiet.measure if kind != "cold" else Quiet(0.0).measure
        found = [
            [measure(partial(run, [*model, *flags], folder, cache)) for model, cache in pairs] for _ in range(times)
        ]
        yield from ({"start": kind, "steps": steps, **median(rows)} for rows in zip(*found, strict=True))


def median(rows: Sequence[Row]) -> Row:
    """Returns the medians of several runs; the spread is of `file_s`, `others` the most of all."""
    row: Row = {f"{name}_s": statistics.median(row[f"{name}_s"] for row in rows) for name in SECONDS}
    spread = max(row["file_s"] for row in rows) / row["file_s"] - 1
    others = max(row["others"] for row in rows)
    which: Row = {name: rows[0][name] for name in ("engine", "gpu") if name in rows[0]}
    return {**which, **row, "repeats": len(rows), "spread": spread, "others": others}


def as_files(model: Sequence[str], folder: Path) -> list[str]:
    """Returns flags that name files of a model; made-up weights are written into a folder."""
    if model[0] != "--random_weights":
        return list(model)
    _command(model[1], str(folder), module="sd3par.launch.bench.made")
    return ["--model", str(folder)]


def exported(model: Sequence[str], folder: Path) -> list[str]:
    """Exports a model into a folder; returns the flags that name the export."""
    _command("export", *model, "--out", str(folder), "--quiet")
    return ["--model", str(folder), "--engine", STATIC]


def shown(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Returns rows as lines of a table, the heading first."""
    lines = [("start", "engine", *(f"{name} s" for name in SECONDS), "spread", "others' cores")]
    for row in rows:
        cells = (f"{row[f'{name}_s']:.2f}" for name in SECONDS)
        spread, others = f"{100 * row['spread']:.0f} % of {row['repeats']}", f"{row['others']:.2f}"
        lines.append((row["start"], row["engine"], *cells, spread, others))
    return lines


def startup(argv: Sequence[str]) -> int:
    """Runs the commands and shows what their parts took; returns the exit code."""
    options = _parser().parse(argv)
    require(options.repeats > 0, "repeats", options.repeats, "1 or more")
    named = options.model is not None
    require(not named or options.random_weights is None, "random_weights", options.random_weights,
            "nothing beside --model")  # fmt: skip
    model = ["--model", options.model] if named else ["--random_weights", options.random_weights or "tiny"]
    shared = record.surroundings(NAME, f"sd3par bench {NAME} {shlex.join(argv)}".rstrip(), options.commit)
    files = Files([NAME], options.results, options.json)
    request = Request(options.size, options.max_sequence_length, options.num_inference_steps)

    def add(row: Row) -> None:
        files.add({**shared, "who": "sd3par", "model": Path(model[1]).name, **row})

    rows = measure(model, request, options.repeats, add, options.quiet_s, options.no_static)
    Place().show(f"{model[1]}, {options.num_inference_steps} steps; run {shared['run_id']}\n{table(shown(rows))}")
    return endings.DONE


def measure(
    model: Sequence[str], request: Request, repeats: int, add: Callable[[Row], None], quiet_s: float = 0.0,
    alone: bool = False,
) -> list[Row]:  # fmt: skip
    """Returns the rows of a model, and of its export unless it is `alone`; each goes to `add` when it is there."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = as_files(model, folder / "model")
        models = [files] + ([] if alone else [exported(files, folder / "export")])
        for row in starts(models, request, repeats, quiet_s, folder):
            rows.append({"images": 1, **row})
            add(rows[-1])
    return rows


def _parser() -> Parser:
    from sd3par.launch.bench.kinds import add_result_flags

    parser = Parser(prog=f"sd3par bench {NAME}", description=ABOUT)
    what = Flags(parser, "what is rendered")
    what.value("model", "PATH", f"{DEFAULT_MODEL}, a diffusers folder, or a .safetensors file")
    what.value("random_weights", "NAME", f"instead of --model: {', '.join(RANDOM_MODELS)}, with made-up weights "
               "(default: tiny)", one_of(RANDOM_MODELS))  # fmt: skip
    what.switch("no_static", "do not export the model, and measure it alone")
    what.other("--size", metavar="N", type=whole, help="height and width in pixels (default: the model's own)")
    what.value("num_inference_steps", "N", "denoise steps", whole, 28)
    what.value("max_sequence_length", "N", "tokens that T5 reads", whole, 256)
    what.value("repeats", "N", "of each warm start", whole, 1)
    what.value("quiet_s", "SECONDS", f"for so long, starts beside which others took more than {MOST:g} of a core are "
               "made again", number, 0.0)  # fmt: skip
    add_result_flags(parser, NAME)
    return parser


def _command(*words: str, module: str = "sd3par", env: dict[str, str] | None = None) -> str:
    """Runs a command of sd3par, or a module; returns what it prints. What it refuses is refused here, in its words."""
    done = subprocess.run([sys.executable, "-m", module, *words], env={**os.environ, **(env or {})},
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode == endings.REFUSED:
        raise Sd3parError(done.stderr.strip().splitlines()[-1].removeprefix("sd3par: error: "))
    if done.returncode:
        raise RuntimeError(f"{module} {words[0]}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
