"""Frames that are not square: sizes and fits, exact pixels from files, networks, every command that takes a size."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")

from pv_vae_jax.cli._shared import define_size_flags, frame_size
from pv_vae_jax.data.frame_size import FITS, FrameSize, nearest
from pv_vae_jax.data.readers.image_files import read_image
from pv_vae_jax.data.video_container import probe
from pv_vae_jax.data.video_pixels import resize
from pv_vae_jax.data.video_reading import iterate_at_rate, iterate_video, read_video
from pv_vae_jax.data.video_writing import write_video
from pv_vae_jax.dropping import SPATIAL
from pv_vae_jax.evaluation.clip_sets import FolderClips, Window
from pv_vae_jax.evaluation.image_metrics import psnr, ssim
from pv_vae_jax.evaluation.networks.extract import extract, own_network
from pv_vae_jax.losses import Objective
from pv_vae_jax.masking import sample_mask
from pv_vae_jax.model import Diffusion, Model, init_latte, load, save
from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.models.transformer_vae import TransformerVAE, TransformerVAEConfig
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.pixels import to_uint8
from pv_vae_jax.report.figures import fit
from pv_vae_jax.streaming import decode_chunks, encode_chunks
from pv_vae_jax.train.configs import OptimizerConfig
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.vae_step import VAEStep
from pv_vae_jax.typing import ConfigError
from tests.conftest import TINY
from tests.test_cli import fails, pv_vae
from tests.video_fixture import encode, waves

# A small network for large frames: t2s16, whose convolutions see an eighth of the sides.
SMALL = dataclasses.replace(
    TINY,
    patch=8,
    mid_attention=False,
)
NOISE = np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), np.uint8)


def drawn(network):
    """Parameters for clips of 3 x 32 x 48, drawn on the host: nothing is compiled."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 3, 32, 48, 3)))["params"]
    scaled = lambda p: rng.standard_normal(p.shape, np.float32) / max(2, np.prod(p.shape[:-1])) ** 0.5  # noqa: E731
    return jax.tree.map(scaled, shapes)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a VAE and a transformer over latents of 4 x 2 x 3, for clips of 7 x 32 x 48."""
    vae, latte = VAE(SMALL), Latte(LatteConfig(latent_channels=4, depth=2, width=8, heads=2))
    params = drawn(vae)
    shape = (4, 2, 3, 4)
    diffusion = Diffusion(latte, jax.jit(lambda: init_latte(latte, shape))(), np.zeros(4), np.ones(4), shape, ("all",))
    folder = tmp_path_factory.mktemp("models") / "wide"
    save(folder, Model(vae, params, diffusion, {}))
    return folder


@pytest.fixture
def lossless(tmp_path):
    """A file of the very pixels of `NOISE`."""
    encode(tmp_path / "a.mkv", NOISE, codec="ffv1", pixels="bgr0")
    return tmp_path / "a.mkv"


def turned(path, target):
    """The file again, with a note to turn it by a quarter clockwise."""
    data, one = bytearray(path.read_bytes()), 1 << 16
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big") for v in (0, one, 0, 2**32 - one, 0, 0, 0, 0, 1 << 30))
    target.write_bytes(data)


# Sizes


def test_a_square_is_scaled_and_cropped_as_ever():
    rng = np.random.default_rng(1)
    for short, height, width in rng.integers(1, 2_000, (3_000, 3)).tolist():
        scale = short / min(height, width)
        expected = max(short, round(height * scale)), max(short, round(width * scale))
        assert FrameSize.of(short).scaled(height, width) == expected
    for corner, top, left in ((None, 3, 11), ((0.3, 0.9), 2, 21), ((0.99, 0), 7, 0)):  # of 8 and 24 places
        found = FrameSize(17, 17).cut(NOISE, corner)
        np.testing.assert_array_equal(found, NOISE[:, top : top + 17, left : left + 17])


def test_every_fit_ends_at_the_size():
    for height, width in np.random.default_rng(2).integers(1, 300, (300, 2)).tolist():
        for way in FITS:
            size = FrameSize(30, 52, way)
            scaled = size.scaled(height, width)
            video = np.broadcast_to(np.uint8(9), (1, *scaled, 3))
            assert size.cut(video).shape == (1, 30, 52, 3)
            sides = np.array(scaled) - (30, 52)
            assert {"crop": sides.min() == 0, "pad": sides.max() == 0, "resize": not sides.any()}[way], (height, width)
    assert FrameSize(480, 848).scaled(480, 854) == (480, 854)
    assert FrameSize(240, 424, "pad").scaled(480, 854) == (238, 424)


def test_a_frame_is_enlarged_if_either_side_is():
    stretched = FrameSize(40, 80, "resize")
    assert stretched.enlarges(50, 60) and stretched.enlarges(30, 90) and not stretched.enlarges(50, 90)


def test_bars_are_black_even_and_removed():
    size = FrameSize(27, 40, "pad")
    padded = size.cut(NOISE)
    assert not padded[:, [0, 25, 26]].any()
    np.testing.assert_array_equal(padded[:, 1:25], NOISE)
    np.testing.assert_array_equal(size.uncut(padded, 24, 40), NOISE)


def test_the_nearest_size():
    assert nearest(480, 854, 16) == FrameSize(480, 848)
    assert nearest(480, 854, 16, "pad") == FrameSize(480, 864, "pad")
    assert nearest(487, 855, 16, "resize") == FrameSize(480, 848, "resize")
    assert nearest(3, 30, 16, "resize") == FrameSize(16, 32, "resize")
    with pytest.raises(ValueError, match="cannot crop frames of 10 x 30 to multiples of 16: use the fit 'pad' or"):
        nearest(10, 30, 16)


def test_sizes_that_cannot_be():
    for wrong in (dict(height=0), dict(width=-4), dict(fit="stretch")):
        with pytest.raises(ValueError, match="must be"):
            FrameSize(**(dict(height=8, width=8) | wrong))
    with pytest.raises(ValueError, match="cannot crop frames of 24 x 40 to 30 x 40: resize them first"):
        FrameSize(30, 40).cut(NOISE)
    for way in ("pad", "resize"):
        with pytest.raises(ValueError, match=f"cannot {way} frames of 24 x 40 to 20 x 40: resize them first"):
            FrameSize(20, 40, way).cut(NOISE)


# Reading


def test_pixels_are_exact(lossless):
    for size in (FrameSize(24, 32), FrameSize(40, 40, "pad"), FrameSize(24, 40, "resize")):
        np.testing.assert_array_equal(read_video(lossless, resize=size), NOISE)
    np.testing.assert_array_equal(FrameSize(24, 32).cut(NOISE), NOISE[:, :, 4:36])
    size = FrameSize(12, 16)  # half, 12 x 20
    video = read_video(lossless, resize=size)
    areas = NOISE.reshape(3, 12, 2, 20, 2, 3).mean((2, 4))
    assert video.shape == areas.shape and np.abs(video - areas).max() < 2
    for frames in (iterate_video(lossless, resize=size), iterate_at_rate(lossless, resize=size)):
        np.testing.assert_array_equal(list(frames), video)
    np.testing.assert_array_equal([resize(frame, size) for frame in NOISE], video)
    assert read_video(lossless, resize=FrameSize(6, 31, "resize"), start=1, count=1).shape == (1, 6, 31, 3)


@pytest.mark.parametrize("way", FITS)
def test_the_size_is_that_of_the_upright_picture(tmp_path, way):
    write_video(tmp_path / "a.mp4", waves(3, 32, 48))
    turned(tmp_path / "a.mp4", tmp_path / "b.mp4")
    size = FrameSize(60, 20, way)
    video = read_video(tmp_path / "b.mp4", resize=size)
    expected = {"crop": (60, 40), "pad": (30, 20), "resize": (60, 20)}[way]
    assert video.shape == (3, *expected, 3) and size.cut(video).shape == (3, 60, 20, 3)
    upright = np.rot90(read_video(tmp_path / "a.mp4"), -1, axes=(1, 2))
    assert np.abs(video.astype(int) - [resize(frame, size) for frame in upright]).mean() < 4


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images_are_brought_to_rectangles(tmp_path, suffix):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    picture, path = waves(1, 120, 200)[0], tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path, exif=exif)
    upright = np.rot90(picture, -1)
    for size in (FrameSize(50, 20), FrameSize(50, 20, "pad"), FrameSize(50, 20, "resize"), FrameSize(250, 60)):
        found = read_image(path, resize=size)
        assert found.shape[:2] == size.scaled(200, 120)
        assert np.abs(found.astype(int) - resize(upright, size)).mean() < 8


# Networks


@pytest.mark.slow
def test_a_training_step_with_every_term(model):
    """Spatial masks, perceptual term, both discriminators and their gradients, on 32 x 48."""
    vae = load(model)
    discriminator = Discriminator(DiscriminatorConfig(width=4, levels=1, lowering="direct"))
    step = VAEStep(
        model=vae.vae,
        objective=Objective(gan=0.5, gan_start=0, perceptual=1.0, local_correlation=0.1),
        optimizer=optimizer(OptimizerConfig(warmup_steps=0), 4),
        discriminator=discriminator,
        discriminator_optimizer=optimizer(OptimizerConfig(warmup_steps=0), 4),
        perceptual=lambda a, b: jnp.abs(a - b).mean(axis=(1, 2, 3)),
        drop_pattern="block",
    )
    video = np.random.default_rng(3).integers(0, 256, (2, 3, 32, 48, 3), np.uint8)
    run = jax.jit(step, static_argnames=("dropped", "gan"))
    _, logs = run(
        step.create(vae.vae_params, drawn(discriminator)),
        {"video": video, "dropped": np.int32(1)},
        dropped=None,
        gan=True,
    )
    assert np.isfinite([float(value) for value in logs.values()]).all()


@pytest.mark.parametrize("pattern", sorted(SPATIAL))
def test_masks_withhold_as_much_of_a_rectangle(pattern):
    grid = (4, 2, 6)
    masks = jax.vmap(lambda key: sample_mask(pattern, key, jnp.array([2]), grid)[0])(
        jax.random.split(jax.random.key(0), 200)
    )
    withheld = ~np.asarray(masks)
    assert withheld.shape == (200, *grid) and not withheld[:, 0].any()
    assert abs(withheld.sum(axis=(1, 2, 3)).mean() - 24) < 3
    assert withheld[:, 1:].any(axis=(0, 1)).all(), "any place may be withheld"


def test_chunks_predictions_and_samples(model):
    model = load(model)
    video = np.random.default_rng(4).uniform(-1, 1, (2, 7, 32, 48, 3)).astype(np.float32)
    mean = model.encode(video)
    assert mean.shape == (2, 4, 2, 3, 4)
    decoded = model.decode(mean)
    chunked = jax.jit(lambda x: encode_chunks(model.vae, model.vae_params, x, 2).mean)(video)
    np.testing.assert_allclose(chunked, mean, atol=1e-4)
    again = jax.jit(lambda z: decode_chunks(model.vae, model.vae_params, z, 2))(mean)
    np.testing.assert_allclose(again, decoded, atol=1e-4)
    assert model.predict(video, 3).shape == video.shape


def test_the_transformer_turns_with_its_clip():
    """A patch sees its own pixels, rows are not columns, and an image is cut where it should be."""
    config = TransformerVAEConfig(
        time_factor=2, space_factor=8, latent_channels=4, width=16, heads=2, encoder_layers=1, decoder_layers=1
    )
    vae = TransformerVAE(config)
    video = jax.random.uniform(jax.random.key(0), (1, 3, 32, 48, 3))
    params = jax.jit(vae.init)(jax.random.key(1), video)["params"]  # residual branches are zero: patches stay apart
    run = jax.jit(lambda x: vae.apply({"params": params}, x)[0])
    changed = np.abs(np.asarray(run(video.at[:, 0, 8:16, 40:48].add(1.0)) - run(video)))[0, 0].max(-1)
    assert changed.shape == (32, 48) and changed[8:16, 40:48].any()
    changed[8:16, 40:48] = 0
    assert not changed.any()


def test_metrics_and_pictures_of_rectangles():
    a = np.stack([waves(7, 32, 48, seed) for seed in range(2)])
    b = np.clip(a + np.random.default_rng(0).normal(0, 9, a.shape), 0, 255).round().astype(np.uint8)
    turn = lambda x: np.swapaxes(x, 2, 3)  # noqa: E731
    assert ssim(a, b, 255) == pytest.approx(ssim(turn(a), turn(b), 255)) and 0.3 < ssim(a, b, 255) < 1
    assert psnr(a, b, 255) == pytest.approx(psnr(turn(a), turn(b), 255))
    assert extract(own_network(), a, batch_size=2, devices=jax.devices()[:1]).shape[0] == 2
    assert fit(a, 24).shape == (2, 7, 16, 24, 3) and fit(a, 100).shape == (2, 7, 64, 96, 3)
    assert fit(np.zeros((1, 2, 90, 3), np.uint8), 10).shape == (1, 1, 45, 3)


# Commands


@pytest.fixture(scope="module")
def wide_video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "wide.mp4"
    write_video(path, waves(3, 480, 854))
    return path


@pytest.mark.parametrize(
    ("arguments", "line", "height", "width"),
    [
        ([], "480 x 854 cropped to 480 x 848", 480, 848),
        (["--fit=pad"], "480 x 854 padded to 480 x 864", 480, 854),
        (["--fit=resize"], "480 x 854 resized to 480 x 848", 480, 848),
        (["--size=32,48"], "480 x 854 resized to 32 x 57 and cropped to 32 x 48", 32, 48),
        (["--size=32,48", "--fit=pad"], "480 x 854 resized to 27 x 48 and padded to 32 x 48", 27, 48),
        (["--size=32"], "480 x 854 resized to 32 x 57 and cropped to 32 x 32", 32, 32),
    ],
)
def test_reconstruct_takes_the_common_size(model, wide_video, tmp_path, arguments, line, height, width):
    status, out, error = pv_vae("reconstruct", "--model", model, "--out", tmp_path, wide_video, *arguments)
    assert status == 0, error
    assert out.splitlines()[0] == f"{wide_video}: {line}"
    assert f"3x{height}x{width}, latents" in out.splitlines()[1]
    scale = max(1, 128 // height)
    written = read_video(tmp_path / "wide_reconstruction.mp4")
    assert written.shape[1:3] == (scale * height + scale * height % 2, 2 * scale * width)
    if not line.startswith("480 x 854 resized"):  # the left half is the original, in its place
        left = (854 - width) // 2
        original = read_video(wide_video)[:, :, left : left + width].astype(int)
        assert np.abs(written[:, :, :width] - original).mean() < 3
    if arguments == ["--fit=pad"]:
        padded = np.pad(original, ((0, 0), (0, 0), (5, 5), (0, 0)))[None].astype(np.uint8)
        result = np.asarray(to_uint8(load(model).reconstruct(padded)))[:, :, :, 5:-5]
        score = float(out.split("PSNR ")[1].split()[0])
        assert score == pytest.approx(psnr(original[None], result, 255.0), abs=0.02), "without the bars"


def test_predict_cuts_the_bars(model, tmp_path):
    write_video(tmp_path / "a.mp4", waves(7, 30, 46))
    call = ("predict", "--model", model, "--out", tmp_path, tmp_path / "a.mp4")
    status, out, error = pv_vae(*call, "--fit=pad", "--observe=3")
    assert status == 0, error
    assert "a.mp4: 30 x 46 padded to 32 x 48" in out
    assert probe(tmp_path / "a_prediction.mp4").width == 4 * 3 * 46
    truth = read_video(tmp_path / "a.mp4") / 127.5 - 1
    assert f"copying the last frame {np.mean((truth[2] - truth[3:]) ** 2):.4f}" in out


def test_sizes_of_flags():
    values = flags.FlagValues()
    define_size_flags(values, "0", "")
    for text, size in {"0": None, "8": (8, 8), "8,12": (8, 12), " 8, 12": (8, 12)}.items():
        values(["", f"--size={text}", "--fit=pad"])
        assert frame_size(values) == (size and FrameSize(*size, "pad"))
    for wrong in ("-8", "8,-8", "8,", "0,8", "8,8,8", "9000", "wide", "8.5"):
        values(["", f"--size={wrong}"])
        with pytest.raises(ConfigError, match=f"pixels; got {wrong}"):
            frame_size(values)


def test_sizes_that_commands_refuse(model, tmp_path):
    write_video(tmp_path / "a.mp4", waves(3, 32, 48))
    write_video(tmp_path / "low.mp4", waves(3, 4, 48))
    call = ("reconstruct", "--model", model, "--out", tmp_path, tmp_path / "a.mp4")
    line = fails(*call, "--size=480x848")
    assert "--size must be a side, as 256, or height,width, as 480,848, of 1 to 8192 pixels; got 480x848" in line
    assert "width 850 is not a multiple of 16: use 848 or 864" in fails(*call, "--size=480,850")
    assert "should be one of <crop|pad|resize>" in fails(*call, "--fit=stretch")
    line = fails(*call[:-1], tmp_path / "low.mp4")
    assert "low.mp4: cannot crop frames of 4 x 48 to multiples of 16: use the fit 'pad' or 'resize'" in line
    sets = ("evaluate", "--real", tmp_path, "--fake", tmp_path)
    assert "--fit says how videos are brought to --size: add it" in fails(*sets, "--fit=pad")
    assert "got 8x8" in fails(*sets, "--size=8x8")
    assert "--size must be the side of a square for synthetic clips" in fails("analyze", model, "--size=32,48")
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 32, 48, 3), np.uint8))
    for data in ((), (f"--data={tmp_path / 'a.npy'}",), (f"--data={tmp_path}", "--size=0")):
        line = fails("analyze", model, *data, "--fit=pad", "--frames=3", "--out", tmp_path / "out")
        assert "--fit says how videos are brought to --size; leave it out, since" in line


def test_sets_of_videos_at_one_size(tmp_path):
    for name, shape in {"a": (32, 48), "b": (48, 32), "c": (30, 100)}.items():
        write_video(tmp_path / f"{name}.mp4", waves(5, *shape))
    ways = {
        "crop": "to cover 16 x 28 by area, centre cut",
        "pad": "to fit into 16 x 28 by area, black bars",
        "resize": "stretched to 16 x 28 by area",
    }
    for way, line in ways.items():
        clips = FolderClips(tmp_path, Window(5), FrameSize(16, 28, way))
        assert clips.describe()["resized"] == line
        assert {clips.clip(i).shape for i in range(3)} == {(5, 16, 28, 3)}
    assert FolderClips(tmp_path, Window(5), 16).describe()["resized"] == "short side to 16 by area, centre square"


@pytest.mark.slow
def test_evaluate_and_analyze_rectangles(model, tmp_path):
    for folder in ("real", "fake"):
        (tmp_path / folder).mkdir()
        for i in range(4):
            write_video(tmp_path / folder / f"{i}.mp4", waves(7, 40, 70, seed=i))
    call = ("--real", tmp_path / "real", "--fake", tmp_path / "fake", "--frames=7", "--clips=4", "--nointervals")
    status, out, error = pv_vae("evaluate", *call, "--paired", "--size=32,48", "--out", tmp_path / "s.json")
    assert status == 0, error
    assert "7 x 32 x 48" in out
    card = json.loads((tmp_path / "s.json").read_text())[0]["card"]
    assert card["real"]["resized"] == "to cover 32 x 48 by area, centre cut" and card["real"]["size"] == [32, 48]
    call = ("analyze", model, "--data", tmp_path / "real", "--frames=7", "--size=32,48", "--fit=pad", "--batch_size=4")
    status, _, error = pv_vae(*call, "--out", tmp_path / "analysis")
    assert status == 0, error
    found = json.loads((tmp_path / "analysis" / "analysis.json").read_text())
    assert found["size"] == [32, 48]
    numbers = found["models"]["wide"]
    assert sum(numbers["power"]["by_space"]) == pytest.approx(1, abs=1e-6) and numbers["ltd_median"] > 0


def test_sample_writes_rectangles(model, tmp_path):
    status, _, error = pv_vae("sample", "--model", model, "--clips=2", "--steps=2", "--out", tmp_path)
    assert status == 0, error
    assert np.load(tmp_path / "samples.npz")["video"].shape == (2, 7, 32, 48, 3)
    info = probe(tmp_path / "samples_all.mp4")
    assert (info.height, info.width) == (128, 2 * 4 * 48)
