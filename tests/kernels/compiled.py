"""Every kernel compiled for GPUs that need not be there, from Paddle tensors: python -m tests.kernels.compiled

Prints one JSON object: "kernel sm_XX" -> cubin bytes, shared memory bytes, launches; what the assembler says of the
kernel for Hopper; and whether torch got loaded.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from functools import partial
from types import SimpleNamespace

import paddle
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.backends.nvidia.driver import CudaDriver

from sd3par.kernels import runtime
from sd3par.kernels.adaln import Copies, Stream, _adaln, adaln_triton
from sd3par.kernels.attention import Scattered, _attention, attention_triton
from sd3par.kernels.attention_hopper import attention_hopper
from sd3par.kernels.attention_hopper_kernel import _attention_hopper
from sd3par.kernels.attention_hopper_split import Plan
from sd3par.kernels.conv import _conv3x3, conv3x3_triton, upsample_conv3x3_triton
from sd3par.kernels.gated_sum import _gated_sum, gated_sum_triton
from sd3par.kernels.group_norm_silu import _apply, _merge, _partial, group_norm_silu_triton
from sd3par.kernels.group_norm_strips import (
    Strip,
    _apply_strip,
    _merge_strips,
    _pack,
    group_norm_silu_strip_triton,
    pack_strip_triton,
)
from sd3par.kernels.guidance_euler import _guidance_euler, guidance_euler_triton
from sd3par.kernels.linear_hopper import SHAPES, Product, Rectangle, fits, linear_hopper
from sd3par.kernels.linear_hopper_kernel import _linear_hopper
from sd3par.kernels.meet import TRIAL, _hear, _meet, _tell, hear_triton, meet_triton, tell_triton
from sd3par.kernels.patch_embed import _patch_embed, patch_embed_triton
from sd3par.kernels.qkv import _norm_heads, split_heads_triton

CAPABILITIES = (80, 90, 100)
KERNELS = {"attention": _attention, "adaln": _adaln, "split_heads": _norm_heads, "guidance_euler": _guidance_euler,
           "group_norm_partial": _partial, "group_norm_merge": _merge, "group_norm_apply": _apply,
           "pack_strip": _pack, "merge_strips": _merge_strips, "group_norm_strip": _apply_strip,
           "patch_embed": _patch_embed, "gated_sum": _gated_sum, "conv3x3": _conv3x3,
           "meet": _meet, "tell": _tell, "hear": _hear}  # fmt: skip


def stub(capability: int, launches: list[tuple[int, ...]]) -> CudaDriver:
    """Returns a driver for a GPU that is not there: it compiles, and notes launches instead of making them."""
    driver = CudaDriver.__new__(CudaDriver)
    driver.utils = SimpleNamespace(
        load_binary=lambda *arguments: (0, 0, 32, 0, 1024),  # module, function, registers, spills, most threads
        get_device_properties=lambda device: {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32},
        unload_module=lambda module: None,
    )
    driver.launcher_cls = lambda source, metadata: lambda *arguments: launches.append(arguments[:3])
    driver.get_current_device = lambda: capability  # a device a capability: compiled kernels are kept by device
    driver.get_current_stream = lambda device: 0
    driver.get_current_target = lambda: GPUTarget("cuda", capability, 32)
    return driver


def scattered(segments: list[paddle.Tensor]) -> list[Scattered]:
    """Returns for each segment, [R, Ti, 3, heads, head_dim], where half of a rank's outputs go, of a mesh of two."""
    half = [-(-x.shape[1] // 2) for x in segments]
    return [Scattered(paddle.zeros([2], dtype="int64"), size, size * 3072, 3072) for size in half]


def call_peers() -> None:
    """Calls what stores to two ranks: norms of one's tokens, of parts of a sum, parts of a gated sum; and meetings."""
    x, parts = paddle.zeros([2, 19, 1536], dtype="bfloat16"), paddle.zeros([2, 2, 19, 1536], dtype="bfloat16")
    vector, addresses = x[:, 0], paddle.zeros([2], dtype="int64")
    once, copies = ((vector, vector),), Copies(addresses, 37 * 1536)
    adaln_triton([Stream(x, None, None, once)] * 2, [[copies]] * 2)
    adaln_triton([Stream(x, parts, vector, once)] * 2, [[copies]] * 2)
    twice = Stream(x, parts, None, once * 2)
    adaln_triton([twice, Stream(x, parts, vector, once)], [[copies] * 2, [copies]])
    gated_sum_triton(x, vector, x, vector, Scattered(addresses, 10, 10 * 1536, 1536))
    flags = paddle.zeros([3], dtype="int32")
    meet_triton(flags, addresses)
    meet_triton(flags, addresses, 0, TRIAL)
    flags = paddle.zeros([4], dtype="int32")
    tell_triton(flags, addresses, 0)
    hear_triton(flags)


def call_all() -> None:
    """Calls every wrapper once with what the model gives it, in SD3-medium's shapes but fewer tokens."""
    half = "bfloat16"
    image, text = paddle.zeros([1, 77, 3, 24, 64], dtype=half), paddle.zeros([1, 333, 3, 24, 64], dtype=half)
    attention_triton([image, text])
    attention_triton([text])
    attention_triton([image, text], scattered([image, text]))
    x = paddle.zeros([2, 37, 1536], dtype=half)
    shift, scale, gate, *_ = paddle.zeros([2, 6, 1536], dtype=half).unbind(1)
    context, once = paddle.zeros([2, 333, 1536], dtype=half), ((scale, shift),)
    adaln_triton([Stream(x, None, None, once), Stream(context, None, None, once)])
    adaln_triton([Stream(x, x, gate, once), Stream(context, context, gate, once)])
    adaln_triton([Stream(x, x, None, ((scale, shift), (shift, scale)))])
    gated_sum_triton(x, gate, x, scale, None)
    norms = paddle.zeros([2, 64], dtype=half)
    split_heads_triton(paddle.zeros([1, 37, 4608], dtype=half), 64, norms[0], norms[1])
    latents, delta = paddle.zeros([1, 37, 64]), paddle.zeros([3])[1]
    guidance_euler_triton(latents, latents.astype(half), latents.astype(half), 7.0, delta)
    weight, positions = paddle.zeros([1536, 16, 2, 2], dtype=half), paddle.zeros([37, 1536])
    patch_embed_triton(latents, weight, x[0, 0], positions, 2)
    channels = paddle.zeros([256], dtype=half)
    group_norm_silu_triton(paddle.zeros([1, 8, 8, 256], dtype=half), 32, channels, channels, 1e-6, True)
    zeros = partial(paddle.zeros, dtype=half)
    for rank in range(3):
        x, lines = zeros([1, 9, 33, 256]), (9, 8, 8, 8)
        message = pack_strip_triton(x, 32)
        messages = zeros([4, message.size])
        group_norm_silu_strip_triton(x, messages, Strip(rank, lines), 32, channels, channels, 1e-6)
    conv3x3_triton(zeros([1, 4, 128, 64]), zeros([256, 3, 3, 64]), zeros([256]), None, halo=True)
    upsample_conv3x3_triton(zeros([1, 4, 128, 64]), zeros([4, 256, 2, 2, 64]), zeros([256]), halo=True)
    for height, width, outputs in ((128, 128, 256), (2, 64, 128), (2, 64, 3)):
        x, bias = zeros([1, height, width, 64]), zeros([outputs])
        residual = zeros([1, height, width, outputs]) if outputs == 3 else None
        conv3x3_triton(x, zeros([outputs, 3, 3, 64]), bias, residual)
        if outputs > 3:
            upsample_conv3x3_triton(x, zeros([4, outputs, 2, 2, 64]), bias)


def assembled(ptx: str) -> str:
    """Returns what NVIDIA's assembler says of a kernel for Hopper: warnings, registers, spills."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as source:
        source.write(ptx)
        source.flush()
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", source.name, "-o", os.devnull]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def call_hopper() -> list[object]:
    """Returns for each way to compile it: cubin and shared memory bytes, what the assembler says.

    Both dtypes; to tensors and to addresses. Whether tiles are split makes no other kernel.
    """
    for dtype in ("bfloat16", "float16"):
        image, text = paddle.zeros([1, 77, 3, 24, 64], dtype=dtype), paddle.zeros([1, 333, 3, 24, 64], dtype=dtype)
        for plan in (Plan(96, 0, 4), Plan(0, 3, 4)):
            attention_hopper([image, text], None, plan)
            attention_hopper([image, text], scattered([image, text]), plan)
    made = _attention_hopper.device_caches[90][0].values()
    return [(len(one.asm["cubin"]), one.metadata.shared, assembled(one.asm["ptx"])) for one in made]


def call_linear() -> list[object]:
    """Returns the same for each shape of tiles, storing late and not, with a bias or GELU or neither, and its `uses`.

    16 columns of the weight do not count: it is a part of a wider one.
    """
    for dtype in ("bfloat16", "float16"):
        x, weight = paddle.zeros([200, 256], dtype=dtype), paddle.zeros([256, 400], dtype=dtype)[:, :384]
        rectangles = [Rectangle(i, 0, rows, 0, 384, x.data_ptr(), 384) for i, rows in enumerate((200, 33))]
        for bias in (None, paddle.zeros([384], dtype=dtype)):
            streams = [Product(x, weight, bias), Product(x[:33], weight, bias)]
            assert fits(streams) and not fits([Product(x[:, :128], weight, bias)])
            for cluster, late, shape in itertools.product((1, 2), (False, True), SHAPES):
                gelu, shape = dtype == "bfloat16" and bias is not None, shape._replace(cluster=cluster, late=late)
                linear_hopper(streams, rectangles, gelu, shape)
    made = _linear_hopper.device_caches[90][0].values()
    return [
        (len(one.asm["cubin"]), one.metadata.shared, assembled(one.asm["ptx"]), *uses(one.asm["ptx"])) for one in made
    ]


def uses(ptx: str) -> tuple[list[str], list[int]]:
    """Returns how a kernel stores into global memory; how often it does what is for a cluster."""
    clustered = ("reqnctapercluster 2, 1, 1", "multicast::cluster", "mbarrier.arrive.shared::cluster",
                 "barrier.cluster.wait", "fence.mbarrier_init")  # fmt: skip
    return sorted(set(re.findall(r"st\.global[.\w]*", ptx))), [ptx.count(one) for one in clustered]


def main() -> None:
    paddle.set_device("cpu")
    runtime._driver = lambda: None
    runtime._activate()  # keeps torch out, as a real launch does
    found: dict[str, object] = {}
    for capability in CAPABILITIES:
        launches: list[tuple[int, ...]] = []
        triton.runtime.driver.set_active(stub(capability, launches))
        call_all()
        call_peers()
        found[f"launches sm_{capability}"] = launches
        if capability == 90:
            found["hopper"] = call_hopper()
            found["linear"] = call_linear()
        for name, kernel in KERNELS.items():
            made = list(kernel.device_caches[capability][0].values())
            found[f"{name} sm_{capability}"] = [(len(one.asm["cubin"]), one.metadata.shared) for one in made]
    print(json.dumps({**found, "torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main()
