"""The kinds of sweeps: what each lists where its flags are not given, and what its table shows."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sd3par.config import ParallelConfig
from sd3par.launch import endings, record
from sd3par.launch.bench import table
from sd3par.launch.bench.case import Case, Group, mesh_flags, name_of
from sd3par.launch.bench.peers import beside, peer_of
from sd3par.launch.bench.runner import Files, Machine, Result, run
from sd3par.launch.bench.sweep import PLAIN, SHARES, Defaults, add_flags, sweep_of
from sd3par.launch.endings import Place
from sd3par.launch.environment import prepare_process
from sd3par.launch.flags import Group as Flags
from sd3par.launch.flags import render_parser
from sd3par.launch.parser import Parser

Row = dict[str, Any]
TIMES = ("image", "image_min", "image_p90", "loop", "step", "images_s", "peak", "reserved", "spread")
# Which seconds the tables have, by what is measured.
EXPLAINED = {
    "pictures": """\
loop s: from text states on the device to latents; image s: to pictures on the device; both the median of the slowest
rank, min and p90 beside it. peak GiB: of tensors on the largest rank; held GiB: what Paddle took of the device for
them. A case that fails or runs out of memory is a row, not the end. Repeats that differ too much are told of.""",
    "vae": """\
decode s: the median of the slowest rank, min and p90 beside it. peak GiB: of tensors on the largest rank. A case that
fails or runs out of memory is a row, not the end. Repeats that differ too much are told of. Flags about text, guidance
and steps are taken as of the other kinds, and change nothing.""",
    "text": """\
encode s: the median of the slowest rank, min and p90 beside it. peak GiB: of tensors on the largest rank. A case that
fails or runs out of memory is a row, not the end. Repeats that differ too much are told of. Flags about sizes and steps
are taken as of the other kinds, and change nothing.""",
}


@dataclass(frozen=True)
class Kind:
    """A kind of sweep. about: one line; columns: of its table, behind those that vary; last: what follows the table."""

    name: str
    about: str
    standard: Defaults
    columns: tuple[str, ...]
    last: Callable[[Machine, Mapping[str, ParallelConfig], Sequence[Result]], list[str]]


def measure(lines: Sequence[tuple[str, Sequence[str]]], command: str) -> int:
    """Measures kinds with their flags, in one run; shows and keeps the rows; returns the exit code.

    Cases of all lines that need the same processes are measured by the same.
    """
    parsed = [(name, parser_of(KINDS[name]).parse(words)) for name, words in lines]
    wanted = [peer_of(text) for text in parsed[0][1].peers or ()]
    prepare_process(1)
    sweeps = [sweep_of(name, KINDS[name].standard, options) for name, options in parsed]
    options, autos = parsed[0][1], {model: mesh for sweep in sweeps for model, mesh in sweep.autos.items()}
    machine, files = Machine.of(options), Files([name for name, _ in lines], options.results, options.json)
    endings.prepare(Place())
    shared = record.surroundings("", command, options.commit, machine.gpu)
    others: list[Row] = []
    if wanted:
        results, others = beside(machine, sweeps, wanted, shared, files.add, options.quiet)
    else:
        results = run(machine, [pair for sweep in sweeps for pair in sweep.pairs], shared, files.add, options.quiet)
    parts = [report(KINDS[name], machine, autos, results, others) for name in dict.fromkeys(name for name, _ in lines)]
    Place().show("\n\n".join(parts))
    return endings.DONE if any(table.time_of(result.row) for result in results) else endings.INTERNAL


def report(
    kind: Kind, machine: Machine, autos: Mapping[str, ParallelConfig], results: Sequence[Result], others: Sequence[Row]
) -> str:
    """Returns a kind's table of its results, others' rows among them, and what follows it."""
    own = [result for result in results if result.case.bench == kind.name]
    rows = [*(result.row for result in own), *(row for row in others if row["bench"] == kind.name)]
    ranked = table.ranked(rows) if kind.name == "parallel" else rows
    columns = (*kind.columns, "beside") if others else kind.columns
    return "\n".join([f"{kind.name}: {table.shown(ranked, columns)}", *kind.last(machine, autos, own)])


def parser_of(kind: Kind) -> Parser:
    """Returns the parser of a kind."""
    about = f"{kind.about[0].upper()}{kind.about[1:]}.\n\n{EXPLAINED[kind.standard.what]}"
    parser = Parser(prog=f"sd3par bench {kind.name}", description=about)
    add_flags(parser, kind.standard)
    add_result_flags(parser, kind.name)
    return parser


def add_result_flags(parser: Parser, name: str) -> None:
    """Adds where rows go."""
    result = Flags(parser, "the result")
    result.value("results", "FOLDER", f"append JSON lines to {name}.jsonl and {name}.csv in this folder")
    result.value("json", "FILE", "append a JSON object a row to this file")
    result.value("commit", "NAME", "what the rows say where there is no git checkout")
    result.switch("quiet", "no progress bar")
    result.switch("debug", "show the traceback of an error")


def nothing(machine: Machine, autos: Mapping[str, ParallelConfig], results: Sequence[Result]) -> list[str]:
    """Returns no lines."""
    return []


def best(machine: Machine, autos: Mapping[str, ParallelConfig], results: Sequence[Result]) -> list[str]:
    """Returns for each model and case of several meshes which is the fastest, and what to type for it."""
    if len({result.group.parallel for result in results}) == 1:
        return []
    fastest: dict[tuple[str, str, Case], Result] = {}
    for result in results:
        key, loop_s = (result.group.model, result.group.dtype, result.case), table.time_of(result.row)
        if result.case.engine != PLAIN and loop_s and (key not in fastest or loop_s < fastest[key].row["loop_s"]):
            fastest[key] = result
    lines = []
    for result in fastest.values():
        mesh, auto = name_of(result.group.parallel), name_of(autos[result.group.model])
        lines += [f"best: {mesh}; --dp_size auto takes {auto}", generate(machine, result.group, result.case)]
    return lines


def generate(machine: Machine, group: Group, case: Case) -> str:
    """Returns the command that renders as a case was measured."""
    parser = render_parser("", "", prompt_flag=False)
    words, mesh = parser.parse(["PROMPT"]), group.parallel
    words.prompt = None
    words.height, words.width, words.num_inference_steps = case.height, case.width, case.steps
    words.guidance_scale, words.num_images_per_prompt, words.engine = case.guidance, case.images, case.engine
    words.max_sequence_length, words.transport, words.dtype = case.tokens, mesh.transport, group.dtype
    made_up = group.model.startswith("random:")
    words.random_weights = group.model.removeprefix("random:") if made_up else None
    words.model = None if made_up else group.model
    flags = [*parser.as_argv(words), *mesh_flags(mesh)]
    if machine.devices is not None and mesh.world > 1:
        flags.append(f"--devices={','.join(str(index) for index in machine.devices[: mesh.world])}")
    return f"sd3par generate PROMPT {shlex.join(flags)}"


def each_trial(machine: Machine, autos: Mapping[str, ParallelConfig], results: Sequence[Result]) -> list[str]:
    """Returns a line for each repeat."""
    return [table.trials([result.row for result in results])]


_BATCHES = (1, 2, 4, 8, 16, 32)
KINDS = {kind.name: kind for kind in (
    Kind("parallel", "which dp x mp x sp is the fastest, each mesh on processes of its own", Defaults(mesh=("auto",)),
         ("cards", "loop", "image", "images_s", "peak", "ratio", "spread"), best),
    Kind("batch", "time and memory against the number of pictures at once", Defaults(images=_BATCHES, few_steps=4),
         (*TIMES, "work"), nothing),
    Kind("resolution", "time and memory against the size of four pictures", Defaults(images=(4,), own=SHARES), TIMES,
         nothing),
    Kind("steps", "time against the number of denoise steps", Defaults(steps=(1, 2, 4, 8, 16, 32, 64)), TIMES, nothing),
    Kind("guidance", "time against the guidance scale; 1 is without", Defaults(guidance=(1.0, 7.0, 8.0, 11.0)), TIMES,
         nothing),
    Kind("throughput", "pictures a second and card against pictures on each card, up to where memory ends",
         Defaults(images=(*_BATCHES, 64, 128), few_steps=4, repeats=3, per_card=True),
         ("micro", "work", "each", "images_s", "image", "step", "peak", "reserved", "spread"), nothing),
    Kind("trials", "repeat by repeat: seconds, and denoise steps a second, eager beside captured",
         Defaults(engine=("eager", "auto"), repeats=5),
         ("loop", "loop_min", "loop_p90", "its", "image", "peak", "spread"), each_trial),
    Kind("vae", "decoding alone, from latents to pictures on the device",
         Defaults(images=(1, 4), own=SHARES, what="vae"),
         ("cards", "decode", "decode_min", "decode_p90", "images_s", "peak", "ratio", "spread"), nothing),
    Kind("text", "text encoders alone, from prompts to states on the device",
         Defaults(images=(1, 4), what="text"),
         ("cards", "encode", "encode_min", "encode_p90", "peak", "ratio", "spread"), nothing),
)}  # fmt: skip
