"""`sd3par export`: a model as static graphs and parameters for every rank of a mesh."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sd3par.config import MAX_IMAGES, GenerationRequest, ModelConfig, ParallelConfig, parse_config, require
from sd3par.launch import endings
from sd3par.launch.endings import Place
from sd3par.launch.environment import prepare_process
from sd3par.launch.flags import DEFAULT_MODEL, DEVICES, DTYPES, RANDOM_MODELS, Group
from sd3par.launch.job import model_of
from sd3par.launch.parser import Parser, one_of, whole, whole_list
from sd3par.launch.report import seconds, table

if TYPE_CHECKING:
    from sd3par.static.export import Target
    from sd3par.weights import ModelFiles
    from sd3par.weights.manifest import Limits, Manifest

DESCRIPTION = """\
Writes a model as static graphs and parameters for every rank of a mesh, in this one process and without a GPU.
What is written runs without the model's code and its checkpoint:

  sd3par export --model sd3 --dp_size 2 --out sd3-dp2
  sd3par generate "a cat" --engine static --model sd3-dp2"""
ARCHITECTURES = (80, 90, 100)
# What stands for prompts where there are no text encoders.
_EMBEDS = tuple(f"{name}=..." for name in ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds",
                                           "negative_pooled_prompt_embeds"))  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Exports what `argv` asks for; returns the exit code."""
    options = parser().parse(argv)
    prepare_process(1)
    begin = time.perf_counter()
    from sd3par import weights
    from sd3par.static.export import export
    from sd3par.static.write import PARAMETERS

    endings.prepare(Place())
    require(options.out is not None, "out", "nothing", "a folder that does not exist yet: --out FOLDER")
    target = target_of(options)
    files = weights.open_model(
        model_of(options), options.tokenizers, text_encoder_3=not options.no_t5, text_encoders=not options.no_text
    )
    require(files.export is None, "model", files.name, "a checkpoint: this is an export already")
    limits = limits_of(options, files)
    # The delay: nothing is shown before there is something to say, an error in the arguments for one.
    with tqdm(desc="export", unit=" parts", disable=options.quiet, delay=1e-3) as bar, _interrupts() as asked:
        say: Any = lambda part: _next(bar, part, asked)  # noqa: E731
        manifest = export(files, options.out, target, limits, say, _reading_place(target.kind))
    if not options.quiet:
        sys.stdout.write(f"{report(options, files, manifest, PARAMETERS, time.perf_counter() - begin)}\n")
    return endings.DONE


def parser() -> Parser:
    """Returns the parser of this command."""
    found = Parser(prog="sd3par export", usage="sd3par export --out FOLDER [options]", description=DESCRIPTION)
    model = Group(found, "the model")
    model.value("model", "PATH", f"{DEFAULT_MODEL}, a diffusers folder, or a .safetensors file (default: "
                f"{DEFAULT_MODEL})")  # fmt: skip
    model.value("random_weights", "NAME", f"instead of --model: {', '.join(RANDOM_MODELS)}, with made-up weights",
                one_of(RANDOM_MODELS))  # fmt: skip
    model.value("tokenizers", "FOLDER", "with tokenizer, tokenizer_2 and tokenizer_3, which a single file lacks")
    model.switch("no_t5", "leave out T5, the largest of the text encoders")
    model.switch("no_text", "leave out all text encoders: prompts come as embeddings, from Python")
    where = Group(found, "where it will run: on dp_size x mp_size x sp_size processes, no others")
    for axis, text in (("dp", "pictures or the halves of guidance"), ("mp", "weights and heads"), ("sp", "tokens")):
        where.value(f"{axis}_size", "N", f"share {text} among N", whole, 1)
    where.value("transport", "NAME", "how those of mp hand each other what they compute: collective, by NCCL or gloo; "
                "peer, by kernels that store to the other GPU's memory", one_of(("collective", "peer")),
                "collective")  # fmt: skip
    where.value("device", "NAME", f"{', '.join(DEVICES)}; gpu and nvgpu run the same export; auto is the fastest here",
                one_of(DEVICES), "auto")  # fmt: skip
    where.value("arch", "N,N,...", f"GPU architectures to compile kernels for (default: {_commas(ARCHITECTURES)})",
                whole_list, ARCHITECTURES)  # fmt: skip
    where.value(
        "dtype", "NAME", f"{', '.join(DTYPES)}; auto is bfloat16 for GPUs, else float32", one_of(DTYPES), "auto"
    )
    shapes = Group(found, "the largest shapes, below which all run")
    shapes.value(
        "max_side", "PIXELS", "of height and width, a multiple of 16 (default: what the model's positions reach)", whole
    )
    shapes.value("max_images", "N", f"pictures at once, 1 to {MAX_IMAGES}", whole, MAX_IMAGES)
    shapes.value("max_sequence_length", "N", "tokens that T5 reads, 1 to 512", whole, 512)
    result = Group(found, "the result")
    result.value("out", "FOLDER", "where it goes; it must not exist")
    result.switch("quiet", "no progress and no report")
    result.switch("debug", "show the traceback of an error")
    return found


def target_of(options: Namespace) -> Target:
    """Returns what the export is for.

    Raises:
        ConfigError: sizes, dtype or architectures out of range.
    """
    from sd3par import device
    from sd3par.static.export import Target

    kind = device.available()[0] if options.device == "auto" else options.device
    kind = "cpu" if kind == "cpu" else "cuda"
    dtype = options.dtype if options.dtype != "auto" else "float32" if kind == "cpu" else "bfloat16"
    known = set(options.arch) <= set(ARCHITECTURES)
    require(known, "arch", _commas(options.arch), f"some of {_commas(ARCHITECTURES)}")
    parallel = ParallelConfig(options.dp_size, options.mp_size, options.sp_size, options.transport)
    return Target(parallel, dtype, kind, tuple(sorted(options.arch)) if kind == "cuda" else ())


def _reading_place(kind: str) -> str:
    """Returns where weights are read: on the GPU that there is, for an export that is for GPUs."""
    from sd3par import device

    gpus = [name for name in device.available() if name != "cpu"]
    return device.choose("auto", gpus[0]).name if gpus and kind != "cpu" else "cpu"


def limits_of(options: Namespace, files: ModelFiles) -> Limits:
    """Returns the largest shapes that the export takes.

    Raises:
        ConfigError: out of range, or beyond what the model has positions for.
    """
    from sd3par.plan import fewest_images
    from sd3par.weights.manifest import Limits

    step, _, reach = _sides(files)
    side = reach if options.max_side is None else options.max_side
    fits = side % step == 0 and step <= side <= reach
    require(fits, "max_side", side, f"multiples of {step} from {step} to {reach}")
    limits = Limits(side, options.max_images, options.max_sequence_length)
    GenerationRequest((" ",), num_images_per_prompt=limits.images, max_sequence_length=limits.text)  # refuses the rest
    require(fewest_images(options.dp_size) <= limits.images, "dp_size", options.dp_size,
            f"odd numbers up to {limits.images} and even ones up to {2 * limits.images}, which max_images "
            f"{limits.images} can be shared among")  # fmt: skip
    return limits


def _sides(files: ModelFiles) -> tuple[int, int, int]:
    """Returns of pictures' sides in pixels what they are multiples of, the model's own, and the largest."""
    from sd3par.vae.config import VAEConfig

    config = parse_config(ModelConfig, files.transformer.config, files.transformer.where)
    scale = VAEConfig.parse(files.vae.config, files.vae.where).scale_factor
    step = config.patch_size * scale
    return step, config.sample_size * scale, config.pos_embed_max_size * step


def report(options: Namespace, files: ModelFiles, manifest: Manifest, parameters: str, took: float) -> str:
    """Returns where the export is, how large, and how it is run."""
    sizes = {name: file["bytes"] for name, file in manifest.files.items()}
    held = sum(size for name, size in sizes.items() if name.endswith(parameters))
    parallel = manifest.parallel
    rows = [
        ("export", str(Path(options.out))),
        ("size", f"{sum(sizes.values()) / 1e6:.1f} MB in {len(sizes)} files; parameters {held / 1e6:.1f} MB"),
        ("what", f"{manifest.model}, {manifest.dtype}, up to {manifest.most.side} x {manifest.most.side}"),
        ("where", f"{_device(manifest)}, dp {parallel.dp} x mp {parallel.mp} x sp {parallel.sp}"),
        ("took", seconds(took)),
        ("run", run_line(str(options.out), files, manifest)),
    ]
    return table(rows)


def run_line(out: str, files: ModelFiles, manifest: Manifest) -> str:
    """Returns what to type to draw with an export: what it cannot do is asked for smaller, or from Python."""
    from sd3par.plan import fewest_images

    model, parallel, most = shlex.quote(f"./{out}" if out.startswith("-") else out), manifest.parallel, manifest.most
    if "text_encoder" not in manifest.programs:
        where = "in Python" if parallel.world == 1 else f"in Python, in each of {parallel.world} processes"
        return f'{where}: sd3par.SD3Pipeline.from_pretrained({out!r}, parallel="auto")({", ".join(_EMBEDS)})'
    _, own, _ = _sides(files)
    flags = {f"{axis}_size": getattr(parallel, axis) for axis in ("dp", "mp", "sp") if parallel.world > 1}
    if own > most.side:
        flags |= {"height": most.side, "width": most.side}
    if (images := fewest_images(parallel.dp)) > 1:
        flags["num_images_per_prompt"] = images
    if most.text < GenerationRequest.max_sequence_length:
        flags["max_sequence_length"] = most.text
    words = "".join(f" --{name} {value}" for name, value in flags.items())
    return f'sd3par generate "..." --engine static --model {model}{words}'


def _device(manifest: Manifest) -> str:
    if manifest.target == "cpu":
        return "cpu"
    return f"gpu or nvgpu, kernels for sm_{', sm_'.join(map(str, manifest.architectures))}"


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Yields a list that gets an element at Ctrl-C, which raises nothing within: Paddle's tracing ends in segmentation
    faults where a signal's exception comes out of it."""
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _next(bar: Any, part: str, asked: Sequence[int]) -> None:
    """Shows what is written now; ends between two parts if that was asked for."""
    if asked:
        raise KeyboardInterrupt
    bar.set_postfix_str(part)
    bar.update()


def _commas(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
