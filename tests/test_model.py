"""The bound model: each method is one program, equal to the networks; a pytree; what does not fit says what to do."""

import contextlib
import dataclasses
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.model import Diffusion, Model, init_latte, load, save
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.pixels import to_float, to_uint8
from pv_vae_jax.predictive import predict_truncated
from pv_vae_jax.sampling import sample_clips
from pv_vae_jax.typing import ConfigError, ShapeError, WeightsError
from tests.conftest import TINY, perturbed

CLASSES = ("left", "right", "up")
VIDEO = np.random.default_rng(1).integers(0, 256, (2, 7, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tiny):
    latte, shape = Latte(LatteConfig(latent_channels=4, depth=2, width=16, heads=2, classes=3)), (4, 2, 2, 4)
    params = perturbed(jax.jit(lambda: init_latte(latte, shape))())
    mean, std = np.array([0.1, -0.2, 0.3, 0.0], np.float32), np.array([1.0, 2.0, 0.5, 1.5], np.float32)
    return Model(tiny[0], tiny[1], Diffusion(latte, params, mean, std, shape, CLASSES), {"steps": 3, "seeds": [0, 1]})


@pytest.fixture(scope="module")
def apply(model):
    """`apply(method, x)`: the bare network, jitted."""
    program = jax.jit(lambda p, x, method: model.vae.apply({"params": p}, x, method=method), static_argnums=2)
    return lambda method, x: program(model.vae_params, x, method)


@contextlib.contextmanager
def compilations():
    """The names of what is compiled in the context."""
    events = []

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_methods_are_those_of_the_networks(model, apply):
    unit = to_float(VIDEO)
    posterior = apply("encode", unit)
    latents = model.encode(VIDEO)
    np.testing.assert_allclose(latents, posterior.mean, atol=2e-6)
    np.testing.assert_allclose(latents, model.encode(unit), atol=2e-6)  # uint8 is scaled
    np.testing.assert_allclose(model.posterior(VIDEO).logvar, posterior.logvar, atol=2e-6)
    key = jax.random.key(4)
    np.testing.assert_allclose(model.encode(VIDEO, key), posterior.sample(key), atol=5e-6)
    np.testing.assert_array_equal(model.decode(latents), apply("decode", latents))
    decoded = np.clip(apply("decode", latents), -1, 1)
    np.testing.assert_allclose(model.reconstruct(VIDEO), decoded, atol=1e-6)

    predicted = model.predict(VIDEO, observed=3)
    withheld = jax.jit(lambda params: predict_truncated(model.vae, params, unit, 2, None).latents)
    expected = apply("decode", withheld(model.vae_params))
    np.testing.assert_allclose(predicted, np.clip(expected, -1, 1), atol=1e-5)
    other = VIDEO.copy()
    other[:, 3:] = 0
    np.testing.assert_array_equal(predicted, model.predict(other, observed=np.int64(3)))
    np.testing.assert_allclose(model.predict(VIDEO, observed=7), decoded, atol=1e-5)


def test_long_clips_go_through_in_chunks(model):
    latents = model.encode(VIDEO)
    np.testing.assert_allclose(model.encode(VIDEO, chunk=1), latents, atol=1e-5)
    np.testing.assert_allclose(model.decode(latents, chunk=2), model.decode(latents), atol=1e-5)
    np.testing.assert_allclose(model.reconstruct(VIDEO, chunk=2), model.reconstruct(VIDEO), atol=1e-5)
    with pytest.raises(ValueError, match="chunk"):
        model.encode(VIDEO, chunk=0)


def test_a_sample_follows_its_key_number_and_label_alone(model):
    key, labels = jax.random.key(3), np.array([0, 1, 2])
    clips = model.sample(labels, key, steps=3, guidance=2.0)
    assert clips.shape == (3, 7, 16, 16, 3) and clips.dtype == np.float32 and float(jnp.abs(clips).max()) <= 1
    two = jnp.asarray(2)
    with compilations() as compiled:  # a program serves every scale, however it is given
        again = model.sample(labels, key, steps=np.int64(3), guidance=two)
        model.sample(labels, key, steps=3, guidance=1.5)
    assert not compiled
    np.testing.assert_array_equal(again, clips)
    jax.eval_shape(lambda guidance: model.sample(labels, key, guidance=guidance), 2.0)
    part = model.sample([1, 2], key, steps=3, guidance=2.0, index=[1, 2])
    np.testing.assert_allclose(part, clips[1:], atol=1e-5)
    drawn = sample_clips(model, labels, steps=3, guidance=2.0, seed=3, batch_size=2)
    assert drawn.dtype == np.uint8 and np.abs(drawn.astype(int) - to_uint8(np.asarray(clips))).max() <= 1
    assert not np.array_equal(clips, model.sample(labels, jax.random.key(4), steps=3, guidance=2.0))
    free = dataclasses.replace(model.diffusion.model.config, classes=0)
    params = {name: value for name, value in model.diffusion.params.items() if name != "label"}
    free = model.replace(diffusion=model.diffusion.replace(model=Latte(free), params=params))
    assert free.sample([0, 0], key, steps=1).shape == (2, 7, 16, 16, 3)
    with pytest.raises(ValueError, match="set it to 1"):
        free.sample([0], key, guidance=2.0)


def test_each_method_is_one_program_for_each_shape(model):
    calls = {
        "encode": lambda x: model.encode(x),
        "posterior": lambda x: model.posterior(x),
        "decode": lambda x: model.decode(np.zeros((len(x), 4, 2, 2, 4), np.float32)),
        "reconstruct": lambda x: model.reconstruct(x),
        "predict": lambda x: model.predict(x, 3),
        "sample": lambda x: model.sample(np.zeros(len(x), int), jax.random.key(0), steps=1),
    }
    for call in calls.values():
        call(VIDEO)
    for name, call in calls.items():
        with compilations() as compiled:
            call(VIDEO)
            call(VIDEO[::-1].copy())
        assert not compiled, name
    for name in ("encode", "sample"):
        with compilations() as compiled:
            calls[name](np.concatenate([VIDEO, VIDEO]))
        assert len(compiled) == 1, f"{name} compiled {len(compiled)} programs for a new shape"
    video = to_float(VIDEO)
    model.encode(video)
    with compilations() as compiled:
        model.encode(video)
    assert not compiled


def test_methods_join_the_jit_around_them(model, tmp_path):
    program = jax.jit(lambda model, video: model.decode(model.encode(video)))
    expected = program(model, VIDEO)
    np.testing.assert_allclose(expected, model.decode(model.encode(VIDEO)), atol=1e-5)
    assert "pjit" not in str(jax.make_jaxpr(lambda m, v: m.encode(v))(model, to_float(VIDEO))).split("conv")[0]
    # An equal model from elsewhere meets the same program; a constant is still looked at, a traced one cannot be.
    save(tmp_path, model)
    loaded = load(tmp_path)
    assert loaded.meta == model.meta and loaded.diffusion.class_names == CLASSES
    with compilations() as compiled:
        np.testing.assert_array_equal(program(loaded, VIDEO), expected)
        np.testing.assert_array_equal(load(tmp_path).encode(VIDEO), model.encode(VIDEO))
    assert not compiled
    with pytest.raises(ValueError, match="got values from 0 to 255"):
        jax.jit(lambda model: model.encode(VIDEO.astype(np.float32)))(model)
    with pytest.raises(ShapeError, match="use 5 or 7 frames"):
        jax.jit(lambda model, video: model.encode(video))(model, VIDEO[:, :6])
    jax.eval_shape(lambda video: model.encode(2 * video), to_float(VIDEO))


def test_a_model_is_a_pytree_of_its_parameters(model):
    leaves = jax.tree.leaves(model)
    assert len(leaves) == len(jax.tree.leaves((model.vae_params, model.diffusion.params))) + 2
    twin = jax.tree.map(lambda a, b: jnp.stack([a, b]), model, jax.tree.map(lambda a: 0.9 * a, model))
    both = jax.vmap(lambda model, video: model.encode(video), in_axes=(0, None))(twin, to_float(VIDEO))
    assert both.shape == (2, 2, 4, 2, 2, 4)
    np.testing.assert_allclose(both[0], model.encode(VIDEO), atol=1e-5)

    @jax.jit
    @jax.grad
    def slope(model):
        return jnp.mean(jnp.square(model.decode(model.encode(VIDEO)) - to_float(VIDEO)))

    gradient = slope(model)
    assert isinstance(gradient, Model) and gradient.vae == model.vae and gradient.meta["steps"] == 3
    assert float(jnp.abs(gradient.vae_params["encoder"]["stem"]["kernel"]).max()) > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient.diffusion))
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.vae = None


def test_what_does_not_fit_says_what_to_do(model):
    unit = to_float(VIDEO)
    for wrong, error, words in (
        (VIDEO[0], ShapeError, r"add a batch axis, video\[None\]"),
        (np.moveaxis(VIDEO, -1, 1), ShapeError, r"expected video \(b, t, H, W, 3\), got \(2, 3, 7"),
        (VIDEO[:0], ShapeError, "at least one clip"),
        (VIDEO[:, :0], ShapeError, "0 frames do not fit 1 [+] 2 n: use 1 or 3 frames"),
        ("clip.mp4", TypeError, r"got the path clip.mp4: pass pv_vae_jax.data.read_video\(path\)\[None\]"),
        (None, TypeError, "got NoneType: pass a NumPy or JAX array"),
        (VIDEO[:, :6], ShapeError, "6 frames do not fit 1 [+] 2 n: use 5 or 7 frames"),
        (VIDEO[:, :, :12], ShapeError, "height 12 is not a multiple of 8"),
        (VIDEO.astype(int), TypeError, "expected uint8 or float video, got int64"),
        (VIDEO.astype(np.float32), ValueError, r"float video in \[-1, 1\], got values from 0 to 255: pass uint8"),
        (jnp.asarray(unit) * 1.5, ValueError, "got values from -1.5"),
        (np.asarray(unit / abs(unit).max()) * np.float32(1.0001), ValueError, "got values from -1.0001 to "),
        (np.where(unit > 0.99, np.nan, unit), ValueError, "got NaN"),
    ):
        for method in (model.encode, model.posterior, model.reconstruct, model.predict):
            with pytest.raises(error, match=words):
                method(wrong)
    for observed, words in (
        (4, "got 4: pass 3 or 5"),
        (9, "at most the clip's 7 frames, got 9: pass 5 or 7"),
        (0, "1 or"),
    ):
        with pytest.raises(ShapeError, match=words):
            model.predict(VIDEO, observed)
    for observed in (3.0, "3", None):
        with pytest.raises(TypeError, match="expected observed to be an integer, got .*: pass a Python int"):
            model.predict(VIDEO, observed)
    with pytest.raises(TypeError, match="expected chunk to be an integer, got 1.5"):
        model.encode(VIDEO, chunk=1.5)
    for wrong, error, words in (
        (np.zeros((0, 4, 2, 2, 4)), ShapeError, "at least one clip, got latents of shape"),
        (np.zeros((1, 0, 2, 2, 4)), ShapeError, "at least one frame"),
        (np.zeros((1, 4, 2, 2, 5)), ShapeError, r"expected latents \(b, g, h, w, 4\), got \(1, 4, 2, 2, 5\)"),
        (np.zeros((4, 2, 2, 4)), ShapeError, r"add a batch axis, latents\[None\]"),
        (VIDEO, ShapeError, "the channels of a video: encode it first"),
        (np.zeros((1, 4, 2, 2, 4), int), TypeError, "expected float latents, got int64"),
        (np.zeros((1, 4, 2, 2, 4), bool), TypeError, "got bool"),
        (np.zeros((1, 4, 2, 2, 4), complex), TypeError, "got complex128"),
        (None, TypeError, "got NoneType"),
        ("x", TypeError, "got str"),
    ):
        with pytest.raises(error, match=words):
            model.decode(wrong)
    key = jax.random.key(0)
    for settings, error, words in (
        ({"guidance": np.nan}, ValueError, "guidance must be a finite number of at least 0, got nan"),
        ({"guidance": jnp.inf}, ValueError, "got inf"),
        ({"guidance": -1}, ValueError, "got -1"),
        ({"guidance": "2"}, TypeError, "expected guidance to be one number"),
        ({"guidance": [1.0, 2.0]}, TypeError, "expected guidance to be one number"),
        ({"steps": 1.5}, TypeError, "expected steps to be an integer, got 1.5"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"index": [0.5]}, TypeError, "expected index to be integers, got float64"),
    ):
        with pytest.raises(error, match=words):
            model.sample([0], key, **settings)
    for labels, words in (
        ([0, 3, -1], r"from 0 to 2, got \[-1, 3\]"),
        ([], "at least one"),
        (1, "pass one label per clip"),
        ([0.5], "whole numbers"),
        (["fall"], r"got \['fall'\]: a class's number is its place in model.diffusion.class_names"),
    ):
        with pytest.raises(ValueError, match=words):
            model.sample(labels, key)
    with pytest.raises(TypeError, match=r"expected a key of jax.random, got 0: pass jax.random.key\(0\)"):
        model.sample([0], 0)
    with pytest.raises(ValueError, match="has no diffusion transformer: load one whose stage diffusion is finished"):
        model.replace(diffusion=None).sample([0], key)


def test_gaussian_padding_needs_a_key(gaussian):
    model = Model(*gaussian[:2])
    with pytest.raises(ValueError, match="key must be given for gaussian padding"):
        model.predict(VIDEO, 3)
    one, two = (model.predict(VIDEO, 3, jax.random.key(i)) for i in range(2))
    assert float(jnp.abs(one - two).max()) > 1e-4
    model.predict(VIDEO, 7)  # nothing is padded


def test_a_model_is_loaded_for_a_type_and_a_place(model, tmp_path):
    save(tmp_path, model)
    half = load(tmp_path, dtype="bfloat16")
    assert half.vae == VAE(dataclasses.replace(TINY, dtype="bfloat16"))
    assert half.diffusion.model.config.dtype == "bfloat16"
    for tree, layer in ((half.vae_params["decoder"], "stem"), (half.diffusion.params, "embed")):
        assert tree[layer]["kernel"].dtype == jnp.bfloat16 and tree[layer]["bias"].dtype == jnp.float32
    assert half.vae_params["decoder"]["latents"]["kernel"].dtype == jnp.float32, "it computes in float32"
    # Layers cast their kernels before use, so holding them cast gains memory and loses nothing.
    held = half.replace(vae_params=model.vae_params, diffusion=half.diffusion.replace(params=model.diffusion.params))
    drawn = [m.sample([0, 1], jax.random.key(0), steps=2) for m in (model, half, held)]
    error, error_held = (float(np.sqrt(np.mean(np.square(x - drawn[0])))) for x in drawn[1:])
    assert 0 < error < 1.3 * error_held
    np.testing.assert_array_equal(half.encode(VIDEO), held.encode(VIDEO))
    np.testing.assert_allclose(half.encode(VIDEO), model.encode(VIDEO), atol=0.2)
    with pytest.raises(ValueError, match="dtype"):
        load(tmp_path, dtype="int8")
    with pytest.raises(TypeError, match="expected sharding to be a jax.sharding.Sharding or a function, got 'cpu'"):
        load(tmp_path, sharding="cpu")
    with pytest.raises(ValueError, match="^expected a sharding for every parameter, got none for decoder/"):
        load(tmp_path, sharding=lambda shapes: {})

    devices = jax.devices()
    one = jax.sharding.SingleDeviceSharding(devices[3])
    assert all(leaf.devices() == {devices[3]} for leaf in jax.tree.leaves(load(tmp_path, sharding=one).vae_params))
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))

    def split(shapes):
        def place(leaf):
            last = "x" if leaf.shape[-1] % 8 == 0 else None
            spec = jax.sharding.PartitionSpec(*[None] * (len(leaf.shape) - 1), last)
            return jax.sharding.NamedSharding(mesh, spec)

        return jax.tree.map(place, shapes)

    spread = load(tmp_path, sharding=split)
    assert len(spread.vae_params["encoder"]["stem"]["kernel"].sharding.device_set) == 8
    np.testing.assert_allclose(spread.encode(VIDEO), model.encode(VIDEO), atol=1e-5)


def test_facts_about_the_training_survive(model, tmp_path):
    save(tmp_path, dataclasses.replace(model, meta=model.meta | {"stage": "video"}))
    assert load(tmp_path).meta == {"steps": 3, "seeds": [0, 1], "stage": "video"}
    assert json.loads((tmp_path / "config.json").read_text())["meta"]["stage"] == "video"


def test_what_cannot_be_saved_leaves_the_model_that_was_there(model, tmp_path, monkeypatch):
    def held():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    save(tmp_path, model)
    before, statistics = held(), model.diffusion
    huge = jax.tree.map(lambda leaf: leaf * 1e6, model.vae_params)
    for wrong, dtype, words in (
        (model.replace(meta={"loss": np.float32(1)}), "float32", "meta must hold finite JSON values"),
        (model.replace(meta={"loss": np.nan}), "float32", "meta must hold finite JSON values"),
        (
            model.replace(diffusion=statistics.replace(mean=statistics.mean * np.nan)),
            "float32",
            "diffusion.mean .* nan",
        ),
        (
            model.replace(diffusion=statistics.replace(std=-statistics.std)),
            "float32",
            "diffusion.std .* above 0, got -1",
        ),
        (model.replace(diffusion=statistics.replace(class_names=("left",))), "float32", "name the 3 classes"),
        (
            model.replace(vae_params=huge),
            "float16",
            "decoder/head/kernel is too large for float16.*: save it in float32",
        ),
        (model, "int8", "dtype must be 'float32' or 'bfloat16' or 'float16', got 'int8'"),
        (model, "foo", "got 'foo'"),
        (model, "float64", "got 'float64'"),
    ):
        with pytest.raises(ValueError, match=words):
            save(tmp_path, wrong, dtype)
        assert held() == before, words
    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk full"):
        patched.setattr("pv_vae_jax.params_io.save_file", mock.Mock(side_effect=OSError("disk full")))
        save(tmp_path, model.replace(meta={}))
    assert held() == before
    save(tmp_path, model.replace(diffusion=None), "bfloat16")
    assert set(held()) == {"config.json", "vae.safetensors"} and load(tmp_path).diffusion is None
    monkeypatch.chdir(tmp_path)
    for folder, words in (
        ("s3://bucket/a", "got s3://bucket/a .*: mount"),
        ("", "the model folder is empty"),
    ):
        with pytest.raises(ConfigError, match=words):
            save(folder, model)
    assert set(held()) == {"config.json", "vae.safetensors"}


def test_an_earlier_stage_stands_in_for_no_model_that_lost_a_file(model, tmp_path):
    for stage in ("video", "diffusion"):
        save(tmp_path / stage / "model", model)
    (tmp_path / "diffusion" / "model" / "vae.safetensors").unlink()
    with pytest.raises(WeightsError, match="diffusion/model is damaged: vae.safetensors is missing. Copy the model"):
        load(tmp_path)
    (tmp_path / "diffusion" / "model" / "config.json").unlink()  # then it was never finished
    assert load(tmp_path).vae == model.vae


def test_damage_to_a_model_folder_is_named(model, tmp_path):
    save(tmp_path, model)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for change, words in (
        ({"std": [0.0] * 4}, "diffusion.std must be finite, above 0, got 0.0"),
        ({"mean": [0.0] * 3}, "diffusion.mean must have 4 numbers"),
        ({"class_names": ["left"]}, "diffusion.class_names must name the 3 classes"),
        ({"class_names": [1, 2, 3]}, "diffusion.class_names must name the 3 classes"),
        ({"shape": [3, 2, 2]}, r"diffusion.latent_shape must be \(g, h, w, 4\), got \(3, 2, 2\)"),
    ):
        path.write_text(json.dumps(config | {"latents": config["latents"] | change}))
        with pytest.raises(WeightsError, match=f"is damaged: .*{words}.*Copy the model again"):
            load(tmp_path)
    for text in ("null", "[]", "3", "{"):
        path.write_text(text)
        with pytest.raises(WeightsError, match="config.json is damaged .*: copy the model again"):
            load(tmp_path)
    path.unlink()
    with pytest.raises(WeightsError, match="config.json is missing. Copy the model again"):
        load(tmp_path)
    path.mkdir()
    with pytest.raises(WeightsError, match="config.json is missing or not a file"):
        load(tmp_path)
    path.rmdir()
    for name in ("latte.safetensors", "vae.safetensors"):
        save(tmp_path, model)
        (tmp_path / name).unlink()
        with pytest.raises(WeightsError, match=f"{name} is missing[.:] [Cc]opy the model again"):
            load(tmp_path)


def test_a_name_means_one_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="model is empty: name a folder, or one of small-real, tiny-synthetic"):
        load("")
    shipped = load("tiny-synthetic")
    save("./tiny-synthetic", shipped.replace(meta={"mine": True}))
    with pytest.raises(
        ConfigError, match="is a shipped model and a folder here: write ./tiny-synthetic for the folder"
    ):
        load("tiny-synthetic")
    assert load("./tiny-synthetic").meta == {"mine": True}
