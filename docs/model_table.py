"""Models beside each other, and beside what needs no training: the rows of README's table.

  python docs/model_table.py synthetic tiny-synthetic --clips=256
  python docs/model_table.py FOLDER runs/small-real tiny-synthetic --size=64 --stride=2

The clips are those that FOLDER, or the synthetic world, holds out. Every model is told with PSNR of frame 0, of the
others and of all; and with the squared error on withheld groups, range [-1, 1], mean over k. Below it stand two guesses
that need no training: copying the last frame seen, and averages of boxes of pixels, at least as many as the model has
latent numbers. Boxes last 1, 2 or 4 frames and are drawn back by bilinear or cubic interpolation: the best counts.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence

import jax
import numpy as np

from pv_vae_jax import load
from pv_vae_jax.data.sources import open_source
from pv_vae_jax.evaluation import score_frames, score_prediction, score_reconstruction
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.report.run_report import read_every_clip


def overlaps(boxes: int, pixels: int) -> np.ndarray:
    """`(boxes, pixels)`: the share of every pixel of a row in the mean of every box."""
    edges, starts = np.linspace(0, pixels, boxes + 1), np.arange(pixels)
    shared = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.maximum(shared, 0) * boxes / pixels


def pooled(frames: np.ndarray, numbers: float, lasting: int, method: str) -> np.ndarray:
    """Frames as averages of boxes show them.

    Args:
      frames: `(n, t, H, W, 3)` of one group.
      numbers: how many averages there are for them, at least.
      lasting: frames of a box.
      method: of interpolation, as `jax.image.resize` takes it.
    """
    n, t, height, width, _ = frames.shape
    side = math.sqrt(numbers * lasting / (3 * t * height * width))  # of the small picture, over that of a frame
    small = [min(math.ceil(side * size), size) for size in (height, width)]
    x = frames.reshape(n, t // lasting, lasting, height, width, 3).mean(axis=2)
    x = np.einsum("ntHWc,hH,wW->nthwc", x, *map(overlaps, small, (height, width)), optimize=True)
    x = jax.image.resize(x.astype(np.float32), (n, t // lasting, height, width, 3), method)
    return np.repeat(np.clip(np.rint(x), 0, 255).astype(np.uint8), lasting, axis=1)


def pooling(video: np.ndarray, numbers: float, group: int) -> np.ndarray:
    """PSNR `(n, 1 + T)` of the best pooling of clips `(n, 1 + T, H, W, 3)` to `numbers` numbers a group."""
    found = []
    lengths = [length for length in (1, 2, 4) if group % length == 0]
    for lasting, method in itertools.product(lengths, ("linear", "cubic")):
        groups = [pooled(video[:, :1], numbers, 1, method)]
        groups += [pooled(video[:, t : t + group], numbers, lasting, method) for t in range(1, video.shape[1], group)]
        found.append(score_frames(video, np.concatenate(groups, axis=1), 255.0)["psnr"])
    return max(found, key=np.mean)


def held_out(source: str, frames: int, size: int, stride: int, clips: int) -> tuple[np.ndarray, list[str]]:
    """At most `clips` clips `(n, frames, size, size, 3)` uint8 that a source holds out, and the class of each."""
    shape = dict(frames=frames, size=size, stride=stride, clips=clips)
    return read_every_clip(open_source(source, **shape, split="test", random=False), clips)


def cells(psnr: np.ndarray) -> list[str]:
    """Frame 0, the others, all."""
    return [f"{part.mean():.2f}" for part in (psnr[:, 0], psnr[:, 1:], psnr)]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("model", nargs="+")
    for name, default in {"frames": 17, "size": 32, "stride": 1, "clips": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(argv)
    video, _ = held_out(args.source, args.frames, args.size, args.stride, args.clips)
    print(f"{len(video)} clips, {args.frames} x {args.size} x {args.size}, stride {args.stride}\n")
    print("| model | parameters | frame 0, dB | others | all | error on withheld groups | weights |")
    print("|---|---|---|---|---|---|---|")
    for name in args.model:
        model = load(name)
        vae, config = (model.vae, model.vae_params), model.vae.config
        psnr = score_reconstruction(*vae, video, batch_size=8, label=None).frames["psnr"]
        errors = score_prediction(*vae, video, batch_size=8, label=None)
        parts = [model.vae_params, *([model.diffusion.params] if model.diffusion else [])]
        count = " + ".join(f"{sum(leaf.size for leaf in jax.tree.leaves(part)) / 1e6:.1f} M" for part in parts)
        hashes = " + ".join(f"`{weights_hash(part)}`" for part in parts)
        numbers = config.latent_channels * (args.size // config.space_factor) ** 2
        boxes = pooling(video, numbers, config.time_factor)
        row = [f"{name}, {config.name}", count, *cells(psnr), f"{errors.average():.4f}", hashes]
        boxed = [f"as many averages ({numbers:,} a group)", "", *cells(boxes), "", ""]
        print(f"| {' | '.join(row)} |\n| {' | '.join(boxed)} |")
    print(f"| copying the last frame seen | | | | | {errors.average('copying'):.4f} | |")


if __name__ == "__main__":
    main(sys.argv[1:])
