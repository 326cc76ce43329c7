"""Latte: the published sizes to the unit, its exact embeddings, remat that changes nothing, attention kernels alike."""

import dataclasses
import functools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pv_vae_jax.layers import attention
from pv_vae_jax.layers.attention import dot_product_attention
from pv_vae_jax.layers.embeddings import sincos_1d, sincos_2d, timestep_features
from pv_vae_jax.layers.remat import REMATS
from pv_vae_jax.model import init_latte
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.sharding.axes import per_example
from pv_vae_jax.sharding.mesh import make_mesh
from tests.conftest import perturbed

GOLDEN = json.loads((Path(__file__).parent / "data" / "latte_golden.json").read_text())
TINY = LatteConfig(latent_channels=4, depth=4, width=16, heads=2, classes=3)
SHAPE = (3, 2, 4, 4)  # g, h, w, z


def count(config: LatteConfig, shape=(5, 16, 16, 64)) -> int:
    params = jax.eval_shape(lambda: init_latte(Latte(config), shape))
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def latte():
    """`(model, params, latents, time, labels, velocity)`, parameters moved off their zeros."""
    model = Latte(TINY)
    params = perturbed(jax.jit(lambda: init_latte(model, SHAPE))())
    latents = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    t, label = jnp.array([0.1, 0.7]), jnp.array([0, 2])
    return model, params, latents, t, label, jax.jit(model.apply)({"params": params}, latents, t, label)


@pytest.mark.parametrize(
    ("size", "classes", "channels", "parameters"),
    [
        ("S", 101, 64, 32_550_592),
        ("B", 101, 64, 129_686_848),
        ("L", 101, 64, 457_002_048),
        ("XL", 101, 64, 673_891_264),
        ("XL", 0, 64, 673_773_760),
        ("XL", 101, 48, 673_854_384),
    ],
)
def test_the_published_sizes_have_the_published_counts(size, classes, channels, parameters):
    """UCF101 has 101 classes; position tables are no parameters."""
    config = getattr(LatteConfig, size.lower())(classes=classes, latent_channels=channels)
    assert count(config, (5, 16, 16, channels)) == parameters


def test_a_larger_patch_changes_the_two_ends_only():
    config, w, z = LatteConfig.s(), LatteConfig.s().width, 64
    ends = (z * w + w) + (w * z + z)
    ends_of_four = (4 * z * w + w) + (w * 4 * z + 4 * z)
    assert count(dataclasses.replace(config, patch=2)) - count(config) == ends_of_four - ends


def test_embeddings_are_the_published_ones():
    """Sines come first in the position tables, cosines in the time embedding; columns fill the first half."""
    space, time, step = (GOLDEN[f"latte_{name}"] for name in ("pos_embed_2d", "temp_embed_1d", "timestep_embedding"))
    np.testing.assert_allclose(
        sincos_2d(space["dim"], space["grid"], space["grid"]), space["row_major_tokens"], atol=1e-6
    )
    np.testing.assert_allclose(sincos_1d(time["dim"], np.arange(time["length"])), time["values"], atol=1e-6)
    np.testing.assert_allclose(timestep_features(jnp.array(step["t"]), step["dim"]), step["values"], atol=1e-6)


def test_jit_equals_eager(latte):
    model, params, latents, t, label, velocity = latte
    np.testing.assert_allclose(model.apply({"params": params}, latents, t, label), velocity, atol=1e-5)


def test_without_labels_the_null_class_is_meant(latte):
    model, params, latents, t, label, velocity = latte
    null = model.apply({"params": params}, latents, t, jnp.full((2,), TINY.classes))
    np.testing.assert_array_equal(model.apply({"params": params}, latents, t), null)
    assert float(jnp.abs(null - velocity).max()) > 1e-3
    wrong = model.apply({"params": params}, latents, t, jnp.array([0, TINY.classes + 1]))
    assert np.isfinite(wrong[0]).all() and np.isnan(wrong[1]).all(), "no class, and not the null class either"


def test_every_token_reaches_every_frame_and_place(latte):
    """One spatial and one temporal block after another connect all tokens."""
    model, params, latents, t, label, velocity = latte
    other = model.apply({"params": params}, latents.at[:, 2, 1, 3].add(1.0), t, label)
    assert float(jnp.abs(other - velocity).max(axis=(0, 4)).min()) > 1e-6


def test_bfloat16_stays_close(latte):
    _, params, latents, t, label, velocity = latte
    low = Latte(dataclasses.replace(TINY, dtype="bfloat16")).apply({"params": params}, latents, t, label)
    assert low.dtype == jnp.float32
    assert float(jnp.sqrt(jnp.mean((low - velocity) ** 2)) / jnp.std(velocity)) < 0.03


@pytest.fixture(scope="module")
def graded(latte):
    """Policy -> loss, gradient and what is computed, each once."""
    _, params, latents, t, label, _ = latte

    @functools.cache
    def run(policy):
        model = Latte(dataclasses.replace(TINY, remat=policy))
        loss = lambda p: jnp.mean(model.apply({"params": p}, latents, t, label) ** 2)  # noqa: E731
        traced = jax.jit(jax.value_and_grad(loss)).trace(params)
        return *traced.lower().compile()(params), str(traced.jaxpr)

    return run


@pytest.mark.parametrize("policy", REMATS[1:])
def test_remat_changes_neither_values_nor_gradients(graded, policy):
    value, gradient, program = graded("none")
    other_value, other, other_program = graded(policy)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    chex.assert_trees_all_close(other, gradient, atol=1e-6, rtol=1e-4)
    assert other_program != program


def test_unrolled_blocks_are_the_scanned_ones(graded, monkeypatch):
    value, gradient, program = graded("none")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    graded.cache_clear()
    other_value, other, other_program = graded("none")
    graded.cache_clear()
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    chex.assert_trees_all_close(other, gradient, atol=1e-6, rtol=1e-4)
    assert other_program != program


def test_every_policy_is_a_policy_of_its_own(graded):
    """They save different sets of products, so the backward passes hold different numbers of them."""
    assert len({graded(policy)[2].count("dot_general") for policy in REMATS}) >= 3
    assert len({graded(policy)[2] for policy in REMATS}) == len(REMATS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, "depth must be even"),
        ({"heads": 3}, "a multiple of 4 and of heads"),
        ({"remat": "all"}, "remat must be 'none' or 'blocks' or 'dots' or 'dots_no_batch', got 'all'"),
        ({"attention": "flash"}, "attention must be 'auto' or 'xla' or 'cudnn' or 'splash', got 'flash'"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


# Attention.


def banded(query, key):
    return (key <= query) & (query - key < 40)


@pytest.fixture(scope="module")
def qkv():
    """Queries, keys and values `(2, 130, 2, 24)`: neither length nor width fits a kernel's blocks."""
    return tuple(jax.random.normal(key, (2, 130, 2, 24)) for key in jax.random.split(jax.random.key(3), 3))


def naive(q, k, v, mask):
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(jnp.where(mask, logits, -jnp.inf)), v)


def test_a_mask_is_an_array_or_a_function(qkv):
    index = np.arange(130)
    array = banded(index[:, None], index[None])
    a, b = (dot_product_attention(*qkv, mask=m) for m in (array, banded))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, naive(*qkv, array), atol=1e-5)
    np.testing.assert_allclose(dot_product_attention(*qkv), naive(*qkv, True), atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "atol"), [(1.0, 2e-5), (10.0, 5e-3)]
)  # at 10, exponentials of the logits overflow unless they are shifted
@pytest.mark.parametrize("mask", [None, banded], ids=["all", "banded"])
def test_the_gradient_on_a_cpu_is_the_derivative(qkv, mask, scale, atol):
    """Our backward pass against JAX's own differentiation, and forward over reverse."""
    q, k, v = (x[:, :40] for x in qkv)  # more than the 24 channels
    index = np.arange(40)
    dense = True if mask is None else mask(index[:, None], index[None])

    def attend(q, k, v):
        return dot_product_attention(q, k, v, mask=mask, implementation="xla")

    def gradients(f):
        return jax.jit(jax.value_and_grad(lambda *x: jnp.sum(f(*x) ** 2), (0, 1, 2)))(scale * q, scale * k, v)

    expected = gradients(lambda q, k, v: naive(q, k, v, dense))
    chex.assert_trees_all_close(gradients(attend), expected, atol=atol, rtol=1e-4)
    if mask is None and scale == 1.0:
        second = lambda f: jax.jit(jax.hessian(lambda x: jnp.sum(f(x, k[:1], v[:1]) ** 2)))(q[:1, :3])  # noqa: E731
        chex.assert_trees_all_close(second(attend), second(lambda q, k, v: naive(q, k, v, True)), atol=1e-5)


def test_splash_equals_xla(qkv):
    """In the interpreter: a TPU kernel's numbers, without its speed. Values and gradients, under a mask."""
    target = jax.random.normal(jax.random.key(4), qkv[0].shape)

    def run(attend):
        return jax.jit(jax.value_and_grad(lambda *x: jnp.sum(attend(*x) * target), (0, 1, 2)))(*qkv)

    ours = run(lambda q, k, v: attention._splash(q, k, v, banded, interpret=True))
    theirs = run(lambda q, k, v: dot_product_attention(q, k, v, mask=banded, implementation="xla"))
    chex.assert_trees_all_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_splash_compiles_to_a_tpu_kernel(monkeypatch):
    """The transformer with splash attention is lowered for TPU on a machine without one."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    model = Latte(dataclasses.replace(TINY, attention="splash", dtype="bfloat16"))
    params = jax.eval_shape(lambda: init_latte(Latte(TINY), SHAPE))
    latents = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
    forward = jax.jit(lambda p, x: model.apply({"params": p}, x, jnp.zeros(1)))
    assert "tpu_custom_call" in jax.export.export(forward, platforms=["tpu"])(params, latents).mlir_module()


def test_kernels_that_cannot_run_say_what_can(qkv, monkeypatch):
    low = tuple(x.astype(jnp.bfloat16) for x in qkv)
    with pytest.raises(ValueError, match="attention must be one of auto, xla, cudnn, splash, got 'flash'"):
        dot_product_attention(*qkv, implementation="flash")
    with pytest.raises(ValueError, match="splash attention needs a TPU, got cpu; use 'auto' or 'xla'"):
        dot_product_attention(*qkv, implementation="splash")
    with pytest.raises(ValueError, match="cuDNN attention needs an NVIDIA GPU; provide it, or use 'auto' or 'xla'"):
        dot_product_attention(*low, implementation="cudnn")
    with pytest.raises(ValueError, match="got a traced one; use 'xla'"):
        jax.jit(lambda start: attention._splash(*qkv, lambda q, k: k - q < start, interpret=True))(3)

    class Cuda:
        platform_version = "PJRT C API\ncuda 12090"

    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: Cuda)
    with pytest.raises(ValueError, match="float16 or bfloat16, not float32"):
        dot_product_attention(*qkv, implementation="cudnn")
    with pytest.raises(ValueError, match="multiple of 8 up to 128, not 20"):
        dot_product_attention(*(x[..., :20] for x in low), implementation="cudnn")
    with pytest.raises(ValueError, match="even sequence lengths under a mask, not 129 and 129"):
        dot_product_attention(*(x[:, :129] for x in low), mask=banded, implementation="cudnn")
    of_192 = [jnp.tile(x, (1, 2, 1, 1))[:, :192] for x in low]
    with pytest.raises(ValueError, match="does not leave 64 after multiples of 128, not 192"):
        dot_product_attention(*of_192, mask=banded, implementation="cudnn")
    with pytest.raises(ValueError, match="cuDNN attention needs more than one query"):
        dot_product_attention(low[0][:, :1], *low[1:], implementation="cudnn")

    chosen = []
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda q, *_, implementation, **__: chosen.append(implementation)
    )
    monkeypatch.setattr(attention, "_with_own_gradient", lambda *_: chosen.append("xla"))
    dot_product_attention(*low)
    dot_product_attention(*(x[:, :5] for x in low))  # the frames of one place: too short to gain by a fused kernel
    dot_product_attention(*qkv)
    dot_product_attention(*of_192)
    dot_product_attention(*of_192, mask=banded)  # cuDNN's gradients may be NaN
    assert chosen == ["cudnn", "xla", "xla", "cudnn", "xla"]


def test_a_kernel_runs_on_each_devices_own_examples():
    x = jnp.arange(8.0)[:, None] * jnp.ones((8, 3))
    seen = []

    def kernel(x):
        seen.append(x.shape)
        return x - x.mean()  # over what the device holds

    np.testing.assert_array_equal(per_example(kernel)(x), x - 3.5)
    with jax.set_mesh(make_mesh(data=2, fsdp=2)):
        y = jax.jit(lambda x: per_example(kernel)(x))(x)
    assert seen == [(8, 3), (2, 3)] and y.sharding.spec[0] == ("data", "fsdp")
    np.testing.assert_array_equal(y[:, 0], jnp.tile(jnp.array([-0.5, 0.5]), 4))


def test_works_in_a_foreign_jit_under_another_mesh(latte):
    model, params, latents, t, label, velocity = latte
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        rows = jax.device_put(latents, jax.NamedSharding(mesh, PartitionSpec("rows")))
        output = jax.jit(lambda p, x: 2.0 * model.apply({"params": p}, x, t, label))(params, rows)
    np.testing.assert_allclose(output, 2.0 * velocity, atol=1e-4)
