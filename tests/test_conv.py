"""A convolution is the same however it runs."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

from pv_vae_jax.layers import conv_cpu
from pv_vae_jax.layers.conv import LOWERINGS, causal_conv3d, conv2d


@pytest.fixture
def alone(monkeypatch):
    """As on one device: the tests' several share a CPU, and there the gradient is XLA's."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def reference(x, kernel, stride, padding):
    """XLA's own 2-D convolution."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


@pytest.mark.parametrize(
    ("side", "size", "stride", "padding"),
    [
        ((2, 2), 3, 1, "SAME"),
        ((1, 4), 3, 1, "SAME"),
        ((3, 3), 3, 1, "VALID"),
        ((5, 5), 3, 2, "SAME"),
        ((4, 4), 3, 2, ((0, 1), (0, 1))),
        ((6, 4), 4, 2, "SAME"),
        ((8, 5), 3, 3, ((1, 0), (2, 1))),
        ((5, 3), 3, 1, ((-1, 1), (1, 1))),
    ],
)
def test_few_pixels_are_a_matrix_product_of_equal_result(side, size, stride, padding):
    k_x, k_kernel, k_y = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(k_x, (3, *side, 4)), jax.random.normal(k_kernel, (size, size, 4, 5))
    ours = lambda x, kernel: conv2d(x, kernel, stride=stride, padding=padding)  # noqa: E731
    want, pull_want = jax.vjp(lambda x, kernel: reference(x, kernel, stride, padding), x, kernel)
    got, pull_got = jax.vjp(ours, x, kernel)
    cotangent = jax.random.normal(k_y, want.shape)
    chex.assert_trees_all_close((got, *pull_got(cotangent)), (want, *pull_want(cotangent)), atol=1e-4)
    if jax.default_backend() == "cpu":
        assert "conv_general_dilated" not in str(jax.make_jaxpr(ours)(x, kernel))


@pytest.mark.parametrize("unfolded", [1, 1_000], ids=["row by row", "a few rows"])
@pytest.mark.parametrize(
    ("shape", "features", "size", "stride", "padding"),
    [
        ((2, 3, 6, 4, 4), 5, (3, 3), 1, "SAME"),
        ((2, 3, 6, 4, 5), 4, (3, 3), 1, "SAME"),  # more channels come in than go out
        ((3, 6, 5, 8), 2, (3, 1), 1, "VALID"),
        ((6, 5, 8), 2, (4, 3), 1, ((3, 1), (0, 2))),
        ((2, 2, 8, 8, 6), 3, (3, 3), 1, ((3, 4), (1, 1))),  # pads that no tap of the turned form could have
        ((2, 2, 9, 8, 3), 5, (3, 3), 2, ((0, 1), (0, 1))),
        ((2, 1, 9, 12, 5), 3, (2, 2), 3, "SAME"),
        ((2, 1, 6, 7, 2), 3, (3, 3), 1, ((-1, 1), (1, 0))),
    ],
)
def test_the_gradient_on_cpu_is_that_of_xla(shape, features, size, stride, padding, unfolded, alone, monkeypatch):
    monkeypatch.setattr(conv_cpu, "UNFOLDED", unfolded)
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (*size, shape[-1], features))

    def flat(x, kernel):
        y = reference(x.reshape(-1, *shape[-3:]), kernel, stride, padding)
        return y.reshape(*shape[:-3], *y.shape[1:])

    want, pull_want = jax.vjp(flat, x, kernel)
    got, pull_got = jax.vjp(lambda x, kernel: conv2d(x, kernel, stride=stride, padding=padding), x, kernel)
    cotangent = jax.random.normal(keys[2], want.shape)
    chex.assert_trees_all_close((got, *pull_got(cotangent)), (want, *pull_want(cotangent)), atol=1e-4)
    if jax.default_backend() == "cpu":  # of the kernel's gradient nothing is a convolution
        assert str(jax.make_jaxpr(pull_got)(cotangent)).count("conv_general_dilated") == 1
        monkeypatch.setattr(conv_cpu, "UNFOLDED", 2**20)  # all of it stays in the cache: XLA's
        _, pull_small = jax.vjp(lambda x, kernel: conv2d(x, kernel, stride=stride, padding=padding), x, kernel)
        assert str(jax.make_jaxpr(pull_small)(cotangent)).count("conv_general_dilated") == 2


def test_the_gradient_on_cpu_has_a_gradient_and_maps(alone, monkeypatch):
    monkeypatch.setattr(conv_cpu, "UNFOLDED", 1)
    x, kernel = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3)), jnp.ones((3, 3, 3, 4))

    def steepness(convolve, x):  # as a gradient penalty has it
        return jnp.sum(jax.grad(lambda kernel: jnp.sum(convolve(x, kernel) ** 3))(kernel) ** 2)

    plain = lambda x, kernel: jax.vmap(partial(reference, stride=1, padding="SAME"), (0, None))(x, kernel)  # noqa: E731
    got, want = (jax.grad(partial(steepness, convolve))(x) for convolve in (jax.vmap(conv2d, (0, None)), plain))
    chex.assert_trees_all_close(got, want, rtol=1e-3)


def test_the_gradient_on_several_devices_is_xlas(monkeypatch):
    """In chunks, what a split batch adds up would cross devices once a chunk."""
    monkeypatch.setattr(conv_cpu, "UNFOLDED", 1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("data",), ()))
    gradient = jax.grad(lambda kernel, x: jnp.sum(conv2d(x, kernel) ** 2))
    compiled = jax.jit(gradient, in_shardings=(whole, split)).lower(jnp.ones((3, 3, 3, 4)), jnp.ones((8, 4, 4, 3)))
    text = compiled.compile().as_text()
    assert "all-reduce" in text and "while" not in text


def test_a_convolution_that_cannot_be_says_why():
    x, kernel = jnp.ones((1, 3, 4, 4, 2)), jnp.ones((3, 3, 3, 2, 2))
    with pytest.raises(ValueError, match="causal kernel must be odd, got 4 x 3"):
        causal_conv3d(x, jnp.ones((3, 4, 3, 2, 2)))
    for frames in (1, 3):
        with pytest.raises(ValueError, match=f"a context of 2 frames for a kernel of 3, got {frames}"):
            causal_conv3d(x, kernel, context=x[:, :frames])
    for side in (2, 4):  # on CPU two ways of computing it
        with pytest.raises(TypeError, match="dtype bfloat16, got float32"):
            conv2d(x[..., :side, :side, :].astype("bfloat16"), kernel[0])


def test_more_pixels_are_a_convolution():
    jaxpr = jax.make_jaxpr(conv2d)(jnp.zeros((2, 4, 4, 3)), jnp.zeros((3, 3, 3, 3)))
    assert "conv_general_dilated" in str(jaxpr)


@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_lowerings_agree(lowering, side):
    x = jax.random.normal(jax.random.key(0), (2, 3, side, side, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4, 5))
    chex.assert_trees_all_close(
        causal_conv3d(x, kernel, lowering=lowering), causal_conv3d(x, kernel, lowering="direct"), atol=1e-4
    )
