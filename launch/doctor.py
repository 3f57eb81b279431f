"""`sd3par doctor`: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from importlib import metadata

from sd3par import __version__
from sd3par.config import GenerationRequest, ParallelConfig
from sd3par.errors import shorten
from sd3par.launch import doctor_nvgpu, endings
from sd3par.launch.environment import cores, prepare_process
from sd3par.launch.findings import Check, attempt
from sd3par.launch.parser import Parser, one_of
from sd3par.launch.report import table

NEEDED = ("numpy", "safetensors", "tokenizers", "pillow", "tqdm")
WHEELS = ("paddlepaddle", "paddlepaddle-gpu")
NVIDIA = ("nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13")
DEVICES = ("auto", "nvgpu")
PACKAGES = (*WHEELS, *NEEDED, "triton", *NVIDIA)


def main(argv: Sequence[str]) -> int:
    """Prints what was found; returns 0 if pictures can be drawn here, else 1."""
    options = _parse(argv)
    prepare_process(1)
    versions = installed()
    checks = examine(versions, render=options.run, nvgpu=options.device == "nvgpu")
    usable = all(check.state != "bad" for check in checks)
    if options.json:
        found = {"usable": usable, "versions": versions, "checks": [dataclasses.asdict(check) for check in checks]}
        sys.stdout.write(f"{json.dumps(found, indent=2)}\n")
    else:
        sys.stdout.write(f"{_text(versions, checks, usable)}\n")
    return endings.DONE if usable else endings.INTERNAL


def _parse(argv: Sequence[str]) -> Namespace:
    parser = Parser(prog="sd3par doctor", description="Says what works on this machine, and what to do about the rest.")
    told = "auto, or nvgpu: also the plug-in for NVIDIA GPUs, their links, and every op of a picture"
    parser.add_argument("--device", type=one_of(DEVICES), default="auto", metavar="NAME", help=told)
    parser.add_argument("--run", action="store_true", help="also draw a picture of one step with the bundled model")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse(argv)


def installed() -> dict[str, str]:
    """Returns the versions of everything that matters, without importing it."""
    versions = {"sd3par": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def examine(versions: dict[str, str], render: bool, nvgpu: bool = False) -> list[Check]:
    """Returns all findings, those about the plug-in too if asked for; what depends on something bad is left out."""
    checks = [_packages(versions), _paddle(versions)]
    if any(check.state == "bad" for check in checks):
        return checks
    checks += [_cpu(), *_accelerators(nvgpu), _triton(), _bfloat16(), _processes(), _launcher(), _model()]
    if nvgpu:
        checks += doctor_nvgpu.examine()
    if render and all(check.state != "bad" for check in checks):
        checks.append(_render())
    return checks


def _packages(versions: dict[str, str]) -> Check:
    missing = [name for name in NEEDED if name not in versions]
    if missing:
        return Check("bad", "packages", f"{', '.join(missing)} missing", f"python -m pip install {' '.join(missing)}")
    return Check("ok", "packages", "complete")


def _paddle(versions: dict[str, str]) -> Check:
    wheels = [name for name in WHEELS if name in versions]
    if len(wheels) > 1:
        advice = f"python -m pip uninstall --yes {' '.join(wheels)}, then install one: they write over each other"
        return Check("bad", "Paddle", f"{' and '.join(wheels)} are both installed, as one package paddle", advice)
    install = f"python -m pip install {(*wheels, WHEELS[0])[0]}==3.3.1"
    try:
        import paddle
    except Exception as error:  # a wheel for another machine fails in many ways
        return Check("bad", "Paddle", shorten(f"{type(error).__name__}: {error}"), install)
    if not paddle.__version__.startswith("3.3."):
        return Check("bad", "Paddle", paddle.__version__, f"sd3par is written for Paddle 3.3: {install}")
    return Check("ok", "Paddle", paddle.__version__)


def _cpu() -> Check:
    """Says what `prepare_process` chose, as for `sd3par generate`, or the caller's own environment."""
    kernels = os.environ.get("MKL_DEBUG_CPU_TYPE")
    forced = "MKL_DEBUG_CPU_TYPE is not set" if kernels is None else f"MKL_DEBUG_CPU_TYPE {kernels} is in force"
    return Check("ok", "cpu", f"{cores()} cores, float32; MKL_NUM_THREADS {os.environ['MKL_NUM_THREADS']}, {forced}")


def _accelerators(nvgpu: bool) -> list[Check]:
    from sd3par.device import available
    from sd3par.launch.spawn import device_count

    missing = {
        "gpu": Check("off", "gpu", "no GPU that this Paddle can use", "NVIDIA: paddlepaddle-gpu 3.3, not paddlepaddle"),
        "nvgpu": Check(
            "off",
            "nvgpu",
            "no GPU that the plug-in for Paddle's CPU wheel can use",
            "see what is bad below" if nvgpu else "sd3par doctor --device nvgpu says why; README.md how to build it",
        ),  # fmt: skip
    }
    found = available()
    return [Check("ok", kind, f"{device_count(kind)} devices") if kind in found else missing[kind] for kind in missing]


def _triton() -> Check:
    from sd3par.kernels import why_not_triton

    why = why_not_triton()
    return Check("off", "Triton kernels", why) if why else Check("ok", "Triton kernels", "on")


def _bfloat16() -> Check:
    from sd3par.device import choose

    target = choose()
    if target.dtype == "bfloat16":
        return Check("ok", "bfloat16", f"the default on {target.name}")
    return Check("off", "bfloat16", "Paddle's CPU operators have none; float32 is used")


def _processes() -> Check:
    import paddle

    from sd3par.device import choose

    if not paddle.device.is_compiled_with_distribute():
        return Check(
            "bad", "several processes", "this Paddle has no collectives", "install a wheel of Paddle from PyPI"
        )
    return Check("ok", "several processes", f"{'gloo' if choose().kind == 'cpu' else 'NCCL'} between them")


def _launcher() -> Check:
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        advice = "unset CUDA_VISIBLE_DEVICES for python -m paddle.distributed.launch; sd3par generate does it by itself"
        return Check("off", "Paddle's launcher", "CUDA_VISIBLE_DEVICES is empty, which it takes for one GPU", advice)
    return Check("ok", "Paddle's launcher", "CUDA_VISIBLE_DEVICES is not in its way")


def _model() -> Check:
    from sd3par.inputs import preflight
    from sd3par.weights import open_model

    def check() -> str:
        request = preflight(open_model("tiny"), GenerationRequest(("",)), ParallelConfig())
        return f"complete, {request.width} x {request.height}"

    return attempt("bundled model", check, "install sd3par again: a file of its model is missing or broken")


def _render() -> Check:
    from sd3par.pipeline import SD3Pipeline

    def draw() -> str:
        begin = time.perf_counter()
        pipe = SD3Pipeline.from_pretrained("tiny")
        loaded = time.perf_counter()
        pipe.generate(GenerationRequest(("a red circle",), num_inference_steps=1), progress=False)
        return f"one step took {time.perf_counter() - loaded:.2f} s, loading {loaded - begin:.2f} s"

    return attempt("a picture", draw, 'sd3par generate "a red circle" --debug shows where it fails')


def _text(versions: dict[str, str], checks: list[Check], usable: bool) -> str:
    rows = []
    for check in checks:
        rows.append((f"  {check.state:3}", check.name, check.detail))
        if check.advice:
            rows.append(("", "", f"-> {check.advice}"))
    listing = table([(f"  {name}", version) for name, version in versions.items()])
    verdict = "pictures can be drawn here" if usable else "pictures cannot be drawn here: see what is bad"
    return f"versions\n{listing}\n\nfound\n{table(rows)}\n\n{verdict}"
