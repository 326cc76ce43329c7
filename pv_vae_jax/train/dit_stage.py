"""The diffusion stage: the transformer on latents, cached or encoded on the way."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from pv_vae_jax.data.pipeline import train_batches
from pv_vae_jax.data.sources import class_names
from pv_vae_jax.model import Diffusion, init_latte, load, save
from pv_vae_jax.models.latte import Latte
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.sharding.processes import barrier, gather_to_host, is_primary_process
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.train.dit_step import DiTStep
from pv_vae_jax.train.latents_stage import Latents, OnlineLatents, encoder_hash, latent_shape
from pv_vae_jax.train.mfu import without_remat
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.stage import Batch, Stage
from pv_vae_jax.train.state import TrainState, stage_key

# Fields of the configuration that the training step has too.
SETTINGS = ("label_dropout", "time_distribution", "time_shift", "ema_decay", "grad_accum_steps")


class DiffusionStage(Stage):
    """Stage `diffusion`: train the transformer on latents, cached or encoded on the way.

    Args:
      experiment: the whole configuration.
      latents: what to train on; None gives a stage with the same shapes and statistics of 0 and 1, to inspect.

    Attributes:
      step: the training step.
      shape: `(g, h, w, z)` of a clip's latents.
    """

    step: DiTStep

    def __init__(self, experiment: Experiment, latents: Latents | None = None):
        super().__init__(experiment, "diffusion")
        self.latents, config = latents, self.config
        if latents is None:
            names = experiment.data.class_names or class_names(experiment.data.source, experiment.data.fold)
            self.shape, channels = latent_shape(experiment), experiment.vae.latent_channels
            mean, std = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        else:
            names, self.shape, (mean, std) = latents.class_names, latents.shape, latents.statistics
        classes = len(names) if config.conditional and len(names) > 1 else 0  # a single class is no condition
        self.step = DiTStep(
            model=Latte(dataclasses.replace(experiment.latte, classes=classes)),
            optimizer=optimizer(config.optimizer, config.steps),
            mean=mean,
            std=std,
            seed=experiment.seed,
            **{field: getattr(config, field) for field in SETTINGS},
        )

    @property
    def flops_step(self) -> DiTStep:
        return dataclasses.replace(self.step, model=Latte(without_remat(self.step.model.config)))

    def init_state(self, restored: dict) -> TrainState:
        key = stage_key(self.experiment.seed, "latte")
        return self.step.create(init_latte(self.step.model, self.shape, key))

    def batches(self, run: Run, start: int) -> Iterator[Batch]:
        assert self.latents is not None, "a stage without latents is for inspection only"
        batch_size, settings = self.config.batch_size, self.stream_settings(run, start)
        return train_batches(self.latents.source, self.latents.transforms, batch_size=batch_size, **settings)

    def example_batches(self) -> list[dict]:
        b = self.config.batch_size
        moments = jax.ShapeDtypeStruct((b, *self.shape), np.float32)  # b g h w z
        return [{"mean": moments, "logvar": moments, "label": jax.ShapeDtypeStruct((b,), np.int32)}]

    def prepare(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Encode the clips of a batch, unless its latents come from the cache."""
        return self.latents.encode(batch) if isinstance(self.latents, OnlineLatents) else batch

    def units(self, batch: dict[str, jax.Array]) -> int:
        return self.config.batch_size

    def save_model(self, run: Run, state: TrainState) -> None:
        """Write the transformer with the VAE of the last stage finished now: its decoder may have been tuned since.

        It may even be finished while this is written, by a process that does not see this stage finished yet; hence the
        second look.
        """
        assert self.latents is not None
        ema = gather_to_host(state.ema)
        if is_primary_process():
            step, names, stage = self.step, tuple(self.latents.class_names), ""
            diffusion = Diffusion(step.model, ema, step.mean, step.std, self.shape, names)
            while stage != (newest := run.last_vae_stage()):
                stage = newest
                vae = load(run.folder(stage) / "model")
                meta = vae.meta | {"diffusion_steps": self.steps, "diffusion_weights": weights_hash(ema)}
                save(run.folder("diffusion") / "model", dataclasses.replace(vae, diffusion=diffusion, meta=meta))
        barrier("model of diffusion")


def renew_vae(run: Run) -> None:
    """Give the finished model of the diffusion stage the VAE of the last stage, if that has the same encoder.

    For a decoder that was tuned while the transformer trained: the latents, and so the transformer, stay as they are.
    """
    folder = run.folder("diffusion") / "model"
    newest = run.folder(run.last_vae_stage()) / "model"
    if is_primary_process() and encoder_hash(folder) == encoder_hash(newest):
        old, vae = load(folder), load(newest)
        meta = vae.meta | {name: old.meta[name] for name in ("diffusion_steps", "diffusion_weights")}
        save(folder, dataclasses.replace(vae, diffusion=old.diffusion, meta=meta))
    barrier("VAE of diffusion")
