"""Trains transformer and text encoders of the bundled model together, as SD3 was: rectified flow on latents.

    PYTHONPATH=. python tests/make/tiny_train.py WORK TOKENIZERS --minutes 9 --begin 0 --end 0.5
    PYTHONPATH=. python tests/make/tiny_train.py WORK TOKENIZERS --minutes 9 --begin 0.5 --end 1

WORK holds vae.safetensors and vae.json; the second call goes on from what the first left there.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_data import caption_table, make_pictures
from tiny_models import T5_WIDTH, Parts, new_parts, new_vae
from tiny_steps import descend, new_optimizer, repeatable
from tiny_vae import to_signal
from transformers import CLIPTokenizer, T5TokenizerFast

# SD3 does not mask padding: text of every length must have been seen in training.
T5_LENGTHS, T5_CHANCES = (77, 256), (0.65, 0.35)
NO_CAPTION, NO_CLIP, NO_T5 = 0.1, 0.05, 0.15
# Each picture of a batch is seen at this many times at once; its caption is encoded once.
DRAWS = 4
TIME_SHIFT, UNIFORM_TIMES = 1.5, 0.15
RATE, WARMUP, DECAY_FROM = 1.5e-3, 800, 0.5
EMA = 0.001


class Captions(NamedTuple):
    """Token ids of all captions [rows, variants, tokens] of the three tokenizers; the last row is the empty caption."""

    ids: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    pads: tuple[int, int, int]

    def pick(self, which: int, rows: torch.Tensor, variants: torch.Tensor, length: int) -> torch.Tensor:
        """Ids [n, length] of one tokenizer."""
        ids = self.ids[which][rows, variants].long()
        return F.pad(ids, (0, length - ids.shape[1]), value=self.pads[which])


class Batch(NamedTuple):
    """What the networks see of one batch: ids of the three encoders and the share of T5's states kept [n, 1, 1]."""

    clip: torch.Tensor
    clip_2: torch.Tensor
    t5: torch.Tensor
    t5_kept: torch.Tensor


def tokenise(tokenizers: Path, device: torch.device) -> Captions:
    """Tokenises every caption of ``caption_table`` once."""
    table = caption_table()
    table.append([""] * len(table[0]))
    texts = [text for row in table for text in row]
    ids, pads = [], []
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = (T5TokenizerFast if name[-1] == "3" else CLIPTokenizer).from_pretrained(tokenizers / name)
        rows = tokenizer(texts, padding="max_length", max_length=32, truncation=True, return_tensors="pt").input_ids
        ids.append(rows.to(device, torch.int16).view(len(table), -1, 32))
        pads.append(tokenizer.pad_token_id)
    return Captions(tuple(ids), tuple(pads))


@torch.no_grad()
def encode_pictures(work: Path, count: int, workers: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised latents bf16 [count, 16, 16, 16] and caption rows [count] of freshly drawn training pictures."""
    vae = new_vae().to(device).to(memory_format=torch.channels_last)
    vae.load_state_dict(load_file(work / "vae.safetensors"))
    factor = json.loads((work / "vae.json").read_text())
    pictures = make_pictures(count, seed=2, workers=workers)
    latents = []
    for part in torch.from_numpy(pictures.images).split(500):
        mean = vae.encoder(to_signal(part.to(device))).chunk(2, dim=1)[0]
        latents.append(((mean - factor["shift_factor"]) * factor["scaling_factor"]).bfloat16())
    return torch.cat(latents).contiguous(), torch.from_numpy(pictures.rows).to(device)


def draw_batch(captions: Captions, rows: torch.Tensor, length: int) -> Batch:
    """Captions of pictures, some of them dropped, with T5's text padded to a length."""
    n, device = len(rows), rows.device
    empty = captions.ids[0].shape[0] - 1
    variants = torch.randint(captions.ids[0].shape[1], (n,), device=device)
    rows = torch.where(torch.rand(n, device=device) < NO_CAPTION, empty, rows)
    clip_rows = torch.where(torch.rand(n, device=device) < NO_CLIP, empty, rows)
    kept = (torch.rand(n, 1, 1, device=device) >= NO_T5).float()
    return Batch(
        captions.pick(0, clip_rows, variants, 77),
        captions.pick(1, clip_rows, variants, 77),
        captions.pick(2, rows, variants, length),
        kept,
    )


def encode_text(parts: Parts, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Text states [n, 77 + tokens, 96] and pooled vectors [n, 80], as diffusers' pipeline makes them."""
    first = parts.text_encoder(batch.clip, output_hidden_states=True)
    second = parts.text_encoder_2(batch.clip_2, output_hidden_states=True)
    clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    clip = F.pad(clip, (0, T5_WIDTH - clip.shape[-1]))
    t5 = parts.text_encoder_3(batch.t5).last_hidden_state * batch.t5_kept
    return torch.cat([clip, t5.to(clip.dtype)], dim=1), torch.cat([first.text_embeds, second.text_embeds], dim=-1)


def draw_times(n: int, device: torch.device) -> torch.Tensor:
    """Times [DRAWS * n] in 0..1, logit-normal and shifted to more noise, spread evenly over the draws of a picture."""
    even = (torch.arange(DRAWS, device=device)[:, None] + torch.rand(DRAWS, n, device=device)) / DRAWS
    normal = torch.sigmoid(torch.special.ndtri(even.clamp(1e-5, 1 - 1e-5)))
    shifted = TIME_SHIFT * normal / (1 + (TIME_SHIFT - 1) * normal)
    return torch.where(torch.rand_like(even) < UNIFORM_TIMES, even, shifted).flatten()


def flow_loss(
    parts: Parts, latents: torch.Tensor, noise: torch.Tensor, batch: Batch, times: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the velocity for latents [n, 16, 16, 16], noise and times [DRAWS * n, ...]."""
    latents, at = latents.repeat(DRAWS, 1, 1, 1), times.view(-1, 1, 1, 1)
    states, pooled = encode_text(parts, batch)
    velocity = parts.transformer(
        hidden_states=(1 - at) * latents + at * noise,
        encoder_hidden_states=states.repeat(DRAWS, 1, 1),
        pooled_projections=pooled.repeat(DRAWS, 1),
        timestep=times * 1000,
        return_dict=False,
    )[0]
    return F.mse_loss(velocity.float(), noise - latents)


class Trainer:
    """Networks, their average, and the optimizer, with a state that outlasts the process."""

    def __init__(self, work: Path, tokenizers: Path, device: torch.device) -> None:
        self.work = work
        self.parts = Parts(*(part.to(device).eval() for part in new_parts(tokenizers)))
        self.averaged = Parts(*(copy.deepcopy(part).requires_grad_(False) for part in self.parts))
        self.weights = [p for part in self.parts for p in part.parameters()]
        self.averages = [p for part in self.averaged for p in part.parameters()]
        self.optimizer = new_optimizer(self.weights, RATE, (0.9, 0.98))
        self.step = 0

    def resume(self) -> None:
        """Goes on from the files of ``save``."""
        device = self.weights[0].device
        self.parts.load(load_file(self.work / "flow_raw.safetensors"))
        self.averaged.load(load_file(self.work / "flow.safetensors"))
        moments = [load_file(self.work / f"flow_{name}.safetensors", device=str(device)) for name in ("m", "v")]
        self.step = int(moments[0].pop("step"))
        for i, weight in enumerate(self.weights):
            self.optimizer.state[weight] = {
                "step": torch.tensor(float(self.step), device=device),
                "exp_avg": moments[0][str(i)],
                "exp_avg_sq": moments[1][str(i)],
            }

    def save(self) -> None:
        """Writes averaged and raw weights and the optimizer's moments."""
        states = [self.optimizer.state[weight] for weight in self.weights]
        first = {str(i): s["exp_avg"].contiguous() for i, s in enumerate(states) if s}
        second = {str(i): s["exp_avg_sq"].contiguous() for i, s in enumerate(states) if s}
        for name, value in (
            ("flow", self.averaged.state()),
            ("flow_raw", self.parts.state()),
            ("flow_m", {**first, "step": torch.tensor(self.step)}),
            ("flow_v", second),
        ):
            save_file({k: v.contiguous().cpu() for k, v in value.items()}, self.work / f"{name}.safetensors")

    def set_rate(self, progress: float) -> None:
        """Sets the learning rate for a place, 0..1, in the whole course."""
        decay = 1 - max(0.0, progress - DECAY_FROM) / (1 - DECAY_FROM)
        self.optimizer.param_groups[0]["lr"].fill_(RATE * min(1.0, (self.step + 1) / WARMUP) * max(decay, 0.01))


class Steps:
    """The training step for each length of T5's text, as graphs where there is a GPU."""

    def __init__(self, trainer: Trainer, captions: Captions, pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.trainer, self.captions = trainer, captions
        self.latents, self.rows = pictures
        self.total = torch.zeros((), device=self.rows.device)
        self.loss_of = torch.compile(flow_loss, dynamic=False) if self.rows.is_cuda else flow_loss

    def plain(self, batch: int, length: int) -> None:
        """One step on a random batch."""
        device = self.rows.device
        picked = torch.randint(len(self.rows), (batch,), device=device)
        text, times = draw_batch(self.captions, self.rows[picked], length), draw_times(batch, device)
        noise = torch.randn(DRAWS * batch, *self.latents.shape[1:], device=device)
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            loss = self.loss_of(self.trainer.parts, self.latents[picked].float(), noise, text, times)
        descend(loss, self.trainer.optimizer, self.trainer.averages, EMA)
        self.total.add_(loss.detach())

    def mean(self, count: int) -> float:
        """Mean loss of the last steps; starts a new mean."""
        mean = self.total.item() / count
        self.total.zero_()
        return mean


def train(steps: Steps, args: argparse.Namespace) -> None:
    """Trains for ``args.minutes``; the learning rate follows from ``args.begin`` to ``args.end`` of its course."""
    trainer, start, done = steps.trainer, time.time(), 0.0
    trainer.set_rate(args.begin)
    again = [repeatable(partial(steps.plain, args.batch, length), steps.rows.device) for length in T5_LENGTHS]
    print(f"steps ready after {time.time() - start:.0f}s", flush=True)
    while done < 1:
        done = (time.time() - start) / (60 * args.minutes)
        trainer.set_rate(args.begin + (args.end - args.begin) * min(done, 1.0))
        random.choices(again, T5_CHANCES)[0]()
        trainer.step += 1
        if trainer.step % 1000 == 0:
            print(f"step {trainer.step} {time.time() - start:.0f}s loss {steps.mean(1000):.4f}", flush=True)


def main() -> None:
    """Encodes pictures and captions, trains, saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("tokenizers", type=Path)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--begin", type=float, default=0.0)
    parser.add_argument("--end", type=float, default=1.0)
    parser.add_argument("--pictures", type=int, default=120000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=16)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(round(1000 * args.begin))
    began = time.time()
    captions = tokenise(args.tokenizers, device)
    kept = args.work / "latents.pt"
    if not kept.exists():
        torch.save(encode_pictures(args.work, args.pictures, args.workers, device), kept)
    pictures = torch.load(kept, map_location=device)
    trainer = Trainer(args.work, args.tokenizers, device)
    if args.begin > 0:
        trainer.resume()
    print(f"ready after {time.time() - began:.0f}s", flush=True)
    train(Steps(trainer, captions, pictures), args)
    trainer.save()


if __name__ == "__main__":
    main()
