"""A checked job, rendered by this process alone or with the others of its mesh."""

from __future__ import annotations

import dataclasses
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sd3par import __version__
from sd3par.config import MAX_SEED, GenerationRequest
from sd3par.launch import report
from sd3par.launch.job import Job
from sd3par.launch.report import Run
from sd3par.ranges import Nvtx, listening

if TYPE_CHECKING:
    from sd3par.pipeline import SD3Pipeline


def render(job: Job) -> str:
    """Renders a job's requests; rank 0 writes the files. Returns the report.

    Raises:
        CheckpointError: the weights do not fit.
        RankFailure: another process is lost.
        ConfigError: the disk is full.
    """
    with listening(Nvtx()) if job.options.nvtx else nullcontext():
        return _render(job)


def _render(job: Job) -> str:
    begin = time.perf_counter()
    pipe = load(job)
    load_s = time.perf_counter() - begin
    if job.options.benchmark is not None:
        repeats = [_timed(pipe, job, repeat) for repeat in range(job.options.benchmark + 1)]
        return report.benchmarked(job.requests[0], load_s, repeats[1:], *_place(pipe))
    runs = [_write(pipe, job, index) for index in _prompt_bar(pipe, job)]
    return report.rendered(job.outputs, job.requests[0], load_s, runs, *_place(pipe))


def load(job: Job) -> SD3Pipeline:
    """Returns the pipeline of a job; all processes of the mesh call it."""
    from sd3par.pipeline import SD3Pipeline

    options = job.options
    return SD3Pipeline.from_pretrained(
        job.open()[0], options.dtype, job.parallel, options.engine, device=options.device,
        rank_timeout_s=options.rank_timeout_s,
    )  # fmt: skip


def _prompt_bar(pipe: SD3Pipeline, job: Job) -> Any:
    """Returns the numbers of the requests, behind a progress bar where there are several."""
    hidden = job.options.quiet or len(job.requests) == 1 or pipe.mesh.world.rank != 0
    return tqdm(range(len(job.requests)), desc="prompts", unit="prompt", disable=hidden)


def _timed(pipe: SD3Pipeline, job: Job, repeat: int) -> Run:
    """Renders the first request with a seed of its own."""
    first = job.requests[0]
    request = dataclasses.replace(first, seed=min(first.seed + repeat, MAX_SEED + 1 - first.num_images_per_prompt))
    out = pipe.generate(request, job.inputs, output_type="np", progress=False)
    return Run(out.steps, out.timings)


def _write(pipe: SD3Pipeline, job: Job, index: int) -> Run:
    """Renders request `index` and writes its pictures."""
    from sd3par import images

    request, count = job.requests[index], job.requests[index].num_images_per_prompt
    alone = len(job.requests) == 1
    out = pipe.generate(request, job.inputs, output_type="pil", progress=alone and not job.options.quiet)
    if pipe.mesh.world.rank == 0:
        with pipe.watchdog.told_of_errors():  # as a full disk: the others would wait for the next request
            for i, picture in enumerate(out.images):
                metadata = None if job.options.no_metadata else _metadata(pipe, job, request, i)
                images.save_png(job.outputs[index * count + i], picture, metadata, job.options.overwrite)
    return Run(out.steps, out.timings)


def _metadata(pipe: SD3Pipeline, job: Job, request: GenerationRequest, image: int) -> Any:
    """Returns what goes into the file of image `image` of a request."""
    from sd3par.images import ImageMetadata

    start, (height, width) = job.options.image, request.size
    return ImageMetadata(
        prompt=_first(request.prompt) or "", prompt_2=_first(request.prompt_2), prompt_3=_first(request.prompt_3),
        negative_prompt=_first(request.negative_prompt) or "", seed=request.seed + image,
        steps=request.num_inference_steps, guidance_scale=request.guidance_scale,
        image=None if start is None else Path(start).name, strength=None if start is None else request.strength,
        width=width, height=height, max_sequence_length=request.max_sequence_length, model=pipe.files.name,
        text_encoder_3=pipe.files.text_encoder_3 is not None, dtype=_dtype(pipe), dp=job.parallel.dp,
        mp=job.parallel.mp, sp=job.parallel.sp, engine=pipe.engine, version=__version__,
    )  # fmt: skip


def _first(texts: tuple[str, ...] | None) -> str | None:
    """Returns the one text of a request of this command."""
    return None if texts is None else texts[0]


def _place(pipe: SD3Pipeline) -> tuple[str, str]:
    """Returns the mesh and the device in words."""
    import paddle

    return pipe.mesh.describe(), f"{paddle.device.get_device()} {_dtype(pipe)}"


def _dtype(pipe: SD3Pipeline) -> str:
    return pipe.transformer.dtype
