"""The shapes that public functions promise in their annotations are those of what they take and return."""

import inspect
import types
import typing

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from pv_vae_jax import predictive, streaming
from pv_vae_jax.model import Model
from pv_vae_jax.models.vae import Posterior

VIDEO = np.random.default_rng(1).integers(0, 256, (2, 7, 16, 16, 3), np.uint8)


def fits(value, hint) -> bool:
    """Whether `value` is what the annotation says; a dimension of one name must have one size."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return all(fits(v, part) for v, part in zip(value, typing.get_args(hint), strict=True))
    if getattr(hint, "_flax_dataclass", False):
        hints = typing.get_type_hints(hint)
        return isinstance(value, hint) and all(fits(getattr(value, name), hints[name]) for name in hints)
    return hint is typing.Any or hint is float or not isinstance(hint, type) or isinstance(value, hint)


def holds(function, *args, **kwargs) -> bool:
    """Whether the arguments and the result of a call, which is traced but not run, fit the annotations."""
    values, hints = inspect.signature(function).bind(*args, **kwargs).arguments, typing.get_type_hints(function)
    found = []

    def trace():
        values["return"] = function(*args, **kwargs)
        with jaxtyping.jaxtyped("context"):
            found.append(all(fits(value, hints.get(name)) for name, value in values.items()))

    jax.eval_shape(trace)
    return found[0]


def test_predictions(tiny):
    model, params, video = tiny
    assert holds(predictive.predict_truncated, model, params, video, 1, jax.random.key(0))
    for dropped in (jnp.int32(2), jnp.array([1, 3])):
        assert holds(predictive.predict_filled, model, params, video, dropped, None)
    for observed in (jnp.ones((2, 4), bool), jnp.ones((2, 4, 2, 2), bool)):
        assert holds(predictive.predict_masked, model, params, video, observed, None)
    assert holds(predictive.mask_pixels, video, observed, 2, 8)


def test_streaming(tiny):
    model, params, video = tiny
    assert holds(streaming.encode_chunks, model, params, video, 2)
    assert holds(streaming.encode_step, model, params, None, video)
    latents = jnp.zeros((2, 4, 2, 2, 4))
    assert holds(streaming.decode_step, model, params, None, latents)
    assert holds(streaming.decode_chunks, model, params, latents, 2)


@pytest.mark.parametrize("name", ["encode", "posterior", "reconstruct", "predict"])
def test_the_bound_model(tiny, name):
    model = Model(*tiny[:2])
    arguments = (3,) if name == "predict" else ()
    for video in (VIDEO, tiny[2]):
        assert holds(getattr(model, name), video, *arguments)
    assert holds(model.decode, np.zeros((2, 4, 2, 2, 4), np.float32))


def test_a_wrong_shape_is_seen():
    mean = jnp.zeros((2, 4, 2, 2, 4))
    right = predictive.Prediction(mean, Posterior(mean, mean), jnp.ones((2, 4)))
    with jaxtyping.jaxtyped("context"):
        assert fits(right, predictive.Prediction)
    for wrong in (right.replace(latents=mean[0]), right.replace(observed=jnp.ones((3, 4)))):
        with jaxtyping.jaxtyped("context"):
            assert not fits(wrong, predictive.Prediction)

    def crossed(video: jaxtyping.Float[jax.Array, "b t H W 3"]) -> jaxtyping.Float[jax.Array, "b t W H 3"]:
        return video

    assert not holds(crossed, jnp.zeros((1, 2, 3, 4, 3)))
