"""The sentence: encode -> noise -> denoise -> decode -> images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor
from PIL import Image
from tqdm import tqdm

from sd3par import images, weights
from sd3par.begin import first_latents
from sd3par.callback import Callback, StepCallback
from sd3par.captured import Captured, ways
from sd3par.config import GenerationRequest, ParallelConfig, require
from sd3par.denoise import Denoiser, OnStep, Transformer
from sd3par.device import Device, release_idle_memory, synchronize
from sd3par.door import Admitted, check_result
from sd3par.engine import Autoencoder, check_engine, check_memory, choose_device, choose_mesh, load_parts
from sd3par.errors import ConfigError, RankFailure
from sd3par.graph import StepGraphs
from sd3par.inputs import Inputs, PromptEmbeds, preflight, texts
from sd3par.mesh import Mesh, world_size
from sd3par.plan import Rows, rows_for
from sd3par.ranges import span
from sd3par.rehearsal import Rehearsals, Rehearse
from sd3par.scheduler import SchedulerConfig, schedule
from sd3par.text import TextEncoders, TextStates
from sd3par.text.request import encode_request
from sd3par.watchdog import TIMEOUT_S, Watchdog, connect

_INSTEAD = {"generator": "nothing: seed takes its place"}  # of arguments that diffusers has


@dataclass(frozen=True)
class GenerationOutput:
    """images: B of PIL, or one array [B, H, W, 3] fp32 from 0 to 1 ("np"), or latents [B, C, h, w] ("latent").

    timings: seconds of "encode", "denoise" and "decode" on this rank; "denoise" holds noise and everything that is
    computed once before the loop. steps: how many ran; image-to-image skips some, and a callback may stop early.
    """

    images: Any
    timings: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0


class SD3Pipeline:
    """Stable Diffusion 3 on a mesh of processes; every rank makes the same calls and gets the same images."""

    def __init__(
        self, files: weights.ModelFiles, transformer: Transformer, vae: Autoencoder, text: TextEncoders | None,
        mesh: Mesh, parallel: ParallelConfig,
    ) -> None:  # fmt: skip
        self.files, self.transformer, self.vae, self.text = files, transformer, vae, text
        self.mesh, self.parallel = mesh, parallel
        self.scheduler = SchedulerConfig.parse(files.scheduler, "scheduler")
        self.graphs: StepGraphs | None = None
        self.captured: Captured | None = None
        self.rehearsals = Rehearsals(mesh, None)
        self.interrupt = False
        self.watchdog = Watchdog.start(Mesh.single())

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | weights.ModelFiles,
        dtype: str = "auto",
        parallel: ParallelConfig | str = ParallelConfig(),
        engine: str = "auto",
        text_encoder_3: bool = True,
        tokenizers: str | Path | None = None,
        device: str = "auto",
        rank_timeout_s: float = TIMEOUT_S,
    ) -> SD3Pipeline:
        """Returns a pipeline; in a world of several processes each of them calls this.

        Args:
            path: "tiny" (bundled), a diffusers or Paddle-layout folder, a single .safetensors file, or a folder that
                `sd3par export` wrote; or what `weights.open_model` made of one.
            dtype: "auto" is bfloat16 on GPUs, float32 on the CPU; of an exported model its own.
            parallel: "auto" is `auto.auto_mesh`'s for one picture with guidance on all processes, or an export's own.
            engine: "graph" records steps, text encoders and autoencoder as CUDA graphs and replays them, "eager" asks
                for operators one by one, which is slower and simpler to debug; "static" runs the programs of an
                exported model, recorded too where they can be; "auto" is static for these, else graph where it can be.
            text_encoder_3: False drops T5 (its tokens are zeros then, as in diffusers).
            tokenizers: folder with tokenizer, tokenizer_2 and tokenizer_3, which single files do not hold.
            rank_timeout_s: how long another process may be silent before this one gives up.

        Raises:
            ConfigError, CheckpointError: what is asked for is not possible, or the files do not fit.
            RankFailure: the other processes did not come up.
        """
        files = path if isinstance(path, weights.ModelFiles) else weights.open_model(path, tokenizers, text_encoder_3)
        check_engine(engine, files)
        target = choose_device(files, dtype, device)
        parallel = choose_mesh(files, parallel, target, world_size())
        if target.kind == "cpu" and parallel.world == 1 and files.export is None:
            check_memory(files)
        recorder = "auto" if files.export is not None else engine
        graphs = StepGraphs.choose(recorder, target, parallel.world)
        target.activate()
        mesh, watchdog = connect(parallel, rank_timeout_s)
        with watchdog.told_of_errors():
            pipe = cls.load(files, target, mesh, parallel)
            mesh.meet("loaded")
        pipe.graphs, pipe.captured, pipe.watchdog = graphs, Captured.choose(recorder, target, mesh), watchdog
        if files.export is None:  # collectives inside programs cannot be left out
            pipe.rehearsals = Rehearsals.choose(target, mesh)
        return pipe

    @property
    def engine(self) -> str:
        """Returns "graph", "eager" or "static": what runs the denoising steps."""
        if self.files.export is not None:
            return "static"
        return "eager" if self.graphs is None or self.graphs.off else "graph"

    @classmethod
    def load(cls, files: weights.ModelFiles, target: Device, mesh: Mesh, parallel: ParallelConfig) -> SD3Pipeline:
        """Reads the weights of opened files, each rank its slices of the transformer; or the programs of an export."""
        return cls(files, *load_parts(files, target, mesh), mesh, parallel)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        prompt_3: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        negative_prompt_3: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        image: Any = None,
        strength: float = 0.6,
        latents: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        pooled_prompt_embeds: Any = None,
        negative_pooled_prompt_embeds: Any = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        max_sequence_length: int = 256,
        progress: bool = True,
        **unsupported: Any,
    ) -> GenerationOutput:
        """Renders images; names and defaults are those of diffusers' `StableDiffusion3Pipeline`.

        Args:
            prompt: a text or a list; prompt_2 and prompt_3 go to CLIP-G and T5, default: prompt.
            seed: image i equals what diffusers draws in fp32 with `torch.Generator("cpu").manual_seed(seed + i)`.
            image: path, PIL image or [H, W, 3] array to begin with (image-to-image); strength: how much to replace.
            latents: [B, C, h, w], in place of noise. prompt_embeds: [n, Tc, J] and pooled_prompt_embeds: [n, P], in
                place of prompts.
            output_type: "pil", "np" or "latent".
            callback_on_step_end: called on every rank as (pipe, step, timestep, {"latents": [B, C, h, w]}); may return
                {"latents": ...}, the same on every rank; `pipe.interrupt = True` in it stops the loop on all ranks.

        Raises:
            ConfigError: something is out of range, or an argument of diffusers' that is not supported; or ranks were
                given different calls.
            OutOfMemory: there is too little for it on a process; all raise it, and a smaller request works.
        """
        words = {
            "prompt": prompt, "prompt_2": prompt_2, "prompt_3": prompt_3, "negative_prompt": negative_prompt,
            "negative_prompt_2": negative_prompt_2, "negative_prompt_3": negative_prompt_3,
        }  # fmt: skip
        embeds = (prompt_embeds, pooled_prompt_embeds, negative_prompt_embeds, negative_pooled_prompt_embeds)
        with self._door():
            for name, value in unsupported.items():
                raise ConfigError(name, type(value).__name__, _INSTEAD.get(name, "nothing: no such argument"))
            request = GenerationRequest(
                **{name: texts(name, value) for name, value in words.items()}, height=height, width=width, seed=seed,
                num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, strength=strength,
                num_images_per_prompt=num_images_per_prompt, max_sequence_length=max_sequence_length,
            )  # type: ignore[arg-type]  # fmt: skip
            inputs = Inputs(image, latents, PromptEmbeds.of(*embeds), sigmas)
        return self.generate(request, inputs, output_type, callback_on_step_end, progress)

    @paddle.no_grad()
    def generate(
        self,
        request: GenerationRequest,
        inputs: Inputs = Inputs(),
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        progress: bool = True,
    ) -> GenerationOutput:
        """Renders a request; see `__call__`. An error on this rank alone is told to the others, which end with it.

        What all raise alike, a callback's error or that of pictures that are not finite, ends the request only.
        """
        with self._door():
            check_result(output_type, callback_on_step_end)
            admitted = self._admit(request, inputs, output_type, callback_on_step_end)
        footprint, render = admitted.footprint, partial(self._render, admitted, progress)
        due = self._check_same(admitted, self.rehearsals.due(footprint))
        with self.watchdog.told_of_errors():
            return self.rehearsals.run(footprint, due, render, self.give_back)

    def give_back(self) -> None:
        """Frees the memory of all recordings, which are made again when they are needed, and what lies idle."""
        for recordings in (self.graphs, self.captured):
            if recordings is not None:
                recordings.clear()
        release_idle_memory()

    @contextmanager
    def _door(self) -> Iterator[None]:
        """Within it every rank checks. Where one refuses, all raise and none waits; the next request works."""
        refused: Exception | None = None
        try:
            yield
        except Exception as error:
            refused = error
        with self.watchdog.waiting_for_all():
            anywhere = self.mesh.any(refused is not None)
        if anywhere:
            raise refused or RankFailure("another process refused this request; its error says why")

    def _admit(
        self, request: GenerationRequest, inputs: Inputs, output_type: str, callback: StepCallback | None
    ) -> Admitted:
        """Checks a request and opens what it brings."""
        request = preflight(self.files, request, self.parallel, inputs)
        plan = schedule(self.scheduler, request.num_inference_steps, inputs.strength(request), inputs.sigmas)
        scale, (height, width) = self.vae.scale_factor, request.size
        shape = inputs.count(request), self.transformer.config.in_channels, height // scale, width // scale
        return Admitted(request, inputs, inputs.start(shape, height, width), shape, plan, output_type, callback)

    def _check_same(self, admitted: Admitted, flag: bool) -> bool:
        """Returns whether any rank passed True.

        Raises:
            ConfigError: on every rank, where not all were given the same: they would wait for each other, or draw a
                picture that is of none of them.
        """
        if self.mesh.world.size == 1:
            return flag
        mine = admitted.fingerprint()
        with self.watchdog.waiting_for_all():
            every = self.mesh.all_gather(self.mesh.world, paddle.to_tensor([mine, flag], dtype="int64")).numpy()
        allowed = "the same call on every rank (prompts, sizes, seed, steps, image, output_type, callback or none, ...)"
        require(bool((every[:, 0] == mine).all()), "request", "another one on another rank", allowed)
        return bool(every[:, 1].any())

    def _render(self, admitted: Admitted, progress: bool, rehearse: Rehearse) -> GenerationOutput:
        """Renders what came through the door."""
        guidance, steps, output_type = admitted.request.guidance, admitted.plan.steps, admitted.output_type
        rows = rows_for(self.mesh.dp.rank, self.mesh.dp.size, admitted.shape[0], guidance)
        on_step = None if admitted.callback is None else Callback(self, admitted.callback)
        seconds: dict[str, float] = {}
        self.interrupt = False
        with timed(seconds, "encode"):
            rehearse("reading the prompts", lambda: self._encode(admitted, rows, None))
            text = self._encode(admitted, rows, self.captured)
        with timed(seconds, "denoise"):
            rehearse("denoising", lambda: self._denoise(admitted, rows, text, None, None, range(1)))
            with self._ticks(steps, progress) as ticks:
                latents = self._denoise(admitted, rows, text, self.graphs, self.captured, ticks, on_step)
        with timed(seconds, "decode"):
            if output_type != "latent":
                rehearse("decoding", lambda: self.vae.decode_each(latents))
            result = self._decode(latents, output_type)
        return GenerationOutput(result, seconds, steps if on_step is None else on_step.steps)

    def _encode(self, admitted: Admitted, rows: Rows, captured: Captured | None) -> TextStates:
        """Returns the states of this dp rank's rows only."""
        width = self.transformer.config.joint_attention_dim
        return encode_request(self.text, admitted.request, admitted.inputs, rows, width, *ways(captured))

    def _denoise(
        self, admitted: Admitted, rows: Rows, text: TextStates, graphs: StepGraphs | None, captured: Captured | None,
        ticks: Iterable[int], on_step: OnStep | None = None,
    ) -> Tensor:  # fmt: skip
        """Returns all images' latents, [B, C, h, w]."""
        _, together = ways(captured)
        request, plan, shape = admitted.request, admitted.plan, admitted.shape
        denoiser = Denoiser(self.transformer, rows, text, plan, shape[2:], graphs, together)
        # The device works while the host draws noise.
        begin = first_latents(admitted.start, shape, request.seed, plan, self.vae, captured)
        return denoiser.run(begin, request.guidance_scale, ticks, on_step)

    def _decode(self, latents: Tensor, output_type: str) -> Any:
        """latents: [B, C, h, w] -> what `output_type` says."""
        if output_type == "latent":
            return latents
        pixels = self.pixels(latents)
        with self.watchdog.alike(self.mesh, "pictures"):
            if output_type == "np":
                return images.to_unit(pixels)
            return [Image.fromarray(one) for one in images.to_uint8(pixels)]

    @paddle.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:
        """latents: [B, C, h, w], alike on all ranks -> [B, 3, H, W] in the model's dtype, -1 to 1 but not clamped."""
        return self.vae.decode_each(latents, self.captured)

    @contextmanager
    def _ticks(self, steps: int, progress: bool) -> Iterator[Any]:
        """Yields 0 .. N - 1 behind a progress bar on rank 0."""
        hidden = not progress or self.mesh.world.rank != 0
        with tqdm(range(steps), desc="denoise", unit="step", disable=hidden) as bar:
            yield bar


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Writes how long the block took, device work included, to `seconds[part]`; a range for profilers."""
    start = time.perf_counter()
    with span(part):
        yield
        synchronize()
    seconds[part] = time.perf_counter() - start
