"""Trains the autoencoder of the bundled model.

    PYTHONPATH=. python tests/make/tiny_vae.py WORK --minutes 3

Writes WORK/vae.safetensors (weights) and WORK/vae.json (scaling and shift factor).
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_data import make_pictures, make_scenes
from tiny_models import new_vae
from tiny_steps import descend, new_optimizer, repeatable

KL_WEIGHT = 2e-4
# The decoder sees latents a little off, as a sampler's are; the sampler's errors then do not show as stains.
LATENT_NOISE = 0.1


def to_signal(images: torch.Tensor) -> torch.Tensor:
    """uint8 [n, H, W, 3] to float [n, 3, H, W] in -1..1."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences of neighbours of [n, 3, H, W], across and down."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def encode(vae: AutoencoderKL, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log variance [n, 16, H / 8, W / 8] of the latents of pictures [n, 3, H, W]."""
    mean, logvar = vae.encoder(x).float().chunk(2, dim=1)
    return mean, logvar.clamp(-20, 5)


def vae_loss(vae: AutoencoderKL, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Training loss and mean absolute error of pictures [n, 3, H, W]."""
    mean, logvar = encode(vae, x)
    spread = (logvar.exp() + LATENT_NOISE**2).sqrt()
    y = vae.decoder(mean + spread * torch.randn_like(mean)).float()
    error = (y - x).abs().mean()
    steps = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x), strict=True))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error + (y - x).square().mean() + steps + KL_WEIGHT * kl, error.detach()


def train(vae: AutoencoderKL, images: torch.Tensor, minutes: float, batch: int, rate: float) -> AutoencoderKL:
    """Trains on uint8 pictures [n, 128, 128, 3] for a time; gives back the averaged weights."""
    averaged = copy.deepcopy(vae).requires_grad_(False)
    pairs = zip(vae.parameters(), averaged.parameters(), strict=True)
    weights, averages = zip(*((w, a) for w, a in pairs if w.requires_grad), strict=True)
    optimizer = new_optimizer(weights, rate, (0.9, 0.99))
    loss_of = torch.compile(vae_loss, dynamic=False) if images.is_cuda else vae_loss
    total = torch.zeros((), device=images.device)

    def step() -> None:
        x = to_signal(images[torch.randint(len(images), (batch,), device=images.device)])
        with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
            loss, error = loss_of(vae, x)
        descend(loss, optimizer, averages, 0.002)
        total.add_(error)

    start, count, done = time.time(), 0, 0.0
    again = repeatable(step, images.device)
    while done < 1:
        done = min(1.0, (time.time() - start) / (60 * minutes))
        optimizer.param_groups[0]["lr"].fill_(rate * min(1.0, (count + 1) / 300) * min(1.0, 2 * (1 - done) + 0.01))
        again()
        count += 1
        if count % 1000 == 0:
            print(f"step {count} {time.time() - start:.0f}s error {total.item() / 1000:.4f}", flush=True)
            total.zero_()
    return averaged


@torch.no_grad()
def factors(vae: AutoencoderKL, images: torch.Tensor) -> dict[str, float]:
    """Scaling and shift factor that give the latents of the pictures zero mean and unit variance."""
    latents = torch.cat([vae.encoder(to_signal(part)).chunk(2, dim=1)[0] for part in images[:4096].split(256)])
    return {"scaling_factor": round(1 / latents.std().item(), 4), "shift_factor": round(latents.mean().item(), 4)}


@torch.no_grad()
def save_reconstructions(vae: AutoencoderKL, images: torch.Tensor, path: Path) -> None:
    """Saves a sheet of uint8 pictures [n, 128, 128, 3] above what the autoencoder makes of them."""
    mean = vae.encoder(to_signal(images)).chunk(2, dim=1)[0]
    back = vae.decoder(mean).add(1).mul(127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1)
    rows = [np.concatenate(list(part.cpu().numpy()), axis=1) for part in (images, back)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)


def main() -> None:
    """Draws the pictures, trains, writes weights and factors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--pictures", type=int, default=40000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--decoder-only", action="store_true", help="go on with a trained one, its latents as they are")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    plain = make_pictures(args.pictures, seed=1, workers=args.workers).images
    scenes = make_scenes(args.pictures // 4, workers=args.workers)
    images = torch.from_numpy(np.concatenate([plain, scenes])).to(device)
    vae = new_vae().to(device).to(memory_format=torch.channels_last)
    if args.decoder_only:
        vae.load_state_dict(load_file(args.work / "vae.safetensors"))
        vae.encoder.requires_grad_(False)
    vae = train(vae, images, args.minutes, args.batch, rate=2e-3)
    save_file({k: v.contiguous().cpu() for k, v in vae.state_dict().items()}, args.work / "vae.safetensors")
    if not args.decoder_only:
        (args.work / "vae.json").write_text(json.dumps(factors(vae, images[: len(plain)])))
        (args.work / "latents.pt").unlink(missing_ok=True)  # what tiny_train.py kept is of another autoencoder
    shown = torch.cat([images[:8], images[-4:]])
    save_reconstructions(vae, shown, args.work / "vae.png")
    print((args.work / "vae.json").read_text())


if __name__ == "__main__":
    main()
