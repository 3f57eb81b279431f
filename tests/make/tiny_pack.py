"""Puts trained weights, tokenizers and configurations together as a folder in diffusers' layout.

PYTHONPATH=. python tests/make/tiny_pack.py WORK TOKENIZERS FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from tiny_models import Parts, new_parts, new_vae

INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "_diffusers_version": "0.29.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


def trained_vae(work: Path) -> AutoencoderKL:
    """The trained autoencoder with the factors of its latents."""
    vae = new_vae()
    if (work / "vae.safetensors").exists():
        vae.load_state_dict(load_file(work / "vae.safetensors"))
        vae.register_to_config(**json.loads((work / "vae.json").read_text()))
    return vae


def trained_parts(work: Path, tokenizers: Path) -> Parts:
    """The trained transformer and text encoders, averaged weights."""
    parts = new_parts(tokenizers)
    if (work / "flow.safetensors").exists():
        parts.load(load_file(work / "flow.safetensors"))
    return parts


def strip_private(folder: Path) -> None:
    """Takes the notes on where a model came from out of every config.json.

    dtype says how to load: with float16 there, transformers 5 would load half a model beside diffusers' float32.
    """
    for path in folder.glob("*/config.json"):
        config = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
        config |= {"dtype": "float32"} if "dtype" in config else {}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def pack(work: Path, tokenizers: Path, folder: Path) -> None:
    """Writes the whole folder; untrained weights stand in for those that WORK lacks."""
    for name in TOKENIZERS:
        shutil.copytree(tokenizers / name, folder / name, dirs_exist_ok=True)
    for name, model in {**trained_parts(work, tokenizers)._asdict(), "vae": trained_vae(work)}.items():
        model.eval().to(torch.float16).save_pretrained(folder / name, safe_serialization=True)
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    strip_private(folder)
    for path in folder.glob("*/*.safetensors"):
        path.chmod(0o644)  # safetensors writes for the owner alone


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("tokenizers", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    pack(args.work, args.tokenizers, args.folder)
