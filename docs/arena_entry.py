"""Enter the arena with a VAE of diffusers: `python docs/arena_entry.py encode CLIPS ENTRY`, later `decode`."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

step, clips, entry = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
torch.manual_seed(0)
vae = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()  # random weights


@torch.no_grad()
def batches(run, array, size=32):
    return np.concatenate([run(torch.from_numpy(array[i : i + size])) for i in range(0, len(array), size)])


def encode(video):  # (b, t, H, W, 3) uint8
    latent = vae.encode(video.permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mean
    return latent.permute(0, 2, 3, 4, 1).numpy()  # (b, g, h, w, z)


def decode(latents):
    video = vae.decode(latents.permute(0, 4, 1, 2, 3)).sample.clamp(-1, 1).permute(0, 2, 3, 4, 1)
    return ((video + 1) * 127.5).round().to(torch.uint8).numpy()


if step == "encode":
    entry.mkdir(exist_ok=True)
    mean = batches(encode, np.load(clips / "clips.npz")["video"])
    held_out = mean[json.loads((clips / "manifest.json").read_text())["train"] :]
    np.savez(entry / "latents.npz", mean=mean)
    np.savez_compressed(entry / "reconstructed.npz", video=batches(decode, held_out))
else:
    for path in entry.glob("sampled-*.npz"):
        video = batches(decode, np.load(path)["latents"])
        np.savez_compressed(entry / path.name.replace("sampled", "generated"), video=video)
