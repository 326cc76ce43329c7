"""`python -m studies.motion`: tracks and laws are exact on known clips, the rule is right on cells made by hand."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pv_vae_jax.cli.main import run_command
from pv_vae_jax.data.sources import open_source
from pv_vae_jax.data.synthetic import FAMILIES, SyntheticVideos
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.train.configs import Experiment
from studies.motion import __main__ as command
from studies.motion import cells as cell_file
from studies.motion import predicting
from studies.motion.plan import Roles, Row, Study
from studies.motion.rotation import RotatedLatte, rotation
from studies.motion.rule import Cells, at_psnr, effect, judge, read_at
from studies.motion.scores import score_clips, shuffled, walk_band
from studies.motion.skill import latent_skill
from studies.motion.tracking import GROUND, track
from tests.conftest import perturbed

N, SIZE = 32, 24
LABELS = np.arange(N) % len(FAMILIES)
WORLD = open_source("plain:" + ",".join(FAMILIES), frames=17, size=SIZE, clips=N, seed=5)


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return np.stack([WORLD[i]["video"] for i in range(N)])


@pytest.fixture(scope="module")
def blurred(clips) -> np.ndarray:
    """Clips as a VAE of 29 dB returns them."""
    soft = ndimage.gaussian_filter(clips.astype(float), (0, 0, 0.6, 0.6, 0))
    soft += np.random.default_rng(0).normal(0, 8, clips.shape)
    found = np.clip(np.rint(soft), 0, 255).astype(np.uint8)
    assert 10 * np.log10(255**2 / np.square(found.astype(float) - clips).mean()) < 29.5
    return found


def walks(clips: int, seed: int) -> np.ndarray:
    source = open_source("plain:walk", frames=17, size=SIZE, clips=clips, seed=seed)
    return np.stack([source[i]["video"] for i in range(clips)])


# Tracks and laws.


def test_the_plain_world_has_the_motion_of_the_textured_one_and_stays_in_the_picture():
    textured = SyntheticVideos(N, 17, SIZE, seed=10, sprites=1, families=FAMILIES)
    for i in range(N):
        (disc,), (sprite,) = WORLD.scene(i).sprites, textured.scene(i).sprites
        np.testing.assert_allclose(disc.position, 0.5 + 0.75 * (sprite.position - 0.5))
        assert (disc.position > disc.radius).all() and (disc.position < 1 - disc.radius).all()
    ground = WORLD[0]["video"][:, 0, 0]
    assert (ground == GROUND).all()


def test_tracks_are_the_true_ones_also_after_blur_and_noise(clips, blurred):
    truth = np.stack([WORLD.scene(i).sprites[0].position for i in range(N)]) * SIZE
    for video, far in ((clips, 0.1), (blurred, 0.25)):
        found = track(video)
        assert found.whole.all()
        assert np.linalg.norm(found.place - truth, axis=-1).max() < far


def test_objects_that_appear_and_vanish_are_counted(clips):
    video = clips.copy()
    video[0, 3] = GROUND
    corner = video[1, :, :6, :6]
    assert (corner == GROUND).all(), "choose a clip whose corner is empty"
    corner[5:8] = 255
    tracks = track(video)
    assert tracks.objects[0, 3] == 0 and np.isnan(tracks.place[0, 3]).all()
    assert (tracks.objects[1] == [1] * 5 + [2] * 3 + [1] * 9).all()
    scores = score_clips(video, LABELS, FAMILIES)
    assert scores["vanish"] == 1 / N and scores["appear"] == 3 / N and scores["one_object"] == 1 - 2 / N
    assert scores["kept"] == 1 - 2 / N


def test_objects_that_crowd_each_other_out_have_a_place(clips):
    """Stripes two pixels apart, as a VAE that has hardly been trained draws them: each is in reach of the next."""
    video = np.full_like(clips[:2], GROUND)
    video[..., ::2, :] = 255
    tracks = track(video)
    assert (tracks.objects > 4).all() and np.isfinite(tracks.place).all()
    assert score_clips(video, LABELS[:2], FAMILIES)["kept"] == 0


def test_real_clips_keep_their_laws_and_shuffled_ones_do_not(clips, blurred):
    for video in (clips, blurred):
        scores = score_clips(video, LABELS, FAMILIES)
        assert scores["kept"] == scores["class"] == 1 and scores["frames"] == 17
    floor = score_clips(shuffled(clips), LABELS, FAMILIES)
    assert floor["kept"] == 0 and floor["frames"] < 4
    other = score_clips(clips, (LABELS + 1) % len(FAMILIES), FAMILIES)
    assert other["kept"] < 0.1 and other["class"] == 0, "a law is not kept by a clip of another"


def test_a_law_that_breaks_is_kept_until_it_does(clips):
    video = clips.copy()
    video[:, 9:] = np.roll(video[:, 9:], 5, axis=3)
    scores = score_clips(video, LABELS, FAMILIES)
    assert scores["kept"] == 0 and 8.5 <= scores["frames"] <= 11


def test_walks_are_told_by_their_steps(clips):
    band = walk_band(walks(128, seed=1))
    real = score_clips(walks(128, seed=2), np.zeros(128, int), ("walk",), band)
    assert real["kept"] > 0.8 and real["steps"] < 0.1
    for video in (clips, shuffled(walks(32, seed=2))):
        other = score_clips(video, np.zeros(N, int), ("walk",), band)
        assert other["kept"] < 0.2 and other["steps"] > 3 * real["steps"]
    nothing = walk_band(np.full((4, 17, 24, 24, 3), 128, np.uint8))  # as an untrained decoder draws
    scores = score_clips(walks(8, seed=2), np.zeros(8, int), ("walk",), nothing)
    assert scores["kept"] == 0 and scores["steps"] == 1, "like none of no clips"


# Latents.


def test_skill_is_0_for_a_gaussian_of_equal_covariance_and_1_for_real_latents():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((2, 2))
    real = lambda n: (np.sign(rng.standard_normal((n, 2))) + 0.1 * rng.standard_normal((n, 2))) @ mix + 3  # noqa: E731
    other = real(8_000)
    gauss = rng.multivariate_normal(other.mean(0), np.cov(other.T), 2_000)
    held_out = real(2_000)
    for drawn, expected in ((real(2_000), 1), (gauss, 0)):
        for skill in latent_skill(drawn, held_out, other).values():
            assert abs(skill - expected) < 0.25
    assert max(latent_skill(gauss + 2, held_out, other).values()) < -0.5


def test_the_negative_control_is_latte_on_rotated_latents():
    config = LatteConfig(latent_channels=2, depth=2, width=8, heads=2)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 2, 2, 2)), jnp.float32)
    t = jnp.array([0.3, 0.7])
    params = perturbed(jax.jit(Latte(config).init)(jax.random.key(0), x, t)["params"])
    mix = rotation(8)
    np.testing.assert_allclose(mix @ mix.T, np.eye(8), atol=1e-6)
    turned = (x.reshape(2, 3, 8) @ mix).reshape(x.shape)
    outside = (Latte(config).apply({"params": params}, turned, t).reshape(2, 3, 8) @ mix.T).reshape(x.shape)
    inside = RotatedLatte(config).apply({"params": params}, x, t)
    np.testing.assert_allclose(inside, outside, atol=1e-5)
    assert np.abs(inside - Latte(config).apply({"params": params}, x, t)).max() > 0.1


class Oracle:
    """A VAE that draws withheld frames as they are, or repeats the last one that it saw."""

    def __init__(self, knows: bool):
        self.knows, self.vae = knows, VAE(VAEConfig())

    def predict(self, video: np.ndarray, observed: int) -> np.ndarray:
        still = np.repeat(video[:, observed - 1 : observed], video.shape[1] - observed, axis=1)
        drawn = video if self.knows else np.concatenate([video[:, :observed], still], axis=1)
        return drawn / np.float32(127.5) - 1


def test_what_a_vae_predicts_is_scored_by_the_law(clips, monkeypatch, tmp_path):
    cell, vae = SimpleNamespace(families=("fall", "swing")), SimpleNamespace(folder=lambda stage: tmp_path / stage)
    kinds = [FAMILIES.index(name) for name in cell.families]
    mine = np.isin(LABELS, kinds)
    held_out = clips[mine], np.array([kinds.index(label) for label in LABELS[mine]])
    monkeypatch.setattr(predicting, "real_clips", lambda run, split, most: held_out)
    for knows in (True, False):
        monkeypatch.setattr(predicting, "load", lambda path, knows=knows: Oracle(knows))
        found = predicting.predicted(cell, vae)
        assert set(found) == {"1", "2", "3", "4"}
        assert all(share == 1 for share in found.values()) if knows else max(found.values()) < 0.3


# The rule.

ROLES = Roles()
ROWS = (
    *(Row(name, seeds=8) for name in (ROLES.baseline, ROLES.method, ROLES.positive, ROLES.negative)),
    *(Row(f"{name}, {kl}", curve=name) for name in (ROLES.baseline, ROLES.method) for kl in ("less", "more")),
    *(Row(name, against=ROLES.placebo_baseline) for name in (ROLES.placebo_baseline, ROLES.placebo_method)),
)


def made_up(gains: dict[str, float], psnr: dict[str, float] | None = None, noise: float = 0.01) -> Cells:
    """Cells whose score is 0.4, 0.05 more for each dB above 30, and a gain by row; the curve's rows are 2 dB away."""
    rng, trees = np.random.default_rng(0), {}
    for row in ROWS:
        for seed in range(row.seeds):
            name = row.curve or row.name
            level = 30 + (psnr or {}).get(name, 0) + {"less": 2, "more": -2}.get(row.name.rpartition(", ")[2], 0)
            kept = 0.4 + 0.05 * (level - 30) + gains.get(name, 0) + rng.normal(0, noise)
            generated = {"kept": kept, "frames": 9.0, "one_object": 0.9, "class": 0.8}
            trees[row.name, seed] = {
                "psnr": level,
                "generated": generated,
                "real": {"kept": 1.0},
                "reconstructed": {"kept": 0.95},
                "shuffled": {"kept": 0.0},
                "curve": {"step": [1, 2, 4], "kept": [kept / 4, kept / 2, kept], "loss": [3.0, 2.0, 1.9]},
                "velocity_loss": [1.0, 2.0],
            }
    return Cells(Study(Experiment(), ROWS), trees)


WORKING = {ROLES.positive: 0.2, ROLES.negative: -0.2}


def test_a_planted_effect_is_claimed_in_either_direction():
    for gain, word in ((0.12, "easier"), (-0.12, "harder")):
        tree = judge(made_up(WORKING | {ROLES.method: gain}))
        assert word in tree["verdict"] and tree["placebo"]["holds"]
        assert tree["controls"]["positive"]["won"] and tree["controls"]["negative"]["lost"]
        assert abs(tree["effect"]["difference"]["mean"] - gain) < 0.02
        assert set(tree) >= {"rule", "primary", "rows", "controls", "placebo", "verdict"}
        row = next(row for row in tree["rows"] if row["name"] == ROLES.method)
        assert row["seeds"] == list(range(8)) and row["interval"][0] < row["mean"] < row["interval"][1]
        json.dumps(tree)


def test_no_effect_and_a_small_one_are_not_claimed():
    for gain in (0.0, 0.04):
        assert "no effect" in judge(made_up(WORKING | {ROLES.method: gain}))["verdict"]


def test_seven_of_eight_seeds_must_agree():
    baseline = dict.fromkeys(range(8), 0.4)
    for gains, found in (
        ([0.3] * 7 + [-0.1], 1),
        ([-0.3] * 7 + [0.1], -1),
        ([0.3] * 6 + [-0.1] * 2, 0),
        ([0.05] * 8, 0),  # below a tenth of the way from 0.4 to 1
        ([0.3] * 7, 0),  # too few
    ):
        got = effect({seed: 0.4 + gain for seed, gain in enumerate(gains)}, baseline, end=1.0)
        assert got.found == found and abs(got.distance - 0.6) < 1e-9


def test_broken_controls_forbid_a_verdict():
    for broken in (ROLES.positive, ROLES.negative):
        tree = judge(made_up(WORKING | {broken: 0.0, ROLES.method: 0.2}))
        assert "cannot tell" in tree["verdict"]


def test_rotated_latents_lose_by_the_room_that_is_left_below():
    """A baseline at 0.08 cannot lose a tenth of the way to real clips."""
    low = -0.32  # of all rows, so that the baseline is at 0.08
    gains = dict.fromkeys(dataclasses.asdict(ROLES).values(), low)
    tree = judge(
        made_up(gains | {ROLES.positive: low + 0.2, ROLES.negative: low - 0.05, ROLES.method: low - 0.05}, noise=0.001)
    )
    assert tree["controls"]["negative"]["lost"] and tree["effect"]["found"] == 0
    assert tree["controls"]["negative"]["effect"]["distance"] < 0.1 < tree["effect"]["distance"]


def test_a_gain_in_the_placebo_is_not_claimed():
    tree = judge(made_up(WORKING | {ROLES.method: 0.12, ROLES.placebo_method: 0.12}))
    assert not tree["placebo"]["holds"] and "placebo" in tree["verdict"]
    assert tree["placebo"]["effect"]["distance"] == pytest.approx(0.55, abs=0.02), "from 0.4 to reconstructed clips"


def test_a_gain_of_reconstruction_is_none_of_generation():
    """The method is a dB better, and that is all there is."""
    tree = judge(made_up(WORKING, {ROLES.method: 1.5}))
    row = next(row for row in tree["rows"] if row["name"] == ROLES.method)
    assert row["as_sampled"]["mean"] > 0.45 and abs(tree["effect"]["difference"]["mean"]) < 0.02
    assert "no effect" in tree["verdict"]
    assert not row["far"], "its curve reaches from 29.5 to 33.5 dB"
    assert tree["primary"]["equal_psnr"]


def test_a_gain_that_is_an_extrapolation_alone_is_not_claimed():
    """The method's points lie close together and 1.2 dB below the baseline; their line is steep by chance."""
    cells = made_up(WORKING, noise=0.001)
    for (name, _), tree in cells.trees.items():
        if name.startswith(ROLES.method) and name != ROLES.placebo_method:
            step = {"less": 0.1, "more": -0.1}.get(name.rpartition(", ")[2], 0)
            tree["psnr"], tree["generated"]["kept"] = 28.8 + step, 0.34 + 0.5 * step
    tree = judge(cells)
    assert tree["effect"]["found"] == 1 and next(r for r in tree["rows"] if r["name"] == ROLES.method)["far"]
    ends = tree["both_ends"]
    assert ends["psnr"] == pytest.approx(28.8) and ends["effect"]["found"] == 0
    assert ends["baseline"] == pytest.approx(0.34, abs=0.01) and ends["method"] == pytest.approx(0.34)
    assert ends["slopes"][ROLES.method] == pytest.approx(0.5)
    assert "none at the method's: not claimed" in tree["verdict"]


def test_a_row_is_moved_along_the_curve_of_the_baseline_it_is_compared_with():
    walk = ROLES.placebo_baseline
    rows = (*ROWS, Row(f"{walk}, heavy", curve=walk, against=walk))
    trees = dict(made_up(WORKING).trees)
    for seed in range(4):
        trees[walk, seed] = {"psnr": 30.0, "generated": {"kept": 0.8}}
        trees[f"{walk}, heavy", seed] = {"psnr": 28.0, "generated": {"kept": 0.6}}
        trees[ROLES.placebo_method, seed] = {"psnr": 29.0, "generated": {"kept": 0.75}}
    cells = Cells(Study(Experiment(), rows), trees)
    moved = at_psnr(cells, cells.plan.row(ROLES.placebo_method), 30.0)
    assert moved == pytest.approx(dict.fromkeys(range(4), 0.85)), "0.1 a dB there, 0.05 in the other world"


def test_a_row_read_far_from_its_points_is_marked():
    tree = judge(made_up(WORKING, {ROLES.positive: 1.5, ROLES.negative: 0.5}))
    far = {row["name"]: row["far"] for row in tree["rows"]}
    assert far[ROLES.positive] and not far[ROLES.negative] and not far[ROLES.baseline]


def test_missing_rows_leave_the_study_unfinished():
    cells = made_up(WORKING | {ROLES.method: 0.2})
    for name, word in ((ROLES.positive, "unfinished"), (ROLES.placebo_method, "placebo lacks cells")):
        left = {key: tree for key, tree in cells.trees.items() if key[0] != name}
        assert word in judge(Cells(cells.plan, left))["verdict"]
    for seeds in (1, 2, 3):  # a placebo of two seeds would hardly ever differ, one of a single seed has no interval
        left = {key: tree for key, tree in cells.trees.items() if key[0] != ROLES.placebo_method or key[1] < seeds}
        assert "placebo lacks cells" in judge(Cells(cells.plan, left))["verdict"]
    left = {key: tree for key, tree in cells.trees.items() if key != (f"{ROLES.method}, less", 3)}
    tree = judge(Cells(cells.plan, left))
    assert "no PSNR is equal, have 15 of 16 cells" in tree["verdict"] and not tree["primary"]["equal_psnr"]
    better = made_up(WORKING, {ROLES.method: 1.5})
    left = {key: tree for key, tree in better.trees.items() if key != (f"{ROLES.method}, less", 3)}
    rows = judge(Cells(better.plan, left))["rows"]
    assert all(row["mean"] == pytest.approx(row["as_sampled"]["mean"]) for row in rows), "a few curves move no row"
    fewer = {key: tree for key, tree in cells.trees.items() if key[1] < 7}
    assert "unfinished" in judge(Cells(cells.plan, fewer))["verdict"], "seven seeds are too few"


def test_no_stored_cell_is_scored_by_what_its_decoder_cannot_draw():
    """A score that reconstructions miss is at its floor in every row, and a placebo that is read by it holds."""
    cells = list((Path(__file__).resolve().parents[1] / "docs" / "results" / "motion" / "cells").glob("*.json"))
    assert len(cells) > 70
    for cell in cells:
        tree = json.loads(cell.read_text())
        assert tree["reconstructed"]["kept"] > 0.9 > 10 * tree["shuffled"]["kept"], cell.name


def test_a_pair_under_other_circumstances_is_compared_with_itself_alone():
    """Its baseline is 3 dB better and keeps far more laws than the study's; the method is 0.1 better than that."""
    names = ("Baseline, long", "Whole method, long")
    pair = tuple(Row(name, seeds=8, against=names[0]) for name in names)
    cells = made_up(WORKING)
    tree = cells.trees[ROLES.baseline, 0]
    more = {(name, seed): tree | {"psnr": 33.0} for name in names for seed in range(8)}
    for (name, seed), cell in more.items():
        kept = 0.7 + 0.01 * (seed % 2) + 0.1 * (name == names[1])
        more[name, seed] = cell | {"generated": tree["generated"] | {"kept": kept}}
    found = judge(Cells(dataclasses.replace(cells.plan, rows=(*ROWS, *pair)), cells.trees | more))
    rows = {row["name"]: row for row in found["rows"]}
    baseline, method = (rows[name] for name in names)
    assert baseline["difference"] is None and not baseline["far"] and abs(baseline["mean"] - 0.705) < 1e-6
    assert baseline["against"] == "" and method["against"] == names[0]
    assert baseline["share_of_steps"] == [1.0] * 8, "the end of its own baseline, not of the study's"
    assert abs(method["difference"]["difference"]["mean"] - 0.1) < 1e-6 and method["difference"]["found"] == 1
    unpaired = dataclasses.replace(pair[1], against="")
    found = judge(Cells(dataclasses.replace(cells.plan, rows=(*ROWS, pair[0], unpaired)), cells.trees | more))
    assert next(row for row in found["rows"] if row["name"] == names[1])["far"]


def test_scores_are_read_between_points_and_beyond_them_by_the_slope():
    x, y = np.array([28.0, 30, 34]), np.array([0.1, 0.3, 0.4])
    read = [read_at(x, y, at, outside=0.05) for at in (29, 32, 34, 36, 26)]
    np.testing.assert_allclose(read, [0.2, 0.35, 0.4, 0.5, 0.0])


# The pipeline.


def test_rows_of_the_study_differ_by_their_settings_and_share_vaes():
    from studies.motion.plan import load_study

    study = load_study("study_motion")
    roles = study.roles
    cells = {name: study.cell(study.row(name), 0) for name in dataclasses.asdict(roles).values()}
    assert cells[roles.negative].vae == cells[roles.baseline].vae and cells[roles.negative].row.rotated
    assert len({cell.name for cell in study.cells()}) == len(list(study.cells()))
    ruled = {*dataclasses.asdict(roles).values(), *(row.name for row in study.rows if row.curve)}
    decoders = {json.dumps(dataclasses.asdict(study.cell(study.row(name), 0).experiment.decoder)) for name in ruled}
    assert len(decoders) == 1, "decoders are tuned alike in all rows that decide"
    longer = study.cell(study.row("Whole method, decoder tuned longer"), 0)
    assert longer.experiment.video == cells[roles.method].experiment.video, "the latents are those of the whole method"
    seeds = {row.name: row.seeds for row in study.rows}
    assert min(seeds[name] for name in (roles.baseline, roles.method, roles.positive, roles.negative)) >= 8
    tiny = load_study("study_motion", tiny=True)
    shrunk = {(cell.experiment.video.steps, cell.experiment.decoder.steps, cell.seed) for cell in tiny.cells()}
    assert shrunk == {(2, 2, 0)}, "whatever a row sets, and once each"
    pilot = list(dataclasses.replace(study, pilot=True).cells())
    assert not {cell.seed for cell in pilot} & {cell.seed for cell in study.cells()}, "pilot seeds do not count"
    assert study.experiment.vae.latent_frames(study.experiment.data.frames) >= 5


@pytest.mark.slow
def test_the_whole_pipeline_runs_resumes_and_judges(tmp_path, capsys, monkeypatch):
    def run(*more: str) -> int:
        folders = (f"--workdir={tmp_path / 'work'}", f"--results={tmp_path / 'results'}")
        return run_command(command, "python -m studies.motion", [*folders, "--tiny", *more])

    rows = ("--rows=Baseline,Aligned to the state,Baseline rotated,Baseline walk", "--seeds=0")
    assert run(*rows, "--cells=1") == 0
    assert run(*rows) == 0
    cells = tmp_path / "results" / "cells"
    found = sorted(path.name for path in cells.iterdir())
    assert len(found) == 4
    shares = {name.partition("-seed")[0]: json.loads((cells / name).read_text())["predicted"] for name in found}
    assert shares["baseline-walk"] == {} and set(shares["baseline"]) == {"1", "2", "3", "4"}
    vaes = [path for path in (tmp_path / "work").iterdir() if path.name.startswith("vae-")]
    assert len(vaes) == 3 and all((path / "latents" / "manifest.json").exists() for path in vaes)
    older = cells / found[0]  # from before there was this score
    tree = json.loads(older.read_text())
    del tree["predicted"]
    older.write_text(json.dumps(tree))
    assert run("--predicted") == 0 and "1 cells were given the score" in capsys.readouterr().out
    assert json.loads(older.read_text())["predicted"] in shares.values()
    again = cells / found[-1]
    before = json.loads(again.read_text())
    again.unlink()  # its states are gone, so the transformer is trained again, and the VAE is not
    assert run(*rows) == 0
    after = json.loads(again.read_text())
    assert all(after[part] == before[part] for part in ("generated", "curve", "predicted"))
    assert set(after["seconds"]) == {"diffusion", "scores"}
    monkeypatch.setattr(cell_file, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    again.unlink()
    assert run(*rows) == 130  # killed before its scores were written
    monkeypatch.undo()
    assert run(*rows) == 0
    after = json.loads(again.read_text())
    assert after["curve"] == before["curve"] and set(after["seconds"]) == {"scores"}, "nothing trained twice"
    assert "unfinished" in json.loads((tmp_path / "results" / "study.json").read_text())["verdict"]
    assert "unfinished" in capsys.readouterr().out
