"""The transformer VAE: the same contract as the CNN's, from causality to a training step and a model folder."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.losses import Objective
from pv_vae_jax.model import Model, cast_kernels, load, save
from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig
from pv_vae_jax.models.inflate import inflate_image_params
from pv_vae_jax.models.transformer_vae import TransformerVAE, TransformerVAEConfig, frame_causal
from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.predictive import predict_filled, predict_truncated
from pv_vae_jax.streaming import decode_chunks, encode_chunks
from pv_vae_jax.train.config_files import from_dict, override, to_dict
from pv_vae_jax.train.configs import Experiment, OptimizerConfig
from pv_vae_jax.train.optim import _decayed, optimizer
from pv_vae_jax.train.vae_step import VAEStep
from pv_vae_jax.typing import ConfigError, ShapeError
from tests.conftest import TINY as TINY_CNN
from tests.conftest import decoded, perturbed

TINY = TransformerVAEConfig(
    time_factor=2, space_factor=4, latent_channels=4, width=24, heads=2, encoder_layers=2, decoder_layers=2, window=2
)


@pytest.fixture(scope="module")
def tiny():
    """`(model, params, video)`: two clips of 9 x 8 x 12 in [-1, 1], more latent frames (5) than the window holds."""
    model = TransformerVAE(TINY)
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 9, 8, 12, 3)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), video[:1, :1])["params"]
    return model, perturbed(params, 0.2), video


@pytest.fixture(scope="module")
def apply(tiny):
    """`apply(method, x)` with the fixture's parameters or others, compiled once per method and shape."""
    model, params, _ = tiny
    jitted = {
        name: jax.jit(lambda p, x, name=name: model.apply({"params": p}, x, method=name))
        for name in ("encode", "decode", "decode_features", "to_pixels", "__call__")
    }
    return lambda method, x, other=None: jitted[method](params if other is None else other, x)


def test_paper_size():
    """Table 7: t4s16c64, 12 + 12 layers of 16 heads x 128, about 1.2 B parameters."""
    config = TransformerVAEConfig()
    assert config.name == "t4s16c64" and config.width // config.heads == 128
    clip = jnp.zeros((1, 17, 256, 256, 3))
    (output, posterior), variables = jax.eval_shape(
        lambda: TransformerVAE(config).init_with_output(jax.random.key(0), clip)
    )
    assert output.shape == clip.shape and posterior.mean.shape == (1, 5, 16, 16, 64)
    count = {part: sum(a.size for a in jax.tree.leaves(p)) for part, p in variables["params"].items()}
    assert count == {"encoder": 612_382_848, "decoder": 612_253_440, "pad": 64}  # 1.22 B
    layers = variables["params"]["encoder"]["trunk"]["layers"]
    assert layers["qkv"]["kernel"].shape == (12, 2048, 3 * 2048)


def test_interface_of_the_cnn(tiny, apply):
    model, params, video = tiny
    assert isinstance(model, VAE) and set(params) == {"encoder", "decoder", "pad"}
    posterior = apply("encode", video)
    assert posterior.mean.shape == posterior.logvar.shape == (2, 5, 2, 3, 4)
    assert (TINY.name, TINY.latent_frames(9), TINY.frames(5)) == ("t2s4c4", 5, 9)
    pixels = apply("to_pixels", apply("decode_features", posterior.mean))
    assert pixels.shape == video.shape and pixels.dtype == jnp.float32
    np.testing.assert_allclose(pixels, apply("decode", posterior.mean), atol=1e-5)
    np.testing.assert_allclose(pixels, apply("__call__", video)[0], atol=1e-5)
    with pytest.raises(ShapeError, match="6 frames do not fit.*use 5 or 7.*height 10 is not a multiple of 4"):
        model.apply({"params": params}, jnp.zeros((1, 6, 10, 8, 3)), method="encode")


def test_the_encoder_is_causal(tiny, apply):
    _, _, video = tiny
    before = apply("encode", video).mean
    after = apply("encode", video.at[:, 3].multiply(-1.0)).mean  # frames 3 and 4 are latent frame 2
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert float(jnp.abs(before - after)[:, 2:].max(axis=(0, 2, 3, 4)).min()) > 1e-4


def test_the_decoder_is_causal(tiny, apply):
    _, _, video = tiny
    latents = apply("encode", video).mean
    before, after = apply("decode", latents), apply("decode", latents.at[:, 2].add(1.0))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert float(jnp.abs(before - after)[:, 3:].max(axis=(0, 2, 3, 4)).min()) > 1e-4


def test_the_window_bounds_what_a_layer_sees():
    index = np.arange(5)
    seen = frame_causal(1, 2)(index[:, None], index[None])
    np.testing.assert_array_equal(seen, [[0 <= i - j <= 2 for j in index] for i in index])
    np.testing.assert_array_equal(frame_causal(1, 0)(index[:, None], index[None]), np.tri(5, dtype=bool))
    two = frame_causal(2, 0)(np.arange(4)[:, None], np.arange(4)[None])
    np.testing.assert_array_equal(two, [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    # One query frame after three cached ones, of which one was ever filled.
    np.testing.assert_array_equal(frame_causal(1, 3, past=3, start=1)(index[:1, None], index[None, :4]), [[0, 0, 1, 1]])


def test_an_image_is_a_clip_of_one_frame(tiny, apply):
    _, _, video = tiny
    whole, image = apply("encode", video), apply("encode", video[:, :1])
    np.testing.assert_allclose(image.mean, whole.mean[:, :1], atol=1e-5)
    np.testing.assert_allclose(apply("decode", image.mean), apply("decode", whole.mean)[:, :1], atol=1e-5)


def test_a_still_clip_is_decoded_like_its_image_at_the_start(tiny, apply):
    """Whatever image training makes of the first patches, the later ones start from it."""
    model, _, video = tiny
    params = jax.jit(model.init)(jax.random.key(0), video[:1, :1])["params"]
    later = params["encoder"]["embed"]["later"]["kernel"], params["decoder"]["head"]["kernel"][:, 48:]
    assert all(float(jnp.abs(p).max()) == 0.0 for p in later)
    image = apply("decode", apply("encode", video[:, :1], params).mean, params)
    still = apply("decode", apply("encode", jnp.repeat(video[:, :1], 9, axis=1), params).mean, params)
    np.testing.assert_allclose(still, jnp.repeat(image, 9, axis=1), atol=1e-5)
    # The explicit hand-over of the CNN therefore finds nothing to set.
    jax.tree.map(np.testing.assert_array_equal, inflate_image_params(tiny[1]), tiny[1])


def test_truncated_equals_filled(tiny):
    model, params, video = tiny
    key = jax.random.key(5)

    @jax.jit
    def both(params, video):
        filled = predict_filled(model, params, video, jnp.array([1, 4]), key).latents
        truncated = [predict_truncated(model, params, video, k, key).latents[i] for i, k in enumerate((1, 4))]
        return [model.apply({"params": params}, latents, method="decode") for latents in (jnp.stack(truncated), filled)]

    np.testing.assert_allclose(*both(params, video), atol=2e-5)


def test_gradient_reaches_the_pad_token_only_when_frames_are_dropped(tiny):
    model, params, video = tiny

    @jax.jit
    def gradient(dropped):
        def energy(params):
            return jnp.mean(decoded(model, params, predict_filled(model, params, video, dropped, None)) ** 2)

        return jax.grad(energy)(params)

    none, two = gradient(jnp.int32(0)), gradient(jnp.int32(2))
    assert float(jnp.abs(none["pad"]["token"]).max()) == 0.0
    assert float(jnp.abs(two["pad"]["token"]).min()) > 0.0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(two))


def test_predicting_a_clip(tiny):
    model, params, video = tiny
    output = Model(model, params).predict(video[:, :3], 1)
    assert output.shape == (2, 3, 8, 12, 3) and float(jnp.abs(output).max()) <= 1.0
    gaussian = TransformerVAE(dataclasses.replace(TINY, pad="gaussian"))
    with pytest.raises(ValueError, match="key must be given for gaussian padding"):
        Model(gaussian, {k: params[k] for k in ("encoder", "decoder")}).predict(video[:, :3], 1)


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_equal_the_whole_pass(tiny, apply, chunk):
    """Five latent frames through a window of two: the cache forgets what the window no longer shows."""
    model, params, video = tiny
    posterior = apply("encode", video)
    streamed = jax.jit(lambda p, x: encode_chunks(model, p, x, chunk))(params, video)
    np.testing.assert_allclose(streamed.mean, posterior.mean, atol=1e-5)
    output = jax.jit(lambda p, z: decode_chunks(model, p, z, chunk))(params, posterior.mean)
    np.testing.assert_allclose(output, apply("decode", posterior.mean), atol=1e-5)


def test_without_a_window_there_is_no_streaming(tiny):
    _, params, video = tiny
    model = TransformerVAE(dataclasses.replace(TINY, window=0))
    whole = model.apply({"params": params}, video[:, :3], method="encode").mean
    np.testing.assert_allclose(encode_chunks(model, params, video[:, :3], 2).mean, whole, atol=1e-5)
    with pytest.raises(ValueError, match="window must be at least 1 to stream, got 0"):
        encode_chunks(model, params, video[:, :3], 1)


def test_bfloat16_stays_close(tiny, apply):
    _, params, video = tiny
    low = TransformerVAE(dataclasses.replace(TINY, dtype="bfloat16"))
    a, b = apply("__call__", video)[0], jax.jit(low.apply)({"params": params}, video)[0]
    assert b.dtype == jnp.float32
    assert float(jnp.sqrt(jnp.mean((a - b) ** 2)) / jnp.std(a)) < 0.03
    held, _ = jax.jit(low.apply)({"params": cast_kernels(params, "bfloat16")}, video)
    np.testing.assert_array_equal(held, b, "holding kernels in the type of their layers loses nothing")


def test_remat_changes_nothing(tiny):
    model, params, video = tiny

    def gradient(model):
        return jax.jit(jax.grad(lambda p: jnp.mean(model.apply({"params": p}, video[:1, :3])[0] ** 2)))(params)

    saving = gradient(TransformerVAE(dataclasses.replace(TINY, remat="dots_no_batch")))
    chex.assert_trees_all_close(gradient(model), saving, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 5])
def test_a_training_step_moves_everything(tiny, frames):
    """The whole step of a stage, GAN and its adaptive weight included, on images and on clips."""
    model, params, _ = tiny
    discriminator = Discriminator(DiscriminatorConfig(kinds=("2d",), width=4, levels=1))
    d = jax.jit(discriminator.init)(jax.random.key(1), jnp.zeros((1, frames, 8, 8, 3)))["params"]
    learn = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)
    objective = Objective(gan=0.5, gan_start=0, kl=1e-3)
    step = VAEStep(model, objective, optimizer(learn, 10), discriminator, optimizer(learn, 10))
    batch = {"video": np.random.default_rng(1).integers(0, 256, (2, frames, 8, 8, 3), np.uint8)}
    dropped = int(frames > 1)
    before = step.create(params, d)
    run = functools.partial(jax.jit(step, static_argnames=("dropped", "gan")), dropped=dropped, gan=True)
    after, logs = run(before, batch)
    assert all(np.isfinite(v) for v in logs.values()) and 1e-3 < float(logs["gan_weight"]) < 1e4
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
    still = [jax.tree_util.keystr(path) for path, moves in jax.tree.leaves_with_path(moved) if not moves]
    assert still == (
        []
        if frames > 1
        else [f"['encoder']['embed']['later']['{n}']" for n in ("bias", "kernel")] + ["['pad']['token']"]
    )
    state = after
    for _ in range(15):
        state, later = run(state, batch)
    assert float(later["mse"]) < 0.9 * float(logs["mse"])


def test_decay_spares_stacked_biases_and_gains(tiny):
    decayed = _decayed(tiny[1])["encoder"]["trunk"]["layers"]
    assert decayed["qkv"] == {"kernel": True, "bias": False} and decayed["norm1"] == {"gamma": False}


def test_works_in_a_foreign_jit_under_another_mesh(tiny, apply):
    model, params, video = tiny
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        output = jax.jit(lambda p, x: 2.0 * model.apply({"params": p}, x)[0])(params, video)
    np.testing.assert_allclose(output, 2.0 * apply("__call__", video)[0], atol=1e-4)


def test_a_model_folder_says_which_kind_it_holds(tiny, tmp_path):
    model, params, _ = tiny
    save(tmp_path / "t", Model(model, params))
    loaded = load(tmp_path / "t")
    assert type(loaded.vae) is TransformerVAE and loaded.vae.config == TINY
    jax.tree.map(np.testing.assert_array_equal, loaded.vae_params, params)
    path = tmp_path / "t" / "config.json"
    tree = json.loads(path.read_text())
    tree["vae"]["kind"] = "transfomer"
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="unknown kind of VAE 'transfomer'; did you mean 'transformer'"):
        load(tmp_path / "t")


@pytest.mark.parametrize("named", [False, True])
def test_a_folder_without_a_kind_holds_the_cnn(tmp_path, named):
    model = VAE(TINY_CNN)
    params = jax.tree.map(jnp.zeros_like, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3, 8, 8, 3))))
    save(tmp_path, Model(model, params["params"]))
    tree = json.loads((tmp_path / "config.json").read_text())
    assert tree["vae"]["kind"] == "cnn"
    if not named:
        del tree["vae"]["kind"]
        (tmp_path / "config.json").write_text(json.dumps(tree))
    assert load(tmp_path).vae == model


def test_an_experiment_holds_either_kind():
    cnn, transformer = Experiment(), Experiment(vae=TINY)
    assert type(cnn.vae) is VAEConfig
    for experiment in (cnn, transformer):
        assert from_dict(Experiment, json.loads(json.dumps(to_dict(experiment)))) == experiment
    changed = override(transformer, {"vae.window": "7", "vae.remat": "blocks", "vae.attention": "xla"}).vae
    assert changed == dataclasses.replace(TINY, window=7, remat="blocks", attention="xla")
    for key, value, says in (
        ("vae.windw", "3", "config.vae has no 'windw'; did you mean 'window'?"),
        ("vae.encoder_widths", "(8,)", "config.vae has no 'encoder_widths'"),
        ("vae.remat", "all", "config.vae.remat must be 'none' or 'blocks' or"),
        ("vae.heads", "7", "config.vae.heads"),
        ("vae.kind", "convnet", "config.vae.kind: unknown kind of VAE 'convnet'; did you mean 'cnn'?"),
    ):
        with pytest.raises(ConfigError) as error:
            override(transformer, {key: value})
        assert says in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_factor": 0}, "time_factor must be at least 1, got 0"),
        ({"window": -1}, "window must be a number of latent frames"),
        ({"width": 8}, "at least 6 channels, got heads=2 and width=8"),
        ({"pad": "zeros"}, "pad must be 'learnable' or 'gaussian', got 'zeros'"),
        ({"attention": "flash"}, "attention must be 'auto' or 'xla'"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_a_folder_of_older_names_is_read(tmp_path):
    """Fields and values of the config that have been renamed since the folder was written."""
    config = dataclasses.replace(TINY_CNN, shortcuts=False, upsample_halves_channels=True, lowering="taps_in")
    config = dataclasses.replace(config, shortcut_time="interleave")
    model = VAE(config)
    params = jax.tree.map(jnp.zeros_like, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3, 8, 8, 3))))
    save(tmp_path, Model(model, params["params"]))
    tree = json.loads((tmp_path / "config.json").read_text())
    old = tree["vae"] | {"shortcut_time": "deal", "lowering": "im2col", "halve_up": True}
    del old["kind"], old["upsample_halves_channels"]
    (tmp_path / "config.json").write_text(json.dumps(tree | {"vae": old}))
    assert load(tmp_path).vae == model
