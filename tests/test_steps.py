"""Training steps: frozen means frozen, forms agree, GAN and EMA move what they should, sharded = single."""

import dataclasses
import functools
import math
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tqdm import tqdm

from pv_vae_jax.dropping import Dropping
from pv_vae_jax.losses import Objective
from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.train import loop
from pv_vae_jax.train.configs import Experiment, OptimizerConfig, VAEStageConfig
from pv_vae_jax.train.dit_step import DiTStep
from pv_vae_jax.train.nan_check import check_finite
from pv_vae_jax.train.optim import ema_update, optimizer, schedule, split_frozen
from pv_vae_jax.train.state import ParamsAndOpt, create_state
from pv_vae_jax.train.vae_stage import VAEStage
from pv_vae_jax.train.vae_step import VAEStep
from pv_vae_jax.typing import NonFiniteError
from tests.conftest import TINY
from tests.test_cli import pv_vae, tiny_experiment  # noqa: F401
from tests.toy_stage import ToyStage, toy_run

LEARN = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)
BATCH = {
    "video": np.random.default_rng(1).integers(0, 256, (8, 3, 16, 16, 3), np.uint8),
    "dropped": np.array([0, 1] * 4, np.int32),
}


def leaves_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def vae_step(tiny, **changes):
    model, params, _ = tiny
    discriminator = Discriminator(DiscriminatorConfig(width=4, levels=1, lowering="direct"))
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
        from pv_vae_jax.losses import kl_divergence, pixel_terms
        from pv_vae_jax.pixels import to_float
        from pv_vae_jax.predictive import predict_truncated

        video = to_float(BATCH["video"])
        out = predict_truncated(model, params, video, 1, jax.random.fold_in(jax.random.key(0), 0))
        pixels = model.apply({"params": params}, out.latents, method="decode")
        return pixel_terms(step.objective, pixels, video)[0] + 1e-2 * kl_divergence(out.posterior, out.observed)

    chex.assert_trees_all_close(used, jax.jit(jax.grad(loss))(params), atol=2e-5, rtol=2e-3)


def test_the_step_withholds_by_its_pattern_and_regularises_what_is_left(tiny):
    """As above, for what lies beyond the paper."""
    from pv_vae_jax.losses import latent_terms, pixel_terms
    from pv_vae_jax.masking import sample_mask
    from pv_vae_jax.pixels import to_float
    from pv_vae_jax.predictive import predict_masked

    model, params, _ = tiny
    objective = Objective(kl=1e-2, local_correlation=0.5)
    step = VAEStep(model, objective, optax.sgd(1.0), drop_pattern="random", drop_from="latents")
    video = np.random.default_rng(1).integers(0, 256, (2, 5, 16, 16, 3), np.uint8)
    state = step.create(params)
    run = jax.jit(step, static_argnames=("dropped", "gan"))
    after, logs = run(state, {"video": video, "dropped": np.array([1, 1], np.int32)}, dropped=None)
    used = jax.tree.map(jnp.subtract, state.params, after.params)

    def loss(params):
        key, clip = jax.random.fold_in(jax.random.key(0), 0), to_float(video)
        observed = sample_mask("random", jax.random.fold_in(key, 2), jnp.array([1, 1]), (3, 2, 2))
        out = predict_masked(model, params, clip, observed, key, drop_from="latents")
        pixels = model.apply({"params": params}, out.latents, method="decode")
        total = pixel_terms(objective, pixels, clip)[0] + latent_terms(objective, out.posterior, out.observed)[0]
        return total, observed

    (value, observed), expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert (np.asarray(observed).sum((1, 2, 3)) == 8).all() and not np.asarray(observed).all((2, 3))[:, 1:].any(1).all()
    np.testing.assert_allclose(logs["loss"], value, rtol=1e-5)
    assert -1 <= float(logs["local_correlation"]) < 0.75
    chex.assert_trees_all_close(used, expected, atol=2e-5, rtol=2e-3)
    with pytest.raises(ValueError, match="'random' needs the filled form"):
        jax.eval_shape(lambda s: step(s, {"video": video}, dropped=1), state)


def test_scheduled_numbers_of_groups_follow_the_ratio_and_the_step_alone():
    config = VAEStageConfig(steps=400, drop_ratio=1.0, drop_schedule="linear", drop_ramp=0.5)
    dropping = VAEStage(Experiment(video=config), "video").dropping
    assert dropping.ramp_steps == 200
    draw = lambda step: dropping.draw(5, 8, 3, step)  # noqa: E731
    drawn = np.array([draw(n) for n in range(400)])
    limits = np.minimum(np.arange(400) / 200 * 4 + 1e-6, 4).astype(int)
    assert (drawn <= limits).all() and {0, 1, 2, 3, 4} == set(drawn[200:].tolist())
    assert all((drawn[limits == most] == most).any() for most in range(5))
    assert draw(7).dtype == np.int32 and draw(7).shape == ()
    everyone = dataclasses.replace(dropping, per_example=True).draw(5, 8, 3, 399)
    assert everyone.shape == (8,) and len(set(everyone.tolist())) > 1 and everyone[0] == draw(399)
    ended = dataclasses.replace(config, drop_ratio=0.0, drop_ratio_start=1.0)
    assert ended.drop_ratio_max == 1.0 and config.drop_ratio_max == 1.0
    falling = VAEStage(Experiment(video=ended), "video").dropping
    assert any(falling.draw(5, 8, 3, n) for n in range(200))
    assert not any(falling.draw(5, 8, 3, n) for n in range(200, 400))


@pytest.mark.parametrize("form", [pytest.param("truncated", marks=pytest.mark.slow), "filled"])  # a program for each k
def test_a_run_with_a_schedule_that_was_cut_ends_with_the_same_bits(tiny_experiment, tmp_path, monkeypatch, form):  # noqa: F811
    """A whole run through the command; the filled form with a pattern. The ratio is 0 for two steps, then all."""
    settings = {"steps": 4, "drop_schedule": "linear", "drop_ramp": 0.5, "objective.gan": 0, "drop_form": form}
    settings |= {"drop_per_example": form == "filled"}
    if form == "filled":
        settings |= {"drop_pattern": "block", "objective.local_correlation": 0.1}
    flags = [f"--config.video.{key}={value}" for key, value in settings.items()]
    flags += ["--config.image.steps=0", "--config.decoder.steps=0", "--stage=video"]
    real, seen = Dropping.draw, {}

    def train(workdir, stop=None):
        def spy(dropping, groups, batch_size, seed, step):
            if step == stop:
                raise KeyboardInterrupt
            seen.setdefault(step, []).append(real(dropping, groups, batch_size, seed, step))
            return seen[step][-1]

        monkeypatch.setattr(Dropping, "draw", spy)
        status, _, error = pv_vae("train", "--config", tiny_experiment, "--workdir", workdir, *flags)
        assert (status == 0) == (stop is None), error
        return error

    train(tmp_path / "whole")
    train(tmp_path / "cut", stop=3)
    assert "resumed at step 2 of 4" in train(tmp_path / "cut")
    assert [len(draws) for draws in (seen[n] for n in range(4))] == [2, 2, 3, 2]
    assert all(np.array_equal(draws[0], other) for draws in seen.values() for other in draws)
    assert not np.any(seen[0]) and any(np.any(seen[n]) for n in range(4))
    model = [(tmp_path / run / "video" / "model" / "vae.safetensors").read_bytes() for run in ("whole", "cut")]
    assert model[0] == model[1]


def test_a_frozen_encoder_does_not_move_by_one_bit(tiny):
    step, state = vae_step(tiny, frozen=("encoder", "pad"))
    run = jax.jit(step, static_argnames=("dropped", "gan"))
    after = state
    for _ in range(3):
        after, _ = run(after, BATCH, dropped=0)  # with the GAN: stage decoder in tests/test_cli.py
    for part in ("encoder", "pad"):
        assert leaves_equal(state.params[part], after.params[part])
        assert leaves_equal(state.params[part], after.ema[part])
    assert not leaves_equal(state.params["decoder"], after.params["decoder"])
    with pytest.raises(ValueError, match="cannot freeze"):
        split_frozen(state.params, ("encodr",))


def test_ema_follows_with_a_short_memory_first():
    ema = ema_update({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, jnp.asarray(0), 0.999)
    assert float(ema["w"][0]) == pytest.approx(0.9)
    late = ema_update({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, jnp.asarray(10**6), 0.999)
    assert float(late["w"][0]) == pytest.approx(0.001, rel=1e-3)


def test_schedule_warms_up_and_decays_to_a_tenth():
    rate = schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=10), 100)
    assert float(rate(0)) == pytest.approx(0.1) and float(rate(10)) == pytest.approx(1.0)
    assert float(rate(100)) == pytest.approx(0.1)
    short = schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=1_000), 20)
    assert float(short(10)) == pytest.approx(1.0) and float(short(20)) == pytest.approx(0.1), "half of it falls"


def test_a_step_that_cannot_be_says_why(tiny):
    step, state = vae_step(tiny)
    with pytest.raises(TypeError, match="expected uint8 pixels in .*, got float32"):
        step(state, {"video": BATCH["video"] / np.float32(255), "dropped": BATCH["dropped"]}, dropped=None)
    with pytest.raises(ValueError, match="the GAN needs a discriminator"):
        dataclasses.replace(step, discriminator=None)(state, BATCH, dropped=None, gan=True)
    with pytest.raises(ValueError, match="3 equal parts do not divide"):
        dataclasses.replace(step, grad_accum_steps=3)(state, BATCH, dropped=None)


@pytest.mark.slow
def test_a_batch_in_parts_gives_the_mean_of_their_gradients(tiny):
    step, state = vae_step(tiny, grad_accum_steps=2)
    batch = {"video": BATCH["video"][:, :1]}  # images: the smallest programs with both sides on
    step = dataclasses.replace(step, optimizer=optax.sgd(1.0), discriminator_optimizer=optax.sgd(1.0))
    state = step.create(state.params, state.discriminator.params)
    after, logs = jax.jit(step, static_argnames=("dropped", "gan"))(state, batch, dropped=0, gan=True)
    key = jax.random.fold_in(jax.random.key(0), 0)
    gradients = jax.jit(step._gradients, static_argnames=("dropped", "gan"))
    parts = [
        gradients(state, {"video": batch["video"][i::2]}, jax.random.fold_in(key, i), dropped=0, gan=True)
        for i in range(2)
    ]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    moved = jax.tree.map(
        jnp.subtract, (state.params, state.discriminator.params), (after.params, after.discriminator.params)
    )
    chex.assert_trees_all_close(moved, mean[:2], atol=1e-5)
    assert all(np.isclose(logs[name], value, rtol=1e-4) for name, value in mean[2].items())


def test_momentum_in_bfloat16_takes_half_the_memory_and_nearly_the_same_steps():
    params = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((16, 8)), jnp.float32)}
    updates = {}
    for name in ("adamw", "muon"):
        for dtype in ("float32", "bfloat16"):
            rule = optimizer(dataclasses.replace(LEARN, name=name, momentum_dtype=dtype, clip_norm=0), 10)
            state, update = rule.init(params), jax.jit(rule.update)
            for i in range(3):
                updates[name, dtype], state = update(jax.tree.map(lambda p, i=i: jnp.cos(p + i), params), state, params)
            kept = [a.dtype for a in jax.tree.leaves(state) if a.shape == (16, 8)]
            assert kept.count(jnp.bfloat16) == (dtype == "bfloat16")
        a, b = (updates[name, dtype]["kernel"] for dtype in ("float32", "bfloat16"))
        assert 0 < float(jnp.abs(a - b).max()) < 0.05 * float(jnp.abs(a).max())


@pytest.fixture(scope="module")
def graded(tiny):
    """`graded(config)`: the gradient of a loss through a network, and how many numbers its backward pass keeps."""
    _, params, video = tiny

    @functools.cache
    def run(config):
        loss = lambda p: jnp.mean(jnp.square(VAE(config).apply({"params": p}, video[:1, :3])[0]))  # noqa: E731
        kept = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        return jax.jit(jax.grad(loss))(params), sum(a.size for a in jax.tree.leaves(kept))

    return run


LEVELS = ("encoder/level0", "decoder/level_1")


def test_a_network_that_is_computed_again_gives_the_same_gradient(graded):
    chex.assert_trees_all_close(graded(TINY)[0], graded(dataclasses.replace(TINY, remat=True))[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("field", ["remat_levels", "remat_blocks"])
def test_levels_that_are_computed_again_keep_less_and_give_the_same_gradient(graded, field):
    (expected, all_kept), (found, kept) = graded(TINY), graded(dataclasses.replace(TINY, **{field: LEVELS}))
    chex.assert_trees_all_close(found, expected, atol=1e-6)
    assert kept < all_kept
    with pytest.raises(ValueError, match="must name levels, .*decoder/level_0, .*; got encoder/level7"):
        dataclasses.replace(TINY, **{field: ("encoder/level7",)})


def test_nothing_crosses_to_the_device_unasked_inside_the_loop(tmp_path, monkeypatch):
    def step(state, batch):
        params = {"w": state.params["w"] + batch["x"].mean()}
        return state.replace(step=state.step + 1, params=params), {"loss": params["w"]}

    def train(folder):
        stage = ToyStage(step, lambda: create_state({"w": jnp.zeros(())}, ()), {"x": np.ones(4, np.float32)}, steps=3)
        return loop.run_stage(stage, toy_run(folder))

    assert float(train(tmp_path / "put").params["w"]) == 3.0
    monkeypatch.setattr(loop, "put_batch", lambda mesh, batch: batch)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(tmp_path / "unasked")


@pytest.mark.parametrize("network", ["params", "discriminator", "head"])
def test_no_state_is_saved_with_a_network_that_is_not_finite(tmp_path, network):
    """Only the next step would show it, and a resumed run would meet it again and again."""

    def step(state, batch):
        spoilt = {"w": state.params["w"] * jnp.inf}
        spoilt = spoilt if network == "params" else ParamsAndOpt(spoilt, ())
        return state.replace(step=state.step + 1, **{network: spoilt}), {"loss": batch["x"].mean()}

    def create():
        along = {name: ParamsAndOpt({"w": jnp.ones(())}, ()) for name in ("discriminator", "head")}
        return create_state({"w": jnp.ones(())}, ()).replace(**along)

    name = "w" if network == "params" else f"{network}/w"
    with pytest.raises(NonFiniteError, match=f"step 1: 1 parameters are not finite, {name} among them"):
        loop.run_stage(ToyStage(step, create, {"x": np.ones(4, np.float32)}, steps=1), toy_run(tmp_path))
    assert not list(tmp_path.glob("checkpoints/[0-9]*"))


@pytest.mark.parametrize("size", ["", "/17x32"])
def test_the_term_that_is_not_finite_is_named_before_those_that_follow_from_it(size):
    terms = {f"{name}{size}": math.nan for name in ("gradient_norm", "loss", "kl")} | {f"mse{size}": 0.1}
    with pytest.raises(NonFiniteError, match=f"step 2: kl{size} is nan"):
        check_finite("video", [(1, {f"mse{size}": 0.1}), (2, terms)])
    del terms[f"kl{size}"]
    with pytest.raises(NonFiniteError, match=f"step 2: loss{size} is nan"):
        check_finite("video", [(2, terms)])


def test_the_bar_says_that_the_first_step_compiles_and_does_not_count_it(tmp_path, monkeypatch, capsys, caplog):
    bars = []

    def step(state, batch):
        time.sleep(2)  # while it is traced
        return state.replace(step=state.step + 1), {"loss": batch["x"].mean()}

    monkeypatch.setattr(loop, "progress_bar", lambda **given: bars.append((tqdm(**given), time.time())) or bars[0][0])
    with jax.log_compiles():
        stage = ToyStage(step, lambda: create_state({"w": jnp.zeros(())}, ()), {"x": np.ones(4, np.float32)}, steps=3)
        loop.run_stage(stage, toy_run(tmp_path))
    ((bar, made),) = bars
    shown = capsys.readouterr().err
    assert 0 < shown.index("image, compiling:   0%") < shown.index("image: 100%")
    assert "step/s" not in "".join(line for line in shown.split("\r") if "compiling" in line), "no rate of nothing"
    assert bar.start_t - made > 1.9
    assert "image_step" in caplog.text and "unnamed" not in caplog.text


@pytest.mark.slow
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
    state = step.create(jax.jit(model.init)(jax.random.key(0), batch["mean"], np.zeros(8), batch["label"])["params"])
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


def test_muon_refuses_a_kernel_that_it_would_take_for_layers():
    """A 1-D convolution has three axes, as dense layers of a scan have."""
    params = {"conv": {"kernel": jnp.zeros((3, 4, 8)), "bias": jnp.zeros(8)}}
    with pytest.raises(
        ValueError, match=r"expected a bias \(layers, features\) beside .*conv.*; use optimizer.name=adamw"
    ):
        optimizer(OptimizerConfig(name="muon"), 10).init(params)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[-2:] if len(shape) == 3 else (int(np.prod(shape[:-1])), shape[-1])
