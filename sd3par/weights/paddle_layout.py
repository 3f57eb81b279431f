"""Folders that PaddleMIX's ppdiffusers (0.29) and PaddleNLP save: Paddle's layout of linears, a few more names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sd3par.errors import CheckpointError
from sd3par.weights.fill import Checkpoint
from sd3par.weights.safetensors_file import PADDLE_FORMATS
from sd3par.weights.views import Same, Transposed, View, ViewCheckpoint

PADDLE_STEM = "diffusion_paddle_model"

# 2-D tensors that are no linears: both frameworks have them as [count, dim].
_EMBEDDING = re.compile(r".*\b(shared|embed_tokens|(token|position)_embedding|relative_attention_bias)\.weight")
# ppdiffusers' AdaLayerNormContinuous gives its layer norm a bias, which stays zero: diffusers has none.
_NORM_BIAS = re.compile(r"(norm_out|transformer_blocks\.\d+\.norm1_context)\.norm\.bias")
# Written into every config.json by PaddleNLP; says nothing of the model.
_RUNTIME_KEYS = frozenset({"return_dict", "tensor_parallel_output", "tensor_parallel_degree", "tensor_parallel_rank"})
# What ppdiffusers' AutoencoderKL can do beyond diffusers'; null says that it is not done.
_EXTENSIONS = frozenset({"down_block_out_channels", "up_block_out_channels"})


def is_paddle(where: str, file_name: str, file_format: str | None) -> bool:
    """Returns whether a file has Paddle's layout, by its name and its "format".

    Raises:
        CheckpointError: name and format contradict each other, or the format is of another framework.
    """
    named = file_name.startswith(PADDLE_STEM)
    known = PADDLE_FORMATS if named else PADDLE_FORMATS | {"pt"}
    if file_format is not None and file_format not in known:
        raise CheckpointError(where, f"format {file_format} in the metadata", f"{' or '.join(sorted(known))}")
    return named or file_format in PADDLE_FORMATS


def torch_layout(stored: Checkpoint, transposed: bool) -> Checkpoint:
    """Returns `stored` as torch has it: linears as [out, in], without ppdiffusers' zero biases of norms.

    Args:
        transposed: whether the linears are stored as [in, out]; ppdiffusers leaves the biases in torch's layout too.

    Raises:
        CheckpointError: such a bias is not zero, so that dropping it would change the pictures.
    """
    biases = [name for name in stored.shapes() if _NORM_BIAS.fullmatch(name)]
    for name in biases:
        if bool(stored.read(name).astype("float32").any()):
            raise CheckpointError(f"{stored.where}: {name}", "not zero", "zeros: SD3 has no such bias")
    if not transposed and not biases:
        return stored
    kept = {name: shape for name, shape in stored.shapes().items() if name not in biases}
    return ViewCheckpoint(stored, {name: _view(name, shape, transposed) for name, shape in kept.items()})


def torch_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config.json without the keys that only PaddleNLP and ppdiffusers write."""
    unset = {key for key in _EXTENSIONS if config.get(key) is None}
    return {key: value for key, value in config.items() if key not in _RUNTIME_KEYS | unset}


def _view(name: str, shape: tuple[int, ...], transposed: bool) -> View:
    linear = len(shape) == 2 and name.endswith(".weight") and not _EMBEDDING.fullmatch(name)
    return Transposed(name) if transposed and linear else Same(name)
