"""What a command line asks for, checked at the door: before processes meet and before any weight is read."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sd3par.config import RANK_TIMEOUTS_S, GenerationRequest, ParallelConfig, check_number, require
from sd3par.errors import ConfigError
from sd3par.launch.flags import DEFAULT_MODEL
from sd3par.launch.sizes import with_sizes

if TYPE_CHECKING:
    from sd3par.device import Device
    from sd3par.inputs import Inputs
    from sd3par.static.reader import Reader
    from sd3par.weights import ModelFiles

MAX_PROMPTS, MAX_PROMPTS_BYTES = 10_000, 10_000_000
MAX_REPEATS = 1000


@dataclass(frozen=True)
class Job:
    """Requests to render one after another, and the files that they become, all of the first request first.

    reader: what reads the model already.
    """

    options: Namespace
    parallel: ParallelConfig
    requests: tuple[GenerationRequest, ...]
    outputs: tuple[Path, ...]
    reader: Reader | None = None

    @classmethod
    def of(cls, options: Namespace, world: int | None = None) -> Job:
        """Returns the job; nothing slow is imported or read yet, unless --dp_size auto asks what there is.

        Args:
            world: processes that were started; None where the command starts them.

        Raises:
            ConfigError: flags out of range or against each other, or a prompts file that cannot be used.
        """
        _check_flags(options)
        requests = tuple(_request(options, prompt) for prompt in _prompts(options))
        options = with_sizes(options, model_of(options), world)
        parallel = ParallelConfig(options.dp_size, options.mp_size, options.sp_size, options.transport)
        base = Path(f"sd3par-{options.seed}.png" if options.output is None else options.output)
        outputs = numbered(base, len(requests) * options.num_images_per_prompt)
        return cls(options, parallel, requests, outputs)

    @property
    def model(self) -> str:
        """What to load, as `SD3Pipeline.from_pretrained` takes it."""
        return model_of(self.options)

    @property
    def inputs(self) -> Inputs:
        """What comes besides numbers and texts."""
        from sd3par.inputs import Inputs

        return Inputs(image=self.options.image)

    def open(self) -> tuple[ModelFiles, Device]:
        """Returns the model's files and the device to use; of the weights only headers are read.

        Raises:
            ConfigError, CheckpointError: there is no such device, or the model is not for it, the engine, the mesh
                or the transport.
        """
        from sd3par import auto, engine, weights

        options = self.options
        files = weights.open_model(self.model, options.tokenizers, text_encoder_3=not options.no_t5)
        engine.check_engine(options.engine, files)
        target = engine.choose_device(files, options.dtype, options.device)
        auto.check_transport(self.parallel, target)
        if files.export is not None:
            files.export.manifest.check_mesh(self.parallel)
            files = dataclasses.replace(files, export=files.export.read_by(self.reader))
        return files, target

    def check(self, writes: bool) -> Job:
        """Checks what needs the model's files, the device and the disk; returns the job with sizes filled in.

        Args:
            writes: whether this process will write the pictures.

        Raises:
            ConfigError, CheckpointError: what was asked for is not possible.
        """
        from sd3par import images
        from sd3par.inputs import preflight

        options = self.options
        files, _ = self.open()
        first = preflight(files, self.requests[0], self.parallel, self.inputs)
        height, width = first.height or 0, first.width or 0  # preflight fills them in
        if options.image is not None:
            images.load_image(options.image, height, width)
        if writes and options.benchmark is None:
            first_output, *others = self.outputs
            images.check_writable(first_output, options.overwrite, *others)
        sized = tuple(dataclasses.replace(request, height=height, width=width) for request in self.requests)
        return dataclasses.replace(self, requests=sized)


def model_of(options: Namespace) -> str:
    """Returns what flags name as the model, as `SD3Pipeline.from_pretrained` takes it."""
    if options.random_weights is not None:
        return f"random:{options.random_weights}"
    return DEFAULT_MODEL if options.model is None else str(options.model)


def _check_flags(options: Namespace) -> None:
    """Refuses flags that contradict each other: none is ignored."""
    pairs = [
        ("prompt", "prompts_file"),
        ("benchmark", "output"),
        ("benchmark", "overwrite"),
        ("benchmark", "prompts_file"),
        ("benchmark", "no_metadata"),
        ("no_t5", "prompt_3"),
        ("model", "random_weights"),
    ]
    for first, second in pairs:
        both = getattr(options, first) not in (None, False) and getattr(options, second) not in (None, False)
        require(not both, second, _given(options, second), f"nothing beside --{first}")
    without_image = options.strength is not None and options.image is None
    require(not without_image, "strength", options.strength, "nothing without --image")
    guided = not options.negative_prompt or not options.guidance_scale <= 1.0  # NaN is refused as such
    require(guided, "negative_prompt", options.negative_prompt, "nothing with a guidance_scale of at most 1")
    require(options.benchmark is None or 1 <= options.benchmark <= MAX_REPEATS, "benchmark", options.benchmark,
            f"1 to {MAX_REPEATS} repeats")  # fmt: skip
    check_number("rank_timeout_s", options.rank_timeout_s, *RANK_TIMEOUTS_S)


def _given(options: Namespace, name: str) -> object:
    """Returns the value of a flag, or the flag itself where it has none."""
    value = getattr(options, name)
    return f"--{name}" if value is True else value


def _prompts(options: Namespace) -> list[str]:
    if options.prompts_file is not None:
        return read_prompts(options.prompts_file)
    require(options.prompt is not None, "prompt", "nothing", "a text, or --prompts_file")
    require(options.prompt != "", "prompt", "", 'a text; is it an empty shell variable? " " draws without a prompt')
    return [options.prompt]


def read_prompts(path: str) -> list[str]:
    """Returns the prompts in a UTF-8 text file, one a line.

    Raises:
        ConfigError: no such file, not text, too long, or without a prompt.
    """
    try:
        lines = re.split(r"\r?\n|\r", _read_limited(path).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError("prompts_file", path, f"a file that can be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError("prompts_file", path, f"UTF-8 text; byte {error.start} is none") from None
    require(not any("\0" in line for line in lines), "prompts_file", path, "text without zero bytes")
    prompts = [_checked(line.strip(), f"line {number} of {path}") for number, line in enumerate(lines, 1)]
    prompts = [line for line in prompts if line and not line.startswith("#")]
    require(
        1 <= len(prompts) <= MAX_PROMPTS, "prompts_file", f"{path} with {len(prompts)} prompts", f"1 to {MAX_PROMPTS}"
    )
    return prompts


def _checked(prompt: str, where: str) -> str:
    """Returns a prompt that a request takes."""
    try:
        GenerationRequest((prompt,))
    except ConfigError as error:
        raise ConfigError(where, error.value, error.allowed) from None
    return prompt


def _read_limited(path: str) -> bytes:
    """Returns the bytes of a plain file; pipes and devices, which may never end, are not opened."""
    status = os.stat(path)
    require(stat.S_ISREG(status.st_mode), "prompts_file", path, "a file")
    require(status.st_size <= MAX_PROMPTS_BYTES, "prompts_file", f"{path} of {status.st_size} bytes",
            f"at most {MAX_PROMPTS_BYTES} bytes")  # fmt: skip
    return Path(path).read_bytes()


def _request(options: Namespace, prompt: str) -> GenerationRequest:
    """Returns the request for one prompt."""
    return GenerationRequest(
        prompt=(prompt,),
        prompt_2=_text(options.prompt_2),
        prompt_3=_text(options.prompt_3),
        negative_prompt=_text(options.negative_prompt),
        height=options.height,
        width=options.width,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        num_images_per_prompt=options.num_images_per_prompt,
        seed=options.seed,
        strength=GenerationRequest.strength if options.strength is None else options.strength,
        max_sequence_length=options.max_sequence_length,
    )


def _text(text: str | None) -> tuple[str, ...] | None:
    """Returns what a request holds of a text beside the prompt; an empty one is none, as in diffusers."""
    return (text,) if text else None


def numbered(path: Path, count: int) -> tuple[Path, ...]:
    """Returns `count` file names: `path` itself, or NAME-0.png, NAME-1.png, ... with digits for a listing in order."""
    if count == 1:
        return (path,)
    digits = len(str(count - 1))
    return tuple(path.parent / f"{path.stem}-{index:0{digits}}{path.suffix}" for index in range(count))
