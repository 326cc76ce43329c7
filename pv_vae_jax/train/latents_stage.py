"""The latents between the VAE and the diffusion transformer: a cache, or encoded while training."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from pv_vae_jax.data.clips import augment
from pv_vae_jax.data.latents import (
    LatentSource,
    begin_cache,
    cache_shards,
    finish_cache,
    read_manifest,
    write_latents_shard,
    write_statistics,
)
from pv_vae_jax.data.shards import remove_partial_shards
from pv_vae_jax.data.sources import VideoSource, fingerprint
from pv_vae_jax.model import load
from pv_vae_jax.models.registry import build_vae
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.pixels import to_float
from pv_vae_jax.sharding.axes import DATA, FSDP
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.processes import barrier, is_primary_process, shard_from_host
from pv_vae_jax.sharding.rules import batch_sharding, state_sharding
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.train.preemption import PreemptionHandler
from pv_vae_jax.train.run import Run
from pv_vae_jax.typing import Params

PRECISION = "float32"  # of encoding


def encode_latents(run: Run, vae_stage: str) -> None:
    """Write posterior mean and log variance of `latents.clips` training clips to `<workdir>/latents`.

    All processes of a run must call this. Each encodes files of its own, on all of its devices; the first finishes the
    cache. Record `i` depends on the seed and `i` alone, so an interrupted run continues with the missing files. With
    `latents.online`, the first process writes the statistics and nothing else.

    Raises:
      Preempted: SIGTERM or the first Ctrl-C arrived, in all processes; finished files stay.
    """
    config, folder, key = run.experiment.latents, run.folder("latents"), cache_key(run, vae_stage)
    source = run.source("train", random=True)
    if config.online:
        rows = [range(config.clips)] if is_primary_process() else []
        with _encoded(run, vae_stage, source, rows) as records:
            if is_primary_process():
                write_statistics(folder, records, key=key, class_names=source.class_names)
        barrier("statistics of the latents")
        return
    if is_primary_process():
        remove_partial_shards(folder)  # from a process that was killed
        begin_cache(folder, key)
    barrier("the latent cache has begun")
    encode_shards(run, vae_stage, source, jax.process_index(), jax.process_count())
    barrier("all latents are encoded")
    if is_primary_process():
        finish_cache(folder, key=key, total=config.clips, class_names=source.class_names)
    barrier("the latent cache is finished")


def encode_shards(run: Run, vae_stage: str, source: VideoSource, process: int, processes: int) -> None:
    """Write the missing files among this process's share of the cache."""
    shards = cache_shards(run.folder("latents"), run.experiment.latents.clips)
    mine = {path: rows for i, (path, rows) in enumerate(shards.items()) if i % processes == process}
    missing = {path: rows for path, rows in mine.items() if not path.exists()}
    with _encoded(run, vae_stage, source, list(missing.values())) as records:
        for path, rows in missing.items():
            write_latents_shard(path, itertools.islice(records, len(rows)))


class OnlineLatents:
    """Clips that are encoded while the transformer trains: a source of videos, and the encoder of their batches.

    Attributes:
      class_names: names of the classes, in label order.
      statistics: channel `(mean, std)`, each `(z,)` float32, of the clips that were encoded for them.
      shape: `(g, h, w, z)` of a clip's latents.
    """

    def __init__(self, run: Run, vae_stage: str):
        manifest = read_manifest(run.folder("latents"), cache_key(run, vae_stage))
        self.class_names, self.statistics = tuple(manifest["class_names"]), manifest["statistics"]
        self._source, self._flip = run.source("train", random=True), run.experiment.latents.flip
        self.shape = latent_shape(run.experiment)
        self._mesh, self._at_once = run.mesh, run.experiment.latents.batch_size
        self._encode, params = _encoder(run, vae_stage)
        self._params = shard_from_host(params, state_sharding(run.mesh, params))

    def __len__(self) -> int:
        return len(self._source)

    def clip(self, index: int, rng: np.random.Generator) -> dict:
        """`video` `(t, H, W, 3)` uint8 and `label` int32 of a clip; `rng` draws its window."""
        item = _clip(self._source, index, rng, self._flip)
        return {"video": item["video"], "label": np.int32(item["label"])}

    def encode(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Replace `video` of a global batch by `mean` and `logvar`, `(b, g, h, w, z)` float32.

        At most `latents.batch_size` clips are encoded at once, if that divides each device's share of the batch.
        """
        video = batch["video"]
        examples = self._mesh.shape[DATA] * self._mesh.shape[FSDP]
        each = len(video) // examples
        parts = next(n for n in range(1, each + 1) if each % n == 0 and (len(video) <= n * self._at_once or n == each))
        moments = [self._part(self._params, video, np.int32(i), parts) for i in range(parts)]
        mean, logvar = moments[0] if parts == 1 else self._join(moments)
        return {name: value for name, value in batch.items() if name != "video"} | {"mean": mean, "logvar": logvar}

    @functools.cached_property
    def _part(self) -> Callable:
        # Part `i` takes rows `i, i + parts, ...`: every device cuts its own rows, and nothing is sent.
        def part(params: Params, video: jax.Array, index: jax.Array, parts: int) -> tuple[jax.Array, jax.Array]:
            rows = video.reshape(len(video) // parts, parts, *video.shape[1:])
            return self._encode(params, jax.lax.dynamic_index_in_dim(rows, index, 1, keepdims=False))

        return jax.jit(part, static_argnums=3, out_shardings=self._sharding)

    @functools.cached_property
    def _join(self) -> Callable:
        def join(moments: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, ...]:
            return tuple(jnp.stack(rows, 1).reshape(-1, *self.shape) for rows in zip(*moments, strict=True))

        return jax.jit(join, out_shardings=self._sharding)

    @property
    def _sharding(self) -> tuple[NamedSharding, NamedSharding]:
        each = batch_sharding(self._mesh, (1, *self.shape))
        return each, each


def cache_key(run: Run, vae_stage: str) -> dict:
    """Everything that the numbers in the cache depend on: a cache with another key is stale."""
    experiment = run.experiment
    data, latents = experiment.data, experiment.latents
    key = {
        "encoder": encoder_hash(run.folder(vae_stage) / "model"),
        "precision": PRECISION,
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
    if content := fingerprint(data.source, data.fold):
        key["content"] = content
    return key


def encoder_hash(model_folder: Path) -> str:
    """Hash of the encoder of a model folder. Tuning the decoder does not change it, so the cache stays valid."""
    meta = json.loads((model_folder / "config.json").read_text()).get("meta", {})
    # Models of older versions do not record the hash.
    return meta.get("encoder") or weights_hash(load(model_folder).vae_params["encoder"])


def latent_shape(experiment: Experiment) -> tuple[int, int, int, int]:
    """`(g, h, w, z)` of the latents of a clip."""
    data, vae = experiment.data, experiment.vae
    side = data.size // vae.space_factor
    return vae.latent_frames(data.frames), side, side, vae.latent_channels


def open_latents(run: Run, vae_stage: str) -> LatentSource | OnlineLatents:
    """The latents to train on, checked to be those of this run's encoder and data."""
    if run.experiment.latents.online:
        return OnlineLatents(run, vae_stage)
    return LatentSource(run.folder("latents"), cache_key(run, vae_stage))


@contextlib.contextmanager
def _encoded(run: Run, vae_stage: str, source: VideoSource, rows: Sequence[range]) -> Iterator[Iterator[dict]]:
    """The records of `rows`, encoded as they are taken, with a progress bar in the first process.

    A record holds `mean` and `logvar`, `(g, h, w, z)` float32, and `label`. The processes encode a batch each in turn,
    so that SIGTERM stops all of them; one that has finished waits for the others when the context ends.

    Raises:
      Preempted: SIGTERM or Ctrl-C arrived.
    """
    shown, interval = is_primary_process() and len(rows) > 0, 1 if sys.stderr.isatty() else 20
    total = sum(map(len, rows))
    with (
        PreemptionHandler() as preemption,
        tqdm(total=total, desc="latents", unit="clip", mininterval=interval, disable=not shown) as bar,
    ):
        batches = preemption.until_preempted(_batches(run, vae_stage, source, rows), "latents")

        def records() -> Iterator[dict]:
            for batch in batches:
                bar.update(len(batch))
                yield from batch

        yield records()
        for _ in batches:
            pass


def _batches(run: Run, vae_stage: str, source: VideoSource, rows: Sequence[range]) -> Iterator[list[dict]]:
    """The records of `rows`, one list for each batch that is encoded at once."""
    if not rows:
        return  # without reading the model
    config, seed = run.experiment.latents, run.experiment.seed
    encode, params = _encoder(run, vae_stage)
    encode = jax.jit(encode)
    mesh = make_mesh(devices=list(run.mesh.local_devices))
    at_once = config.batch_size + -config.batch_size % mesh.size
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

    for part in rows:
        for first in range(part.start, part.stop, at_once):
            items = [
                _clip(source, i % len(source), np.random.default_rng([seed, i]), config.flip)
                for i in range(first, min(first + at_once, part.stop))
            ]
            video = np.stack([item["video"] for item in items])
            filled = np.concatenate([video, np.repeat(video[:1], at_once - len(items), 0)])  # one compiled shape
            batch = jax.device_put(filled, batch_sharding(mesh, filled.shape))
            mean, logvar = jax.device_get(encode(params, batch))
            yield [{"mean": mean[j], "logvar": logvar[j], "label": item["label"]} for j, item in enumerate(items)]


def _encoder(run: Run, vae_stage: str) -> tuple[Callable, Params]:
    """A function of parameters and `(b, t, H, W, 3)` uint8 to mean and logvar `(b, g, h, w, z)`, and the parameters.

    It computes in float32, whatever the VAE was trained in: no later stage could restore the precision.
    """
    loaded = load(run.folder(vae_stage) / "model")
    vae = build_vae(dataclasses.replace(loaded.vae.config, dtype=PRECISION))

    def encode(params: Params, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision(PRECISION):  # accelerators would round factors to less
            posterior = vae.apply({"params": params}, to_float(video), method="encode")
        return posterior.mean, posterior.logvar

    return encode, {"encoder": loaded.vae_params["encoder"]}


def _clip(source: VideoSource, index: int, rng: np.random.Generator, flip: float) -> dict:
    item = source.clip(index, rng)
    return item | {"video": augment(item["video"], rng, flip=flip)}
