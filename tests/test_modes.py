"""JAX's own modes over the public API: whatever a program around the library sets, it works, in the same types."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pv_vae_jax.flow import normalize_latents
from pv_vae_jax.losses import Objective
from pv_vae_jax.masking import sample_mask
from pv_vae_jax.model import Diffusion, Model, init_latte, load
from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.models.lpips import LPIPS
from pv_vae_jax.models.registry import build_vae
from pv_vae_jax.models.transformer_vae import TransformerVAEConfig
from pv_vae_jax.models.vae import VAEConfig
from pv_vae_jax.predictive import predict_filled, predict_masked
from pv_vae_jax.train.configs import OptimizerConfig
from pv_vae_jax.train.dit_step import DiTStep
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.vae_step import VAEStep
from pv_vae_jax.typing import WeightsError

CONV = VAEConfig(
    patch=1,
    latent_channels=4,
    time_factors=(2,),
    space_factors=(2,),
    encoder_widths=(4, 4),
    decoder_widths=(4, 4),
    encoder_blocks=1,
    decoder_blocks=1,
)
TOKENS = TransformerVAEConfig(
    latent_channels=4, time_factor=2, space_factor=2, width=16, heads=2, encoder_layers=2, decoder_layers=2
)
LATTE = LatteConfig(latent_channels=4, depth=2, width=8, heads=2, classes=2)
FRAMES, SIDE, GRID = 5, 4, (3, 2, 2, 4)
CLIPS = np.random.default_rng(0).integers(0, 256, (2, FRAMES, SIDE, SIDE, 3), np.uint8)
LABELS = np.array([0, 1], np.int32)
OBJECTIVE = Objective(kl=1e-3, gan=0.1, gan_start=0, perceptual=0.1, local_correlation=0.1)
PATTERNS = ("infill", "block", "tube", "random")


def ones(shapes: Any) -> Any:
    """Parameters as a program may read them from a file: NumPy arrays, small enough that nothing overflows."""
    return jax.tree.map(lambda a: np.full(a.shape, 0.01, a.dtype), shapes)


def perceptual(output: jax.Array, target: jax.Array) -> jax.Array:
    lpips = LPIPS("alexnet")
    return lpips.apply(ones(jax.eval_shape(lpips.init, jax.random.key(0), output, target)), output, target)


def model_of(config: Any, key: jax.Array) -> Model:
    """A VAE and a transformer."""
    vae, latte = build_vae(config), Latte(LATTE)
    params = jax.eval_shape(vae.init, key, jnp.zeros((1, 3, SIDE, SIDE, 3), jnp.float32))["params"]
    mean, std = np.zeros(4, np.float32), np.ones(4, np.float32)
    latte_params = ones(jax.eval_shape(lambda: init_latte(latte, GRID, key)))
    return Model(vae, ones(params), Diffusion(latte, latte_params, mean, std, GRID, ("still", "wave")))


def use(config: Any, key: jax.Array) -> Any:
    """What a user does with a model, but training."""
    model = model_of(config, key)
    params, video = model.vae_params, CLIPS.astype(np.float32) / 127.5 - 1
    latents = model.encode(CLIPS, key)
    masks = [sample_mask(pattern, key, jnp.ones(2, jnp.int32), GRID[:3]) for pattern in PATTERNS]
    return [
        [params, model.diffusion.params, latents, masks],
        [model.decode(latents), model.decode(latents, chunk=1), model.predict(CLIPS, observed=3, key=key)],
        model.sample(LABELS, key, steps=2, guidance=2.0),
        predict_filled(model.vae, params, video, np.array([0, 1], np.int32), key),
        predict_masked(model.vae, params, video, masks[1], key),
        normalize_latents(latents, (0.0, 1.0, 2.0, 3.0), (1.0, 2.0, 3.0, 4.0)),
        model.diffusion.model.apply({"params": model.diffusion.params}, latents, np.ones(2, np.float32), LABELS),
    ]


def train(config: Any, key: jax.Array) -> Any:
    """A step of each kind of stage. Optax's Adam is not written for strict types."""
    model = model_of(config, key)
    discriminator = Discriminator(DiscriminatorConfig(width=4, levels=1))
    strict = jax.config.jax_numpy_dtype_promotion == "strict"
    learn = optax.sgd(0.1) if strict else optimizer(OptimizerConfig(), 10)
    step = VAEStep(model.vae, OBJECTIVE, learn, discriminator, learn, perceptual=perceptual, drop_pattern="block")
    video = jnp.zeros((1, FRAMES, SIDE, SIDE, 3), jnp.float32)
    state = step.create(model.vae_params, ones(jax.eval_shape(discriminator.init, key, video)["params"]))
    trained = step(state, {"video": CLIPS, "dropped": np.array([0, 1], np.int32)}, dropped=None, gan=True)
    moments = {"mean": np.zeros((2, *GRID), np.float32), "logvar": np.zeros((2, *GRID), np.float32)}
    dit = DiTStep(model.diffusion.model, learn, np.zeros(4, np.float32), np.ones(4, np.float32))
    return trained, dit(dit.create(model.diffusion.params), moments | {"label": LABELS})


@functools.cache
def plain(work: Callable, config: Any) -> dict[str, str]:
    return kinds(jax.eval_shape(lambda key: work(config, key), jax.random.key(0)))


def kinds(tree: Any) -> dict[str, str]:
    """The type of every array, by its place."""
    return {jax.tree_util.keystr(path): str(leaf.dtype) for path, leaf in jax.tree.leaves_with_path(tree)}


MODES = {
    "x64": lambda: jax.enable_x64(True),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "strict types": lambda: jax.numpy_dtype_promotion("strict"),
}
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("mode", "work", "config"),
    [
        *((mode, use, CONV) for mode in MODES),
        *(slow(mode, train, CONV) for mode in MODES),
        *(slow(mode, work, TOKENS) for mode in MODES for work in (use, train)),
    ],
)
def test_a_mode_changes_no_type(mode, work, config):
    """Traced, not run: what a mode refuses, it refuses while tracing. Keys are of the older kind, uint32."""
    before = plain(work, config)
    with MODES[mode]():
        found = kinds(jax.eval_shape(lambda key: work(config, key), jax.random.PRNGKey(0)))
    assert {place: (kind, before[place]) for place, kind in found.items() if before[place] != kind} == {}
    assert set(found.values()) <= {"float32", "int32", "bool"}


def briefly(config: Any, key: jax.Array) -> Any:
    """Two programs, and the transformer without one."""
    model = model_of(config, key)
    latents, variables = model.encode(CLIPS, key), {"params": model.diffusion.params}
    velocity = model.diffusion.model.apply(variables, np.zeros((2, *GRID), np.float32), np.ones(2, np.float32), LABELS)
    return latents, velocity, model.sample(LABELS, key, steps=2, guidance=2.0)


@pytest.mark.parametrize(
    ("mode", "work"),
    [
        pytest.param(lambda: jax.debug_nans(True), briefly, id="nans"),
        slow(lambda: jax.debug_nans(True), use, id="all-nans"),
        slow(jax.disable_jit, use, id="no jit"),
    ],
)
def test_a_mode_changes_no_number(mode, work):
    expected = jax.tree.leaves(work(CONV, jax.random.key(0)))
    with mode():
        found = jax.tree.leaves(work(CONV, jax.random.key(0)))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_what_a_mode_refuses_is_no_damage(monkeypatch):
    """Whatever keeps a network from being built: the model that ships is whole."""

    def refuse(*_):
        raise ValueError("Operands could not be broadcast together")

    monkeypatch.setattr("pv_vae_jax.model._vae_shapes", refuse)
    with pytest.raises(ValueError, match="^Operands could not be broadcast together") as caught:
        load("tiny-synthetic")
    assert not isinstance(caught.value, WeightsError)


def test_the_shipped_model_loads_and_encodes_under_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        model = load("tiny-synthetic")
        latents = jax.eval_shape(model.encode, jax.ShapeDtypeStruct((1, 5, 16, 16, 3), jnp.float32))
    assert latents.dtype == jnp.float32
