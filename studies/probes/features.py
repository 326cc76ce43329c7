"""Frozen features of clips: a layer of the diffusion transformer, trained or untrained, and the VAE's latents.

The paper (section 4.3) does not state noise level or normalisation: here the time is 0.1 on the path from data (0) to
noise (1), and features are normalised over channels.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from pv_vae_jax.evaluation.reconstruction import batches
from pv_vae_jax.flow import interpolate, normalize_latents
from pv_vae_jax.model import Model, init_latte
from pv_vae_jax.models.latte import Latte
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.pixels import to_float
from pv_vae_jax.typing import Array, Params

LATENTS, UNTRAINED = "VAE latents", "transformer, untrained"


@dataclasses.dataclass(frozen=True)
class FeatureMaps:
    """One kind of features of a set of clips.

    Attributes:
      all: features of all groups, `(n, g, h, w, d)`.
      past: features made without the last group, to predict what it shows, `(n, g - 1, h, w, d)`.
    """

    all: np.ndarray
    past: np.ndarray


@dataclasses.dataclass(frozen=True)
class FeatureReader:
    """Reads every kind of features of a model from clips.

    Attributes:
      model: the model; without a transformer it has the latents alone.
      frames, size: shape of the clips it reads.
      layer, time: see `diffusion_features`.
      seed: seed of the noise and of the untrained transformer.
      batch_size: clips per batch.
    """

    model: Model
    frames: int
    size: int
    layer: int
    time: float
    seed: int = 0
    batch_size: int = 8

    def __call__(self, video: np.ndarray) -> dict[str, FeatureMaps]:
        """Name -> features of clips `(n, t, h, w, 3)` uint8."""
        vae, params = self.model.vae, self.model.vae_params
        means = [np.asarray(_encode(vae, params, b))[:n] for _, b, n in batches(video, self.batch_size, "latents")]
        means, d = np.concatenate(means), self.model.diffusion
        patch = d.model.config.patch if d else 1
        tokens = rearrange(means, "n g (h p) (w q) z -> n g h w (p q z)", p=patch, q=patch)
        # The encoder is causal: latents of the earlier groups never saw the last one.
        found = {LATENTS: FeatureMaps(tokens, tokens[:, :-1])}
        if d is None:
            return found
        normal = np.asarray(normalize_latents(means, d.mean, d.std), np.float32)
        fresh = jax.jit(lambda key: init_latte(d.model, d.latent_shape, key))(jax.random.key(self.seed + 1))
        for name, params in ((f"transformer, layer {self.layer}", d.params), (UNTRAINED, fresh)):
            found[name] = FeatureMaps(*(self._layer(params, part, name) for part in (normal, normal[:, :-1])))
        return found

    def _layer(self, params: Params, latents: np.ndarray, name: str) -> np.ndarray:
        model = self.model.diffusion.model
        parts = [
            np.asarray(_layer_features(model, self.layer, params, batch, self.time, self.seed, start))[:count]
            for start, batch, count in batches(latents, self.batch_size, name)
        ]
        return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: VAE, params: Params, video: Array) -> Array:
    return model.apply({"params": params}, to_float(video), method="encode").mean


@functools.partial(jax.jit, static_argnums=(0, 1))
def _layer_features(model: Latte, layer: int, params: Params, latents: Array, time: float, seed: int, first: int):
    return diffusion_features(model, params, latents, layer=layer, time=time, seed=seed, first=first)


def diffusion_features(
    model: Latte,
    params: Params,
    latents: Array,
    *,
    layer: int,
    time: float = 0.1,
    seed: int = 0,
    first: Array | int = 0,
) -> Array:
    """Features after `layer` blocks of clean latents that noise was added to, in one forward pass without a class.

    Args:
      model, params: the transformer.
      latents: `(n, g, h, w, z)`, normalised as the transformer was trained on them.
      layer: blocks passed, an even number: the paper's 14 of 28 is after a temporal block.
      time: on the path, 0 is data.
      seed: of the noise; clip `i` gets noise of `(seed, first + i)`.
      first: number of the first clip, where a set is gone through in batches.

    Returns:
      `(n, g, h', w', d)`, normalised over channels; `h'` is `h` over the transformer's patch.

    Raises:
      ValueError: no such layer.
    """
    if layer % 2 or not 2 <= layer <= model.config.depth:
        raise ValueError(f"layers to read from are 2, 4, .. {model.config.depth}; got {layer}")
    shallow = Latte(dataclasses.replace(model.config, depth=layer))
    cut = params | {"pairs": jax.tree.map(lambda x: x[: layer // 2], params["pairs"])}
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(first + jnp.arange(len(latents)))
    noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))(keys)
    t = jnp.full((len(latents),), time)
    _, state = shallow.apply(
        {"params": cut},
        interpolate(latents, noise, t),
        t,
        # The norm after the last block is what comes after `layer` blocks, normalised.
        capture_intermediates=lambda module, _: module.path == ("LayerNorm_0",),
        mutable=["intermediates"],
    )
    features = state["intermediates"]["LayerNorm_0"]["__call__"][0]
    b, g, h, w, _ = latents.shape
    return features.reshape(b, g, h // model.config.patch, w // model.config.patch, -1).astype(jnp.float32)


def noise_like(maps: FeatureMaps, seed: int) -> FeatureMaps:
    """Gaussian noise of the same shape: features without information."""
    noise = np.random.default_rng(seed).normal(size=maps.all.shape).astype(np.float32)
    return FeatureMaps(noise, noise[:, :-1])


def concat_first_frame(features: np.ndarray) -> np.ndarray:
    """Beside every group's features those of group 0, where points are queried: `(n, g, h, w, 2 d)`."""
    return np.concatenate([features, np.broadcast_to(features[:, :1], features.shape)], axis=-1)


def pad_channels(rows: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Zeros behind the channels of narrow features, so that all rows share one compiled head."""
    most = max(seen.shape[-1] for seen, _ in rows.values())
    pad = lambda x: np.pad(x, [(0, 0)] * 4 + [(0, most - x.shape[-1])])  # noqa: E731
    return {name: (pad(seen), pad(held)) for name, (seen, held) in rows.items()}
