"""Sets of anyone's clips, what is refused and why, what numbers may be called, and the card that goes with each."""

import dataclasses
import json
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.cli import evaluate
from pv_vae_jax.cli.main import main
from pv_vae_jax.convert.lpips import read_arrays, read_lpips
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.video_container import decoder_versions
from pv_vae_jax.data.video_writing import write_video
from pv_vae_jax.evaluation.clip_sets import ArrayClips, FolderClips, Window, open_clips, read_clips
from pv_vae_jax.evaluation.comparison import check_sets, compare_pairs, compare_sets, score_inception
from pv_vae_jax.evaluation.distances import frechet_distance
from pv_vae_jax.evaluation.features import FeatureError
from pv_vae_jax.evaluation.networks.extract import FeatureNetwork, extract
from pv_vae_jax.evaluation.networks.feature_net import FeatureNet, FeatureNetConfig, save_features
from pv_vae_jax.evaluation.protocol import PROTOCOLS, MetricProtocol, name_of
from pv_vae_jax.models.lpips import LPIPS
from pv_vae_jax.pixels import to_float
from pv_vae_jax.typing import WeightsError
from studies.features.corruptions import corrupt
from tests.test_lpips import seeded_lpips

CLIPS = np.random.default_rng(0).integers(0, 256, (12, 6, 16, 16, 3), dtype=np.uint8)
SMALL = FeatureNetConfig(widths=(4, 8), features=6, side=16)
SHORT = MetricProtocol("short", frames=6, clips=12, start="first")


def mean_colour(params, video):
    return params * video.mean(axis=(1, 2, 3))


NETWORK = FeatureNetwork(
    "colours", "0123456789abcdef", None, "as they are", least_frames=2, apply=mean_colour, params=np.float32(1)
)


@pytest.fixture
def arrays(tmp_path):
    """Paths of two sets, and a function that opens one with the short protocol's window."""
    np.save(tmp_path / "real.npy", CLIPS)
    np.savez_compressed(tmp_path / "fake.npz", video=CLIPS[::-1], label=np.arange(12))
    return tmp_path / "real.npy", tmp_path / "fake.npz", lambda p, **k: open_clips(p, Window(6), **k)


# Reading


def test_a_size_is_for_videos_and_arrays_must_have_it(arrays):
    """Samples of 8 x 10 pixels are compared with a folder of larger videos by naming their size."""
    real, _, opened = arrays
    height, width = CLIPS.shape[2:4]
    np.testing.assert_array_equal(opened(real, size=FrameSize(height, width)).clip(3), opened(real).clip(3))
    with pytest.raises(
        FeatureError, match=f"the clips of .*real.npy are {height} x {width}: resize them to 99 yourself"
    ):
        opened(real, size=99)


def test_arrays_of_every_kind_give_the_same_clips(tmp_path):
    np.save(tmp_path / "bytes.npy", CLIPS)
    np.savez(tmp_path / "named.npz", video=CLIPS, label=np.zeros(12))
    np.save(tmp_path / "unit.npy", (CLIPS / 255).astype(np.float32))
    np.save(tmp_path / "signed.npy", (CLIPS / 127.5 - 1).astype(np.float32))
    for name, span in (("bytes.npy", None), ("named.npz", None), ("unit.npy", (0, 1)), ("signed.npy", (-1, 1))):
        found = ArrayClips(tmp_path / name, Window(6), span)
        assert len(found) == 12
        np.testing.assert_array_equal(found.clip(3), CLIPS[3])


def flipped_deflate(path, **arrays):
    """An archive whose packed bytes are no deflate stream any more."""
    np.savez_compressed(path, **arrays)
    data = bytearray(path.read_bytes())
    start = 30 + sum(struct.unpack("<HH", data[26:30]))  # behind the header, a name and an extra field
    data[start] = 0b111  # a kind of block that does not exist
    path.write_bytes(data)
    with pytest.raises(zlib.error), np.load(path) as archive:
        archive["video"]


def test_arrays_that_cannot_be_meant_are_refused(tmp_path):
    def refused(array, match, value_range=None, frames=6, **named):
        np.savez(tmp_path / "a.npz", **named) if named else np.save(tmp_path / "a.npy", array)
        with pytest.raises(FeatureError, match=match):
            ArrayClips(tmp_path / ("a.npz" if named else "a.npy"), Window(frames), value_range).clip(0)

    refused(CLIPS / 255, "name their range")
    refused(CLIPS / 127.5 - 1, "expected values in", (0, 1))
    refused(np.where(CLIPS > 9, CLIPS / 255, np.nan), "expected values in", (0, 1))
    refused(CLIPS.astype(np.int64), "got int64")
    refused(np.moveaxis(CLIPS, -1, 1), "channels come last")
    refused(CLIPS[0], r"expected clips \(n, t, h, w, 3\)")
    refused(CLIPS, "at least 7 frames .*got 6", frames=7)
    refused(None, "name the clips `video`", a=CLIPS, b=CLIPS)
    refused(np.array([{}], dtype=object), "expected an array file")  # a pickle is not opened
    flipped_deflate(tmp_path / "flipped.npz", video=CLIPS)
    with pytest.raises(FeatureError, match="flipped.npz cannot be read as one"):
        ArrayClips(tmp_path / "flipped.npz", Window(6))
    with pytest.raises(WeightsError, match="flipped.npz does not hold plain arrays"):
        read_arrays(tmp_path / "flipped.npz")
    with pytest.raises(FileNotFoundError):
        ArrayClips(tmp_path / "none.npy", Window(6))


def test_random_starts_follow_from_the_seed_and_strides_span():
    window = Window(3, stride=4, start="random", seed=1)
    starts = [window.first(i, 20) for i in range(200)]
    assert window.span == 9 and set(starts) == set(range(12))
    assert starts == [window.first(i, 20) for i in range(200)]
    assert starts != [dataclasses.replace(window, seed=2).first(i, 20) for i in range(200)]


def test_folders_of_videos(tmp_path):
    pytest.importorskip("av")
    from pv_vae_jax.data.video_writing import write_video

    (tmp_path / "deep").mkdir()
    write_video(tmp_path / "b.mp4", CLIPS[0])
    write_video(tmp_path / "deep" / "a.mp4", CLIPS[1])
    write_video(tmp_path / "short.mp4", CLIPS[2, :4])
    found = FolderClips(tmp_path, Window(6))
    assert len(found) == 2 and found.describe()["too short"] == 1 and found.clip(1).shape == (6, 16, 16, 3)
    assert "compression" in found.describe()["pixels"]
    write_video(tmp_path / "wide.mp4", np.repeat(CLIPS[3], 2, axis=2))
    with pytest.raises(FeatureError, match="mixes sizes.* 16 x 16, .*wide.mp4 is 16 x 32; --size"):
        list(read_clips(FolderClips(tmp_path, Window(6)), np.arange(3)))
    assert len(list(read_clips(FolderClips(tmp_path, Window(6), size=8), np.arange(3)))) == 3
    with pytest.raises(FeatureError, match="at least 30 frames"):
        FolderClips(tmp_path, Window(30))
    with pytest.raises(FeatureError, match="no video files"):
        (tmp_path / "empty").mkdir()
        FolderClips(tmp_path / "empty", Window(6))


# Names


def test_a_number_has_a_published_name_only_with_published_weights():
    published = dataclasses.replace(NETWORK, name="i3d", published="Kinetics-400 from scratch")
    assert name_of("frechet", published) == "FVD" and name_of("kernel", published) == "KVD"
    for network in (
        NETWORK,
        dataclasses.replace(published, published=None),
        dataclasses.replace(published, name="c3d"),
    ):
        for metric in ("frechet", "kernel", "frechet limit"):
            name = name_of(metric, network)
            assert "FVD" not in name and "KVD" not in name and network.hash in name
    assert "IS" not in name_of("inception", dataclasses.replace(NETWORK, name="c3d"))
    assert name_of("inception", dataclasses.replace(published, name="c3d")) == "IS"
    assert "LPIPS" not in name_of("lpips-alexnet", dataclasses.replace(NETWORK, name="lpips-alexnet"))


def test_public_protocols_differ_where_they_differ():
    assert PROTOCOLS["stylegan-v"].frames == 16 and PROTOCOLS["stylegan-v"].ddof == 0
    assert PROTOCOLS["videogpt"].frames == 16 and PROTOCOLS["videogpt"].ddof == 1
    assert PROTOCOLS["styleganv-copy"].crop and PROTOCOLS["styleganv-copy"].frames == 17
    assert PROTOCOLS["paper"].clips == 2048 and PROTOCOLS["latte"].real_window(0).span == 46


# Scores


def test_every_score_carries_its_card(arrays):
    real, fake, open_set = arrays
    scores = compare_sets(open_set(real), open_set(fake), NETWORK, SHORT, seed=3, resamples=5, labels=(None, None))
    assert [s.name.split(" (")[0] for s in scores] == ["Frechet distance", "kernel distance"]
    for score in scores:
        card = json.loads(json.dumps(score.to_json(), allow_nan=False))["card"]
        assert card["protocol"]["clips"] == 12 and card["features"]["hash"] == NETWORK.hash and card["seed"] == 3
        assert card["real"]["scored"] == 12 and card["real"]["window"]["frames"] == 6 and card["library"]["pv_vae_jax"]
        assert set(decoder_versions()) <= set(card["library"])
        assert card["real"]["pixels sha256"] != card["fake"]["pixels sha256"]  # another order
    features = extract(NETWORK, CLIPS)
    assert scores[0].value == pytest.approx(frechet_distance(features, features[::-1]), abs=1e-9)


def test_covariance_and_choice_follow_the_protocol(arrays):
    real, fake, open_set = arrays
    both = open_set(real), open_set(fake)
    score = lambda p, s=0: compare_sets(*both, NETWORK, p, seed=s, resamples=0, labels=(None, None))[0]  # noqa: E731
    fewer = dataclasses.replace(SHORT, clips=7)
    assert score(fewer).value == score(fewer).value != score(fewer, 1).value
    assert score(fewer).value != score(dataclasses.replace(fewer, ddof=0)).value
    assert score(fewer).card["real"]["scored"] == 7


def test_pairs(arrays, tmp_path):
    real, _, open_set = arrays
    np.save(tmp_path / "noisy.npy", corrupt(CLIPS, "noise", 8.0))
    both = open_set(real), open_set(tmp_path / "noisy.npy")
    pixels = compare_pairs(*both, SHORT)
    assert [s.name for s in pixels] == ["PSNR dB", "SSIM"] and 25 < pixels[0].value < 35
    assert np.mean(pixels[0].card["by_frame"]) == pytest.approx(pixels[0].value)
    assert pixels[0].interval.low <= pixels[0].value <= pixels[0].interval.high
    same = compare_sets(both[0], both[0], NETWORK, SHORT, paired=True, resamples=0, labels=(None, None))
    assert abs(same[0].value) < 1e-6 and same[-1].name == "mean_paired_colours_sqdist" and same[-1].value == 0


def test_sets_that_cannot_be_compared_are_refused(arrays, tmp_path):
    real, fake, open_set = arrays
    np.save(tmp_path / "large.npy", np.repeat(np.repeat(CLIPS, 2, 2), 2, 3))
    np.save(tmp_path / "few.npy", CLIPS[:5])

    def refused(a, b, match, protocol=SHORT, network=NETWORK, **more):
        with pytest.raises(FeatureError, match=match):
            compare_sets(open_set(a), open_set(b), network, protocol, labels=(None, None), **more)

    refused(real, tmp_path / "large.npy", "16 x 16 and 32 x 32")
    refused(real, tmp_path / "few.npy", "protocol short needs 12 clips, got 5 in the fake set. --clips")
    refused(real, tmp_path / "few.npy", "equal length", dataclasses.replace(SHORT, clips=5), paired=True)
    refused(real, fake, "at least 2 clips", dataclasses.replace(SHORT, clips=1))
    refused(real, fake, "at least 9 frames", network=dataclasses.replace(NETWORK, least_frames=9))
    refused(real, fake, "NaN", network=dataclasses.replace(NETWORK, params=np.float32(np.nan)))


def test_inception_score_with_its_splits(arrays):
    _, fake, open_set = arrays
    classifier = dataclasses.replace(NETWORK, name="c3d", params=np.float32(50))
    score = score_inception(open_set(fake), classifier, SHORT, splits=2, label=None)
    assert 1 < score.value <= 3 and score.card["splits"] == 2 and score.interval.low <= score.interval.high
    assert score.name.startswith("inception score (")


def test_what_a_network_will_refuse_is_told_before_anything_is_scored(arrays, network_folder, monkeypatch, capsys):
    real, fake, _ = arrays
    classifier = dataclasses.replace(NETWORK, name="c3d", least_frames=7)
    monkeypatch.setattr(evaluate, "c3d_network", lambda path, mean: classifier)
    monkeypatch.setattr(evaluate, "compare_pairs", lambda *_, **__: pytest.fail("scored already"))
    call = ["pv-vae", "evaluate", f"--real={real}", f"--fake={fake}", "--paired", f"--weights={network_folder}"]
    call += ["--c3d=a.npz", "--c3d_mean=b.npz", "--clips=12"]
    for flags, told in (
        (["--frames=1"], "own needs clips of at least"),
        (["--frames=6"], "c3d needs clips of at least 7 frames, got 6"),
        (["--frames=7", "--splits=7"], "7 splits need at least 14 clips, got 12"),
    ):
        assert main([*call, *flags]) == 1 and told in capsys.readouterr().err


# The command


@pytest.fixture(scope="module")
def network_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    params = jax.jit(FeatureNet(SMALL).init)(jax.random.key(0), jnp.zeros((1, 5, 16, 16, 3)))["params"]
    save_features(folder, SMALL, params, {})
    return folder


def test_command_takes_lpips_of_pairs(network_folder, tmp_path, capsys):
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 32, 32, 3), np.uint8)
    for name, video in zip(("real", "fake"), clips, strict=True):
        np.save(tmp_path / f"{name}.npy", video)
    backbone, weights, heads = seeded_lpips(tmp_path)
    call = [f"--{name}={tmp_path / name}.npy" for name in ("real", "fake")] + ["--weights", str(network_folder)]
    call += [f"--lpips={backbone}", f"--lpips_weights={weights}", f"--lpips_heads={heads}", "--frames=5", "--clips=3"]
    out = tmp_path / "scores.json"
    assert main(["pv-vae", "evaluate", *call, "--paired", f"--out={out}"]) == 0, capsys.readouterr().err
    (score,) = (s for s in json.loads(out.read_text()) if "lpips" in s["name"])
    params = read_lpips(backbone, weights, heads)
    model = jax.jit(lambda a, b: LPIPS(backbone).apply({"params": params}, to_float(a), to_float(b)))
    assert score["value"] == pytest.approx(np.mean([model(a, b) for a, b in zip(*clips, strict=True)]), rel=1e-5)
    assert main(["pv-vae", "evaluate", *call]) == 2 and "add --paired" in capsys.readouterr().err


def test_command_compares_sets_and_writes_cards(arrays, network_folder, tmp_path, capsys):
    real, fake, _ = arrays
    out = tmp_path / "deep" / "scores.json"
    call = ["--real", str(real), "--fake", str(fake), "--weights", str(network_folder), "--frames=6"]
    assert main(["pv-vae", "evaluate", *call, "--clips=12", "--paired", "--protocol=latte", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    scores = json.loads(out.read_text())
    assert [s["name"].split(" (")[0] for s in scores] == [
        "PSNR dB",
        "SSIM",
        "Frechet distance",
        "kernel distance",
        "mean_paired_own_sqdist",
    ]
    assert all(s["name"] in printed and s["card"]["protocol"]["frames"] == 6 for s in scores)
    told = scores[0]["card"]["protocol"]
    assert told["name"] == "latte with 6 frames and 12 clips" and f"protocol {told['name']}: " in printed
    assert told["note"].startswith("unchanged it is: ")
    assert told["stride"] == 1 and told["start"] == "first", "a reconstruction has its clip's own frames"
    assert not told.keys() & {"resize", "crop"}, "rules of I3D's pixels"
    assert [p.name for p in out.parent.iterdir()] == ["scores.json"]


def test_pairs_of_files_are_told_by_their_names(tmp_path):
    """A file that is left out, or other names, would set clips beside others."""

    def folder(name, **lengths):
        (tmp_path / name).mkdir()
        for stem, frames in lengths.items():
            write_video(tmp_path / name / f"{stem}.mp4", CLIPS[0].repeat(2, 0)[:frames], fps=8)
        return FolderClips(tmp_path / name, Window(5))

    def check(a, b):
        return [path.stem for path in check_sets(a, b, dataclasses.replace(SHORT, clips=2), paired=True).files]

    real = folder("real", c1=5, c2=5, c3=5)
    check(real, folder("same", c1=5, c2=5, c3=5))
    check(real, folder("reconstructed", c1_reconstruction=5, c2_reconstruction=5, c3_reconstruction=5))
    many = {f"{i}": 5 for i in (1, 2, 10, 11)} | {"2_b": 5}  # sorted otherwise with a suffix than without
    names = ["1_out", "10_out", "11_out", "2_out", "2_b_out"]
    assert check(folder("many", **many), folder("outputs", **dict.fromkeys(names, 5))) == names
    with pytest.raises(FeatureError, match="1 videos too short .* shift the pairs"):
        check(real, folder("shorter", c1=5, c2=5, c25=3, c3=5))
    with pytest.raises(FeatureError, match="c02.mp4 reconstructs no clip of .*/real: its name must"):
        check(real, folder("renamed", c02=5, c03=5, c1=5))
    with pytest.raises(FeatureError, match="c22.mp4 reconstructs no clip"):
        check(real, folder("longer", c1=5, c22=5, c3=5))
    with pytest.raises(FeatureError, match="c1.mp4 has two, .*c1.mp4 and .*c1_out.mp4: its name"):
        check(real, folder("twice", c1=5, c1_out=5, c3=5))
    for part in ("a", "b"):  # one name in two folders, which tell them apart
        for name in ("nested", "nested_out"):
            (tmp_path / name).mkdir(exist_ok=True)
            folder(f"{name}/{part}", clip=5)
    nested = [FolderClips(tmp_path / name, Window(5)) for name in ("nested", "nested_out")]
    assert check(*nested) == ["clip", "clip"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--real=a.npy"], "both --real and --fake"),
        ([], "--workdir, or two sets"),
        (["--real=a", "--fake=b", "--workdir=c"], "--workdir, or two sets"),
        (["--workdir=c", "--paired"], "--paired: these compare sets"),
        (["--real=a.npy", "--fake=b.npy", "--features=i3d"], "name their file with --weights"),
        (["--real=a.npy", "--fake=b.npy", "--lpips=alexnet"], "--lpips_weights and --lpips_heads"),
        (["--real=a.npy", "--fake=b.npy", "--c3d=c.npz"], "--c3d and --c3d_mean"),
        (["--real=a.npy", "--fake=b.npy", "--value_range=1"], "low,high"),
        (["--real=a.npy", "--fake=b.npy", "--value_range=-inf,inf"], "low,high"),
        (["--real=a.npy", "--fake=b.npy", "--lpips_heads=h.npz"], "add alexnet or"),
        (["--real=a.npy", "--fake=b.npy", "--splits=3"], "it takes --c3d"),
        (["--real=none.npy", "--fake=none.npy"], "no file none.npy"),
    ],
)
def test_command_says_what_is_wrong(flags, message, capsys, network_folder):
    weights = (
        [] if "--features=i3d" in flags or not any("real" in f for f in flags) else ["--weights", str(network_folder)]
    )
    assert main(["pv-vae", "evaluate", *flags, *weights]) in (1, 2)
    assert message in capsys.readouterr().err
