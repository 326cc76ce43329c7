"""`python -m studies.probes`: synthetic world, Sintel and TAP-Vid as files, controls at both ends, refusals."""

import json
import pickle

import jax
import numpy as np
import pytest

from pv_vae_jax.cli.main import run_command
from pv_vae_jax.data.synthetic import SyntheticVideos
from pv_vae_jax.model import Diffusion, Model, init_latte, save
from pv_vae_jax.models.latte import Latte, LatteConfig
from studies.linear_probe import class_accuracy
from studies.probes import __main__ as command
from studies.probes.published import (
    Sintel,
    Tracks,
    area,
    bilinear,
    davis_clips,
    full_flow_error,
    sintel_windows,
    small_flow,
)
from studies.probes.tables import NOISE, TRUTH, exact_paths
from studies.probes.tracking import track_points

RNG = np.random.default_rng(0)


def probe_command(arguments):
    return run_command(command, "python -m studies.probes", arguments)


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """Folder of the t2s8 VAE with a transformer of depth 2 for clips of 5 x 16 x 16."""
    vae, params, _ = tiny
    latte, shape = Latte(LatteConfig(latent_channels=4, depth=2, width=8, heads=2)), (3, 2, 2, 4)
    d = Diffusion(latte, jax.jit(lambda: init_latte(latte, shape))(), np.zeros(4), np.ones(4), shape, ("all",))
    folder = tmp_path_factory.mktemp("probe") / "model"
    save(folder, Model(vae, params, d))
    return folder


def write_flow(path, flow):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = np.array([202021.25], "<f4").tobytes() + np.array(flow.shape[1::-1], "<i4").tobytes()
    path.write_bytes(head + flow.astype("<f4").tobytes())


@pytest.fixture(scope="module")
def sintel(tmp_path_factory):
    """Three scenes of 6 frames, 20 x 32 pixels."""
    Image = pytest.importorskip("PIL.Image", reason="Sintel's pictures need the extra 'video'")
    root = tmp_path_factory.mktemp("sintel")
    for scene in ("a", "b", "c"):
        for i in range(1, 7):
            path = root / "training" / "final" / scene / f"frame_{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(RNG.integers(0, 256, (20, 32, 3), dtype=np.uint8)).save(path)
            if i < 6:
                write_flow(root / "training" / "flow" / scene / f"frame_{i:04d}.flo", RNG.normal(size=(20, 32, 2)))
    return root


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    video = {
        "video": RNG.integers(0, 256, (6, 24, 30, 3), dtype=np.uint8),
        "points": RNG.uniform(0, 1, (3, 6, 2)).astype(np.float32),
        "occluded": np.zeros((3, 6), bool),
    }
    video["occluded"][2, :4] = True  # first seen too late for a clip of 5 frames
    path = tmp_path_factory.mktemp("davis") / "tapvid_davis.pkl"
    path.write_bytes(pickle.dumps({"bear": video}))
    return path


@pytest.mark.slow
def test_the_truth_scores_at_zero_and_noise_at_chance(tiny, tmp_path, capsys):
    """A VAE without a transformer, whose programs take half of the time; the other test has one."""
    save(tmp_path / "vae", Model(*tiny[:2]))
    out = tmp_path / "scores.json"
    call = [str(tmp_path / "vae"), "--frames=5", "--size=16", "--clips=192", "--test_clips=32", "--steps=4"]
    assert probe_command([*call, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    tree = json.loads(out.read_text())
    assert (tree["layer"], tree["frames"], tree["size"]) == (None, 5, 16)
    rows = tree["synthetic"]["rows"]
    assert list(rows) == ["VAE latents", TRUTH, NOISE, "nothing moves"]
    assert all(name in printed for name in rows)
    still, truth, noise = rows["nothing moves"], rows[TRUTH], rows[NOISE]
    assert truth["flow_epe"] < 0.05 * still["flow_epe"] and truth["next_frame_mse"] < 0.1 * still["next_frame_mse"]
    assert truth["tracking_auc"] > 0.95 and truth["class_accuracy"] == 1
    assert 0.9 * still["flow_epe"] < noise["flow_epe"] < 1.2 * still["flow_epe"]
    assert noise["tracking_auc"] < still["tracking_auc"] + 0.1 and noise["class_accuracy"] < 0.6


@pytest.mark.slow
def test_published_data_is_probed(model, sintel, davis, tmp_path):
    out = tmp_path / "scores.json"
    call = [str(model), "--clips=16", "--test_clips=4", "--steps=2", "--batch_size=4", "--out", str(out)]
    assert probe_command([*call, "--sintel", str(sintel), "--davis", str(davis)]) == 0
    tree = json.loads(out.read_text())
    assert (tree["layer"], tree["frames"], tree["size"]) == (2, 5, 16)
    names = ["VAE latents", "transformer, layer 2", "transformer, untrained", TRUTH, NOISE, "nothing moves"]
    assert list(tree["synthetic"]["rows"]) == names
    assert len(tree["sintel"]["test_scenes"]) == 1
    rows = tree["sintel"]["rows"]
    assert rows["nothing moves"]["flow_epe"] == pytest.approx(np.sqrt(np.pi / 2), rel=0.05)
    assert {TRUTH, NOISE} <= rows.keys() and "tracking_auc" in tree["davis"]["rows"][NOISE]
    assert tree["davis"]["points"] == 2 and tree["davis"]["points_left_out"] == 1


def test_what_cannot_be_probed_is_refused(model, tiny, tmp_path, capsys):
    save(tmp_path / "vae", Model(*tiny[:2]))
    for wrong, message in (
        ([], "name one model"),
        ([str(model), "--layer=3"], "even number up to the transformer's depth 2"),
        ([str(model), "--frames=1"], "without motion"),
        ([str(model), "--frames=4"], "use 3 or 5 frames"),
        ([str(tmp_path / "vae"), "--layer=2"], "no diffusion transformer"),
        ([str(model), "--davis", str(tmp_path / "no.pkl")], "is missing"),
    ):
        assert probe_command(wrong) in (1, 2)
        assert message in capsys.readouterr().err


def test_paths_of_pixels_are_those_of_the_scene():
    """Integrating flow is not needed: a pixel that is seen again shows the colour that it had."""
    source = SyntheticVideos(4, 5, 64, seed=1)
    video, (path, hidden) = source[0]["video"].astype(float), exact_paths(source.scene(0), 64)
    rows, columns = np.nonzero(~hidden[4] & (np.abs(path[4]).sum(axis=-1) > 1))
    place = np.stack([columns, rows], axis=1) + path[4, rows, columns]
    x, y = np.clip(place.round().astype(int), 0, 63).T
    error = np.abs(video[4, y, x] - video[0, rows, columns]).mean()
    assert error < 0.5 * np.abs(video[4, rows, columns] - video[0, rows, columns]).mean()


def test_points_follow_drawn_paths():
    paths = np.zeros((3, 4, 4, 3))
    paths[1, ..., 0], paths[2, ..., 1], paths[2, :, 2:, 2] = 1.5, np.arange(4)[:, None], 5.0
    paths[..., 2] -= 1
    query = np.array([[0.5, 0.5], [3.5, 2.0]])
    path, hidden = track_points(paths, query)
    np.testing.assert_allclose(path[0], [[0.5, 0.5], [2.0, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(path[1], [[3.5, 2.0], [5.0, 2.0], [3.5, 3.5]])
    np.testing.assert_array_equal(hidden, [[False, False, False], [False, False, True]])


def test_windows_hold_every_pair_once_and_scenes_stay_apart(sintel):
    data = Sintel(sintel)
    train, test = sintel_windows(data, 5, seed=0)
    assert not {w.scene for w in train} & {w.scene for w in test}
    pairs = [(w.scene, w.start + i) for w in train + test for i in range(w.fresh, 4)]
    assert sorted(pairs) == [(scene, i) for scene in "abc" for i in range(5)]


def test_full_size_flow_of_a_uniform_motion_is_exact():
    """3 pixels right, 2 down at full size; at another size and back again nothing is lost."""
    full = np.broadcast_to(np.array([3.0, 2.0], np.float32), (4, 20, 32, 2)).copy()
    full[0, 0, 0] = np.nan
    small = small_flow(np.nan_to_num(full, nan=3.0) * [1, 1], (16, 16))
    assert small.shape == (4, 16, 16, 2)
    np.testing.assert_allclose(small[1:, :, :, 0], 1.5, rtol=1e-5)
    windows = [type("W", (), {"fresh": 0})()]
    assert full_flow_error([small[:]], [full], windows) == pytest.approx(0, abs=0.02)
    assert full_flow_error([np.zeros_like(small)], [full], windows) == pytest.approx(np.sqrt(13), rel=1e-5)


def test_resizing_keeps_means_and_ramps():
    picture = RNG.uniform(size=(6, 10, 3)).astype(np.float32)
    assert area(picture, (4, 7)).mean() == pytest.approx(picture.mean(), rel=1e-5)
    ramp = np.arange(8.0)[:, None, None] * np.ones((1, 4, 1))
    np.testing.assert_allclose(bilinear(ramp, (16, 4))[1:-1, 0, 0], np.arange(0.25, 7, 0.5))


def test_points_are_asked_for_where_they_are_first_seen():
    occluded = np.ones((3, 8), bool)
    occluded[0, 0], occluded[1, 2] = False, False
    points = RNG.uniform(size=(3, 8, 2)).astype(np.float32)
    tracked = Tracks(RNG.integers(0, 256, (8, 12, 16, 3), dtype=np.uint8), points, occluded)
    clips, left_out = davis_clips({"a": tracked}, 5, (16, 16))
    assert left_out == 0 and [len(clip.path) for clip in clips] == [1, 1]
    np.testing.assert_allclose(clips[1].path[0], points[1, 2:7] * 16, rtol=1e-6)


def test_a_linear_class_is_found_and_a_random_one_is_not():
    x = RNG.normal(size=(120, 300))
    label = (x[:, :3].argmax(axis=1)).astype(int)
    strong = x.copy()
    strong[:, :3] *= 1
    assert class_accuracy(np.eye(3)[label[:80]], label[:80], np.eye(3)[label[80:]], label[80:]) == 1
    assert class_accuracy(x[:80, :12], label[:80], x[80:, :12], label[80:]) > 0.6
    guess = class_accuracy(RNG.normal(size=(80, 300)), label[:80], x[80:], label[80:])
    assert guess < 0.6
    with pytest.raises(ValueError, match="two classes"):
        class_accuracy(x, np.zeros(120, int), x, np.zeros(120, int))
