"""`sd3par doctor --device nvgpu`: the plug-in, NVIDIA's libraries, GPUs, their links, and ops that leave them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from sd3par.launch.findings import Check, attempt

BUILD = "make nvgpu, or python -m sd3par.kernels.nvgpu build (needs CUDA 13's nvcc, g++ and make)"
PICTURE = """
from sd3par import SD3Pipeline
pipe = SD3Pipeline.from_pretrained("tiny", device="nvgpu", dtype={dtype!r})
pipe("a red circle", num_inference_steps=2, progress=False)
"""


def examine() -> list[Check]:
    """Returns all findings about `nvgpu`; what depends on something bad is left out."""
    import paddle  # noqa: F401  # loads the plug-in

    from sd3par import device
    from sd3par.kernels.nvgpu import info

    file = info.loaded()
    if file is None:
        return [Check("bad", "plug-in", "not loaded by Paddle", BUILD)]
    checks = [Check("ok", "plug-in", str(file)), _cuda(), *_libraries()]
    if device.count("nvgpu") == 0:
        advice = "NVIDIA's driver, and a GPU of compute capability 8.0 or later that CUDA_VISIBLE_DEVICES shows"
        return [*checks, Check("bad", "GPUs", "none that CUDA can see", advice)]
    checks += [_gpus(device.count("nvgpu")), _links(device.count("nvgpu"))]
    if all(check.state != "bad" for check in checks):
        checks += [_ops(dtype) for dtype in ("float32", "bfloat16")]
    return checks


def _cuda() -> Check:
    from sd3par.kernels.nvgpu import info

    runtime, driver = info.versions()
    detail = f"{_cuda_version(runtime)} in the plug-in, {_cuda_version(driver)} in the driver"
    # Within one generation of CUDA an older driver runs newer programs.
    if driver and driver // 1000 < runtime // 1000:
        return Check("bad", "CUDA", detail, f"a driver for CUDA {runtime // 1000}")
    return Check("ok" if driver else "bad", "CUDA", detail, "" if driver else "install NVIDIA's driver")


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else "nothing"


def _libraries() -> Iterator[Check]:
    from sd3par.kernels.nvgpu import info

    for name in info.LIBRARIES:
        library = info.library(name)
        if library.error:
            yield Check("bad", name, library.error, "python -m pip install 'sd3par[nvgpu]', or what it names")
        else:
            yield Check("ok", name, str(library.version))


def _gpus(count: int) -> Check:
    from sd3par.device import Device

    def describe() -> str:
        cards = [Device(f"nvgpu:{index}", "bfloat16") for index in range(count)]
        return "; ".join(
            f"{card.name} {card.description()}, {_gib(card.memory()[0])} of {_gib(card.memory()[1])} GiB free"
            for card in cards
        )

    return attempt("GPUs", describe, "nvidia-smi says more")


def _gib(size: int) -> str:
    return f"{size / 2**30:.0f}"


def _links(count: int) -> Check:
    from sd3par.kernels.nvgpu import info

    pairs = list(itertools.permutations(range(count), 2))
    apart = [f"{a}->{b}" for a, b in pairs if not info.can_access(a, b)]
    if apart:
        return Check("off", "links", f"no direct access: {' '.join(apart)}", "NCCL goes through the host there: slower")
    return Check("ok", "links", "every GPU reaches every other's memory" if pairs else "one GPU")


def _ops(dtype: str) -> Check:
    """Draws a small picture in another process and counts ops for which the plug-in has no kernel."""
    from sd3par.kernels.nvgpu import fallbacks

    run = fallbacks.count(["-W", "ignore", "-c", PICTURE.format(dtype=dtype)])
    name = f"ops in {dtype}"
    if run.code != 0:
        last = run.tail.strip().splitlines()[-1:] or [f"exit code {run.code}"]
        return Check("bad", name, f"a picture of the bundled model failed: {last[0]}", "build the plug-in again")
    if run.fallbacks:
        found = ", ".join(f"{op} {count}x" for op, count in run.fallbacks.items())
        return Check("off", name, f"on the CPU: {found}", "right, but slow, and no CUDA graph can hold it")
    return Check("ok", name, "every op of a picture ran on the GPU")
