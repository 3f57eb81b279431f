"""One rank of tests/text/test_mesh.py: the text encoders on every mesh of this world, against one process.

Run: python -m tests.text_worker (with the launcher's environment). Prints one JSON line a mesh.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from typing import Any

import numpy as np
import paddle

from sd3par import captured
from sd3par.captured import Captured
from sd3par.config import GenerationRequest, ParallelConfig
from sd3par.device import Device, choose
from sd3par.errors import ConfigError
from sd3par.inputs import Inputs, PromptEmbeds
from sd3par.mesh import Mesh
from sd3par.pipeline import SD3Pipeline
from sd3par.plan import rows_for
from sd3par.text import TextEncoders, TextStates
from sd3par.text.load import load_text
from sd3par.text.request import encode_request
from sd3par.text.t5 import T5Encoder
from sd3par.weights import open_model
from tests.mesh_worker import meshes
from tests.pipeline_cases import PROMPTS, random_files
from tests.text.cases import T5S, t5_ids
from tests.text.models import GOLDENS, component

TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
JOINT_DIM = 96  # of the bundled model
LONG = "a red circle and a green square, " * 60
MANY = ["a", "b", "c"] * 4  # for dp 1, 2, 3 and 4
SMALL = dict(output_type="latent", progress=False, height=16, width=16)  # what is drawn does not matter here
REQUESTS: dict[str, dict[str, Any]] = {
    "one": dict(prompt=(PROMPTS[0],), negative_prompt=("blurry",), max_sequence_length=77),
    "equal": dict(prompt=("x",), negative_prompt=("x",), max_sequence_length=77),
    "long": dict(prompt=(LONG,), max_sequence_length=512),
    "lists": dict(prompt=tuple(PROMPTS), prompt_2=("in oil",), prompt_3=("snow", LONG), max_sequence_length=77,
                  negative_prompt=("blurry", "green"), negative_prompt_3=("red",), num_images_per_prompt=2),
    "no guidance": dict(prompt=("a", "b", "a", "c"), guidance_scale=1.0, max_sequence_length=20),
    "no T5": dict(prompt=tuple(PROMPTS), max_sequence_length=77),
    "states": dict(prompt=None, max_sequence_length=77, negative_prompt=("blurry",), num_images_per_prompt=2),
}  # fmt: skip


class Recording:
    """Stands in for one of a GPU, that takes more memory on the last ranks."""

    def __init__(self, device: Device, function: Any, inputs: tuple[paddle.Tensor, ...]) -> None:
        self.function, self.bytes = function, 60 if int(os.environ["PADDLE_TRAINER_ID"]) else 40
        if not isinstance(function, T5Encoder):
            self.bytes = 0

    def __call__(self, *inputs: paddle.Tensor) -> Any:
        return self.function(*inputs)

    def reset(self) -> None:
        """Nothing to give back."""


def inputs_of(name: str) -> Inputs:
    """Returns what comes with a request: for "states" conditional ones of two prompts."""
    if name != "states":
        return Inputs()
    return Inputs(embeds=PromptEmbeds(paddle.ones([2, 154, JOINT_DIM]), 2 * paddle.ones([2, 80])))


def encode(name: str, text: TextEncoders, parallel: ParallelConfig) -> TextStates:
    """Returns the states of the rows that this rank of `parallel` has."""
    request, inputs = GenerationRequest(**REQUESTS[name]), inputs_of(name)
    images = inputs.count(request)
    dp_rank = int(os.environ["PADDLE_TRAINER_ID"]) // (parallel.sp * parallel.mp)
    rows = rows_for(dp_rank, parallel.dp, images, request.guidance)
    used = text if name != "no T5" else dataclasses.replace(text, t5=None, tokenizer_t5=None)
    return encode_request(used, request, inputs, rows, JOINT_DIM)


def t5_errors(mesh: Mesh) -> dict[str, float | None]:
    """Returns how far each T5 variant is from transformers' states, None where it is not on this rank."""
    found: dict[str, float | None] = {}
    for name in T5S:
        encoder = T5Encoder.load(component(f"t5/{name}", T5S[name]), "float32", mesh)
        found[name] = None
        if encoder.place.here:
            states = encoder(paddle.to_tensor(t5_ids(name))).numpy()
            found[name] = float(np.abs(states - GOLDENS[f"t5/{name}/states"]).max())
    return found


def states(mesh: Mesh, parallel: ParallelConfig) -> dict[str, dict[str, Any]]:
    """Returns the error of each request's states, on this mesh against one process, and their bits."""
    found, together, single = {}, load_text(random_files(), "float32", mesh), load_text(random_files(), "float32")
    for name in REQUESTS:
        try:
            mine = encode(name, together, parallel)
        except ConfigError:  # dp does not divide it
            continue
        alone = encode(name, single, parallel)
        pairs = [(mine.context.numpy(), alone.context.numpy()), (mine.pooled.numpy(), alone.pooled.numpy())]
        found[name] = {
            "error": max(float(np.abs(got - want).max()) for got, want in pairs),
            "bits": [zlib.crc32(got.tobytes()) for got, _ in pairs],
        }
    return found


def read(mesh: Mesh) -> dict[str, float]:
    """Returns which share of the bytes of each encoder this rank reads, its table of tokens not counted."""
    files, shares = random_files(), {}
    load_text(files, "float32", mesh)
    for part in TEXTS:
        checkpoint = getattr(files, part).checkpoint
        table = next(name for name in checkpoint.arrays if name.endswith(("shared.weight", "token_embedding.weight")))
        whole = sum(array.nbytes for name, array in checkpoint.arrays.items() if name != table)
        shares[part] = sum(count for name, count in checkpoint.reads if name != table) / whole
    return shares


def refusals(mesh: Mesh, parallel: ParallelConfig) -> list[str]:
    """Returns how every rank ends a text that only one of several dp ranks would have read; the next request works."""
    pipe = SD3Pipeline.load(open_model("tiny"), choose("float32", "cpu"), mesh, parallel)
    options = dict(num_inference_steps=1, max_sequence_length=20, **SMALL)
    found = []
    try:
        pipe([*MANY[1:], "\ud800"], **options)
    except ConfigError as error:
        found.append(error.field)
    try:
        pipe(prompt_embeds=np.zeros([12, 97, JOINT_DIM]), pooled_prompt_embeds=np.zeros([12, 80]), **options,
             **({} if mesh.world.rank else dict(negative_prompt_embeds=np.zeros([12, 97, JOINT_DIM]),
                                                negative_pooled_prompt_embeds=np.zeros([12, 80]))))  # fmt: skip
    except ConfigError as error:
        found.append(error.field)
    return found + [str(pipe(MANY, **options).steps)]


def random_error(mesh: Mesh, parallel: ParallelConfig) -> float:
    """Returns how far made-up weights' latents on this mesh are from one process's, in units of their deviation."""
    cpu, files = choose("float32", "cpu"), open_model("random:tiny")
    options = dict(prompt=MANY, num_inference_steps=2, max_sequence_length=20, **SMALL)
    alone = SD3Pipeline.load(files, cpu, Mesh.single(), ParallelConfig())(**options).images.numpy()
    latents = SD3Pipeline.load(files, cpu, mesh, parallel)(**options).images.numpy()
    return float(np.abs(latents - alone).max() / alone.std())


def recorded(mesh: Mesh, parallel: ParallelConfig) -> list[list[int]]:
    """Returns the lengths whose T5 is recorded after each of some requests."""
    captured._Recording = Recording  # type: ignore[misc, assignment]
    pipe = SD3Pipeline.load(open_model("tiny"), choose("float32", "cpu"), mesh, parallel)
    card = Device("nvgpu:0", "float32")
    pipe.captured = Captured(card, must=True)
    pipe.captured.together = together = Captured(card, must=True, most_bytes=100, mesh=mesh)
    used = together if pipe.text.split else pipe.captured
    lengths = []
    for length in (20, 30, 20, 30, 20, 30, 30, 20):
        pipe(MANY, num_inference_steps=1, max_sequence_length=length, guidance_scale=1.0, **SMALL)
        lengths.append([key[1][0][1] for key in used._recordings if key[0] is pipe.text.t5])
    return lengths


@paddle.no_grad()
def main() -> None:
    """Tests every mesh."""
    for parallel in meshes(int(os.environ["PADDLE_TRAINERS_NUM"])):
        mesh = Mesh.from_env(parallel)
        line = {
            "mesh": mesh.describe(), "dp_rank": mesh.dp.rank, "read": read(mesh), "t5": t5_errors(mesh),
            "states": states(mesh, parallel),
        }  # fmt: skip
        print("RESULT", json.dumps(line), flush=True)
    line = {
        "refusals": refusals(mesh, parallel), "random": random_error(mesh, parallel),
        "recorded": recorded(mesh, parallel),
    }  # fmt: skip
    print("LAST", json.dumps(line), flush=True)
    mesh.barrier()


if __name__ == "__main__":
    main()
