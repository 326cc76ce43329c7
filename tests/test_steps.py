"""Training steps: frozen means frozen, forms agree, GAN and EMA move what they should, sharded = single."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pv_vae_jax.config import OptimizerConfig
from pv_vae_jax.losses.objective import Objective
from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.sharding import rules
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.train.dit_step import DiTStep
from pv_vae_jax.train.optim import ema_update, optimizer, schedule, split_frozen
from pv_vae_jax.train.vae_step import VAEStep

LEARN = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)
BATCH = {
    "video": np.random.default_rng(1).integers(0, 256, (8, 3, 16, 16, 3), np.uint8),
    "dropped": np.array([0, 1] * 4, np.int32),
}


def leaves_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def vae_step(tiny, **changes):
    model, params, _ = tiny
    discriminator = Discriminator(DiscriminatorConfig(width=4, levels=1))
    step = VAEStep(
        model=model,
        objective=Objective(gan=0.5, gan_start=0, kl=1e-3),
        optimizer=optimizer(LEARN, 10),
        discriminator=discriminator,
        discriminator_optimizer=optimizer(LEARN, 10),
        **changes,
    )
    d = jax.jit(discriminator.init)(jax.random.key(1), jnp.zeros((1, 3, 16, 16, 3)))["params"]
    return step, step.create(params, d)


@pytest.fixture(scope="module")
def stepped(tiny):
    """Filled form, GAN on, nothing frozen: the state before and after one step, and the logs."""
    step, state = vae_step(tiny)
    after, logs = jax.jit(step, static_argnames=("dropped", "gan"))(state, BATCH, dropped=None, gan=True)
    return step, state, after, logs


def test_one_step_moves_everything_and_logs_every_term(stepped):
    _, before, after, logs = stepped
    assert int(after.step) == 1
    assert not leaves_equal(before.params["encoder"], after.params["encoder"])
    assert not leaves_equal(before.params["pad"], after.params["pad"])
    assert not leaves_equal(before.discriminator.params, after.discriminator.params)
    assert not leaves_equal(before.ema, after.ema)
    assert set(logs) == {
        *("mse", "motion", "kl", "gan", "gan_weight", "loss", "gradient_norm"),
        *("discriminator", "logits_real", "logits_fake"),
    }
    expected = logs["mse"] + logs["motion"] + logs["gan_weight"] * logs["gan"] + 1e-3 * logs["kl"]
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_the_gradient_in_pieces_is_the_gradient_of_the_loss(tiny):
    """The step splits its backward pass at the last convolution; SGD of rate 1 shows the gradient it used."""
    model, params, _ = tiny
    step = VAEStep(model, Objective(kl=1e-2), optax.sgd(1.0))
    state = step.create(params)
    after, _ = jax.jit(step, static_argnames=("dropped", "gan"))(state, BATCH, dropped=1)
    used = jax.tree.map(jnp.subtract, state.params, after.params)

    def loss(params):
        from pv_vae_jax.losses.kl import kl_divergence
        from pv_vae_jax.losses.objective import pixel_terms
        from pv_vae_jax.pixels import to_float
        from pv_vae_jax.predictive import predict_truncated

        video = to_float(BATCH["video"])
        out = predict_truncated(model, params, video, 1, jax.random.fold_in(jax.random.key(0), 0))
        pixels = model.apply({"params": params}, out.features, method="to_pixels")
        return pixel_terms(step.objective, pixels, video)[0] + 1e-2 * kl_divergence(out.posterior, out.observed)

    for a, b in zip(jax.tree.leaves(used), jax.tree.leaves(jax.jit(jax.grad(loss))(params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-3)


def test_a_frozen_encoder_does_not_move_by_one_bit(tiny):
    step, state = vae_step(tiny, frozen=("encoder", "pad"))
    run = jax.jit(step, static_argnames=("dropped", "gan"))
    after = state
    for _ in range(3):
        after, _ = run(after, BATCH, dropped=0, gan=True)
    for part in ("encoder", "pad"):
        assert leaves_equal(state.params[part], after.params[part])
        assert leaves_equal(state.params[part], after.ema[part])
    assert not leaves_equal(state.params["decoder"], after.params["decoder"])
    with pytest.raises(ValueError, match="cannot freeze"):
        split_frozen(state.params, ("encodr",))


def test_eight_devices_take_the_same_step_as_one(stepped):
    step, state, after, logs = stepped
    old = rules.MIN_SHARDED_BYTES
    rules.MIN_SHARDED_BYTES = 0  # the tiny network has only small arrays
    try:
        mesh = make_mesh(data=2, fsdp=4)
        sharding = rules.state_sharding(mesh, jax.eval_shape(lambda: state))
    finally:
        rules.MIN_SHARDED_BYTES = old
    assert any(not s.is_fully_replicated for s in jax.tree.leaves(sharding))
    with jax.set_mesh(mesh):
        run = jax.jit(step, static_argnames=("dropped", "gan"))
        other, other_logs = run(jax.device_put(state, sharding), rules.put_batch(mesh, BATCH), dropped=None, gan=True)
    np.testing.assert_allclose(other_logs["loss"], logs["loss"], rtol=1e-5)
    # Adam's first step is the sign of the gradient: only entries whose gradient is noise may differ.
    close = [
        np.isclose(a, b, atol=1e-5)
        for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(other.params), strict=True)
    ]
    assert np.mean(np.concatenate([c.ravel() for c in close])) > 0.995


def test_ema_follows_with_a_short_memory_first():
    ema = ema_update({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, jnp.asarray(0), 0.999)
    assert float(ema["w"][0]) == pytest.approx(0.9)
    late = ema_update({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, jnp.asarray(10**6), 0.999)
    assert float(late["w"][0]) == pytest.approx(0.001, rel=1e-3)


def test_schedule_warms_up_and_decays_to_a_tenth():
    rate = schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=10), 100)
    assert float(rate(0)) == pytest.approx(0.1) and float(rate(10)) == pytest.approx(1.0)
    assert float(rate(100)) == pytest.approx(0.1)


def test_diffusion_learns_a_constant():
    model = Latte(LatteConfig(latent_channels=4, depth=2, width=16, heads=2, classes=2))
    rng = np.random.default_rng(0)
    batch = {
        "mean": np.ones((8, 2, 2, 2, 4), np.float32) * 3,
        "logvar": np.full((8, 2, 2, 2, 4), -20, np.float32),
        "label": rng.integers(0, 2, 8).astype(np.int32),
    }
    step = DiTStep(
        model,
        optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 40),
        np.full(4, 3, np.float32),
        np.ones(4, np.float32),
    )
    state = step.create(model.init(jax.random.key(0), batch["mean"], np.zeros(8), batch["label"])["params"])
    run, losses = jax.jit(step), []
    for _ in range(40):
        state, logs = run(state, batch)
        losses.append(float(logs["loss"]))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adamw():
    """A kernel of any rank moves by 0.2 sqrt(larger side) times a nearly orthogonal matrix, layers of a scan apart."""
    rng = np.random.default_rng(0)
    shapes = {"dense": (12, 8), "conv": (3, 3, 3, 4, 8), "stacked": (2, 8, 16)}
    params = {name: {"kernel": jnp.zeros(shape), "bias": jnp.zeros((2, 8))} for name, shape in shapes.items()}
    grads = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), params)
    config = OptimizerConfig(name="muon", learning_rate=1e-2, warmup_steps=0, clip_norm=0)
    rules = {"muon": optimizer(config, 10), "adamw": optax.nadamw(schedule(config, 10), config.b1, config.b2)}
    for tree in (params, grads):
        tree |= {f"layer{i}": jax.tree.map(lambda p, i=i: p[i], tree["stacked"]) for i in range(2)}
    updates = {name: jax.jit(rule.update)(grads, rule.init(params), params)[0] for name, rule in rules.items()}
    for i in range(2):
        alone = updates["muon"][f"layer{i}"]["kernel"]
        np.testing.assert_allclose(updates["muon"]["stacked"]["kernel"][i], alone, atol=1e-6)
    for name, shape in shapes.items():
        matrices = np.asarray(updates["muon"][name]["kernel"]).reshape(-1 if name == "stacked" else 1, *_matrix(shape))
        for matrix in matrices:
            singular = np.linalg.svd(matrix, compute_uv=False) / (1e-2 * 0.2 * max(matrix.shape) ** 0.5)
            assert singular.min() > 0.5 and singular.max() < 1.3
        np.testing.assert_allclose(updates["muon"][name]["bias"], updates["adamw"][name]["bias"], rtol=1e-6)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[-2:] if len(shape) == 3 else (int(np.prod(shape[:-1])), shape[-1])
