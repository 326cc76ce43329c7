"""The transformer of the arena on an entry's latents: one for each seed, and latents that it draws."""

from pathlib import Path

import jax
import numpy as np
from tqdm import trange

from pv_vae_jax.data.latents import channel_statistics
from pv_vae_jax.evaluation.velocity import sample_posterior, velocity_loss
from pv_vae_jax.flow import denormalize_latents
from pv_vae_jax.model import init_latte
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.storage import atomic
from pv_vae_jax.train.configs import OptimizerConfig
from pv_vae_jax.train.dit_step import DiTStep
from pv_vae_jax.train.nan_check import check_finite_params
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.state import TrainState
from studies.arena.protocol import TRACKS, Clips, Drawn, array_hash, load_latents
from studies.motion.measure import draw_latents
from studies.motion.rotation import RotatedLatte


def train(path: Path, clips: Clips, track: str, rotated: bool = False) -> list[Path]:
    """Write `sampled-SEED.npz` beside the latents `path`, for every seed of the track that has none yet.

    A file holds `latents (n, g, h, w, z)` to decode, in the units of the encoder; `label (n,)`, the law that each was
    asked for; `loss (10,)`, held-out loss by time; and what it was drawn for. A `generated-SEED.npz` without it is
    removed, for it was decoded from other latents.

    Args:
      path: the entry's latents of all clips.
      clips: the clips that they were encoded from.
      track: name of the track.
      rotated: train on latents under a fixed random rotation, the negative control.

    Raises:
      ConfigError: latents do not fit the clips, or a file is there that was drawn for something else.
    """
    latents, settings = load_latents(path, clips), TRACKS[track]
    key = array_hash(*latents.values(), clips.label)
    files = {path.with_name(f"sampled-{seed}.npz"): Drawn(key, track, seed, rotated) for seed in settings.seeds}
    for out, drawn_for in files.items():
        if out.exists():
            drawn_for.check(out)
    for out, drawn_for in files.items():
        seed = drawn_for.seed
        if out.exists():
            continue
        model, state, (mean, std) = _fit(latents, clips, track, seed, rotated)
        label = np.arange(settings.samples, dtype=np.int32) % len(clips.manifest["names"])
        drawn = draw_latents(model, state.ema, latents["mean"].shape[1:], label, settings.sampling_steps, seed)
        held_out = sample_posterior(*(latents[name][clips.test] for name in ("mean", "logvar")), mean, std)
        loss = velocity_loss(model, state.ema, held_out, clips.label[clips.test])
        arrays = {"latents": np.asarray(denormalize_latents(drawn, mean, std)), "label": label, "loss": loss}
        path.with_name(f"generated-{seed}.npz").unlink(missing_ok=True)
        with atomic(out) as partial, open(partial, "wb") as file:
            np.savez(file, drawn_for=drawn_for.text(), statistics=np.stack([mean, std]), **arrays)
    return list(files)


def _fit(
    latents: dict[str, np.ndarray], clips: Clips, track: str, seed: int, rotated: bool
) -> tuple[Latte, TrainState, tuple[np.ndarray, np.ndarray]]:
    settings, names = TRACKS[track], clips.manifest["names"]
    data = {name: array[clips.train] for name, array in latents.items()} | {"label": clips.label[clips.train]}
    posteriors = ({"mean": m, "logvar": v} for m, v in zip(data["mean"], data["logvar"], strict=True))
    mean, std = (np.asarray(values, np.float32) for values in channel_statistics(posteriors))
    config = LatteConfig(
        latent_channels=data["mean"].shape[-1],
        depth=settings.depth,
        width=settings.width,
        heads=settings.heads,
        classes=len(names) if len(names) > 1 else 0,
    )
    rule = OptimizerConfig(name="muon", learning_rate=settings.learning_rate, warmup_steps=50, final_fraction=0.03)
    step = DiTStep(
        model=(RotatedLatte if rotated else Latte)(config),
        optimizer=optimizer(rule, settings.steps),
        mean=mean,
        std=std,
        ema_decay=0.995,
        seed=seed,
    )
    state = step.create(init_latte(step.model, data["mean"].shape[1:], jax.random.key(seed)))
    update, order, count = jax.jit(step, donate_argnums=0), np.zeros(0, int), len(data["mean"])
    rng = np.random.default_rng(seed)
    for _ in trange(settings.steps, desc=f"transformer, seed {seed}", mininterval=20):
        while len(order) < settings.batch_size:
            order = np.concatenate([order, rng.permutation(count)])
        rows, order = order[: settings.batch_size], order[settings.batch_size :]
        state, _ = update(state, {name: array[rows] for name, array in data.items()})
    check_finite_params("diffusion", settings.steps, state.params)
    return step.model, state, (mean, std)
