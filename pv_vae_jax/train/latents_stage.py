"""The latents between the VAE and the diffusion transformer: a cache, or encoded while training."""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pv_vae_jax.data import latents as cache
from pv_vae_jax.data.pipeline import examples
from pv_vae_jax.data.shards import remove_partial_shards
from pv_vae_jax.data.sources import VideoSource, fingerprint
from pv_vae_jax.data.transforms import clip_transforms
from pv_vae_jax.model import load
from pv_vae_jax.models.registry import build_vae
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.pixels import to_float
from pv_vae_jax.progress import progress_bar
from pv_vae_jax.sharding.axes import DATA, FSDP
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.processes import barrier, is_primary_process, shard_from_host
from pv_vae_jax.sharding.rules import batch_sharding, state_sharding
from pv_vae_jax.train.config_files import DRAWS
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
        with contextlib.closing(_encoded_clips(run, vae_stage, source, rows)) as records:
            if is_primary_process():
                cache.write_statistics(folder, records, key=key, class_names=source.class_names)
            _wait_for_others(records)
        barrier("statistics of the latents")
        return
    if is_primary_process():
        remove_partial_shards(folder)  # from a process that was killed
        cache.begin_cache(folder, key)
    barrier("the latent cache has begun")
    encode_shards(run, vae_stage, source, jax.process_index(), jax.process_count())
    barrier("all latents are encoded")
    if is_primary_process():
        cache.finish_cache(folder, key=key, total=config.clips, class_names=source.class_names)
    barrier("the latent cache is finished")


def encode_shards(run: Run, vae_stage: str, source: VideoSource, process: int, processes: int) -> None:
    """Write the missing and short files among this process's share of the cache."""
    shards = cache.cache_shards(run.folder("latents"), run.experiment.latents.clips)
    lost = cache.incomplete_shards(run.folder("latents"), run.experiment.latents.clips)
    missing = {path: rows for path, rows in itertools.islice(shards.items(), process, None, processes) if path in lost}
    with contextlib.closing(_encoded_clips(run, vae_stage, source, list(missing.values()))) as records:
        for path, rows in missing.items():
            cache.write_latents_shard(path, itertools.islice(records, len(rows)))
        _wait_for_others(records)


class OnlineLatents:
    """Clips that are encoded while the transformer trains: a source of videos, and the encoder of their batches.

    Attributes:
      source, transforms: the training clips, and what makes examples of them.
      class_names: names of the classes, in label order.
      statistics: channel `(mean, std)`, each `(z,)` float32, of the clips that were encoded for them.
      shape: `(g, h, w, z)` of a clip's latents.
    """

    def __init__(self, run: Run, vae_stage: str):
        manifest = cache.read_manifest(run.folder("latents"), cache_key(run, vae_stage))
        self.class_names, self.statistics = tuple(manifest["class_names"]), manifest["statistics"]
        self.shape, self._run, self.source = latent_shape(run.experiment), run, run.source("train", random=True)
        self.transforms = _transforms(run.experiment)
        encode, params = _load_encoder(run, vae_stage)
        self._params = shard_from_host(params, state_sharding(run.mesh, params))

        # Part `i` takes rows `i, i + parts, ...`: every device cuts its own rows, and nothing is sent.
        def encode_part(params: Params, video: jax.Array, index: jax.Array, parts: int) -> tuple[jax.Array, jax.Array]:
            rows = video.reshape(len(video) // parts, parts, *video.shape[1:])  # b/parts parts t H W 3
            return encode(params, jax.lax.dynamic_index_in_dim(rows, index, 1, keepdims=False))

        def join(moments: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, ...]:
            return tuple(jnp.stack(parts, 1).reshape(-1, *self.shape) for parts in zip(*moments, strict=True))

        where = batch_sharding(run.mesh, (1, *self.shape))
        self._encode_part = jax.jit(encode_part, static_argnums=3, out_shardings=where)
        self._join = jax.jit(join, out_shardings=where)

    def encode(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Replace `video` of a global batch by `mean` and `logvar`, `(b, g, h, w, z)` float32.

        At most `latents.batch_size` clips are encoded at once, if that divides each device's share of the batch.
        """
        video, mesh, at_once = batch["video"], self._run.mesh.shape, self._run.experiment.latents.batch_size
        each = len(video) // (mesh[DATA] * mesh[FSDP])
        parts = next(n for n in range(1, each + 1) if each % n == 0 and (len(video) <= n * at_once or n == each))
        moments = [self._encode_part(self._params, video, np.int32(i), parts) for i in range(parts)]
        mean, logvar = moments[0] if parts == 1 else self._join(moments)
        return {name: value for name, value in batch.items() if name != "video"} | {"mean": mean, "logvar": logvar}


Latents = cache.LatentSource | OnlineLatents  # what the diffusion stage trains on


def cache_key(run: Run, vae_stage: str) -> dict:
    """Everything that the numbers in the cache depend on: a cache with another key is stale."""
    data, latents = run.experiment.data, run.experiment.latents
    key = {
        "encoder": encoder_hash(run.folder(vae_stage) / "model"),
        "precision": PRECISION,
        "seed": run.experiment.seed,
    }
    key |= {name: getattr(data, name) for name in ("source", "frames", "size", "stride", "crop")}
    key |= {"fit": data.fit, "draws": DRAWS}
    key |= {"clips": latents.clips, "flip": latents.flip}
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
    height, width = (side // vae.space_factor for side in (data.frame_size.height, data.frame_size.width))
    return vae.latent_frames(data.frames), height, width, vae.latent_channels


def open_latents(run: Run, vae_stage: str) -> Latents:
    """The latents to train on, checked to be those of this run's encoder and data."""
    if run.experiment.latents.online:
        return OnlineLatents(run, vae_stage)
    return cache.LatentSource(run.folder("latents"), cache_key(run, vae_stage))


def _encoded_clips(run: Run, vae_stage: str, source: VideoSource, rows: Sequence[range]) -> Generator[dict, None, None]:
    """The records of `rows`, encoded as they are taken, with a progress bar in the first process.

    A record holds `mean` and `logvar`, `(g, h, w, z)` float32, and `label`. The processes encode a batch each in turn,
    so that SIGTERM stops all of them: each must exhaust its records, see `_wait_for_others`.

    Raises:
      Preempted: SIGTERM or Ctrl-C arrived.
    """
    hidden = not rows or not is_primary_process()
    bar = progress_bar(total=sum(map(len, rows)), desc="latents", unit="clip", disable=hidden)
    with PreemptionHandler() as preemption, bar:
        for batch in preemption.until_preempted(_batches(run, vae_stage, source, rows), "latents"):
            bar.update(len(batch))
            yield from batch


def _wait_for_others(records: Iterator[dict]) -> None:
    """Exhaust the records of this process, which ends when those of all processes do."""
    for _ in records:
        pass


def _batches(run: Run, vae_stage: str, source: VideoSource, rows: Sequence[range]) -> Iterator[list[dict]]:
    """The records of `rows`, one list for each batch that is encoded at once."""
    if not rows:
        return  # without reading the model
    config = run.experiment.latents
    encode, params = _load_encoder(run, vae_stage)
    mesh = make_mesh(devices=list(run.mesh.local_devices))
    at_once = config.batch_size + -config.batch_size % mesh.size
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

    dataset = examples(source, _transforms(run.experiment), seed=run.experiment.seed, shuffle=False)
    threads = grain.ReadOptions(num_threads=run.experiment.data.threads, prefetch_buffer_size=2 * at_once)
    for part in rows:
        clips = iter(dataset[part.start : part.stop].to_iter_dataset(threads))
        while items := list(itertools.islice(clips, at_once)):
            video = np.stack([item["video"] for item in items])
            filled = np.concatenate([video, np.repeat(video[:1], at_once - len(items), 0)])  # one compiled shape
            batch = jax.device_put(filled, batch_sharding(mesh, filled.shape))
            mean, logvar = jax.device_get(encode(params, batch))
            yield [{"mean": mean[j], "logvar": logvar[j], "label": item["label"]} for j, item in enumerate(items)]


def _load_encoder(run: Run, vae_stage: str) -> tuple[Callable, Params]:
    """A function of parameters and `(b, t, H, W, 3)` uint8 to mean and logvar `(b, g, h, w, z)`, and the parameters.

    It computes in float32, whatever the VAE was trained in: no later stage could restore the precision.
    """
    loaded = load(run.folder(vae_stage) / "model")
    vae = build_vae(dataclasses.replace(loaded.vae.config, dtype=PRECISION))
    return functools.partial(_encode, vae), {"encoder": loaded.vae_params["encoder"]}


@functools.partial(jax.jit, static_argnums=0)  # at module level, so that caches of one VAE share a program
def _encode(vae: VAE, params: Params, video: jax.Array) -> tuple[jax.Array, jax.Array]:
    with jax.default_matmul_precision(PRECISION):  # accelerators would round factors to less
        posterior = vae.apply({"params": params}, to_float(video), method="encode")
    return posterior.mean, posterior.logvar


def _transforms(experiment: Experiment) -> tuple:
    """What makes examples of the training clips."""
    data = experiment.data
    return clip_transforms(
        data.frame_size, data.frames, stride=data.stride, crop=data.crop, flip=experiment.latents.flip
    )
