"""`sd3par bench kernels`: a table of a step's kernels, and a trace of them for Chrome or Perfetto."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3par import ranges
from sd3par.config import require
from sd3par.launch import endings, record
from sd3par.launch.bench.case import CLIP_TOKENS, size_of
from sd3par.launch.bench.runner import Files
from sd3par.launch.endings import Place
from sd3par.launch.environment import prepare_process
from sd3par.launch.flags import DEFAULT_MODEL, DEVICES, DTYPES, RANDOM_MODELS
from sd3par.launch.flags import Group as Flags
from sd3par.launch.job import model_of
from sd3par.launch.parser import Parser, one_of, whole

if TYPE_CHECKING:
    from sd3par.launch.bench.clock import Ceilings
    from sd3par.launch.bench.watch import Watch

Row = dict[str, Any]
NAME = "kernels"
ABOUT = """\
Where the time of a denoising step goes, kernel by kernel: time, bytes, FLOPs, and the share of the least time that the
card could take, by the rate of a large product and of a copy measured in the same run.

  sd3par bench kernels --random_weights sd3-medium --profile step.json     then open it in ui.perfetto.dev
  nsys profile sd3par bench kernels --nvtx                                 ranges named encode, step, block, decode"""


def kernels(argv: Sequence[str]) -> int:
    """Measures and shows; returns the exit code."""
    options = _parser().parse(argv)
    both = options.model is not None and options.random_weights is not None
    require(not both, "random_weights", options.random_weights, "nothing beside --model")
    for name, most in (("images", 64), ("steps", 1000), ("max_sequence_length", 512)):
        require(1 <= getattr(options, name) <= most, name, getattr(options, name), f"1 to {most}")
    prepare_process(1)
    files = Files([NAME], options.results, options.json)
    if options.profile is not None:
        record.make(Path(options.profile))
    endings.prepare(Place())
    with ExitStack() as stack:
        if options.nvtx:
            stack.enter_context(ranges.listening(ranges.Nvtx()))
        Place().show(_measure(options, f"sd3par bench {NAME} {shlex.join(argv)}".rstrip(), files))
    return endings.DONE


def _parser() -> Parser:
    from sd3par.launch.bench.kinds import add_result_flags

    parser = Parser(prog=f"sd3par bench {NAME}", description=ABOUT)
    what = Flags(parser, "what is measured, on one device")
    what.value("model", "PATH", f"{DEFAULT_MODEL}, a diffusers folder, or a .safetensors file (default: "
               f"{DEFAULT_MODEL})")  # fmt: skip
    what.value("random_weights", "NAME", f"instead of --model: {', '.join(RANDOM_MODELS)}, with made-up weights",
               one_of(RANDOM_MODELS))  # fmt: skip
    what.other("--size", metavar="WxH", nargs="+", type=size_of, help="pixels, as 1024 or 1280x768 (default: the "
               "model's own)")  # fmt: skip
    what.value("images", "N", "pictures at once, with guidance", whole, 1)
    what.value("max_sequence_length", "N", f"text tokens besides CLIP's {CLIP_TOKENS}", whole, 256)
    what.value("dtype", "NAME", f"{', '.join(DTYPES)}; auto is bfloat16 on GPUs, else float32", one_of(DTYPES), "auto")
    what.value("device", "NAME", f"{', '.join(DEVICES)}; auto is the fastest there is", one_of(DEVICES), "auto")
    what.value("steps", "N", "steps that count", whole, 12)
    add_result_flags(parser, NAME)
    trace = Flags(parser, "profilers")
    trace.value("profile", "FILE", "write a trace of the last step: kernels on the device, ranges on the host")
    trace.switch("nvtx", "name ranges for Nsight Systems; needs pip install 'sd3par[profile]'")
    return parser


def _measure(options: Namespace, command: str, files: Files) -> str:
    """Returns the tables of all sizes."""
    from sd3par import device
    from sd3par.launch.bench import kernels as step
    from sd3par.launch.bench.clock import Timer, ceilings
    from sd3par.mmdit import MMDiT

    name = model_of(options)
    card = device.choose(options.dtype, options.device)
    model = MMDiT.from_pretrained(name, card.dtype, device=card.kind)
    own = model.config.sample_size * 8
    timer = Timer()
    best = ceilings(timer)
    gpu = "" if card.kind == "cpu" else f"1 x {card.description()}"
    shared = record.surroundings(NAME, command, options.commit, gpu) | {
        "who": "sd3par", "model": name.removeprefix("random:"), "images": options.images, "guidance": 7.0,
        "text_tokens": CLIP_TOKENS + options.max_sequence_length, "dtype": card.dtype, "engine": "eager",
    }  # fmt: skip
    shown, recorder = [], ranges.Recorder()
    for width, height in options.size or [(own, own)]:
        what = step.Step((height, width), options.images, CLIP_TOKENS + options.max_sequence_length, options.steps)
        with ranges.listening(recorder):
            rows, watch = step.measure(model, what, timer, best)
        for row in rows:
            files.add({**shared, "height": height, "width": width, **row})
        shown.append(f"{name}, {width} x {height}; {gpu or 'CPU'}; run {shared['run_id']}\n{step.shown(rows)}")
        if options.profile is not None:
            Path(options.profile).write_text(json.dumps(trace(watch, recorder, best)), encoding="utf-8")
    return "\n\n".join(shown)


def trace(watch: Watch, recorder: ranges.Recorder, best: Ceilings) -> dict[str, Any]:
    """Returns the last watched step as a Chrome trace: its kernels, and the last step's ranges of the host.

    Both begin at 0: the host asks for a step long before the device runs it.
    """
    events: list[Row] = [_named(1, "device"), _named(2, "host")]
    for work, at, took in watch.spans():
        share = round(best.floor_us(work.flops, work.bytes) / took, 3) if took else 0.0
        about = {"shape": work.shape, "flops": work.flops, "bytes": work.bytes, "share_of_floor": share}
        events.append({"name": work.kernel, "ph": "X", "pid": 1, "tid": 1, "ts": at, "dur": took, "args": about})
    blocks = [one for one in recorder.spans if one.name == "block"]  # a recorded step has none
    steps = [one for one in recorder.spans if one.name == "step" and blocks and one.begin < blocks[-1].begin]
    if steps:
        begin, end = steps[-1].begin, steps[-1].begin + steps[-1].seconds
        for one in recorder.spans:
            if begin <= one.begin <= end:
                at, took = 1e6 * (one.begin - begin), 1e6 * one.seconds
                events.append({"name": one.name, "ph": "X", "pid": 2, "tid": 1, "ts": at, "dur": took})
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _named(process: int, name: str) -> Row:
    return {"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}}
