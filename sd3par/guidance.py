"""Classifier-free guidance (arXiv 2207.12598): which rows a rank predicts, and how both halves meet."""

from __future__ import annotations

import paddle
from paddle import Tensor

from sd3par.mesh import Mesh
from sd3par.plan import Rows
from sd3par.text import TextStates


def join_halves(states: list[TextStates]) -> TextStates:
    """Returns one or both halves of the guidance batch as rows: unconditional first, as diffusers has it.

    Where one half was encoded here and the other comes with the request, as fp32, both are fp32.
    """
    if len(states) == 1:
        return states[0]
    return TextStates(_rows([half.context for half in states]), _rows([half.pooled for half in states]))


def _rows(halves: list[Tensor]) -> Tensor:
    """Returns two halves, [R / 2, ...] each, as [R, ...]."""
    alike = halves[0].dtype == halves[1].dtype
    return paddle.concat(halves if alike else [half.astype("float32") for half in halves], axis=0)


def halves(prediction: Tensor, rows: Rows, mesh: Mesh) -> tuple[Tensor | None, Tensor]:
    """Returns the unconditional (None without guidance) and conditional predictions of this rank's images.

    prediction: [R, ti, W] of this rank's rows -> [B', ti, W] each. Where the halves are on two ranks, this is the one
    exchange between dp ranks of a step.
    """
    if rows.guidance == "none":
        return None, prediction
    if rows.guidance == "both":
        images = prediction.shape[0] // 2
        return prediction[:images], prediction[images:]  # views, unlike what chunk returns (Paddle 3.3.1)
    every = mesh.all_gather(mesh.dp, prediction)  # [dp, B', ti, W]
    first = mesh.dp.rank - mesh.dp.rank % 2
    return every[first], every[first + 1]
