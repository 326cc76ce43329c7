"""Terms of the objective that shape latents: what they are 0 for, what they pull towards, and that they are off."""

import dataclasses
import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from pv_vae_jax.data.pipeline import examples
from pv_vae_jax.data.synthetic import SyntheticVideos, state, state_width
from pv_vae_jax.data.transforms import clip_transforms
from pv_vae_jax.losses import Objective, alignment_error, alignment_head, structure_terms
from pv_vae_jax.model import load
from pv_vae_jax.models.vae import VAE, PadToken
from pv_vae_jax.pixels import to_float
from pv_vae_jax.train import load_experiment, train
from pv_vae_jax.train.configs import OptimizerConfig
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.run import open_run
from pv_vae_jax.train.sizes import sized_batches
from pv_vae_jax.train.vae_stage import VAEStage
from pv_vae_jax.train.vae_step import VAEStep, _latents
from pv_vae_jax.typing import ConfigError, ShapeError
from studies.ablation.plan import latent_rows, load_study
from tests.test_cli import tiny_experiment  # noqa: F401

RNG = np.random.default_rng(0)
LATENTS = RNG.standard_normal((2, 5, 4, 6, 3)).astype(np.float32)
SEEN = np.ones((2, 5), np.float32)


def enlarge(latents):
    """A decoder that shows every latent as a square of 4 pixels and, but for frame 0, in 2 frames: t2s4."""
    frames = jnp.concatenate([latents[:, :1], jnp.repeat(latents[:, 1:], 2, axis=1)], axis=1)
    return jnp.repeat(jnp.repeat(frames, 4, axis=2), 4, axis=3)


def mirrored(latents):
    """The same, upside down within each square of 2 x 2 latents: it does not commute with halving."""
    b, g, h, w, z = latents.shape
    return enlarge(latents.reshape(b, g, h // 2, 2, w, z)[:, :, :, ::-1].reshape(latents.shape))


def term(name, decode, latents, video):
    total, terms = structure_terms(Objective(**{name: 2.0}), latents, video, decode, SEEN)
    assert set(terms) == {name} and float(total) == pytest.approx(2.0 * float(terms[name]))
    return float(terms[name])


def test_scale_equivariance_is_an_error_of_decoders_that_do_not_commute_with_halving():
    coarse = LATENTS[:, :, ::2, ::2].repeat(2, axis=2).repeat(2, axis=3)  # what the half size can hold
    assert term("scale_equivariance", enlarge, coarse, enlarge(coarse)) == pytest.approx(0, abs=1e-12)
    assert term("scale_equivariance", enlarge, LATENTS, enlarge(LATENTS)) > 0.1
    assert term("scale_equivariance", mirrored, coarse, mirrored(coarse)) > 0.1
    # By hand: halved latents are their means, and so is the halved clip, which is grey here.
    means = LATENTS.reshape(2, 5, 2, 2, 3, 2, 3).mean((3, 5))
    found = term("scale_equivariance", enlarge, LATENTS, 0 * enlarge(LATENTS))
    assert found == pytest.approx(float(np.mean(np.square(np.asarray(enlarge(means))))), rel=1e-5)


def test_time_equivariance_is_an_error_of_latents_that_do_not_hold_what_two_groups_show():
    """Frames 0, 2, 4, 6, 8 of `0 11 22 33 44` are `0 12 34`, and latents 0, 2, 4 decode to `0 22 44`."""
    paired = LATENTS[:, [0, 2, 2, 4, 4]]
    assert term("time_equivariance", enlarge, paired, enlarge(paired)) == 0
    expected = np.square(LATENTS[:, 1::2] - LATENTS[:, 2::2]).mean((0, 2, 3, 4)).sum() / 5
    assert term("time_equivariance", enlarge, LATENTS, enlarge(LATENTS)) == pytest.approx(float(expected), rel=1e-5)
    # An odd number of later groups: the last has no partner and is left out.
    four = LATENTS[:, :4]
    expected = np.square(four[:, 1] - four[:, 2]).mean() / 3
    assert term("time_equivariance", enlarge, four, enlarge(four)) == pytest.approx(float(expected), rel=1e-5)
    assert term("time_equivariance", enlarge, four[:, :2], enlarge(four[:, :2])) == 0  # none to skip
    # Frames and latents are one for one without compression in time: every VAE of images is equivariant.
    assert term("time_equivariance", lambda z: z, LATENTS, LATENTS) == 0


def test_alignment_is_the_share_of_variance_that_latents_do_not_tell():
    weights = RNG.standard_normal((4 * 6 * 3, 2)).astype(np.float32)
    told = LATENTS.reshape(2, 5, -1) @ weights
    kernel = alignment_head(LATENTS.shape, told.shape)["kernel"]
    assert kernel.shape == weights.shape
    error = lambda *args: float(alignment_error(*args))  # noqa: E731
    assert error(LATENTS, told, kernel, SEEN) == pytest.approx(1, abs=1e-5)
    assert error(LATENTS, told, weights, SEEN) == pytest.approx(0, abs=1e-9)
    half = error(LATENTS, told, weights / 2, SEEN)
    assert half == pytest.approx(0.25, rel=1e-4)
    # Scale and offset of a feature do not matter, nor does one that is the same everywhere.
    assert error(LATENTS, 7 * told - 30, 3.5 * weights, SEEN) == pytest.approx(half, rel=1e-3)
    constant = np.concatenate([told, np.full((2, 5, 1), 9.1, np.float32)], -1)
    assert error(LATENTS, constant, np.pad(weights / 2, ((0, 0), (0, 1))), SEEN) == pytest.approx(half, rel=1e-4)
    # What was not observed does not count; a latent frame counts if all of it was.
    observed = np.ones((2, 5, 4, 6), np.float32)
    observed[:, 3:, 0, 0] = 0
    moved = told + 100 * (np.arange(5) > 2)[:, None].astype(np.float32)
    kept = error(LATENTS[:, :3], told[:, :3], weights / 3, SEEN[:, :3])
    assert error(LATENTS, moved, weights / 3, observed) == pytest.approx(kept, rel=1e-4)


def test_alignment_takes_features_of_places():
    told = LATENTS @ np.ones((3, 2), np.float32)  # (b, g, h, w, f)
    assert alignment_head(LATENTS.shape, told.shape)["kernel"].shape == (3, 2)
    assert float(alignment_error(LATENTS, told, np.ones((3, 2)), SEEN)) == pytest.approx(0, abs=1e-9)
    observed = np.ones((2, 5, 4, 6), np.float32)
    observed[:, :, 1:, :] = 0
    told[:, :, 1:, :] = RNG.standard_normal(told[:, :, 1:, :].shape)
    assert float(alignment_error(LATENTS, told, np.ones((3, 2)), observed)) == pytest.approx(0, abs=1e-9)


def test_a_small_feature_counts_beside_a_large_one():
    told = LATENTS.reshape(2, 5, -1)[..., :2] * np.float32([1e-3, 1e4])
    kernel = np.zeros((72, 2), np.float32)
    kernel[1, 1] = 1e4  # the large one is told, the small one not at all
    assert float(alignment_error(LATENTS, told, kernel, SEEN)) == pytest.approx(0.5, rel=1e-3)


def test_a_feature_that_is_not_finite_is_not_passed_over():
    told = np.array(LATENTS.reshape(2, 5, -1)[..., :2])
    told[0, 0, 0] = np.nan
    assert np.isnan(float(alignment_error(LATENTS, told, np.zeros((72, 2), np.float32), SEEN)))


@pytest.mark.parametrize("shape", [(2, 1, 7), (2, 9, 7), (1, 5, 7), (5, 7), (2, 5, 2, 3, 7), (2, 5, 4, 7)])
def test_features_of_other_frames_or_places_are_refused(shape):
    """Cut or broadcast, they would be those of other frames: features of all frames, of one frame, of one clip."""
    objective, features = Objective(alignment=1.0), np.zeros(shape, np.float32)
    with pytest.raises(ShapeError, match=r"features \(2, 5, 'f'\) or \(2, 5, 4, 6, 'f'\), got"):
        structure_terms(objective, LATENTS, LATENTS, None, SEEN, features, np.zeros((72, 7), np.float32))
    with pytest.raises(ShapeError, match="expected features"):
        alignment_head(LATENTS.shape, shape)


def test_no_term_is_computed_that_has_no_weight():
    total, terms = structure_terms(Objective(), LATENTS, LATENTS, None, SEEN)  # nothing is decoded
    assert float(total) == 0 and terms == {}


@dataclasses.dataclass(frozen=True)
class PatchConfig:
    """Patches of 2 x 8 x 8 pixels, t2s8: linear, so that a step compiles in no time."""

    latent_channels: int = 4
    space_factor: int = 8
    time_factor: int = 2
    pad: str = "learnable"

    def latent_frames(self, frames: int) -> int:
        return 1 + (frames - 1) // 2


class PatchEncoder(nn.Module):
    @nn.compact
    def __call__(self, video):
        groups = jnp.concatenate([video[:, :1], video], axis=1)  # frame 0 fills a group of its own
        return nn.Dense(8)(rearrange(groups, "b (g f) (h p) (w q) c -> b g h w (f p q c)", f=2, p=8, q=8))


class PatchDecoder(nn.Module):
    def setup(self):
        self.head = nn.Dense(2 * 8 * 8 * 3)

    def features(self, latents):
        return latents

    def to_pixels(self, features):
        frames = rearrange(self.head(features), "b g h w (f p q c) -> b (g f) (h p) (w q) c", f=2, p=8, q=8)
        return frames[:, 1:]

    def __call__(self, latents):
        return self.to_pixels(latents)


class PatchVAE(VAE):
    def setup(self):
        self.encoder, self.decoder, self.pad = PatchEncoder(), PatchDecoder(), PadToken(4)


@pytest.fixture(scope="module")
def aligned():
    """A step with every term, whose features are the mean colours of latent frames, and its state."""
    model = PatchVAE(PatchConfig())
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 5, 16, 16, 3)))["params"]
    objective = Objective(kl=1e-3, scale_equivariance=0.5, time_equivariance=0.25, alignment=2.0, latent_noise=0.1)
    groups = lambda video: jnp.stack([video[:, 0], *(video[:, i : i + 2].mean(1) for i in (1, 3))], 1)  # noqa: E731
    step = VAEStep(
        model,
        objective,
        optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 100),
        features=lambda video: groups(video).mean((2, 3)),
    )
    return step, step.create(params, head=alignment_head((2, 3, 2, 2, 4), (2, 3, 3)))


CLIPS = {"video": np.random.default_rng(2).integers(0, 256, (4, 5, 16, 16, 3), np.uint8)}
CLIPS["video"] //= np.arange(1, 5, dtype=np.uint8)[:, None, None, None, None]  # of different brightness
CLIPS["dropped"] = np.array([0, 1, 0, 0], np.int32)


def test_a_step_trains_every_term_and_the_head_which_is_not_of_the_model(aligned):
    step, state = aligned
    run = jax.jit(step, static_argnames=("dropped", "gan"))
    after, logs = run(state, CLIPS, dropped=None)
    weights = step.objective.weights
    terms = {"mse", "motion", "kl", "scale_equivariance", "time_equivariance", "alignment"}
    assert terms <= logs.keys()
    np.testing.assert_allclose(logs["loss"], sum(weights[name] * logs[name] for name in terms), rtol=1e-5)
    assert float(logs["alignment"]) == pytest.approx(1, abs=1e-4)  # its head is zero
    assert after.params.keys() == after.ema.keys() == state.params.keys()
    assert float(jnp.abs(after.head.params["kernel"]).min()) > 0
    for _ in range(30):
        after, last = run(after, CLIPS, dropped=None)
    assert float(last["alignment"]) < 0.5
    for name in ("scale_equivariance", "time_equivariance"):
        assert float(last[name]) < float(logs[name])


def test_noise_is_added_to_what_the_decoder_gets_and_follows_from_the_step(aligned):
    step, state = aligned
    step = dataclasses.replace(step, objective=Objective(latent_noise=0.5))
    still = dataclasses.replace(step, objective=Objective())
    clip = to_float(CLIPS["video"][:1, :1])
    get = lambda step, seed: _latents(step, state.params, clip, {}, 0, jax.random.key(seed))[0]  # noqa: E731
    noise = get(step, 0) - get(still, 0)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.5) and noise.size == 16
    np.testing.assert_array_equal(get(step, 0), get(step, 0))
    assert float(jnp.abs(get(step, 1) - get(still, 1) - noise).max()) > 0.1


def test_an_alignment_without_features_or_head_says_what_it_needs(aligned):
    step, state = aligned
    with pytest.raises(ValueError, match=r"alignment trains a head: give `create` that of losses.alignment_head"):
        step.create(state.params)
    step = dataclasses.replace(step, features=None)
    with pytest.raises(ValueError, match="alignment needs features: put them into the batch"):
        jax.eval_shape(lambda state: step(state, CLIPS), state)


# The state of the synthetic world.


def test_the_state_is_where_sprites_are_and_how_fast_and_follows_the_frames():
    source = SyntheticVideos(clips=8, frames=9, size=8, seed=3, features=True)
    for index in range(8):
        scene, element = source.scene(index), source[index]
        dark, bright = sorted(scene.sprites, key=lambda sprite: sprite.colours.sum())
        found = element["features"]
        assert found.shape == (9, state_width("synthetic")) and found.dtype == np.float32
        np.testing.assert_allclose(found[:, [0, 1, 4, 5]], np.hstack([dark.position, bright.position]), atol=1e-6)
        steps = np.diff(dark.position, axis=0)
        np.testing.assert_allclose(found[1:-1, 2:4], (steps[1:] + steps[:-1]) / 2, atol=1e-6)
        np.testing.assert_array_equal(found[:, 8:], np.tile(np.eye(4)[element["label"]], (9, 1)))
    assert "features" not in SyntheticVideos(clips=8, frames=9, size=8, seed=3)[0]
    assert state(scene.part(slice(0, 1)), 4).shape == (1, 12)  # a single frame stands still


@pytest.mark.parametrize("lazy", [False, True])
def test_features_are_cut_with_their_frames(lazy):
    source = SyntheticVideos(clips=3, frames=17, size=8, features=True, lazy=lazy)
    whole = [SyntheticVideos(clips=3, frames=17, size=8, features=True)[i] for i in range(3)]
    stream = examples(source, clip_transforms(source.size, 5, stride=2, flip=0.0, reverse=0.5), seed=1)
    orders = set()
    for i in range(20):
        video, features = stream[i]["video"], stream[i]["features"]
        clip = next(clip for clip in whole if any(np.array_equal(video[0], frame) for frame in clip["video"]))
        places = [next(t for t in range(17) if np.array_equal(frame, clip["video"][t])) for frame in video]
        np.testing.assert_array_equal(features, clip["features"][places])
        orders.add(places[1] - places[0])
    assert orders == {2, -2}


ALIGNED = {"data.features": "12", "video.objective.alignment": "0.5", "video.flip": "0", "video.reverse": "0"}
ALIGNED |= {"video.objective.gan": "0"}
ALONE = {"image.steps": "0", "video.steps": "2", "decoder.steps": "0", "diffusion.steps": "0"}


def test_a_stage_gives_its_step_means_of_latent_frames(tiny_experiment, tmp_path):  # noqa: F811
    experiment = load_experiment(tiny_experiment, ALIGNED)
    stage, run = VAEStage(experiment, "video"), open_run(experiment, tmp_path / "run")
    batch = next(stage.batches(run, 0))
    features = batch["features"]
    found = stage.prepare({"features": jnp.asarray(features)})["features"]
    b, t, f = features.shape
    p = experiment.vae.time_factor
    expected = [features[:, 0], *(features[:, i : i + p].mean(1) for i in range(1, t, p))]
    np.testing.assert_allclose(found, np.stack(expected, 1), atol=1e-6)
    assert (b, f) == (experiment.video.batch_size, 12)
    assert stage.example_batches()[0]["features"].shape == found.shape
    other = VAEStage(experiment, "image")  # which aligns nothing
    assert "features" not in next(other.batches(run, 0)) and other.alignment.head(other.sizes) is None


def test_a_run_aligns_to_the_world_and_goes_on_with_its_head(tiny_experiment, tmp_path):  # noqa: F811
    light = {"video.drop_form": "filled", "vae.lowering": "direct", "vae.mid_attention": "False"}  # compiles faster
    experiment = load_experiment(tiny_experiment, ALIGNED | ALONE | light | {"checkpoint_every": "1"})
    run = train(experiment, tmp_path / "run")
    rows = [json.loads(line) for line in (run.folder("video") / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["alignment"] < 1.5 for row in rows)
    model = (run.folder("video") / "model" / "vae.safetensors").read_bytes()
    assert set(load(run.workdir).vae_params) == {"encoder", "decoder", "pad"}
    shutil.rmtree(run.folder("video") / "model")
    shutil.rmtree(run.folder("video") / "checkpoints" / "2")
    train(experiment, tmp_path / "run")
    assert (run.folder("video") / "model" / "vae.safetensors").read_bytes() == model


def test_features_of_a_stage_are_of_one_kind_and_fit(tiny_experiment, tmp_path):  # noqa: F811
    own = ALIGNED | {"data.source": "program:own", "data.features": "3"}
    experiment = load_experiment(tiny_experiment, own)
    video, given = np.zeros((9, 16, 16, 3), np.uint8), np.zeros((9, 3))
    run = open_run(experiment, tmp_path / "run", {"train": [{"video": video, "features": given}, {"video": video}]})
    source = run.source("train", random=True, features=3)
    assert source[0]["features"].dtype == np.float32 and "features" not in run.source("train", random=True)[0]
    with pytest.raises(ValueError, match=r"clip 1: expected features \(t, 3\), got \(0,\): see data.features"):
        source[1]
    with pytest.raises(ConfigError, match="needs features of one kind, got both: set config.data.features"):
        VAEStage(experiment, "video", features=lambda video: video)
    free = load_experiment(tiny_experiment, ALIGNED | {"data.features": "0"})
    with pytest.raises(ConfigError, match="needs features of one kind, got none"):
        VAEStage(free, "video")
    with pytest.raises(ShapeError, match=r"features \(4, 3, 'f'\) or \(4, 3, 4, 4, 'f'\), got \(4, 5, 16"):
        VAEStage(free, "video", features=lambda video: video[:, :, 0]).alignment.head(sized_batches(free, "video"))
    with pytest.raises(ConfigError, match="features are for objective.alignment: give it a weight"):
        train(load_experiment(tiny_experiment), tmp_path / "none", features=lambda video: video)
    sizes = load_experiment(tiny_experiment, ALIGNED | {"data.features": "0", "video.sizes": "((5,16),(5,8))"})
    mean = lambda video: video[:, ::2].mean((2, 3))  # noqa: E731
    with pytest.raises(ConfigError, match="needs sizes that differ in their frames only"):
        VAEStage(sizes, "video", features=mean).alignment.head(sized_batches(sizes, "video"))


def test_rows_of_a_study_switch_them_on():
    study = load_study(Path(__file__).resolve().parents[1] / "experiments" / "study_ablations.py")
    more = dataclasses.replace(study, rows=(study.rows[0], *latent_rows()))
    names = [row.name for row in more.validate().rows]
    assert len(names) == 6
    before = study.cell(study.rows[0], 0).name
    assert more.cell(more.rows[0], 0).name == before and len({more.cell(row, 0).key for row in more.rows}) == 6
