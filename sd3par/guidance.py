"""Classifier-free guidance (arXiv 2207.12598): which rows a rank predicts, and how both halves meet."""

from __future__ import annotations

import paddle
from paddle import Tensor

from sd3par.mesh import Mesh
from sd3par.plan import Rows
from sd3par.text import TextStates


def text_rows(rows: Rows, cond: TextStates, uncond: TextStates | None) -> TextStates:
    """Returns the text states of this rank's rows: unconditional ones first, as diffusers orders them.

    cond, uncond: one row per image of this rank; uncond is None where this rank has no unconditional rows.
    """
    if rows.guidance in ("cond", "none") or uncond is None:
        return cond
    if rows.guidance == "uncond":
        return uncond
    return TextStates(
        paddle.concat([uncond.context, cond.context], axis=0), paddle.concat([uncond.pooled, cond.pooled], axis=0)
    )


def halves(prediction: Tensor, rows: Rows, mesh: Mesh) -> tuple[Tensor | None, Tensor]:
    """Returns the unconditional (None without guidance) and conditional predictions of this rank's images.

    prediction: [R, ti, W] of this rank's rows -> [B', ti, W] each. Where the halves are on two ranks, this is the one
    exchange between dp ranks of a step.
    """
    if rows.guidance == "none":
        return None, prediction
    if rows.guidance == "both":
        uncond, cond = prediction.chunk(2, axis=0)
        return uncond, cond
    every = mesh.all_gather(mesh.dp, prediction)  # [dp, B', ti, W]
    first = mesh.dp.rank - mesh.dp.rank % 2
    return every[first], every[first + 1]
