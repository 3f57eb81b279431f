"""Every flag of rendering, with its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from sd3par.config import MAX_GUIDANCE, MAX_IMAGES, MAX_STEPS, TRANSPORTS, GenerationRequest
from sd3par.launch.parser import OnlyOne, Parser, number, one_of, whole, whole_list
from sd3par.launch.sizes import size

DEFAULT_PROMPT, DEFAULT_MODEL = "a red circle on a blue background", "tiny"
ENGINES = ("auto", "eager", "graph", "static")
DEVICES = ("auto", "cpu", "gpu", "nvgpu")
DTYPES = ("auto", "float32", "bfloat16", "float16")
RANDOM_MODELS = ("sd3-medium", "sd3.5-medium", "sd3.5-large", "tiny")

_EPILOG = """\
Flags may be written with - or _ between their words: --dp-size 2 is --dp_size 2.
Exit codes: 0 done; 2 what was asked for is not possible; 75 a process died, stopped or could not be reached;
130 interrupted; 1 anything else. Errors are one line on stderr."""


class Group:
    """Some flags under one heading of the help."""

    def __init__(self, parser: Parser, title: str) -> None:
        self._group = parser.add_argument_group(title)

    def value(self, name: str, metavar: str, text: str, kind: Callable[[str], Any] = str, default: Any = None) -> None:
        """Adds a flag with a value."""
        self._group.add_argument(f"--{name}", metavar=metavar, help=text, type=kind, default=default)

    def switch(self, name: str, text: str) -> None:
        """Adds a flag without a value."""
        self._group.add_argument(f"--{name}", help=text, action="store_true")

    def other(self, *names: str, **options: Any) -> None:
        """Adds an argument in argparse's own words."""
        self._group.add_argument(*names, **options)


def render_parser(prog: str, description: str, prompt_flag: bool) -> Parser:
    """Returns the parser of everything about rendering.

    Args:
        prompt_flag: as Paddle's launcher starts it: it chooses the devices, and the prompt is only a flag, with a
            default. Else the prompt is an argument or a flag, without.
    """
    usage = f"{prog} [options]" if prompt_flag else f"{prog} PROMPT [options]"
    parser = Parser(prog=prog, usage=usage, description=description, epilog=_EPILOG)
    _picture(Group(parser, "the picture"), prompt_flag)
    _start(Group(parser, "image-to-image"))
    _model(Group(parser, "the model"))
    _mesh(Group(parser, "where it is rendered: on dp_size x mp_size x sp_size processes"), prompt_flag)
    _result(Group(parser, "the result"))
    _trouble(Group(parser, "when something is wrong"))
    return parser


def _picture(group: Group, prompt_flag: bool) -> None:
    standard = GenerationRequest
    if prompt_flag:
        group.value("prompt", "TEXT", f"what to draw (default: {DEFAULT_PROMPT})")
    else:
        group.other("prompt", metavar="PROMPT", nargs="?", action=OnlyOne, help="what to draw")
        group.other("--prompt", metavar="TEXT", action=OnlyOne, help="the same, as a flag")
    group.value("prompt_2", "TEXT", "what CLIP-G reads (default: the prompt)")
    group.value("prompt_3", "TEXT", "what T5 reads (default: the prompt)")
    group.value("negative_prompt", "TEXT", "what to keep away from (default: nothing)")
    group.value("prompts_file", "FILE", "UTF-8 text with a prompt in each line, instead of one prompt; empty lines and "
                "lines that begin with # are skipped; each is rendered as it would be alone")  # fmt: skip
    group.value("height", "PIXELS", "a multiple of 16 (default: the model's own)", whole)
    group.value("width", "PIXELS", "a multiple of 16 (default: the model's own)", whole)
    group.value("num_inference_steps", "N", f"denoise steps, 1 to {MAX_STEPS}", whole, standard.num_inference_steps)
    group.value(
        "guidance_scale", "X", f"0 to {MAX_GUIDANCE:g}; guidance begins above 1", number, standard.guidance_scale
    )
    group.value("num_images_per_prompt", "N", f"1 to {MAX_IMAGES}", whole, standard.num_images_per_prompt)
    group.value("seed", "N", "picture i of a prompt begins with the noise of seed N + i, which is the same on every "
                "device and mesh", whole, standard.seed)  # fmt: skip
    group.value("max_sequence_length", "N", "tokens that T5 reads, 1 to 512", whole, standard.max_sequence_length)


def _start(group: Group) -> None:
    group.value("image", "FILE", "a picture to begin with")
    group.value(
        "strength",
        "X",
        f"how much of it to replace, above 0 and up to 1 (default: {GenerationRequest.strength})",
        number,
    )


def _model(group: Group) -> None:
    group.value("model", "PATH", f"{DEFAULT_MODEL} (it comes with sd3par), a diffusers folder, a .safetensors "
                f"file, or what sd3par export wrote (default: {DEFAULT_MODEL})")  # fmt: skip
    group.value("random_weights", "NAME", f"instead of --model: {', '.join(RANDOM_MODELS)}, with made-up weights: to "
                "measure with, without a download; the pictures show nothing", one_of(RANDOM_MODELS))  # fmt: skip
    group.value("tokenizers", "FOLDER", "with tokenizer, tokenizer_2 and tokenizer_3, which a single file lacks")
    group.switch("no_t5", "leave out T5, the largest of the text encoders")


def _mesh(group: Group, launched: bool) -> None:
    all_of = "all processes" if launched else "all GPUs, or those of --devices"
    group.value("dp_size", "N", "share pictures, or the two halves of guidance, among N (default: 1); auto chooses "
                f"this and what is not given of mp_size and sp_size for {all_of}: mp 1 if the weights fit, dp as large "
                "as pictures and guidance allow, sp the rest", size)  # fmt: skip
    group.value("mp_size", "N", "share weights and attention heads among N (default: 1), or auto", size)
    group.value("sp_size", "N", "share tokens among N (default: 1), or auto", size)
    group.value("transport", "NAME", "how those of mp and sp hand each other what they compute: peer, by kernels that "
                "store to the other GPU's memory; collective, by NCCL or gloo; auto is peer where it can be",
                one_of(TRANSPORTS), "auto")  # fmt: skip
    group.value("device", "NAME", f"{', '.join(DEVICES)}; auto is the fastest there is", one_of(DEVICES), "auto")
    if not launched:
        group.value("devices", "I,J,...", "which GPUs, one for each process (default: the first ones)", whole_list)
    group.value("dtype", "NAME", f"{', '.join(DTYPES)}; auto is bfloat16 on GPUs, else float32", one_of(DTYPES), "auto")
    kinds = (
        "graph records steps as a CUDA graph, eager runs operators one by one, static is for what sd3par export wrote"
    )
    group.value("engine", "NAME", f"{', '.join(ENGINES)}: {kinds}; auto is the fastest", one_of(ENGINES), "auto")


def _result(group: Group) -> None:
    group.value("output", "FILE", "NAME.png; several are NAME-0.png, NAME-1.png, ... (default: sd3par-SEED.png)")
    group.switch("overwrite", "replace files that exist")
    group.switch("no_metadata", "do not write the request into the picture, from where sd3par show reads it")
    group.switch("quiet", "no progress bar and no report; what --benchmark measures is printed")
    group.other("--benchmark", metavar="N", nargs="?", type=whole, const=10, help="write no picture; render once to "
                "warm up, then N times (10) with other seeds, and print the median and the shortest time")  # fmt: skip


def _trouble(group: Group) -> None:
    group.switch("debug", "show the traceback of an error")
    group.switch("nvtx", "name ranges (encode, denoise, step, decode, with --engine eager block) for Nsight Systems; "
                 "needs pip install 'sd3par[profile]'")  # fmt: skip
    group.value("rank_timeout_s", "SECONDS", "end all processes when one has been silent for so long", number, 20.0)
    group.value("inference_optimize", "1", "accepted from commands written for PaddleMIX: here it is always on",
                one_of(("1",)))  # fmt: skip
    group.other("--run_dir", help=argparse.SUPPRESS)  # where `sd3par generate` reads what became of its ranks
