"""Encode and decode video files, and print how close the result is.

  pv-vae reconstruct --model tiny-synthetic --frames=17 --size=32 --out out clip.mp4

The results have the frames' own times, and no sound. A long video is read, coded and written chunk by chunk: memory
does not grow with its length.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from pv_vae_jax.cli._shared import VideoFile, define_video_flags, open_videos, result_path, scale_for
from pv_vae_jax.data.video_writing import write_video
from pv_vae_jax.evaluation.image_metrics import psnr
from pv_vae_jax.model import Model, load
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.pixels import to_float, to_uint8
from pv_vae_jax.progress import progress_bar
from pv_vae_jax.streaming import CHUNK, Cache, chunk_sizes, decode_step, encode_step
from pv_vae_jax.typing import Array, Params


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae reconstruct`."""
    define_video_flags(values)
    chunk = "latent frames coded at a time; fewer save memory, the numbers do not depend on it"
    flags.DEFINE_integer("chunk", CHUNK, chunk, lower_bound=1, flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    """Write `<name>_reconstruction.mp4` for every file."""
    model = load(values.model)
    for file in open_videos(positional, values, model):
        target = result_path(values, file.path, "reconstruction", positional)
        score = _reconstruct(model, file, target, values.chunk)
        shape = f"{file.frames}x{file.height}x{file.width}"
        print(f"{target} (original | reconstruction): {shape}, latents {model.vae.config.name}, PSNR {score:.2f} dB")


def _reconstruct(model: Model, file: VideoFile, target: Path, chunk: int) -> float:
    """Write original and reconstruction side by side; return the PSNR, averaged over frames."""
    scores, weights = [], []

    def side_by_side() -> Iterator[np.ndarray]:
        for video, result in _chunks(model, file, chunk):
            video, result = file.uncut(video), file.uncut(result)
            scores.append(psnr(video[None], result[None], 255.0))
            weights.append(len(video))
            yield from np.concatenate([video, result], axis=2)

    write_video(target, side_by_side(), fps=file.fps, times=file.times, scale=scale_for(file.height))
    return float(np.average(scores, weights=weights))


def _chunks(model: Model, file: VideoFile, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the original and what the posterior mean decodes to, `(t, h, w, 3)` uint8 each, chunk by chunk."""
    config = model.vae.config
    sizes = chunk_sizes(config.latent_frames(file.frames), chunk)
    caches = None
    with progress_bar(total=file.frames, desc=file.path.name, unit="frame", disable=len(sizes) == 1) as bar:
        for i, size in enumerate(sizes):
            count = size * config.time_factor if i else config.frames(size)
            video = np.stack(list(itertools.islice(file.pictures, count)))
            caches, result = _step(model.vae, model.vae_params, caches, video)
            yield video, np.asarray(result)
            bar.update(count)


@functools.partial(jax.jit, static_argnums=0)  # at module level, so that all files share its programs
def _step(
    model: VAE, params: Params, caches: tuple[Cache, Cache] | None, video: Array
) -> tuple[tuple[Cache, Cache], Array]:
    encoder, decoder = caches or (None, None)
    encoder, posterior = encode_step(model, params, encoder, to_float(video[None]))
    decoder, decoded = decode_step(model, params, decoder, posterior.mode)
    return (encoder, decoder), to_uint8(decoded[0])
