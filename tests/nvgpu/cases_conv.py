"""Two-dimensional convolutions."""

from __future__ import annotations

from functools import partial
from typing import Any

import paddle.nn.functional as F

from tests.nvgpu.case import Case, Input

# Sums of (channels * height * width of the filter) products in fp32, some of which cancel.
SUM = 4.0
LONG_SUM = 8.0


def _conv(name: str, x: tuple[int, ...], filters: tuple[int, ...], op: str = "conv2d", **more: Any) -> Case:
    settings = {key: more.pop(key) for key in ("dtypes",) if key in more}
    loss, layout = more.pop("loss", SUM), more.pop("layout", "contiguous")
    inputs = (Input(x, layout=layout), Input(filters, low=-1, high=1, layout=layout))
    return Case(op, partial(F.conv2d, **more), inputs, name, loss=loss, **settings)


CONV = [
    _conv("plain", (2, 8, 10, 12), (16, 8, 3, 3)),
    _conv("odd", (1, 3, 9, 11), (5, 3, 3, 3), padding=1),
    _conv("point", (2, 16, 7, 9), (24, 16, 1, 1)),
    _conv("patches", (2, 16, 12, 8), (40, 16, 2, 2), stride=2),
    _conv("uneven", (1, 4, 13, 9), (6, 4, 3, 5), stride=(2, 1), padding=(2, 1), dilation=(1, 2)),
    _conv("dilation", (1, 4, 13, 15), (6, 4, 3, 3), dilation=2, padding=2),
    _conv("pad_sides", (1, 4, 8, 9), (6, 4, 3, 3), padding=[0, 1, 2, 0]),
    _conv("pad_down_right", (2, 8, 8, 10), (8, 8, 3, 3), padding=[0, 1, 0, 1], stride=2),
    _conv("pad_pairs", (1, 4, 8, 9), (6, 4, 3, 3), padding=[[0, 0], [0, 0], [1, 2], [0, 3]]),
    _conv("same", (1, 4, 8, 9), (6, 4, 3, 3), padding="SAME", stride=2),
    _conv("same_even_filter", (1, 4, 8, 9), (6, 4, 2, 4), padding="SAME"),
    _conv("valid", (1, 4, 8, 9), (6, 4, 3, 3), padding="VALID"),
    _conv("groups", (2, 6, 8, 9), (9, 2, 3, 3), groups=3, padding=1),
    _conv("one_channel", (1, 1, 8, 9), (3, 1, 3, 3)),
    _conv("to_rgb", (1, 32, 16, 16), (3, 32, 3, 3), padding=1, loss=LONG_SUM),
    _conv("batch", (5, 8, 6, 7), (16, 8, 3, 3), padding=1),
    _conv("empty", (0, 4, 8, 9), (6, 4, 3, 3)),
    _conv("strided", (2, 8, 9, 8), (8, 8, 3, 3), padding=1, layout="transposed"),
    _conv("unaligned", (2, 3, 7, 9), (5, 3, 3, 3), layout="offset"),
    _conv("wide", (1, 64, 32, 32), (72, 64, 3, 3), padding=1, loss=LONG_SUM, dtypes=("float32",)),
    _conv("wide_halves", (1, 64, 32, 32), (72, 64, 3, 3), padding=1, loss=1.5, dtypes=("float16", "bfloat16")),
    _conv("nhwc", (2, 9, 10, 8), (16, 8, 3, 3), padding=1, data_format="NHWC"),
    _conv("nhwc_odd", (2, 7, 9, 3), (5, 3, 3, 2), data_format="NHWC"),
    _conv("nhwc_pad_sides", (1, 8, 9, 4), (6, 4, 3, 3), padding=[0, 1, 2, 0], stride=2, data_format="NHWC"),
    _conv("nhwc_same", (1, 8, 9, 4), (6, 4, 3, 3), padding="SAME", stride=2, data_format="NHWC"),
    _conv("nhwc_groups", (2, 8, 9, 6), (9, 2, 3, 3), groups=3, padding=1, data_format="NHWC"),
]

DEPTHWISE = [
    _conv("plain", (2, 6, 8, 9), (6, 1, 3, 3), "depthwise_conv2d", groups=6, padding=1),
    _conv("multiplier", (2, 4, 8, 9), (12, 1, 3, 3), "depthwise_conv2d", groups=4, stride=2),
    _conv("pad_sides", (1, 4, 8, 9), (4, 1, 3, 3), "depthwise_conv2d", groups=4, padding=[0, 1, 2, 0]),
    _conv("same_dilation", (1, 4, 8, 9), (4, 1, 3, 3), "depthwise_conv2d", groups=4, padding=2, dilation=2),
    _conv("nhwc", (2, 8, 9, 6), (6, 1, 3, 3), "depthwise_conv2d", groups=6, padding=1, data_format="NHWC"),
    _conv("empty", (0, 4, 8, 9), (4, 1, 3, 3), "depthwise_conv2d", groups=4),
]

CASES = [*CONV, *DEPTHWISE]
