"""Writes tests/golden/text.npz and tests/golden/text/: transformers' text encoders and tokenizers, diffusers' joining.

Run: python -m tests.make.golden_text
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.utils import logging as diffusers_logging
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers import logging as transformers_logging

from tests.arrays import weight
from tests.make.text_tokenizers import make_tokenizers
from tests.text import cases
from tests.text.cases import CLIPS, LENGTH, ODD_TEXTS, PIPELINE, T5S, TOKENIZERS


def token_goldens() -> dict[str, np.ndarray]:
    """Ids [texts, 77] of the odd texts by every flavour of tokenizer."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {
            "clip_l": CLIPTokenizer.from_pretrained(TOKENIZERS / "clip_l"),
            "clip_g": CLIPTokenizer.from_pretrained(TOKENIZERS / "clip_g"),
            "clip_legacy": CLIPTokenizer.from_pretrained(cases.legacy_clip_folder(Path(scratch) / "clip", "!")),
            "t5": T5Tokenizer.from_pretrained(TOKENIZERS / "t5"),
            "t5_json": T5Tokenizer.from_pretrained(TOKENIZERS / "t5_json"),
        }
    options = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    return {f"tokens/{name}": np.int16(one(ODD_TEXTS, **options).input_ids) for name, one in folders.items()}


def filled(model: torch.nn.Module, value: Callable[[str, tuple[int, ...]], np.ndarray]) -> torch.nn.Module:
    """Returns `model` in fp64 (so that it has no rounding of its own) with the weights that its tensors' names give."""
    state = {name: torch.from_numpy(value(_untied(name), tuple(t.shape))) for name, t in model.state_dict().items()}
    model.load_state_dict(state, strict=True)
    return model.eval().double()


def _untied(name: str) -> str:
    return "shared.weight" if name == "encoder.embed_tokens.weight" else name


def clip(shape: dict[str, Any]) -> torch.nn.Module:
    return filled(CLIPTextModelWithProjection(CLIPTextConfig(bos_token_id=0, **shape)), weight)


def t5(shape: dict[str, Any]) -> torch.nn.Module:
    return filled(T5EncoderModel(T5Config(**shape)), cases.t5_weight)


def names(model: torch.nn.Module) -> np.ndarray:
    """Name and shape of every tensor of a checkpoint, a line each."""
    shapes = {_untied(name): tensor.shape for name, tensor in model.state_dict().items()}
    return np.array([f"{name} {','.join(map(str, shape))}" for name, shape in sorted(shapes.items())])


def module_goldens() -> dict[str, np.ndarray]:
    """Outputs of each encoder variant."""
    found: dict[str, np.ndarray] = {}
    for name, shape in CLIPS.items():
        model = clip(shape)
        out = model(torch.from_numpy(cases.clip_ids(name)), output_hidden_states=True)
        found[f"clip/{name}/hidden"] = out.hidden_states[-2].float().numpy()
        found[f"clip/{name}/pooled"] = out.text_embeds.float().numpy()
        found[f"clip/{name}/names"] = names(model)
    for name, shape in T5S.items():
        model = t5(shape)
        found[f"t5/{name}/states"] = model(torch.from_numpy(cases.t5_ids(name)))[0].float().numpy()
        found[f"t5/{name}/names"] = names(model)
    return found


def pipeline_goldens() -> dict[str, np.ndarray]:
    """Context and pooled states of diffusers' pipeline, and the names of its encoders' tensors."""
    tokenizers = [CLIPTokenizer.from_pretrained(TOKENIZERS / name) for name in ("clip_l", "clip_g")]
    tokenizers.append(T5Tokenizer.from_pretrained(TOKENIZERS / "t5"))
    sizes = [len(one) for one in tokenizers]
    models = [
        clip({**PIPELINE["clip_l"], "vocab_size": sizes[0]}),
        clip({**PIPELINE["clip_g"], "vocab_size": sizes[1], "eos_token_id": tokenizers[1].eos_token_id}),
        t5({**PIPELINE["t5"], "vocab_size": sizes[2]}),
    ]
    context, pooled = _encode_prompt(*models, *tokenizers)
    alone, _ = _encode_prompt(*models[:2], None, *tokenizers)
    if (
        not torch.equal(alone[:, :LENGTH], context[:, :LENGTH])
        or alone[:, LENGTH:].any()
        or alone.shape != context.shape
    ):
        raise RuntimeError("without T5 the context is not what it was, with zeros for T5's tokens")
    found = {"pipeline/context": context.float().numpy(), "pipeline/pooled": pooled.float().numpy()}
    return found | {f"pipeline/{name}/names": names(model) for name, model in zip(PIPELINE, models, strict=True)}


def _encode_prompt(clip_l: Any, clip_g: Any, t5_encoder: Any, *tokenizers: Any) -> tuple[torch.Tensor, torch.Tensor]:
    pipe = StableDiffusion3Pipeline(
        transformer=None, scheduler=None, vae=None, text_encoder=clip_l, text_encoder_2=clip_g,
        text_encoder_3=t5_encoder, tokenizer=tokenizers[0], tokenizer_2=tokenizers[1], tokenizer_3=tokenizers[2],
    )  # fmt: skip
    pipe.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=cases.JOINT_DIM))
    context, _, pooled, _ = pipe.encode_prompt(
        cases.PROMPTS, cases.PROMPTS_2, cases.PROMPTS_3, device="cpu", do_classifier_free_guidance=False,
        max_sequence_length=cases.T5_LENGTH,
    )  # fmt: skip
    return context, pooled


@torch.no_grad()
def main() -> None:
    """Writes the tokenizers, then everything that is computed with them."""
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()  # long prompts are meant to be cut here
    if not TOKENIZERS.exists():  # delete the folder to train them anew
        make_tokenizers()
    arrays = token_goldens() | module_goldens() | pipeline_goldens()
    np.savez_compressed(cases.GOLDEN, **arrays)
    print(
        cases.GOLDEN.stat().st_size, "bytes;", {name: f"{a.std():.2f}" for name, a in arrays.items() if a.dtype == "f4"}
    )


if __name__ == "__main__":
    main()
