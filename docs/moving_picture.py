"""Writes an animated picture of a model: truth, reconstruction, prediction and sample side by side.

  python docs/moving_picture.py synthetic docs/images/tiny_synthetic.webp --clips=0,3,2
  python docs/moving_picture.py FOLDER out.webp --model=runs/small-real --size=64 --stride=2 --clips=1,5,9

The clips are some that FOLDER, or the synthetic world, holds out, by their numbers. A blue border marks frames that the
encoder saw, an orange one those that the decoder drew without them. A model without a transformer has no samples.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pv_vae_jax import Model, load, to_uint8
from pv_vae_jax.report.figures import borders, fit, frame
from pv_vae_jax.storage import atomic

sys.path.insert(0, str(Path(__file__).resolve().parent))
from model_table import held_out

LABEL, GAP, HELD = 22, 8, 6  # pixels of a line of text and between clips; frames for which the last one stays
GREY = (128, 136, 148, 255)  # text that shows on a light and on a dark page


def columns(model: Model, video: np.ndarray, classes: Sequence[str], observed: int, seed: int) -> dict[str, np.ndarray]:
    """What stands above each column -> its clips `(n, t, H, W, 3)` uint8."""
    frames = video.shape[1]
    shown = {
        "truth": video,
        "reconstruction": to_uint8(model.reconstruct(video)),
        f"prediction: saw {observed} of {frames}": to_uint8(model.predict(video, observed)),
    }
    if model.diffusion:
        names = model.diffusion.class_names if model.diffusion.model.config.classes else ()
        labels = [names.index(name) if name in names else 0 for name in classes]
        drawn = model.sample(labels, jax.random.key(seed), guidance=1.5 if names else 1.0)
        shown["sample: drawn from noise"] = to_uint8(drawn)
    return {name: np.asarray(clips) for name, clips in shown.items()}


def picture(shown: dict[str, np.ndarray], observed: int, side: int) -> list[Image.Image]:
    """The frames, with labels on a transparent ground; clips are about `side` pixels wide."""
    (count, frames), font = next(iter(shown.values())).shape[:2], ImageFont.load_default(13)
    seen = [None, None, observed, None]
    framed = [
        [frame(fit(clip, side), borders(frames, n), 3) for clip in clips]
        for clips, n in zip(shown.values(), seen, strict=False)
    ]
    height, width = framed[0][0].shape[1:3]
    size = (len(framed) * (width + GAP) - GAP, LABEL + count * (height + GAP) - GAP)
    pictures = []
    for t in range(frames):
        canvas = Image.new("RGBA", size)
        draw = ImageDraw.Draw(canvas)
        for x, (name, clips) in enumerate(zip(shown, framed, strict=True)):
            left = x * (width + GAP)
            draw.text((left + width / 2, LABEL / 2), name, GREY, font, anchor="mm")
            for y, clip in enumerate(clips):
                canvas.paste(Image.fromarray(clip[t]), (left, LABEL + y * (height + GAP)))
        pictures.append(canvas)
    return pictures


def main(argv: Sequence[str] | None = None) -> None:
    """Write the picture and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="tiny-synthetic")
    parser.add_argument("--clips", default="0,1,2", help="numbers of held-out clips")
    numbers = {"frames": 17, "size": 32, "stride": 1, "observed": 9, "side": 160, "fps": 8, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(argv)
    chosen = [int(number) for number in args.clips.split(",")]
    clips, classes = held_out(args.source, args.frames, args.size, args.stride, max(chosen) + 1)
    shown = columns(load(args.model), clips[chosen], [classes[i] for i in chosen], args.observed, args.seed)
    first, *rest = picture(shown, args.observed, args.side)
    lasting = [1000 // args.fps] * len(rest) + [HELD * 1000 // args.fps]
    with atomic(args.out) as temporary:
        first.save(
            temporary, "WEBP", save_all=True, append_images=rest, duration=lasting, loop=0, lossless=True, method=6
        )
    print(f"{args.out}: {args.out.stat().st_size:,} bytes, {first.width} x {first.height}, {1 + len(rest)} frames")


if __name__ == "__main__":
    main(sys.argv[1:])
