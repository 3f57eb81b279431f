"""The kinds of sweeps: what each lists where its flags are not given, and what its table shows."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sd3par.launch import endings, record
from sd3par.launch.bench import table
from sd3par.launch.bench.case import Case, Group, mesh_flags, name_of
from sd3par.launch.bench.runner import Files, run
from sd3par.launch.bench.sweep import PLAIN, SHARES, Defaults, Sweep, add_flags, sweep_of
from sd3par.launch.endings import Place
from sd3par.launch.environment import prepare_process
from sd3par.launch.flags import Group as Flags
from sd3par.launch.flags import render_parser
from sd3par.launch.parser import Parser

Row = dict[str, Any]
TIMES = ("image", "image_min", "image_p90", "loop", "step", "images_s", "peak", "reserved", "spread")
EXPLAINED = """\
loop s: from text states on the device to latents; image s: to pictures on the device; both the median of the slowest
rank, min and p90 beside it. peak GiB: of tensors on the largest rank; held GiB: what Paddle took of the device for
them. A case that fails or runs out of memory is a row, not the end. Repeats that differ too much are told of."""


@dataclass(frozen=True)
class Kind:
    """A kind of sweep. about: one line; columns: of its table, behind those that vary; last: what follows the table."""

    name: str
    about: str
    standard: Defaults
    columns: tuple[str, ...]
    last: Callable[[Sweep, Sequence[Row]], list[str]]


def measure(kind: Kind, argv: Sequence[str], command: str) -> int:
    """Measures what `argv` asks for, shows and keeps the rows; returns the exit code."""
    options = parser_of(kind).parse(argv)
    prepare_process(1)
    sweep = sweep_of(options, kind.standard)
    files = Files(kind.name, options.results, options.json)
    endings.prepare(Place())
    shared = record.surroundings(kind.name, command, options.commit, sweep.gpu)
    rows = run(sweep, shared, files.add, options.quiet)
    ranked = sorted(rows, key=lambda row: row.get("loop_s", float("inf"))) if kind.name == "parallel" else rows
    Place().show("\n".join([table.shown(ranked, kind.columns), *kind.last(sweep, rows)]))
    return endings.DONE if any("loop_s" in row for row in rows) else endings.INTERNAL


def parser_of(kind: Kind) -> Parser:
    """Returns the parser of a kind."""
    about = f"{kind.about[0].upper()}{kind.about[1:]}.\n\n{EXPLAINED}"
    parser = Parser(prog=f"sd3par bench {kind.name}", description=about)
    add_flags(parser, kind.standard)
    result = Flags(parser, "the result")
    result.value("results", "FOLDER", f"append JSON lines to {kind.name}.jsonl and {kind.name}.csv in this folder")
    result.value("json", "FILE", "append a JSON object a case to this file")
    result.value("commit", "NAME", "what the rows say where there is no git checkout")
    result.switch("quiet", "no progress bar")
    result.switch("debug", "show the traceback of an error")
    return parser


def nothing(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """Returns no lines."""
    return []


def best(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """Returns for each model and case which mesh is the fastest, and what to type for it."""
    lines = []
    groups = {(each.model, each.dtype, each.parallel): each for each in sweep.groups}
    fastest: dict[tuple[str, str, Case], tuple[float, Group]] = {}
    measured = iter(rows)
    for group in groups.values():
        for case in group.cases:
            loop_s = next(measured).get("loop_s")
            key = (group.model, group.dtype, case)
            if case.engine != PLAIN and loop_s is not None and loop_s < fastest.get(key, (float("inf"), group))[0]:
                fastest[key] = (loop_s, group)
    for (_, _, case), (_, group) in fastest.items():
        lines.append(f"best: {name_of(group.parallel)}; --dp_size auto takes {name_of(sweep.autos[group])}")
        lines.append(generate(sweep, group, case))
    return lines


def generate(sweep: Sweep, group: Group, case: Case) -> str:
    """Returns the command that renders as a case was measured."""
    parser = render_parser("", "", prompt_flag=False)
    words, options, mesh = parser.parse(["PROMPT"]), sweep.options, group.parallel
    words.prompt = None
    words.height, words.width, words.num_inference_steps = case.height, case.width, case.steps
    words.guidance_scale, words.num_images_per_prompt, words.engine = case.guidance, case.images, case.engine
    words.max_sequence_length, words.transport, words.device = case.tokens, mesh.transport, options.device
    words.dtype = "auto" if options.dtype == ["auto"] else group.dtype
    if group.model.startswith("random:"):
        words.random_weights = group.model.removeprefix("random:")
    elif options.model is not None:
        words.model = group.model
    flags = [*parser.as_argv(words), *mesh_flags(mesh)]
    if options.devices is not None and mesh.world > 1:
        flags.append(f"--devices={','.join(str(index) for index in options.devices[: mesh.world])}")
    return f"sd3par generate PROMPT {shlex.join(flags)}".rstrip()


def each_trial(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """Returns a line for each repeat."""
    return [table.trials(rows)]


_BATCHES = (1, 2, 4, 8, 16, 32)
KINDS = {kind.name: kind for kind in (
    Kind("parallel", "which dp x mp x sp is the fastest, each mesh on processes of its own", Defaults(mesh=("auto",)),
         ("cards", "loop", "image", "images_s", "peak", "ratio", "spread"), best),
    Kind("batch", "time and memory against the number of pictures at once", Defaults(images=_BATCHES, few_steps=4),
         TIMES, nothing),
    Kind("resolution", "time and memory against the size of four pictures", Defaults(images=(4,), own=SHARES), TIMES,
         nothing),
    Kind("steps", "time against the number of denoise steps", Defaults(steps=(1, 2, 4, 8, 16, 32, 64)), TIMES, nothing),
    Kind("guidance", "time against the guidance scale; 1 is without", Defaults(guidance=(1.0, 7.0, 8.0, 11.0)), TIMES,
         nothing),
    Kind("throughput", "pictures a second and card against pictures on each card, up to where memory ends",
         Defaults(images=(*_BATCHES, 64, 128), few_steps=4, repeats=3, per_card=True),
         ("micro", "each", "images_s", "image", "step", "peak", "reserved", "spread"), nothing),
    Kind("trials", "repeat by repeat: seconds, and denoise steps a second, eager beside captured",
         Defaults(engine=("eager", "auto"), repeats=5),
         ("loop", "loop_min", "loop_p90", "its", "image", "peak", "spread"), each_trial),
)}  # fmt: skip
