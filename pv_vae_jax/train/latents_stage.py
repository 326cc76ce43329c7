"""Between the VAE and the diffusion transformer: encode clips once for all, or as they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from pv_vae_jax import pretrained
from pv_vae_jax.data.clips import augment
from pv_vae_jax.data.latents import LatentSource, completed_records, read_manifest, write_latents, write_statistics
from pv_vae_jax.data.sources import VideoSource, fingerprint
from pv_vae_jax.pixels import to_float
from pv_vae_jax.pretrained import weights_hash
from pv_vae_jax.train.run import Run


def encode_latents(run: Run, vae_stage: str) -> None:
    """Write posterior mean and log variance of `latents.clips` training clips to `<workdir>/latents`.

    Record `i` depends on the seed and `i` alone, so an interrupted run goes on where its last whole shard ended.
    Of a run with `latents.online` only the statistics are written.
    """
    config = run.experiment.latents
    encode = _encoder(run, vae_stage)
    source = run.source("train", random=True)
    folder, key = run.folder("latents"), cache_key(run, vae_stage)
    interval = 1 if sys.stderr.isatty() else 20

    def clips(start: int) -> Iterator[dict]:
        with tqdm(total=config.clips, initial=start, desc="latents", unit="clip", mininterval=interval) as bar:
            # Batches begin where those of an uninterrupted run do: rounding may depend on the place in the batch.
            for first in range(start - start % config.batch_size, config.clips, config.batch_size):
                items = [
                    _clip(source, i % len(source), np.random.default_rng([run.experiment.seed, i]), config.flip)
                    for i in range(first, min(first + config.batch_size, config.clips))
                ]
                video = np.stack([item["video"] for item in items])
                short = config.batch_size - len(items)  # one compiled shape: fill up the last batch
                mean, logvar = encode(np.concatenate([video, np.repeat(video[:1], short, 0)]))
                for j in range(max(start - first, 0), len(items)):
                    yield {"mean": mean[j], "logvar": logvar[j], "label": items[j]["label"]}
                    bar.update()

    if config.online:
        write_statistics(folder, clips(0), key=key, class_names=source.class_names)
    else:
        records = clips(completed_records(folder, key))
        write_latents(folder, records, key=key, total=config.clips, class_names=source.class_names)


class OnlineLatents:
    """Posteriors of clips encoded as they are asked for: what `LatentSource` is for a cache.

    Attributes:
      class_names: in label order.
      statistics: `(mean, std)`, each `(z,)` float32, of the clips that were encoded for them.
    """

    def __init__(self, run: Run, vae_stage: str):
        manifest = read_manifest(run.folder("latents"), cache_key(run, vae_stage))
        self._source, self._flip = run.source("train", random=True), run.experiment.latents.flip
        self._encode = _encoder(run, vae_stage)
        self.class_names, self.statistics = tuple(manifest["class_names"]), manifest["statistics"]

    def __len__(self) -> int:
        return len(self._source)

    def record(self, index: int) -> dict:
        """A clip of window `index` that is always the same; as `LatentSource.record`."""
        return self.clip(index, np.random.default_rng(0))

    def clip(self, index: int, rng: np.random.Generator) -> dict:
        """`mean`, `logvar` `(g, h, w, z)` float32 and `label` int32 of a clip that `rng` cuts."""
        item = _clip(self._source, index, rng, self._flip)
        mean, logvar = self._encode(item["video"][None])
        return {"mean": mean[0], "logvar": logvar[0], "label": np.int32(item["label"])}


def cache_key(run: Run, vae_stage: str) -> dict:
    """All that decides the numbers in the cache: a cache with another key is stale."""
    experiment = run.experiment
    data, latents = experiment.data, experiment.latents
    key = {
        "encoder": encoder_hash(run.folder(vae_stage) / "model"),
        "precision": experiment.vae.dtype,
        "source": data.source,
        "clips": latents.clips,
        "frames": data.frames,
        "size": data.size,
        "stride": data.stride,
        "crop": data.crop,
        "flip": latents.flip,
        "seed": experiment.seed,
    }
    if latents.online:
        key["online"] = True
    if content := fingerprint(data.source):
        key["content"] = content
    return key


def encoder_hash(model_folder: Path) -> str:
    """Hash of the encoder alone: decoder fine-tuning leaves a cache valid."""
    return weights_hash(pretrained.load(model_folder).vae_params["encoder"])


def open_latents(run: Run, vae_stage: str) -> LatentSource | OnlineLatents:
    """The latents to train on, checked against the encoder and the data of this run."""
    if run.experiment.latents.online:
        return OnlineLatents(run, vae_stage)
    return LatentSource(run.folder("latents"), cache_key(run, vae_stage))


def _encoder(run: Run, vae_stage: str) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """`(b, t, h, w, 3)` uint8 -> mean and logvar `(b, g, h, w, z)` float32, on the host."""
    loaded = pretrained.load(run.folder(vae_stage) / "model")
    encode = jax.jit(lambda params, video: loaded.vae.apply({"params": params}, to_float(video), method="encode"))

    def run_encoder(video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        posterior = jax.device_get(encode(loaded.vae_params, video))
        return posterior.mean, posterior.logvar

    return run_encoder


def _clip(source: VideoSource, index: int, rng: np.random.Generator, flip: float) -> dict:
    item = source.clip(index, rng)
    return item | {"video": augment(item["video"], rng, flip=flip)}
