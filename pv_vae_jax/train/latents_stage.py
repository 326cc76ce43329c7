"""Between the VAE and the diffusion transformer: encode clips once and keep their posteriors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from pv_vae_jax import pretrained
from pv_vae_jax.data.latents import LatentSource, completed_records, write_latents
from pv_vae_jax.pixels import to_float
from pv_vae_jax.pretrained import weights_hash
from pv_vae_jax.train.run import Run


def encode_latents(run: Run, vae_stage: str) -> None:
    """Write posterior mean and log variance of `latents.clips` training clips to `<workdir>/latents`.

    Record `i` depends on the seed and `i` alone, so an interrupted run goes on where its last whole shard ended.
    """
    config = run.experiment.latents
    loaded = pretrained.load(run.folder(vae_stage) / "model")
    source = run.source("train", random=True)
    folder, key = run.folder("latents"), cache_key(run, vae_stage)
    encode = jax.jit(lambda params, video: loaded.vae.apply({"params": params}, to_float(video), method="encode"))

    interval = 1 if sys.stderr.isatty() else 20

    def clips(start: int) -> Iterator[dict]:
        with tqdm(total=config.clips, initial=start, desc="latents", unit="clip", mininterval=interval) as bar:
            # Batches begin where those of an uninterrupted run do: rounding may depend on the place in the batch.
            for first in range(start - start % config.batch_size, config.clips, config.batch_size):
                items = [
                    source.clip(i % len(source), np.random.default_rng([run.experiment.seed, i]))
                    for i in range(first, min(first + config.batch_size, config.clips))
                ]
                video = np.stack([item["video"] for item in items])
                short = config.batch_size - len(items)  # one compiled shape: fill up the last batch
                video = np.concatenate([video, np.repeat(video[:1], short, 0)])
                posterior = jax.device_get(encode(loaded.vae_params, video))
                for j in range(max(start - first, 0), len(items)):
                    yield {"mean": posterior.mean[j], "logvar": posterior.logvar[j], "label": items[j]["label"]}
                    bar.update()

    write_latents(
        folder, clips(completed_records(folder, key)), key=key, total=config.clips, class_names=source.class_names
    )


def cache_key(run: Run, vae_stage: str) -> dict:
    """All that decides the numbers in the cache: a cache with another key is stale."""
    experiment = run.experiment
    data = experiment.data
    return {
        "encoder": encoder_hash(run.folder(vae_stage) / "model"),
        "precision": experiment.vae.dtype,
        "source": data.source,
        "clips": experiment.latents.clips,
        "frames": data.frames,
        "size": data.size,
        "stride": data.stride,
        "crop": "centre",
        "flip": False,
        "seed": experiment.seed,
    }


def encoder_hash(model_folder: Path) -> str:
    """Hash of the encoder alone: decoder fine-tuning leaves a cache valid."""
    return weights_hash(pretrained.load(model_folder).vae_params["encoder"])


def open_latents(run: Run, vae_stage: str) -> LatentSource:
    """The cache, checked against the encoder and the data of this run."""
    return LatentSource(run.folder("latents"), cache_key(run, vae_stage))
