"""diffusers' time on the weights that benchmarks/gpu/peer.py made, eager or compiled.

    python -m benchmarks.gpu.peer_loop sd3-medium FOLDER --engine reduce-overhead --sizes 1024 512

As fast as diffusers' documentation makes it ("Accelerate inference", and its page on Stable Diffusion 3): fused
projections, channels-last VAE, cuDNN attention first, transformer and VAE decoder compiled, each size by itself. Runs
in a process of its own (torch). Prints one JSON object a line, two of a size: the second one holds the decoder too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.modules["kernels"] = None  # type: ignore[assignment]  # diffusers looks for PyPI's package and would find ours
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from benchmarks.gpu.shapes import GUIDANCE, TEXT_TOKENS, TRANSFORMERS, WARM_UPS  # noqa: E402
from sd3par.launch.bench.states import states  # noqa: E402

ENGINES = ("eager", "default", "reduce-overhead", "max-autotune")
FASTEST = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def pipeline(model: str, folder: Path, device: str, fused: bool = True) -> StableDiffusion3Pipeline:
    """Returns diffusers' pipeline as fast as eager makes it; `fused`: with QKV in one product, which xDiT has not."""
    transformer, decoder = (
        kind.from_pretrained(folder / name, torch_dtype=torch.bfloat16).to(device).eval()
        for kind, name in ((SD3Transformer2DModel, "transformer"), (AutoencoderKL, "vae"))
    )
    if fused and model not in ("sd3.5-medium", "micro"):  # its processor fails on the second attention of a block
        transformer.fuse_qkv_projections()
    transformer.to(memory_format=torch.channels_last)
    decoder.to(memory_format=torch.channels_last)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, vae=decoder, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Compiled:
    """A pipeline whose transformer and VAE decoder are compiled anew for each size."""

    def __init__(self, pipe: StableDiffusion3Pipeline, engine: str) -> None:
        self.pipe, self.transformer, self._decode = pipe, pipe.transformer, pipe.vae.decode
        self._mode = None if engine == "default" else engine
        self._eager = engine == "eager"
        if engine == "max-autotune":  # what diffusers' documentation sets beside this mode
            torch.set_float32_matmul_precision("high")
            config = torch._inductor.config
            config.conv_1x1_as_mm = config.coordinate_descent_tuning = True
            config.coordinate_descent_check_all_directions, config.epilogue_fusion = True, False

    def renew(self) -> None:
        """Forgets what was compiled, so that the next size is compiled with its own shapes and no others.

        Each call of a compiled function begins a new iteration of CUDA graphs by itself, in which the results of the
        one before are free; torch.compiler.cudagraph_mark_step_begin once a picture would make 28 graphs of one.
        """
        if self._eager:
            return
        torch.compiler.reset()
        options: dict[str, Any] = dict(mode=self._mode, fullgraph=True, dynamic=False)
        self.pipe.transformer = torch.compile(self.transformer, **options)
        self.pipe.vae.decode = torch.compile(self._decode, **options)


class Draw(NamedTuple):
    """What is drawn: size in pixels, pictures at once, steps, guidance and text tokens."""

    px: int
    images: int
    steps: int
    guidance: float
    tokens: int


def embeds(pipe: Any, config: Any, what: Draw, seed: int) -> dict[str, torch.Tensor]:
    """Returns the text states that sd3par draws with this seed, as arguments of a pipeline."""
    device = pipe if isinstance(pipe, str) else pipe.device

    def of_all(one: np.ndarray) -> torch.Tensor:
        first, axes = torch.from_numpy(one).to(device, torch.bfloat16), tuple(range(one.ndim))
        return torch.stack([torch.roll(first, (image,) * one.ndim, axes) for image in range(what.images)])

    found = states(seed, what.tokens, config.joint_attention_dim, config.pooled_projection_dim)
    names = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: of_all(one) for name, one in zip(names, found, strict=True)}


def noise_of(what: Draw, seed: int) -> torch.Tensor:
    """Returns the noise [B, 16, h, w] that sd3par begins with, fp32.

    diffusers would draw it in the model's dtype: in bf16 those are other numbers, of one PyTorch or processor and not
    of another (2.11 on an Intel Xeon; 2.13 on an AMD EPYC draws fp32's, rounded).
    """
    shape = (1, 16, what.px // 8, what.px // 8)
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + image)) for image in range(what.images)]
    return torch.cat(drawn)


def draw(pipe: StableDiffusion3Pipeline, what: Draw, seed: int) -> tuple[torch.Tensor, float]:
    """Returns latents [B, 16, h, w] from embeddings never seen before, and the seconds that the call took."""
    call = embeds(pipe, pipe.transformer.config, what, seed)
    noise = noise_of(what, seed).to(pipe.device, torch.bfloat16)
    wait(pipe)
    start = time.perf_counter()
    latents = pipe(**call, height=what.px, width=what.px, num_inference_steps=what.steps, guidance_scale=what.guidance,
                   output_type="latent", latents=noise).images  # fmt: skip
    wait(pipe)
    return latents, time.perf_counter() - start


def decode(pipe: StableDiffusion3Pipeline, latents: torch.Tensor) -> float:
    """Returns the seconds from latents [B, 16, h, w] to pictures on the device, in one batch as diffusers does it."""
    wait(pipe)
    start = time.perf_counter()
    z = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    pipe.vae.decode(z, return_dict=False)
    wait(pipe)
    return time.perf_counter() - start


def wait(pipe: StableDiffusion3Pipeline) -> None:
    """Waits for the device."""
    if pipe.device.type == "cuda":
        torch.cuda.synchronize()


def attends_by(what: Draw, config: Any, device: str) -> str:
    """Returns which of torch's attentions runs at a size, of those that are allowed now."""
    heads, head_dim = config.num_attention_heads, config.attention_head_dim
    shape = (2 * what.images, heads, (what.px // 16) ** 2 + what.tokens, head_dim)
    q = torch.empty(shape, device=device, dtype=torch.bfloat16)
    return str(SDPBackend(torch._fused_sdp_choice(q, q, q)).name).lower()


@torch.no_grad()
def measure(compiled: Compiled, what: Draw, repeats: int, kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields one row twice: with the loop, and with the decoder too, whose compilation takes long.

    Puts the latents [1, 16, h, w] of seed 0 into `kept`, by the size in pixels: as the calls that are timed draw them.
    """
    pipe, cuda = compiled.pipe, torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with sdpa_kernel(list(FASTEST), set_priority=True):
        compiled.renew()
        attention = attends_by(what, pipe.transformer.config, pipe.device.type)
        drawn = [draw(pipe, what, seed) for seed in range(WARM_UPS + repeats)]
        kept[str(what.px)] = drawn[0][0][:1].float().cpu().numpy()
        taken = sorted(seconds for _, seconds in drawn[WARM_UPS:])
        loop = statistics.median(taken)
        row = {
            "height": what.px, "width": what.px, "images": what.images, "loop_s": loop,
            "step_ms": 1e3 * loop / what.steps, "first_s": drawn[0][1], "attention": attention, "repeats": repeats,
            "spread": taken[round(0.9 * (repeats - 1))] / loop - 1,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
        }  # fmt: skip
        yield row
        decoded = [decode(pipe, latents) for latents, _ in drawn]
    image = loop + statistics.median(decoded[WARM_UPS:])
    rate = what.images / image
    yield {**row, "image_s": image, "decode_ms": 1e3 * (image - loop), "images_per_s": rate}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that both peers have."""
    parser.add_argument("model", choices=TRANSFORMERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 512], help="pictures to time, in pixels")
    parser.add_argument("--images", type=int, nargs="*", default=[1], help="pictures a call")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--tokens", type=int, default=TEXT_TOKENS, help="of text")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--keep", type=Path, help="write the latents of seed 0 to this file")


def draws(options: argparse.Namespace) -> list[Draw]:
    """Returns what these flags ask for."""
    every = itertools.product(options.sizes, options.images)
    return [Draw(px, images, options.steps, options.guidance, options.tokens) for px, images in every]


def main() -> None:
    """Times one engine; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add_flags(parser)
    parser.add_argument("--engine", choices=ENGINES, default="eager", help="eager, or a mode of torch.compile")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    compiled = Compiled(pipeline(options.model, options.folder, device), options.engine)
    who = "diffusers" if options.engine == "eager" else "diffusers-compile"
    kept: dict[str, Any] = {}
    for what in draws(options):
        for row in measure(compiled, what, options.repeats, kept):
            print(json.dumps({"bench": "loop", "who": who, "engine": options.engine, **row}), flush=True)
    if options.keep is not None:
        np.savez(options.keep, **kept)


if __name__ == "__main__":
    main()
