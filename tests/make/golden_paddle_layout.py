"""Writes tests/golden/weights_paddle_layout.json: how ppdiffusers 0.29 and PaddleNLP lay out what they save.

Run in an environment of its own, `pip install paddlepaddle==3.3.1 ppdiffusers==0.29.0 huggingface_hub==0.25.2
aistudio-sdk==0.2.6 "datasets<3"`: python -m tests.make.golden_paddle_layout. Saved are: file names, metadata, dtypes,
shapes, CRC-32 of the bytes, which layers are `paddle.nn.Linear`, and the config.json. No ppdiffusers: nothing is done.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import paddle
from safetensors import safe_open

from tests.arrays import weight

GOLDEN = Path(__file__).parent.parent / "golden" / "weights_paddle_layout.json"


def models() -> dict[str, paddle.nn.Layer]:
    """One tiny model of each kind that SD3 has."""
    # ppdiffusers 0.29 asks for a name that Paddle 3 no longer has; nothing is computed here.
    paddle.nn.functional.scaled_dot_product_attention_ = paddle.nn.functional.scaled_dot_product_attention
    from ppdiffusers import AutoencoderKL, SD3Transformer2DModel
    from ppdiffusers.transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    return {
        "transformer": SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=20,
            pos_embed_max_size=12,
        ),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32,
            scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
        ),
        "text_encoder": CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=40, hidden_size=16, intermediate_size=32, projection_dim=12, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=20,
            )
        ),
        "text_encoder_3": T5EncoderModel(
            T5Config(
                vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
            )
        ),
    }  # fmt: skip


def fill(model: paddle.nn.Layer) -> list[str]:
    """Gives every parameter its value of tests.arrays in torch's layout; returns the linears' weights.

    The biases of ppdiffusers' extra layer norms keep their zeros; T5's second name of its embedding is the same tensor.
    """
    linears = [f"{path}.weight" for path, layer in model.named_sublayers() if isinstance(layer, paddle.nn.Linear)]
    for name, tensor in model.state_dict().items():
        if name.endswith((".norm.bias", ".embed_tokens.weight")):
            continue
        shape = tuple(tensor.shape)
        value = weight(name, shape[::-1]).T if name in linears else weight(name, shape)
        tensor.set_value(paddle.to_tensor(value.copy()).astype(tensor.dtype))
    return linears


def saved(model: paddle.nn.Layer, **how: Any) -> dict[str, Any]:
    """Returns what `save_pretrained` wrote."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True, **how)
        written = sorted(path.name for path in Path(folder).iterdir())
        config = json.loads((Path(folder) / "config.json").read_text())
        files = {name: contents(Path(folder) / name) for name in written if name.endswith(".safetensors")}
    return {"written": written, "config": config, "files": files}


def contents(path: Path) -> dict[str, Any]:
    """Returns metadata and name -> [dtype, shape, CRC-32 of the bytes] of a file."""
    with safe_open(path, framework="np") as file:
        tensors = {key: [file.get_slice(key).get_dtype(), file.get_slice(key).get_shape(),
                         zlib.crc32(file.get_tensor(key).tobytes())] for key in sorted(file.keys())}  # fmt: skip
        return {"metadata": file.metadata(), "tensors": tensors}


def main() -> None:
    """Writes the golden file."""
    if importlib.util.find_spec("ppdiffusers") is None:
        sys.stderr.write("no ppdiffusers here: the golden file stays as it is\n")
        return
    golden = {}
    for name, model in models().items():
        linears = fill(model)
        golden[name] = saved(model) | {"linears": linears}
        if name == "transformer":
            golden["shards"] = saved(model, max_shard_size="150KB") | {"linears": linears}
            golden["to_diffusers"] = saved(model, to_diffusers=True) | {"linears": []}
        if name == "text_encoder":
            model.to(dtype="bfloat16")
            golden["bfloat16"] = saved(model) | {"linears": linears}
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":")).replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
    main()
