"""From images to video: the first step on clips begins with what images taught, and nothing else is touched."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from pv_vae_jax import load
from pv_vae_jax.data.synthetic import SyntheticVideos
from pv_vae_jax.evaluation.image_metrics import psnr
from pv_vae_jax.model import Model, save
from pv_vae_jax.models.inflate import inflate_image_params
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.pixels import to_float
from pv_vae_jax.train.configs import DataConfig, Experiment, MeshConfig, VAEStageConfig
from pv_vae_jax.train.run import open_run
from pv_vae_jax.train.vae_stage import VAEStage
from tests.conftest import TINY, TWO_LEVELS


def noisy(params, scale=0.05):
    """Noise on all that an image does not meet: earlier taps and time convolutions."""
    key = jax.random.key(1)

    def spoilt(path, value):
        names = [entry.key for entry in path]
        noise = scale * jax.random.normal(jax.random.fold_in(key, sum("/".join(names).encode())), value.shape)
        if "time_conv" in names:
            return value + noise
        return value.at[:-1].add(noise[:-1]) if value.ndim == 5 and value.shape[0] > 1 else value

    return jax.tree_util.tree_map_with_path(spoilt, params)


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# Widths that narrow where time doubles: the shortcuts must treat all frames alike.
NARROWING = dataclasses.replace(TWO_LEVELS, decoder_widths=(8, 8, 16))


@pytest.fixture(scope="module")
def image_model():
    """`(model, params, picture)`: a VAE after some steps on one picture `(1, 1, 16, 16, 3)`."""
    model = VAE(NARROWING)
    picture = to_float(SyntheticVideos(clips=1, frames=1, size=16)[0]["video"][None])
    params = jax.jit(model.init)(jax.random.key(0), picture)["params"]
    transform = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: jnp.mean((model.apply({"params": p}, picture)[0] - picture) ** 2))(params)
        updates, state = transform.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state = transform.init(params)
    for _ in range(100):
        params, state = step(params, state)
    return model, params, picture


def test_a_still_clip_scores_what_its_image_scores(image_model):
    """Wherever the untrained parts come from. Without inflation, noise in them spoils the clip."""
    model, params, picture = image_model
    reconstruct = jax.jit(lambda p, x: jnp.clip(model.apply({"params": p}, x)[0], -1, 1))

    def score(params, frames):
        still = np.repeat(picture, frames, axis=1)
        return psnr(still, np.asarray(reconstruct(params, still)), (-1.0, 1.0))

    spoilt = noisy(params)
    image = score(params, 1)
    assert image > 20 and score(spoilt, 1) == image
    assert score(inflate_image_params(params), 7) == pytest.approx(image, abs=0.1)
    assert score(inflate_image_params(spoilt), 7) == pytest.approx(image, abs=0.1)
    assert score(spoilt, 7) < image - 1


def test_only_what_images_do_not_meet_is_changed(tiny):
    model, params, video = tiny
    inflated = inflate_image_params(params)
    assert jax.tree.structure(inflated) == jax.tree.structure(params)
    before, after = flatten_dict(params, sep="/"), flatten_dict(inflated, sep="/")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    expected = {n for n, v in before.items() if "time_conv" in n or (v.ndim == 5 and v.shape[0] > 1)}
    assert changed == expected and any("time_conv/kernel" in name for name in changed)
    apply = jax.jit(lambda p, x: model.apply({"params": p}, x))
    assert same(apply(params, video[:, :1]), apply(inflated, video[:, :1])), "an image sees no difference"
    assert same(inflate_image_params(inflated), inflated)
    assert same(inflate_image_params(noisy(params)), inflated), "wherever the untrained parts came from"


def test_fresh_weights_are_a_per_frame_model_already():
    params = jax.jit(VAE(TINY).init)(jax.random.key(0), jnp.zeros((1, 3, 8, 8, 3)))["params"]
    assert same(inflate_image_params(params), params)


@pytest.fixture
def start(tmp_path):
    """`start(stage)`: the parameters with which a stage begins. Its model is what it began with."""
    stage = dict(steps=1, batch_size=1)
    experiment = Experiment(
        data=DataConfig(clips=2, test_clips=1, frames=3, size=8),
        vae=TINY,
        image=VAEStageConfig(images=True, init_from=str(tmp_path / "elsewhere"), **stage),
        video=VAEStageConfig(**stage),
        decoder=VAEStageConfig(frozen=("encoder", "pad"), **stage),
        mesh=MeshConfig(data=1),
    )

    run = open_run(experiment, tmp_path / "run")

    def start(name, **changes):
        changed = {name: dataclasses.replace(getattr(experiment, name), **changes)}
        changed = dataclasses.replace(run, experiment=dataclasses.replace(experiment, **changed))
        stage = VAEStage(changed.experiment, name)
        stage.save_model(changed, stage.init_state(stage.restored(changed)))
        return load(run.folder(name) / "model").vae_params

    return start


def test_stages_hand_over(tiny, start, tmp_path):
    """Images to clips: inflated. Anything to images, and clips to clips: as it is."""
    model, params, _ = tiny
    save(tmp_path / "elsewhere", Model(model, params))
    assert same(start("image"), params)
    assert same(start("video"), inflate_image_params(params))
    assert same(start("video", init_from=str(tmp_path / "run" / "image" / "model")), inflate_image_params(params))
    assert same(start("video", init_from=str(tmp_path / "elsewhere")), params), "not known to be of images"
    assert same(start("decoder"), params), "a model of clips keeps what it knows about time"
    save(tmp_path / "old", Model(model, params, meta={"stage": "image"}))  # before `images` was noted
    assert same(start("video", init_from=str(tmp_path / "old")), inflate_image_params(params))
