"""Runs one exported program; the only place that knows by what."""

from __future__ import annotations

from pathlib import Path

import paddle
import paddle.inference
from paddle import Tensor

from sd3par.device import Device


class Program:
    """A program and its parameters on the current device, run by Paddle Inference.

    Takes and returns tensors of that device, on whose stream the work goes. What it was traced to do is done: no pass
    rewrites it. (On the CPU oneDNN's do in any case, and give wrong numbers with Paddle 3.3.1: they are off.)
    """

    def __init__(self, program: Path, parameters: Path, device: Device) -> None:
        config = paddle.inference.Config(str(program), str(parameters))
        config.disable_glog_info()
        config.switch_ir_optim(False)
        config.enable_memory_optim(False)
        if device.kind == "cpu":
            config.disable_gpu()
            config.disable_onednn()
        elif device.kind == "gpu":
            config.enable_use_gpu(0, device.index)
        else:
            config.enable_custom_device(device.kind, device.index)
        self._predictor = paddle.inference.create_predictor(config)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Returns what the program gives for `inputs`, in memory of its own: the next run writes where this one did."""
        return [one.clone() for one in self._predictor.run([one.contiguous() for one in inputs])]
