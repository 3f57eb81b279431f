"""Our noise predictions and pictures beside the fp32 reference that benchmarks/gpu/peer.py wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle

from benchmarks.gpu import controls
from benchmarks.gpu.shapes import TIMESTEP, case_name, cases, relative
from sd3par import MMDiT, SD3Pipeline, kernels
from sd3par.launch.bench.swap import references, swapped
from sd3par.vae import VAE


@paddle.no_grad()
def predict(pipe: SD3Pipeline, reference: Any, case: tuple[int, int, int], swap: bool = False) -> np.ndarray:
    """Returns the noise prediction [2, 16, h, w] for a case's inputs; swap: each row gets the other's text."""
    latents, context, pooled = (reference[f"{case_name(*case)}/{name}"] for name in ("latents", "context", "pooled"))
    if swap:
        context, pooled = context[::-1].copy(), pooled[::-1].copy()
    tensors = [paddle.to_tensor(array) for array in (latents, context, pooled)]
    times = paddle.full([2], TIMESTEP, dtype="float32")
    assert isinstance(pipe.transformer, MMDiT)
    return pipe.transformer(*tensors, times).astype("float32").numpy()


def with_controls(pipe: SD3Pipeline, reference: Any, case: tuple[int, int, int]) -> dict[str, float]:
    """Returns our errors, and those of models that are wrong on purpose, relative to the fp32 reference."""
    want = reference[f"{case_name(*case)}/noise"]
    errors = {"noise_error": relative(predict(pipe, reference, case), want)}
    with controls.attending_by(controls.uniform_attention(kernels.attention)):
        errors["uniform_attention"] = relative(predict(pipe, reference, case), want)
    with controls.attending_by(controls.one_head_zeroed(kernels.attention)):
        errors["one_head_zeroed"] = relative(predict(pipe, reference, case), want)
    errors["another_text"] = relative(predict(pipe, reference, case, swap=True), want)
    with controls.loud_padding():
        errors["loud_padding"] = relative(predict(pipe, reference, case), want)
    assert isinstance(pipe.vae, VAE)
    with paddle.no_grad():
        image = pipe.vae.decode(paddle.to_tensor(reference["decoded"]))
    errors["image_error"] = relative(image.astype("float32").numpy(), reference["image"])
    return errors


def rows(pipe: SD3Pipeline, model: str, reference: Any) -> Iterator[dict[str, Any]]:
    """Yields a row for each case: the first with controls, all with the kernels and, where
    that can be, with their references.

    difference: between those two, relative to the fp32 reference too.
    """
    for index, case in enumerate(cases(model)):
        height, width, tokens = case
        row: dict[str, Any] = {"height": height, "width": width, "text_tokens": tokens}
        if index == 0:
            yield {**row, "kernels": "on", **with_controls(pipe, reference, case)}
        want = reference[f"{case_name(*case)}/noise"]
        noise = predict(pipe, reference, case)
        if index > 0:
            yield {**row, "kernels": "on", "noise_error": relative(noise, want)}
        if pipe.transformer.transport == "peer":  # which takes the kernels
            continue
        with swapped(references()):
            plain = predict(pipe, reference, case)
        difference = float(np.linalg.norm(noise - plain) / np.linalg.norm(want))
        yield {**row, "kernels": "off", "noise_error": relative(plain, want), "difference": difference}
