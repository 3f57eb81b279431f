"""An exported model beside the same model as it is: errors, seconds of loops and pictures, of exporting and loading.

    python -m benchmarks.gpu.static [MODEL] [--sizes 1024 512]
    python -m paddle.distributed.launch --devices 0,1 benchmarks/gpu/static.py --meshes mp2 dp2
    python -m benchmarks.gpu --parts static --meshes one dp2 mp2    # the same, rows into benchmarks/results
    python -m paddle.distributed.launch --devices 0,1 benchmarks/gpu/static.py --meshes mp2 --transport peer
        --engines static graph "graph collective"    # on one line: mp ranks of the export store to each other's memory

One process for each GPU. On each mesh rank 0 exports the transformer and the autoencoder with made-up weights, then all
ranks load what it wrote, with the code of the model standing beside: engines static, graph and eager take turns in one
run. Rank 0 prints one JSON object a line; times are the slowest rank's. `error` is the noise's, relative to the same
model in fp32 (one process), `difference` from the eager engine, both as the norm of a step over the norm of its change.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paddle
from safetensors.paddle import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]  # the launcher starts this file as a script

from sd3par import SD3Pipeline, device, weights  # noqa: E402
from sd3par.begin import first_latents  # noqa: E402
from sd3par.config import GenerationRequest, ParallelConfig  # noqa: E402
from sd3par.device import Device  # noqa: E402
from sd3par.inputs import Inputs, Start  # noqa: E402
from sd3par.launch.bench.case import mesh_of, name_of  # noqa: E402
from sd3par.launch.bench.engines import use  # noqa: E402
from sd3par.launch.bench.timing import embeds, seconds  # noqa: E402
from sd3par.scheduler import schedule  # noqa: E402
from sd3par.static.export import Target, export  # noqa: E402
from sd3par.static.write import PARAMETERS  # noqa: E402
from sd3par.weights.folder import DIFFUSERS_STEM  # noqa: E402
from sd3par.weights.manifest import Limits  # noqa: E402

RANK = int(os.environ.get("PADDLE_TRAINER_ID", "0"))
TEXT_TOKENS, GUIDANCE = 333, 7.0
COLLECTIVE = "graph collective"  # by the collectives that programs have too, where ranks could store to each other
ENGINES = ("static", "graph", COLLECTIVE, "eager", "eager static")


def load(model: str | Path, parallel: ParallelConfig, dtype: str = "auto") -> tuple[SD3Pipeline, float]:
    """Returns a pipeline without text encoders, and the seconds that loading it took."""
    begin = time.perf_counter()
    pipe = SD3Pipeline.from_pretrained(weights.open_model(model, text_encoders=False), dtype, parallel)
    device.synchronize()
    return pipe, time.perf_counter() - begin


def write(options: argparse.Namespace, parallel: ParallelConfig, folder: Path, card: Device) -> dict[str, Any]:
    """Exports for a mesh; returns seconds, and bytes of all files and of the parameters among them."""
    shutil.rmtree(folder, ignore_errors=True)  # what a run left that was ended
    files, begin = weights.open_model(f"random:{options.model}", text_encoders=False), time.perf_counter()
    kind = "cpu" if card.kind == "cpu" else "cuda"
    target = Target(parallel, card.dtype, kind, () if kind == "cpu" else tuple(options.arch))
    manifest = export(files, folder, target, Limits(options.side, 4, 512), place=card.name)
    sizes = {name: file["bytes"] for name, file in manifest.files.items()}
    held = sum(size for name, size in sizes.items() if name.endswith(PARAMETERS))
    return {"export_s": time.perf_counter() - begin, "bytes": sum(sizes.values()), "parameter_bytes": held,
            "files": len(sizes)}  # fmt: skip


def change(pipe: SD3Pipeline, px: int) -> paddle.Tensor:
    """Returns what one step changes of the noise of seed 1, [1, C, h, w] fp32: the prediction, times a number."""
    request = GenerationRequest(None, height=px, width=px, num_inference_steps=1, guidance_scale=GUIDANCE, seed=1)
    inputs = Inputs(embeds=embeds(pipe, 1, TEXT_TOKENS, 1))
    after = pipe.generate(request, inputs, "latent", progress=False).images
    channels, height, width = (int(size) for size in after.shape[1:])
    shape = (1, channels, height, width)
    return after - first_latents(Start(), shape, 1, schedule(pipe.scheduler, 1), pipe.vae, None)


def relative(found: paddle.Tensor, wanted: paddle.Tensor) -> float:
    """Returns the norm of a difference over the norm of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def times(pipe: SD3Pipeline, px: int, options: argparse.Namespace, repeats: int) -> dict[str, Any]:
    """Returns seconds of loops and pictures of one size."""
    request = GenerationRequest(None, height=px, width=px, num_inference_steps=options.steps, guidance_scale=GUIDANCE)
    first = options.warm_ups
    taken = [seconds(pipe, request, 1, TEXT_TOKENS, seed) for seed in range(first + repeats)][first:]
    loop, image = (statistics.median(one) for one in zip(*taken, strict=True))
    slow = sorted(one for one, _ in taken)[round(0.9 * (repeats - 1))]
    return {"loop_s": loop, "image_s": image, "step_ms": 1e3 * loop / options.steps, "repeats": repeats,
            "spread": slow / loop - 1}  # fmt: skip


def rows(options: argparse.Namespace, parallel: ParallelConfig, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields what a mesh shows."""
    wanted = references(options) if parallel.world == 1 and options.fp32 else {}
    own, load_own = load(f"random:{options.model}", parallel)
    card, mesh = Device(device.current(), own.transformer.dtype), own.mesh
    common = {"dp": parallel.dp, "mp": parallel.mp, "sp": parallel.sp, "world": parallel.world, "dtype": card.dtype}
    with own.watchdog.told_of_errors():
        written = write(options, parallel, folder, card) if RANK == 0 else {}
        mesh.meet("exported")
    exported, load_s = load(folder, parallel)
    yield {"bench": "static", "what": "export", **common, **written, "load_s": load_s, "load_made_up_s": load_own}
    engines = {"static": exported, "graph": own, "eager": own, "eager static": exported}
    if own.transformer.transport == "peer" and COLLECTIVE in options.engines:
        engines[COLLECTIVE], _ = load(f"random:{options.model}", replace(parallel, transport="collective"))
    engines = {name: engines[name] for name in options.engines if name in engines}
    for px in options.sizes:
        found = {}
        for engine, pipe in engines.items():
            use(pipe, "eager" if engine.startswith("eager") else "auto")
            repeats = max(2, options.repeats // 3) if engine.startswith("eager") else options.repeats
            found[engine] = change(pipe, px)
            row = {"engine": engine, "transport": pipe.transformer.transport, **times(pipe, px, options, repeats)}
            if px in wanted:
                row["error"] = relative(found[engine], wanted[px])
            yield {"bench": "static", **common, "height": px, "width": px, **row}
        other = "eager" if "eager" in found else "graph"
        yield {"bench": "static", **common, "height": px, "width": px, "engine": f"static against {other}",
               "difference": relative(found["static"], found[other])}  # fmt: skip
    for pipe in engines.values():
        use(pipe, "eager")  # gives recordings back
    if options.checkpoint and parallel.world == 1:
        yield from ({"bench": "static", "what": "start", **common, **row} for row in starts(options, own, folder))


def starts(options: argparse.Namespace, own: SD3Pipeline, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields seconds of loading the export and a checkpoint with the same weights, and of each one's first picture.

    Both files were read or written just before; kernels are compiled, and libraries are up.
    """
    px = options.sizes[0]
    request = GenerationRequest(None, height=px, width=px, num_inference_steps=options.steps, guidance_scale=GUIDANCE)
    checkpoint = folder.with_name(f"{folder.name}-checkpoint")
    shutil.rmtree(checkpoint, ignore_errors=True)
    try:
        save(own.files, checkpoint, own.transformer.dtype)
        for name, path in (("export", folder), ("checkpoint", checkpoint)):
            pipe, load_s = load(path, ParallelConfig())
            first_s = seconds(pipe, request, 1, TEXT_TOKENS, 0)[1]
            yield {"start": name, "height": px, "width": px, "load_s": load_s, "first_image_s": first_s,
                   "start_s": load_s + first_s}  # fmt: skip
            use(pipe, "eager")
            del pipe
    finally:
        shutil.rmtree(checkpoint, ignore_errors=True)


def save(files: weights.ModelFiles, folder: Path, dtype: str) -> None:
    """Writes the transformer and the autoencoder of a model as diffusers does, in a dtype."""
    for name in ("transformer", "vae"):
        component, part = getattr(files, name), folder / name
        part.mkdir(parents=True)
        (part / "config.json").write_text(json.dumps(component.config), encoding="utf-8")
        tensors = {key: component.checkpoint.read(key).astype(dtype).cpu() for key in component.checkpoint.shapes()}
        save_file(tensors, str(part / f"{DIFFUSERS_STEM}.safetensors"))


def references(options: argparse.Namespace) -> dict[int, paddle.Tensor]:
    """Returns the change by the model in fp32 for each size, [1, C, h, w], one operator after the other."""
    pipe, _ = load(f"random:{options.model}", ParallelConfig(), "float32")
    use(pipe, "eager")
    return {px: change(pipe, px) for px in options.sizes}


def main() -> None:
    """Measures; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", default="sd3-medium")
    parser.add_argument("--meshes", nargs="*", type=mesh_of, default=[ParallelConfig()], help="one, or mp2 dp2 ...")
    parser.add_argument("--transport", default="auto", help="of the model as it is")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 512], help="pictures, in pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warm_ups", type=int, default=3, help="calls that do not count")
    parser.add_argument("--engines", nargs="*", default=ENGINES, choices=ENGINES)
    parser.add_argument("--checkpoint", action="store_true", help="start-up beside a checkpoint's too, on one process")
    parser.add_argument("--side", type=int, default=1024, help="largest side of the export, in pixels")
    parser.add_argument("--arch", type=int, nargs="*", default=[90])
    parser.add_argument("--fp32", action="store_true", help="errors relative to fp32 too, on one process")
    parser.add_argument("--scratch", type=Path, help="folder for exports, of 4 GB each; the same on all ranks")
    options = parser.parse_args()
    common = {"model": options.model, "images": 1, "text_tokens": TEXT_TOKENS, "guidance": GUIDANCE,
              "steps": options.steps, "who": "sd3par"}  # fmt: skip
    for parallel in options.meshes:
        folder = (options.scratch or Path(tempfile.gettempdir())) / f"sd3par-static-{name_of(parallel)}"
        try:
            for row in rows(options, replace(parallel, transport=options.transport), folder):
                say({**row, **common})
        finally:
            if RANK == 0:
                shutil.rmtree(folder, ignore_errors=True)


def say(row: dict[str, Any]) -> None:
    """Prints a row on rank 0."""
    if RANK == 0:
        print(
            json.dumps({key: round(one, 6) if isinstance(one, float) else one for key, one in row.items()}), flush=True
        )


if __name__ == "__main__":
    main()
