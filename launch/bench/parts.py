"""What a rank measures of a case: whole pictures, the autoencoder alone, or the text encoders alone."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import paddle

from sd3par import device
from sd3par.captured import EAGER_CALLS, ways
from sd3par.images import to_uint8
from sd3par.inputs import Inputs
from sd3par.launch.bench.case import Case
from sd3par.launch.bench.engines import running_by
from sd3par.launch.bench.shapes import heldout_prompts
from sd3par.launch.bench.timing import embeds, largest, percentile90, seconds, summary
from sd3par.pipeline import SD3Pipeline
from sd3par.plan import rows_for
from sd3par.text.request import encode_request

Row = dict[str, Any]
T = TypeVar("T")
_GIB = 1 << 30
# Calls of a shape before one counts where anything is recorded. The last but one records autoencoder and constants; on
# two H200s the one behind it took 45 to 95 ms longer, too: recording gives idle memory back, which it asks for again.
RECORDED = EAGER_CALLS + 2


class Measurer:
    """Measures cases with a pipeline, one after the other; all ranks make the same calls.

    held_gib: what is taken on purpose, and is nobody's need.
    """

    def __init__(self, pipe: SD3Pipeline, held_gib: int = 0) -> None:
        self.pipe, self._held_gib = pipe, held_gib
        self._card = device.Device(device.current(), pipe.transformer.dtype)
        self._shape: tuple[Any, ...] = ()  # of the case before

    def measure(self, case: Case) -> Row:
        """Returns times and memory of a case, those of the slowest and of the largest rank."""
        again, self._shape = case.shape == self._shape, case.shape
        warm_ups = min(case.warm_ups, 1) if again else case.warm_ups
        begin = time.perf_counter()
        with self.pipe.watchdog.told_of_errors(), running_by(self.pipe, case.engine, again) as engine, paddle.no_grad():
            self._card.reset_peak_memory()
            if self.pipe.captured is not None and not again:
                warm_ups = max(warm_ups, RECORDED)
            found = PARTS[case.what](self.pipe, case, warm_ups)
            peaks = [largest(self.pipe, bytes_ / _GIB - self._held_gib) for bytes_ in self._card.peak_memory()]
            engine = engine if engine == case.engine else self.pipe.engine  # what cannot be recorded makes it eager
        return {
            "engine": engine, "dtype": self.pipe.transformer.dtype,
            "transport": self.pipe.transformer.transport, **found, "warm_ups": warm_ups,
            "peak_gib": peaks[0], "reserved_gib": peaks[1], "case_s": time.perf_counter() - begin,
        }  # fmt: skip


def calls(pipe: SD3Pipeline, case: Case, warm_ups: int, call: Callable[[int], T]) -> list[T]:
    """Returns what the calls that count gave, each with a seed of its own.

    All that warm up are made, whatever they take; once `case_s` are over no more than one counts.
    """
    begin, taken = time.perf_counter(), list[T]()
    for seed in range(warm_ups):
        call(seed)
    for seed in range(warm_ups, warm_ups + case.repeats):
        over = case.case_s is not None and time.perf_counter() - begin > case.case_s
        if taken and pipe.mesh.any(over):
            break
        taken.append(call(seed))
    return taken


def pictures(pipe: SD3Pipeline, case: Case, warm_ups: int) -> Row:
    """Measures loop and image, from text states on."""
    taken = calls(pipe, case, warm_ups, partial(seconds, pipe, case.request, case.images, case.text_tokens))
    loops, images = ([times[i] for times in taken] for i in range(2))
    loop, image = summary("loop", loops), summary("image", images)
    return {
        **loop, **image, "step_ms": 1e3 * loop["loop_s"] / case.steps, **_rate(pipe, case, image["image_s"]),
        "loops_s": [round(each, 6) for each in loops], **_counted(loops),
    }  # fmt: skip


def vae(pipe: SD3Pipeline, case: Case, warm_ups: int) -> Row:
    """Measures decoding, from latents to pictures on the device."""
    scale, channels = pipe.vae.scale_factor, pipe.transformer.config.in_channels
    shape = (case.images, channels, case.height // scale, case.width // scale)
    latents = paddle.to_tensor(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    taken = calls(pipe, case, warm_ups, lambda _: timed(pipe, lambda: pipe.pixels(latents)))
    found = summary("decode", taken)
    return {**found, **_rate(pipe, case, found["decode_s"]), **_counted(taken)}


def text(pipe: SD3Pipeline, case: Case, warm_ups: int) -> Row:
    """Measures the text encoders, from prompts that were never seen to states of both guidance halves."""
    rows = rows_for(pipe.mesh.dp.rank, pipe.mesh.dp.size, case.images, case.request.guidance)
    width = pipe.transformer.config.joint_attention_dim

    def encode(seed: int) -> float:
        prompts = tuple(f"a red circle on a blue background, number {seed} of {image}" for image in range(case.images))
        request = dataclasses.replace(case.request, prompt=prompts)
        ways_ = ways(pipe.captured)
        return timed(pipe, lambda: encode_request(pipe.text, request, Inputs(), rows, width, *ways_))

    taken = calls(pipe, case, warm_ups, encode)
    return {**summary("encode", taken), **_counted(taken)}


def kept(pipe: SD3Pipeline, case: Case, warm_ups: int) -> Row:
    """Draws a picture for each repeat and keeps all: of held-out prompts, where there are text encoders, else of noise.

    The file holds `pictures` [N, H, W, 3] uint8 and `latents` [N, C, h, w] fp32.
    """
    prompts = [prompt.text for prompt in heldout_prompts(case.repeats)]
    latents = []
    for seed, prompt in enumerate(prompts):
        request = dataclasses.replace(case.request, seed=seed, prompt=None if pipe.text is None else (prompt,))
        states = embeds(pipe, 1, case.text_tokens, seed) if pipe.text is None else None
        latents.append(pipe.generate(request, Inputs(embeds=states), "latent", progress=False).images)
    pictures = np.concatenate([to_uint8(pipe.pixels(one)) for one in latents])
    if pipe.mesh.world.rank == 0:
        np.savez(case.keep, pictures=pictures, latents=paddle.concat(latents).astype("float32").numpy())
    return {"pictures": len(prompts)}


def timed(pipe: SD3Pipeline, call: Callable[[], object]) -> float:
    """Returns the seconds of a call, the slowest rank's."""
    device.synchronize()
    pipe.mesh.barrier()
    start = time.perf_counter()
    call()
    device.synchronize()
    return largest(pipe, time.perf_counter() - start)


def _rate(pipe: SD3Pipeline, case: Case, image_s: float) -> Row:
    rate = case.images / image_s
    return {"images_per_s": rate, "images_per_s_per_gpu": rate / pipe.mesh.world.size}


def _counted(taken: Sequence[float]) -> Row:
    return {"repeats": len(taken), "spread": percentile90(taken) / statistics.median(taken) - 1}


PARTS: dict[str, Callable[[SD3Pipeline, Case, int], Row]] = {
    "pictures": pictures,
    "vae": vae,
    "text": text,
    "pictures kept": kept,
}
