"""One case of `sd3par bench`: what is measured, and a rank that measures it."""

from __future__ import annotations

import json
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sd3par.config import MAX_GUIDANCE, MAX_IMAGES, MAX_STEPS, TRANSPORTS, GenerationRequest, ParallelConfig, require
from sd3par.launch import endings
from sd3par.launch.endings import Place
from sd3par.launch.flags import DEFAULT_MODEL, DEVICES, DTYPES, ENGINES, RANDOM_MODELS, Group
from sd3par.launch.job import model_of
from sd3par.launch.parser import Parser, number, one_of, whole
from sd3par.launch.worker import attach
from sd3par.plan import check_world

if TYPE_CHECKING:
    from sd3par.pipeline import SD3Pipeline
    from sd3par.weights import ModelFiles

CLIP_TOKENS = 77  # of every SD3; T5's follow them
MAX_REPEATS = 1000


def add_case_flags(parser: Parser) -> None:
    """Adds all that the cases of a run have in common."""
    picture, standard = Group(parser, "what is rendered"), GenerationRequest
    picture.value("height", "PIXELS", "a multiple of 16 (default: the model's own)", whole)
    picture.value("width", "PIXELS", "a multiple of 16 (default: the model's own)", whole)
    picture.value("num_inference_steps", "N", f"denoise steps, 1 to {MAX_STEPS}", whole, standard.num_inference_steps)
    picture.value("guidance_scale", "X", f"0 to {MAX_GUIDANCE:g}; guidance begins above 1", number,
                  standard.guidance_scale)  # fmt: skip
    picture.value("images", "N", f"pictures rendered at once, 1 to {MAX_IMAGES}", whole, 1)
    picture.value("max_sequence_length", "N", f"text tokens besides CLIP's {CLIP_TOKENS}, 1 to 512", whole,
                  standard.max_sequence_length)  # fmt: skip
    model = Group(parser, "the model; its text encoders are left out")
    model.value("model", "PATH", f"{DEFAULT_MODEL}, a diffusers folder, or a .safetensors file (default: "
                f"{DEFAULT_MODEL})")  # fmt: skip
    model.value("random_weights", "NAME", f"instead of --model: {', '.join(RANDOM_MODELS)}, with made-up weights",
                one_of(RANDOM_MODELS))  # fmt: skip
    model.value("dtype", "NAME", f"{', '.join(DTYPES)}; auto is bfloat16 on GPUs, else float32", one_of(DTYPES), "auto")
    model.value("engine", "NAME", ", ".join(ENGINES), one_of(ENGINES), "auto")
    model.value("device", "NAME", f"{', '.join(DEVICES)}; auto is the fastest there is", one_of(DEVICES), "auto")
    model.value("transport", "NAME", ", ".join(TRANSPORTS), one_of(TRANSPORTS), "auto")
    how = Group(parser, "how it is measured")
    how.value("warm_ups", "N", "calls that do not count", whole, 3)
    how.value("repeats", "N", "calls that count, each with new text states and a new seed", whole, 10)
    how.value("rank_timeout_s", "SECONDS", "a case fails when one of its processes is silent for so long", number, 20.0)
    how.switch("debug", "show the traceback of an error")


def case_parser() -> Parser:
    """Returns the parser of one case."""
    parser = Parser(prog="measure.py", description="Measures one mesh for sd3par bench.")
    add_case_flags(parser)
    place = Group(parser, "where")
    for axis in ("dp", "mp", "sp"):
        place.value(f"{axis}_size", "N", "of the mesh", whole, 1)
    place.value("run_dir", "FOLDER", "where sd3par bench reads the result")
    return parser


@dataclass(frozen=True)
class Case:
    """What is rendered, again and again: `images` pictures of a request without prompts, by which model."""

    options: Namespace
    request: GenerationRequest

    @classmethod
    def of(cls, options: Namespace) -> Case:
        """Returns the case that flags ask for.

        Raises:
            ConfigError: out of range.
        """
        require(options.model is None or options.random_weights is None, "random_weights", options.random_weights,
                "nothing beside --model")  # fmt: skip
        for name, low in (("warm_ups", 0), ("repeats", 1)):
            value = getattr(options, name)
            require(low <= value <= MAX_REPEATS, name, value, f"{low} to {MAX_REPEATS}")
        require(1 <= options.images <= MAX_IMAGES, "images", options.images, f"1 to {MAX_IMAGES}")
        request = GenerationRequest(
            None, height=options.height, width=options.width, num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale, max_sequence_length=options.max_sequence_length,
        )  # fmt: skip
        return cls(options, request)

    @property
    def model(self) -> str:
        """What to load, as `weights.open_model` takes it."""
        return model_of(self.options)

    @property
    def text_tokens(self) -> int:
        """Text tokens of each picture."""
        return CLIP_TOKENS + int(self.request.max_sequence_length)

    def files(self) -> ModelFiles:
        """Opens the model, without text encoders."""
        from sd3par import weights

        return weights.open_model(self.model, text_encoders=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the case that `argv` describes on this rank; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return endings.run(lambda: _main(words), Place(), "--debug" in words)


def _main(argv: Sequence[str]) -> int:
    place = Place.here()
    with place.door():
        options = case_parser().parse(argv)
        case = Case.of(options)
        parallel = ParallelConfig(options.dp_size, options.mp_size, options.sp_size, options.transport)
        check_world(parallel, place.world)
    place = Place.here(options.run_dir)
    attach(place)
    return endings.run(lambda: _measure(case, parallel, place), place, options.debug)


def _measure(case: Case, parallel: ParallelConfig, place: Place) -> int:
    from sd3par.pipeline import SD3Pipeline

    endings.prepare(place)
    options, begin = case.options, time.perf_counter()
    pipe = SD3Pipeline.from_pretrained(
        case.files(), options.dtype, parallel, options.engine, device=options.device,
        rank_timeout_s=options.rank_timeout_s,
    )  # fmt: skip
    load_s = time.perf_counter() - begin
    row = measure(pipe, case)
    if place.rank == 0:
        place.show(json.dumps({**row, "load_s": load_s}))
    return endings.DONE


def measure(pipe: SD3Pipeline, case: Case) -> dict[str, Any]:
    """Returns times and memory of a case, those of the slowest and of the largest rank; all ranks call it."""
    from sd3par import device
    from sd3par.launch.bench_time import largest, seconds  # late: they import Paddle

    card = device.Device(device.current(), pipe.transformer.dtype)
    card.reset_peak_memory()
    first, count = case.options.warm_ups, case.options.repeats
    with pipe.watchdog.told_of_errors():
        request, images, tokens = case.request, case.options.images, case.text_tokens
        taken = [seconds(pipe, request, images, tokens, seed) for seed in range(first + count)][first:]
        peak_gib = largest(pipe, card.peak_memory().allocated / 2**30)
    loop, image = (statistics.median(times) for times in zip(*taken, strict=True))
    slow = sorted(times[0] for times in taken)[round(0.9 * (count - 1))]
    return {
        "engine": pipe.engine, "dtype": pipe.transformer.dtype, "transport": pipe.transformer.transport,
        "loop_s": loop, "image_s": image, "decode_ms": 1e3 * statistics.median(b - a for a, b in taken),
        "step_ms": 1e3 * loop / case.request.num_inference_steps, "images_per_s": case.options.images / image,
        "repeats": count, "spread": slow / loop - 1, "peak_gib": peak_gib,
    }  # fmt: skip
