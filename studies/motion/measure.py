"""The numbers of one cell: laws kept along training, reconstruction, and how well the transformer knows the latents."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pv_vae_jax.batching import padded_batches
from pv_vae_jax.evaluation.reconstruction import reconstruct, score_reconstruction
from pv_vae_jax.evaluation.velocity import sample_posterior, velocity_loss
from pv_vae_jax.flow import denormalize_latents, euler
from pv_vae_jax.model import Model, load
from pv_vae_jax.models.latte import Latte
from pv_vae_jax.params_io import restore_params
from pv_vae_jax.pixels import to_uint8
from pv_vae_jax.train.latents_stage import open_latents
from pv_vae_jax.train.run import Run
from pv_vae_jax.typing import Array, Params
from pv_vae_jax.versions import versions
from studies.motion.plan import Cell
from studies.motion.rotation import RotatedLatte
from studies.motion.scores import score_clips, shuffled, walk_band
from studies.motion.skill import latent_skill

BATCH = 32
ENDS = 256  # real clips that give the ceiling and the floor
OTHERS = 4_096  # real latents that give the components


def measure(cell: Cell, run: Run) -> dict:
    """All scores of a cell whose transformer is trained; `run` holds its training states."""
    model, study = load(run.folder("diffusion") / "model"), cell.study
    diffusion: Any = model.diffusion
    latte = RotatedLatte(diffusion.model.config) if cell.row.rotated else diffusion.model
    real, kinds = real_clips(run, "test", study.clips)
    rebuild = functools.partial(reconstruct, model.vae, model.vae_params, batch_size=BATCH)
    band = walk_band(rebuild(real_clips(run, "train", study.clips)[0])) if cell.families == ("walk",) else None
    score = functools.partial(score_clips, families=cell.families, band=band)

    rebuilt = score_reconstruction(model.vae, model.vae_params, real, batch_size=BATCH)
    moments = [jax.device_get(model.posterior(batch)) for batch, _ in padded_batches(real, BATCH)]
    mean, logvar = (np.concatenate([getattr(m, name) for m in moments])[: len(real)] for name in ("mean", "logvar"))
    normal = functools.partial(sample_posterior, channel_mean=diffusion.mean, channel_std=diffusion.std)
    held_out = normal(mean, logvar)
    records = open_latents(run, run.last_vae_stage())
    others = [records[i] for i in range(min(OTHERS, len(records)))]  # pyright: ignore
    other = normal(*(np.stack([item[name] for item in others]) for name in ("mean", "logvar")))

    curve: dict[str, list] = {"step": [], "kept": [], "frames": [], "loss": []}
    drawn, found, few = held_out, {}, study.curve_clips
    for step, params in _states(cell, run, diffusion.params):
        count = study.clips if step == cell.experiment.diffusion.steps else few
        labels = np.arange(count, dtype=np.int32) % len(cell.families)
        drawn = draw_latents(latte, params, held_out.shape[1:], labels, study.sampling_steps, cell.seed)
        found = score(_decode(model, drawn), labels)
        loss = float(velocity_loss(latte, params, held_out[:few], kinds[:few]).mean())
        for name, value in zip(curve, (step, found["kept"], found.get("frames"), loss), strict=True):
            curve[name].append(value)
    losses = velocity_loss(latte, diffusion.params, held_out, kinds)
    size = lambda tree: sum(int(leaf.size) for leaf in jax.tree.leaves(tree))  # noqa: E731
    n = min(len(drawn), len(held_out), len(other))
    return {
        "row": cell.row.name,
        "seed": cell.seed,
        "settings": {key: str(value) for key, value in cell.row.settings.items()},
        "psnr": rebuilt.psnr,
        "ssim": rebuilt.ssim,
        "rate": float(0.5 * np.mean(mean**2 + np.exp(logvar) - 1 - logvar)),  # nats per value
        "generated": found,
        "reconstructed": score(rebuild(real), kinds),
        "real": score(real[:ENDS], kinds[:ENDS]),
        "shuffled": score(shuffled(real[:ENDS]), kinds[:ENDS]),
        "curve": curve,
        "velocity_loss": [float(value) for value in losses],
        "skill": latent_skill(drawn[:n], held_out[:n], other),
        "parameters": {"vae": size(model.vae_params), "transformer": size(diffusion.params)},
        "device": jax.devices()[0].device_kind,
        "versions": versions(("pv_vae_jax", "jax", "flax", "optax")),
    }


def draw_latents(
    latte: Latte, params: Params, shape: tuple[int, ...], labels: np.ndarray, steps: int, seed: int
) -> np.ndarray:
    """One normalised latent `(g, h, w, z)` a label; that of clip `i` depends on `(seed, i)` alone."""
    key, drawn = jax.random.key(seed), []
    for number, (label, _) in enumerate(padded_batches(labels, BATCH)):
        index = jnp.arange(number * BATCH, number * BATCH + len(label))
        drawn.append(np.asarray(_draw(latte, steps, tuple(shape), params, key, index, label)))
    return np.concatenate(drawn)[: len(labels)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(latte: Latte, steps: int, shape: tuple, params: Params, key: Array, index: Array, label: Array) -> Array:
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(index)
    return euler(lambda x, t: latte.apply({"params": params}, x, t, label), noise, steps)


def _decode(model: Model, latents: np.ndarray) -> np.ndarray:
    """`(n, t, H, W, 3)` uint8 of normalised latents; NaN, which no clip should hold, is refused."""
    diffusion: Any = model.diffusion
    latents = np.asarray(denormalize_latents(latents, diffusion.mean, diffusion.std))
    if not np.isfinite(latents).all():
        raise FloatingPointError("drawn latents are not finite: the transformer diverged; lower its learning rate")
    return np.concatenate([np.asarray(to_uint8(model.decode(b)))[:n] for b, n in padded_batches(latents, BATCH)])


def _states(cell: Cell, run: Run, last: Params) -> list[tuple[int, Params]]:
    """Steps and the moving average of the transformer there; the last is the finished one."""
    steps, scores = cell.experiment.diffusion.steps, cell.study.scores
    shapes = jax.eval_shape(lambda: last)
    kept = {
        step: run.folder("diffusion") / "checkpoints" / str(step)
        for step in range(steps // scores, steps, steps // scores)
    }
    return [*((step, restore_params(path, "ema", shapes)) for step, path in kept.items()), (steps, last)]


def real_clips(run: Run, split: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """`(n, t, H, W, 3)` uint8 and labels of the first clips of a split."""
    source = run.source(split, random=False)
    items = [source[i] for i in range(min(most, len(source)))]
    return np.stack([item["video"] for item in items]), np.array([item["label"] for item in items], np.int32)
