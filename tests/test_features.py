"""Feature networks against other implementations, by seeded weights and stored outputs; converters; our own network."""

import dataclasses
import hashlib
import json
import math
import os
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from pv_vae_jax.cli.main import run_command
from pv_vae_jax.convert.torch_file import read_torch
from pv_vae_jax.data.synthetic import SyntheticVideos
from pv_vae_jax.evaluation.features import FeatureError
from pv_vae_jax.evaluation.networks import i3d as convert_i3d
from pv_vae_jax.evaluation.networks import published
from pv_vae_jax.evaluation.networks.c3d import C3D, c3d_input, c3d_shapes, read_c3d, read_c3d_mean
from pv_vae_jax.evaluation.networks.extract import OWN, FeatureNetwork, extract, i3d_network, own_network, resize
from pv_vae_jax.evaluation.networks.feature_net import FeatureNet, FeatureNetConfig, load_features, save_features
from pv_vae_jax.evaluation.networks.i3d import I3D, MIXED
from pv_vae_jax.pixels import to_float
from pv_vae_jax.train.config_files import run_config
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.typing import ConfigError, ShapeError, WeightsError
from studies.features import __main__ as command
from studies.features.corruptions import GRADES, corrupt
from studies.features.sensitivity import measure_sensitivity, sensitivity_table
from studies.features.training import FeatureTraining, draw_batch, synthetic_clips, train_features

RNG = np.random.default_rng(0)
CLIPS = RNG.integers(0, 256, (11, 6, 20, 24, 3), dtype=np.uint8)
SMALL = FeatureNetConfig(widths=(4, 8), features=6, side=16)


@pytest.fixture(scope="module")
def reference():
    root = Path(os.environ.get("PV_VAE_SHARED", Path(__file__).parents[2] / "shared")) / "reference" / "eval"
    if not root.is_dir():
        pytest.skip("no evaluation fixtures here: set PV_VAE_SHARED to a folder that holds reference/eval/")
    return root


@pytest.fixture(scope="module")
def seeded():
    """The 230 tensors of I3D under TensorFlow's names, each drawn from its name."""
    return {name: _draw(name, shape) for name, shape in convert_i3d.tensorflow_shapes().items()}


def _draw(name, shape):
    g = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if name.endswith("/w"):
        return g.standard_normal(shape, dtype=np.float32) * np.float32(math.sqrt(2 / math.prod(shape[:4])))
    if name.endswith("variance"):
        return 0.5 + g.random(shape, dtype=np.float32)
    return np.float32(0.1) * g.standard_normal(shape, dtype=np.float32)


@jax.jit
def _i3d(params, video):
    return I3D().apply({"params": params}, resize(video / 127.5 - 1, 224, "half_pixel"))


def to_torch_names(tensors):
    """TensorFlow's names and axes -> those of the PyTorch port, with a scale that is not one."""
    out = {}
    for theirs, name in convert_i3d.units().values():
        values = {leaf: tensors[f"{theirs}/{tf}"] for leaf, tf in convert_i3d.TF_LEAVES.items()}
        scale = RNG.uniform(0.5, 2, values["beta"].shape).astype(np.float32)
        values["kernel"] = np.moveaxis(values["kernel"] / scale, (4, 3), (0, 1))
        values["mean"] = values["mean"] / scale
        out |= {f"{name}.{convert_i3d.TORCH_LEAVES[leaf]}": np.ascontiguousarray(v) for leaf, v in values.items()}
        out |= {f"{name}.bn.weight": scale, f"{name}.bn.num_batches_tracked": np.zeros((), np.int64)}
    out["logits.conv3d.weight"] = np.ascontiguousarray(
        np.moveaxis(tensors["Logits/Conv3d_0c_1x1/conv_3d/w"], (4, 3), (0, 1))
    )
    out["logits.conv3d.bias"] = tensors["Logits/Conv3d_0c_1x1/conv_3d/b"]
    return out


# I3D


def test_the_table_of_i3d_is_the_published_one(reference, seeded):
    index = json.loads((reference / "i3d_checkpoint_index.json").read_text())
    assert {t["name"]: tuple(t["shape"]) for t in index["tensors"]} == convert_i3d.tensorflow_shapes()
    assert 4 * sum(value.size for value in seeded.values()) == index["data_file_size"]
    blob = index["checkpoints"]["rgb_scratch"]["git_blob_sha1"]
    assert published.GIT_BLOBS[blob][1] == "i3d"
    assert index["checkpoints"]["rgb_imagenet"]["git_blob_sha1"] not in published.GIT_BLOBS  # not FVD's network


@pytest.mark.parametrize(
    "frames", [9, pytest.param(16, marks=pytest.mark.slow), pytest.param(17, marks=pytest.mark.slow)]
)
def test_i3d_gives_the_stored_logits(reference, seeded, frames):
    stored = np.load(reference / "i3d_seeded_parity.npz")
    video = stored["clip64_uint8"][None, :frames].astype(np.float32)
    found = _i3d(convert_i3d.from_tensorflow(seeded), video)
    np.testing.assert_allclose(found.logits[0], stored[f"T{frames}_logits"], atol=1e-4)
    np.testing.assert_allclose(found.steps[0], stored[f"T{frames}_logits_per_step"], atol=1e-4)
    np.testing.assert_allclose(found.pooled[0], stored[f"T{frames}_pool1024"], atol=1e-4)


@pytest.mark.slow
def test_i3d_with_the_resize_of_the_first_script(reference, seeded):
    stored = np.load(reference / "i3d_seeded_parity.npz")
    video = resize(jnp.asarray(stored["clip64_uint8"][None].astype(np.float32) / 127.5 - 1), 224, "tf1")
    found = jax.jit(lambda p, x: I3D().apply({"params": p}, x).logits)(convert_i3d.from_tensorflow(seeded), video)
    np.testing.assert_allclose(found[0], stored["T17_logits_tf1resize"], atol=1e-4)


def test_both_layouts_of_i3d_give_the_same_network(seeded, tmp_path):
    """Batch norm of the port has a scale; folded into kernel and mean it must leave every unit's function the same."""
    ours = flatten_dict(convert_i3d.from_tensorflow(seeded), sep="/")
    save_file(to_torch_names(seeded), tmp_path / "port.safetensors")
    theirs = flatten_dict(convert_i3d.read_i3d(tmp_path / "port.safetensors"), sep="/")
    assert ours.keys() == theirs.keys() and len(ours) == 230
    for name in ours:
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_i3d_from_a_checkpoint_data_file(seeded, tmp_path):
    path = tmp_path / "model.ckpt.data-00000-of-00001"
    np.concatenate([seeded[name].ravel() for name in sorted(seeded)]).tofile(path)
    read = flatten_dict(convert_i3d.read_i3d(path), sep="/")
    for name, value in flatten_dict(convert_i3d.from_tensorflow(seeded), sep="/").items():
        np.testing.assert_array_equal(read[name], value)
    network = i3d_network(path)
    assert network.published is None  # seeded weights: no number made with them is an FVD
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightsError, match="bytes"):
        convert_i3d.read_i3d(path)


def test_every_fault_of_i3d_weights_is_named(seeded):
    broken = {name: value for name, value in seeded.items() if "Mixed_4d" not in name}
    broken["extra"] = np.zeros(1)
    broken["Logits/Conv3d_0c_1x1/conv_3d/b"] = np.zeros(3)
    with pytest.raises(WeightsError) as error:
        convert_i3d.from_tensorflow(broken)
    assert str(error.value).count("Mixed_4d") == 24 and "left over extra" in str(error.value)
    assert "expected (400,)" in str(error.value)
    with pytest.raises(WeightsError, match="missing Mixed_5b.b2b.conv3d.weight"):
        convert_i3d.from_torch({"Conv3d_1a_7x7.conv3d.weight": np.zeros(1)})


def test_i3d_says_what_it_can_see():
    for shape in ((1, 8, 224, 224, 3), (1, 16, 112, 112, 3)):
        with pytest.raises(ShapeError, match="9 frames or more, 224 x 224"):
            jax.eval_shape(lambda x: I3D().init(jax.random.key(0), x), jnp.zeros(shape))
    assert len(MIXED) == 9


# Published files


def test_a_file_is_known_by_its_content(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"numbers")
    blob = hashlib.sha1(b"blob 7\0numbers").hexdigest()
    assert published.identify(path).known is None
    monkeypatch.setitem(published.GIT_BLOBS, blob[:10], ("some file", "i3d"))
    assert published.identify(path).known == "some file" and published.identify(path).network == "i3d"
    path.write_bytes(b"number5")
    assert published.identify(path).known is None


# C3D

TINY_C3D = C3D(layers=(("conv1a", 2), (1, 2, 2), ("conv2a", 3), (2, 4, 4), (8, 2, 2)), hidden=5, classes=4)


def test_c3d_equals_pytorch(tmp_path):
    """The same layers in PyTorch, channels first, with its ceil-mode pooling: 112 -> 56 -> 14 -> 7."""
    torch = pytest.importorskip("torch", reason="PyTorch is a development dependency")
    weights = {
        "conv1a/W": RNG.normal(size=(2, 3, 3, 3, 3)) * 0.02,
        "conv2a/W": RNG.normal(size=(3, 2, 3, 3, 3)) * 0.2,
        "fc6/W": RNG.normal(size=(5, 3 * 7 * 7)) * 0.2,
        "fc7/W": RNG.normal(size=(5, 5)),
        "fc8/W": RNG.normal(size=(4, 5)),
    }
    weights |= {name.replace("W", "b"): RNG.normal(size=len(value)) for name, value in weights.items()}
    np.savez(tmp_path / "c3d.npz", **weights)
    video = RNG.normal(0, 50, (1, 16, 112, 112, 3)).astype(np.float32)
    x = torch.from_numpy(video).permute(0, 4, 1, 2, 3)
    w = {name: torch.from_numpy(value.astype(np.float32)) for name, value in weights.items()}
    f = torch.nn.functional
    for name, pool in (("conv1a", (1, 2, 2)), ("conv2a", (2, 4, 4)), (None, (8, 2, 2))):
        x = f.relu(f.conv3d(x, w[f"{name}/W"], w[f"{name}/b"], padding=1)) if name else x
        x = f.max_pool3d(x, pool, pool, ceil_mode=True)
    x = x.flatten(1)
    for name in ("fc6", "fc7", "fc8"):
        x = f.linear(x, w[f"{name}/W"], w[f"{name}/b"])
        x = x if name == "fc8" else f.relu(x)
    params = read_c3d(tmp_path / "c3d.npz", TINY_C3D)
    found = jax.jit(lambda p, v: TINY_C3D.apply({"params": p}, v))(params, video)
    np.testing.assert_allclose(found, x.numpy(), rtol=1e-3, atol=1e-2)


def test_c3d_has_the_published_sizes_and_keeps_the_odd_border():
    shapes = c3d_shapes(C3D())
    assert shapes["fc6/kernel"] == (512 * 4 * 4, 4096) and shapes["conv5b/kernel"] == (3, 3, 3, 512, 512)
    with pytest.raises(ShapeError, match="16 frames of 112"):
        jax.eval_shape(lambda x: C3D().init(jax.random.key(0), x), jnp.zeros((1, 17, 112, 112, 3)))


def test_c3d_sees_bgr_less_the_mean_with_corners_in_place():
    video = jnp.asarray(RNG.uniform(-1, 1, (1, 17, 20, 30, 3)), jnp.float32)
    seen = c3d_input(video, 100.0)
    assert seen.shape == (1, 16, 112, 112, 3)
    for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        np.testing.assert_allclose(seen[0, :, i, j], 128 * video[0, :16, i, j, ::-1] + 28, atol=1e-3)
    with pytest.raises(ShapeError, match="sees 16 frames"):
        c3d_input(video[:, :15], 0.0)


def test_c3d_files_that_are_not_its_weights(tmp_path):
    np.savez(tmp_path / "a.npz", **{"conv1a/W": np.zeros((2, 3, 3, 3, 3)), "conv1a/b": np.zeros(9)})
    with pytest.raises(WeightsError) as error:
        read_c3d(tmp_path / "a.npz", TINY_C3D)
    assert "conv1a/b has shape (9,), expected (2,)" in str(error.value) and "missing fc8/W (4, 5)" in str(error.value)
    (tmp_path / "b.npz").write_bytes(b"PK nothing")
    with pytest.raises(WeightsError, match="plain arrays"):
        read_c3d(tmp_path / "b.npz")
    np.savez(tmp_path / "pickled.npz", mean=np.array([{}], dtype=object))
    with pytest.raises(WeightsError, match="plain arrays"):
        read_c3d_mean(tmp_path / "pickled.npz")
    cube = RNG.normal(size=(1, 3, 16, 128, 171)).astype(np.float32)
    np.savez(tmp_path / "mean.npz", mean=cube)
    np.testing.assert_array_equal(read_c3d_mean(tmp_path / "mean.npz")[3, 5, 7], cube[0, :, 3, 13, 15])


# Reading clips


def test_resize_rules_against_each_other():
    x = jnp.asarray(RNG.normal(size=(1, 1, 8, 12, 3)), jnp.float32)
    for rule in ("half_pixel", "tf1", "antialias"):
        assert resize(x, 16, rule).shape == (1, 1, 16, 16, 3)
        cropped = resize(x[:, :, :, 2:10], 8, rule)  # same size: nothing to interpolate
        np.testing.assert_allclose(resize(x, 8, rule, crop=True), cropped, atol=1e-5)
    np.testing.assert_allclose(resize(x, 24, "tf1")[:, :, ::3, ::2], x, atol=1e-6)  # corners of pixels meet
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None, None], (1, 1, 8, 8, 3))
    np.testing.assert_allclose(resize(ramp, 16, "half_pixel")[0, 0, 1:-1, 0, 0], np.arange(14) / 2 + 0.25, atol=1e-5)
    with pytest.raises(ValueError, match="unknown resize rule"):
        resize(x, 8, "lanczos")


@pytest.fixture(scope="module")
def small():
    """A tiny feature network with random weights."""
    model = FeatureNet(SMALL)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 5, 16, 16, 3)))["params"]

    def apply(params, video):
        return model.apply({"params": params}, resize(video, 16, "antialias"))

    return FeatureNetwork("small", "0" * 16, None, "", least_frames=5, apply=apply, params=params)


def test_features_do_not_depend_on_batches_or_devices(small):
    one = extract(small, CLIPS, batch_size=11, devices=jax.devices()[:1])
    eight = extract(small, CLIPS, batch_size=3)  # 8 devices: batches of 8, the last one filled up
    assert len(jax.devices()) == 8 and one.shape == (11, 6)
    np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(extract(small, CLIPS[::-1])[::-1], one, rtol=1e-5, atol=1e-5)
    assert np.std(one, axis=0).min() > 1e-4  # no constant: the comparison means something


def test_features_that_are_not_finite_are_refused(small):
    broken = dataclasses.replace(small, params=jax.tree.map(lambda x: x * np.nan, small.params))
    with pytest.raises(FeatureError, match="11 of 11 clips"):
        extract(broken, CLIPS)


# The network of our own


def test_training_batches_follow_from_seed_and_step():
    config = FeatureTraining(SMALL, clips=12, frames=6, batch_size=8)
    video, labels = synthetic_clips(config)
    real = RNG.integers(0, 256, (4, *video.shape[1:]), dtype=np.uint8)
    kept = video.copy()
    a, b, other = (draw_batch(config, step, video, labels, real) for step in (3, 3, 4))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert not np.array_equal(a["video"], other["video"])
    np.testing.assert_array_equal(video, kept)  # the clips themselves are not shuffled
    assert a["known"].sum() == 5 and labels["family"].max() == 3 and (labels["speed"] > 0).all()
    frozen = [clip for clip, order in zip(a["video"], a["order"], strict=True) if order == 3]
    assert all((clip == clip[0]).all() for clip in frozen)


@pytest.mark.slow
def test_training_learns_and_repeats_and_survives_the_disk(tmp_path):
    config = FeatureTraining(SMALL, clips=32, frames=6, steps=40, batch_size=8, learning_rate=1e-2)
    params, scores = train_features(config)
    again, _ = train_features(config)  # the same program, from the cache
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert scores["noise error"] < 0.2  # guessing the mean: about 0.3
    features = FeatureNet(SMALL).apply({"params": params}, to_float(synthetic_clips(config)[0]))
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-2)
    save_features(tmp_path, SMALL, params, {"held out": scores})
    model, loaded, found = load_features(tmp_path)
    assert model.config == SMALL and found == json.loads((tmp_path / "config.json").read_text())["hash"]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    changed = unflatten_dict({k: v + 1 for k, v in flatten_dict(loaded, sep="/").items()}, sep="/")
    flat = {k: np.asarray(v, np.float16) for k, v in flatten_dict(changed, sep="/").items()}
    save_file(flat, tmp_path / "features.safetensors")
    with pytest.raises(WeightsError, match="hash"):
        load_features(tmp_path)
    with pytest.raises(FileNotFoundError, match="no feature network"):
        load_features(tmp_path / "nowhere")


def test_the_shipped_network_is_small_and_known():
    network = own_network()
    assert sum(x.size for x in jax.tree.leaves(network.params)) < 2_000_000
    assert network.published is None and len(network.hash) == 16


def test_corruptions_do_what_they_say():
    for kind, grades in GRADES.items():
        for grade in grades[-1:]:  # the mildest leave so few and small pictures as they are
            damaged = corrupt(CLIPS, kind, grade)
            assert damaged.shape == CLIPS.shape and damaged.dtype == np.uint8 and not np.array_equal(damaged, CLIPS)
            np.testing.assert_array_equal(damaged, corrupt(CLIPS, kind, grade))
    frames = lambda clip: sorted(frame.tobytes() for frame in clip)  # noqa: E731
    for kind in ("shuffle", "reverse"):
        assert all(frames(a) == frames(b) for a, b in zip(CLIPS, corrupt(CLIPS, kind, 1.0), strict=True))
    np.testing.assert_array_equal(corrupt(CLIPS, "reverse", 1.0), CLIPS[:, ::-1])
    frozen = corrupt(CLIPS, "freeze", 0.5)
    assert (frozen[:, 2:] == frozen[:, 2:3]).all() and (frozen[:, :3] == CLIPS[:, :3]).all()
    grey = np.full((1, 1, 9, 9, 3), 77, np.uint8)
    np.testing.assert_array_equal(corrupt(grey, "blur", 0.2), grey)  # the border is no darker
    with pytest.raises(ValueError, match="unknown corruption"):
        corrupt(CLIPS, "smear", 1.0)


def _rises_with_damage(video):
    found = measure_sensitivity(own_network(), video)
    for kind in ("noise", "blur", "shuffle", "freeze"):
        for distances in (found.frechet[kind], found.kernel[kind]):
            assert distances == sorted(distances), f"{kind}: {distances}"
    return found


def test_distances_rise_with_damage_to_synthetic_clips():
    source = SyntheticVideos(48, frames=9, size=32, seed=77)
    found = _rises_with_damage(np.stack([source[i]["video"] for i in range(48)]))
    lines = sensitivity_table(found)
    assert len(lines) == 2 + sum(map(len, GRADES.values())) and "halves" in lines[-1]


@pytest.mark.slow
def test_distances_rise_with_damage_to_real_clips(shared_data):
    pytest.importorskip("av")
    from pv_vae_jax.data.frame_size import FrameSize
    from pv_vae_jax.data.video_reading import read_video

    files = sorted((shared_data / "clips128" / "test").glob("*.mp4"))
    found = _rises_with_damage(np.stack([FrameSize(64, 64).cut(read_video(f, short_side=64, count=17)) for f in files]))
    for kind in ("noise", "blur", "shuffle", "freeze"):  # the strongest damage stands out from the noise of sampling
        assert found.frechet[kind][-1] > 1.5 * found.floor_frechet, f"{kind}: {found.frechet[kind][-1]}"


# Files of PyTorch before 1.6, as the published AlexNet, VGG and LPIPS heads are


def _old_file(path, tree):
    torch = pytest.importorskip("torch", reason="PyTorch is a development dependency")
    torch.save(tree(torch), path, _use_new_zipfile_serialization=False)
    return path


def test_old_torch_files_are_read(tmp_path):
    values = {"a": RNG.normal(size=(3, 4)).astype(np.float32), "b": np.arange(5), "half": np.float16([1.5, -2])}

    def tree(torch):
        shared = torch.from_numpy(values["a"])
        tensors = {name: torch.from_numpy(value) for name, value in values.items()}
        return tensors | {"view": shared[1:, ::2], "turned": shared.T, "weight": torch.nn.Parameter(shared)}

    found = read_torch(_old_file(tmp_path / "old.pth", tree))
    expected = values | {"view": values["a"][1:, ::2], "turned": values["a"].T, "weight": values["a"]}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_old_torch_files_that_are_broken_or_hostile(tmp_path):
    path = _old_file(tmp_path / "old.pth", lambda torch: {"a": torch.arange(100.0)})
    data = path.read_bytes()
    for cut in (3, 40, len(data) // 3, len(data) - 4):
        path.write_bytes(data[:cut])
        with pytest.raises(WeightsError):
            read_torch(path)
    mark = tmp_path / "ran"
    hostile = b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    for bad in (hostile, data.replace(b"ctorch._utils\n_rebuild_tensor_v2", b"cposix\nsystem"), b"", b"no pickle"):
        path.write_bytes(bad)
        with pytest.raises(WeightsError, match="Nothing was run|Nothing\\swas run"):
            read_torch(path)
    assert not mark.exists()


def test_the_shipped_network_was_trained_by_the_configuration_of_this_repository():
    path = Path(__file__).parents[1] / "experiments" / "feature_net.py"
    shipped = json.loads((OWN / "config.json").read_text())
    assert json.loads(json.dumps(dataclasses.asdict(run_config(path, FeatureTraining)))) == shipped["meta"]["training"]
    with pytest.raises(ConfigError, match="must return Experiment, got FeatureTraining"):
        run_config(path, Experiment)


@pytest.mark.slow
def test_the_command_takes_a_configuration_and_repeats_itself(tmp_path):
    """The same hash twice: of a file's settings, changed by flags."""
    source = Path(__file__).parents[1] / "experiments" / "feature_net.py"
    flags = ["--config.clips=16", "--config.steps=2", "--config.batch_size=4", "--config.network.widths=(4,8)"]
    hashes = []
    for name in ("a", "b"):
        out = ["--out", str(tmp_path / name)]
        assert run_command(command, "python -m studies.features", ["--config", str(source), *out, *flags]) == 0
        tree = json.loads((tmp_path / name / "config.json").read_text())
        assert tree["meta"]["training"]["steps"] == 2 and tree["network"]["widths"] == [4, 8]
        hashes.append(tree["hash"])
    assert hashes[0] == hashes[1]
