"""A checked job, rendered by this process alone or with the others of its mesh."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sd3par import __version__
from sd3par.config import MAX_SEED, GenerationRequest
from sd3par.launch import report
from sd3par.launch.endings import reason_of
from sd3par.launch.job import Job

if TYPE_CHECKING:
    from sd3par.pipeline import SD3Pipeline


def render(job: Job) -> str:
    """Renders a job's requests; rank 0 writes the files. Returns the report.

    Raises:
        CheckpointError: the weights do not fit.
        RankFailure: another process is lost.
        ConfigError: the disk is full.
    """
    begin = time.perf_counter()
    pipe = load(job)
    load_s = time.perf_counter() - begin
    with _told_of_errors(pipe):
        if job.options.benchmark is not None:
            repeats = [_timed(pipe, job, repeat) for repeat in range(job.options.benchmark + 1)]
            return report.benchmarked(job.requests[0], load_s, repeats[1:], *_place(pipe))
        total: Counter[str] = Counter()
        for index in _prompt_bar(pipe, job):
            total.update(_write(pipe, job, index))
        return report.rendered(job.outputs, job.requests[0], load_s, total, *_place(pipe))


def load(job: Job) -> SD3Pipeline:
    """Returns the pipeline of a job; all processes of the mesh call it."""
    from sd3par.pipeline import SD3Pipeline

    options = job.options
    return SD3Pipeline.from_pretrained(
        options.model, options.dtype, job.parallel, options.engine, text_encoder_3=not options.no_t5,
        tokenizers=options.tokenizers, device=options.device, rank_timeout_s=options.rank_timeout_s,
    )  # fmt: skip


@contextmanager
def _told_of_errors(pipe: SD3Pipeline) -> Iterator[None]:
    """Tells the other ranks of any error: after the door no error is one that all of them make."""
    if pipe.watchdog is None:
        yield
        return
    try:
        with pipe.watchdog.told_of_errors():
            yield
    except BaseException as error:
        pipe.watchdog.fail(reason_of(error))
        raise


def _prompt_bar(pipe: SD3Pipeline, job: Job) -> Any:
    """Returns the numbers of the requests, behind a progress bar where there are several."""
    hidden = job.options.quiet or len(job.requests) == 1 or pipe.mesh.world.rank != 0
    return tqdm(range(len(job.requests)), desc="prompts", unit="prompt", disable=hidden)


def _timed(pipe: SD3Pipeline, job: Job, repeat: int) -> Mapping[str, float]:
    """Returns the times of rendering the first request with a seed of its own."""
    request = dataclasses.replace(job.requests[0], seed=min(job.requests[0].seed + repeat, MAX_SEED))
    return pipe.generate(request, job.inputs, output_type="np", progress=False).timings


def _write(pipe: SD3Pipeline, job: Job, index: int) -> Mapping[str, float]:
    """Renders request `index` and writes its pictures; returns the times."""
    from sd3par import images

    request, count = job.requests[index], job.requests[index].num_images_per_prompt
    alone = len(job.requests) == 1
    out = pipe.generate(request, job.inputs, output_type="pil", progress=alone and not job.options.quiet)
    if pipe.mesh.world.rank == 0:
        for i, picture in enumerate(out.images):
            metadata = None if job.options.no_metadata else _metadata(pipe, job, request, i)
            images.save_png(job.outputs[index * count + i], picture, metadata, job.options.overwrite)
    return out.timings


def _metadata(pipe: SD3Pipeline, job: Job, request: GenerationRequest, image: int) -> Any:
    """Returns what goes into the file of image `image` of a request."""
    from sd3par.images import ImageMetadata

    return ImageMetadata(
        prompt=(request.prompt or ("",))[0], negative_prompt=(request.negative_prompt or ("",))[0],
        seed=request.seed + image, steps=request.num_inference_steps, guidance_scale=request.guidance_scale,
        width=request.width or 0, height=request.height or 0, model=pipe.files.name, dtype=_dtype(pipe),
        dp=job.parallel.dp, mp=job.parallel.mp, sp=job.parallel.sp, engine=job.options.engine, version=__version__,
    )  # fmt: skip


def _place(pipe: SD3Pipeline) -> tuple[str, str]:
    """Returns the mesh and the device in words."""
    import paddle

    return pipe.mesh.describe(), f"{paddle.device.get_device()} {_dtype(pipe)}"


def _dtype(pipe: SD3Pipeline) -> str:
    return str(next(iter(pipe.transformer.parameters())).dtype).removeprefix("paddle.")
