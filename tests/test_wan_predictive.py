"""A predictive Wan: started from published weights that have no pad token, and written so that diffusers loads it."""

import dataclasses
import json
import re
import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pv_vae_jax import Model, load, save
from pv_vae_jax.convert.wan import LATENT_STATISTICS, LatentStatistics, diffusers_config, from_wan, to_wan
from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.params_io import read_params
from pv_vae_jax.train.configs import DataConfig, Experiment, LatteConfig, MeshConfig, VAEStageConfig
from pv_vae_jax.train.run import open_run
from pv_vae_jax.train.vae_stage import VAEStage
from pv_vae_jax.train.warm_start import first_parameters
from pv_vae_jax.typing import ConfigError, WeightsError
from tests import wan_fixture
from tests.test_convert import convert, flags_of, import_diffusers

NAMES = list(wan_fixture.CONFIGS)
TOKEN = np.float32([0.5, -1.5, 2.0, -0.25])


def predictive(name: str) -> Model:
    """A small network of Wan's layout with a pad token, as predictive training leaves it."""
    config = wan_fixture.CONFIGS[name]
    params = from_wan(wan_fixture.random_weights(config), config) | {"pad": {"token": TOKEN}}
    return Model(VAE(dataclasses.replace(config, pad="learnable")), params)


# Out


def test_the_pad_token_is_written_beside_and_comes_back(tmp_path):
    model = predictive("wan22")
    save(tmp_path / "model", model)
    status, out = convert("--to=diffusers", tmp_path / "model", tmp_path / "out")
    assert status == 0, out
    assert re.search(r"pad_token.safetensors: the pad token, left out of the weights", out)
    assert "latents_mean and latents_std of config.json are 0 and 1" in out
    files = {"config.json", "diffusion_pytorch_model.safetensors", "pad_token.safetensors"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert "pad.token" not in load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "out" / "pad_token.safetensors")["pad.token"], TOKEN)
    status, out = convert(*flags_of("wan22"), tmp_path / "out", tmp_path / "again")
    assert status == 0, out
    again = load(tmp_path / "again")
    assert again.vae == model.vae and "latent_statistics" not in again.meta
    jax.tree.map(np.testing.assert_array_equal, again.vae_params, model.vae_params)


def test_weights_alone_have_the_token_beside_and_replace_no_file(tmp_path):
    save(tmp_path / "model", predictive("wan21"))
    assert convert("--to=original", tmp_path / "model", tmp_path / "a.safetensors")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "model", "pad_token.safetensors"]
    status, out = convert("--to=original", tmp_path / "model", tmp_path / "b.safetensors")
    assert status == 2 and "pad_token.safetensors exists" in out and not (tmp_path / "b.safetensors").exists()


def test_statistics_of_the_latents_travel(tmp_path):
    model = predictive("wan21")
    known = {"latent_statistics": {"mean": [0.5, 1.0, 1.5, 2.0], "std": [1.0, 2.0, 3.0, 4.0]}}
    save(tmp_path / "model", dataclasses.replace(model, meta=known))
    status, out = convert("--to=diffusers", tmp_path / "model", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert status == 0 and "latents_mean" not in out
    assert (written["latents_mean"], written["latents_std"]) == tuple(known["latent_statistics"].values())
    assert convert(*flags_of("wan21"), tmp_path / "out", tmp_path / "again")[0] == 0
    assert load(tmp_path / "again").meta["latent_statistics"] == known["latent_statistics"]
    for wrong in (json.dumps(written | {"latents_std": [1.0]}), json.dumps(written | {"latents_std": None}), "{"):
        (tmp_path / "out" / "config.json").write_text(wrong)
        status, out = convert(*flags_of("wan21"), tmp_path / "out", tmp_path / "wrong")
        assert status == 1 and "latents_mean and latents_std of 4 channels" in out
        assert not (tmp_path / "wrong").exists()


def test_a_tuned_wan_is_not_given_the_published_statistics(tmp_path, monkeypatch):
    """Its folder says 0 and 1, which is that nobody measured them; a file that says nothing is taken for Wan's own."""
    config = wan_fixture.CONFIGS["wan21"]
    monkeypatch.setattr(VAEConfig, "wan21", lambda: config)
    monkeypatch.setitem(LATENT_STATISTICS, "wan21", LatentStatistics(mean=(0.5,) * 4, std=(2.0,) * 4))
    save(tmp_path / "tuned", Model(VAE(config), from_wan(wan_fixture.random_weights(config), config)))
    assert convert("--to=diffusers", tmp_path / "tuned", tmp_path / "out")[0] == 0
    for source, known in ((tmp_path / "out", False), (tmp_path / "alone.safetensors", True)):
        if known:
            shutil.copy(tmp_path / "out" / "diffusion_pytorch_model.safetensors", source)
        assert convert(source, tmp_path / f"again{known}")[0] == 0
        assert ("latent_statistics" in load(tmp_path / f"again{known}").meta) == known


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_computes_the_same_with_what_is_written(tmp_path, name):
    diffusers = import_diffusers()
    model, clip = predictive(name), wan_fixture.random_clip(name)
    save(tmp_path / "model", model)
    assert convert("--to=diffusers", tmp_path / "model", tmp_path / "out")[0] == 0
    theirs, found = diffusers.AutoencoderKLWan.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found.values()), found
    assert_equal(model, theirs.eval(), clip)


def assert_equal(model: Model, theirs, clip: np.ndarray) -> None:
    """Posterior, reconstruction and, with the token in place of the last latent frame, prediction; to 1e-5."""
    mean, logvar, video = wan_fixture.run_diffusers(theirs, clip)
    posterior = model.posterior(clip)
    np.testing.assert_allclose(posterior.mean, mean, atol=1e-5)
    np.testing.assert_allclose(posterior.logvar, logvar, atol=1e-5)
    np.testing.assert_allclose(np.clip(model.decode(mean), -1, 1), video, atol=1e-5)

    import torch

    token = np.broadcast_to(model.vae_params["pad"]["token"], mean[:, -1:].shape)
    seen = wan_fixture.run_diffusers(theirs, clip[:, :-4])[0]  # (1, g - 1, h, w, z)
    with torch.no_grad():
        padded = torch.from_numpy(np.concatenate([seen, token], axis=1)).permute(0, 4, 1, 2, 3)
        foretold = theirs.decode(padded).sample.permute(0, 2, 3, 4, 1).numpy()
    # What `predict` decodes: by causality the posterior of a shorter clip is the beginning of this one's.
    ours = model.decode(np.concatenate([posterior.mean[:, :-1], token], axis=1))
    np.testing.assert_allclose(np.clip(ours, -1, 1), foretold, atol=1e-5)
    assert np.abs(foretold - video).max() > 1e-3, "the token counts"


def test_what_diffusers_cannot_build_is_refused(tmp_path):
    narrow = dataclasses.replace(wan_fixture.CONFIGS["wan22"], decoder_widths=(4, 4, 8, 8))
    with pytest.raises(WeightsError, match=r"same whole multiples.*encoder_widths=\(2, 4, 8, 8\) and decoder_widths"):
        diffusers_config(narrow, [0.0] * 4, [1.0] * 4)
    for change, what in (({"shortcut_time": "repeat"}, "interleave"), ({"decoder_blocks": 1}, "encoder_blocks . 1")):
        with pytest.raises(WeightsError, match=f"not a Wan network, which would have .*{what}"):
            diffusers_config(dataclasses.replace(wan_fixture.CONFIGS["wan22"], **change), [0.0] * 4, [1.0] * 4)


def test_a_model_that_is_not_finite_is_not_exported():
    model = predictive("wan21")
    model.vae_params["encoder"]["norm"]["gamma"] = np.full_like(model.vae_params["encoder"]["norm"]["gamma"], np.nan)
    with pytest.raises(WeightsError, match="encoder/norm/gamma is not finite"):
        to_wan(model.vae_params, model.vae.config, "diffusers")


# In


def stage_of(tmp_path: Path, name: str, pad: str = "learnable", **settings) -> tuple[VAEStage, object]:
    """A video stage that starts from `tmp_path/model`, and its run."""
    vae = dataclasses.replace(wan_fixture.CONFIGS[name], pad=pad)
    video = VAEStageConfig(steps=1, batch_size=1, init_from=str(tmp_path / "model"), drop_ratio=1.0, **settings)
    data = DataConfig(clips=2, test_clips=1, frames=5, size=vae.space_factor)
    latte = LatteConfig(latent_channels=vae.latent_channels)
    experiment = Experiment(data=data, vae=vae, video=video, latte=latte, mesh=MeshConfig(data=1)).validate()
    return VAEStage(experiment, "video"), open_run(experiment, tmp_path / f"run{len(settings)}")


def test_a_run_that_pads_with_a_token_draws_one_where_its_source_has_none(tmp_path, capsys):
    config = wan_fixture.CONFIGS["wan22"]
    source = from_wan(wan_fixture.random_weights(config), config)
    save(tmp_path / "model", Model(VAE(config), source))
    stage, run = stage_of(tmp_path, "wan22")
    first = first_parameters(stage, run)
    assert f"stage video: {tmp_path / 'model'} holds no pad token; one is drawn" in capsys.readouterr().err
    assert first.keys() == {"encoder", "decoder"}
    jax.tree.map(np.testing.assert_array_equal, first, source)
    token = jax.jit(lambda first: stage.init_state({"params": first}).params["pad"]["token"])(first)
    assert token.shape == (4,) and np.abs(token).min() > 0

    for wrong in ({"frozen": ("pad",)}, {"init_parts": ("encoder", "pad")}):
        with pytest.raises(ConfigError, match="pads with gaussian draws, so it has no pad token.*take 'pad' out of"):
            first_parameters(stage_of(tmp_path, "wan22", **wrong)[0], run)


def test_a_source_with_a_token_gives_it(tmp_path, capsys):
    save(tmp_path / "model", predictive("wan22"))
    stage, run = stage_of(tmp_path, "wan22")
    np.testing.assert_array_equal(first_parameters(stage, run)["pad"]["token"], TOKEN)
    assert "drawn" not in capsys.readouterr().err


def test_an_encoder_that_would_compute_otherwise_is_refused(tmp_path):
    """Its tensors have the same shapes, so only the configuration tells."""
    save(tmp_path / "model", predictive("wan22"))
    stage, run = stage_of(tmp_path, "wan22", init_parts=("encoder", "pad"))
    narrow = dataclasses.replace(stage.experiment.vae, decoder_widths=(2, 4, 8, 8), decoder_blocks=1)
    light = VAEStage(dataclasses.replace(stage.experiment, vae=narrow), "video")
    assert first_parameters(light, run).keys() == {"encoder", "pad"}
    other = dataclasses.replace(stage.experiment.vae, shortcut_pad="first")
    with pytest.raises(ConfigError, match="must start from a VAE of the same architecture"):
        first_parameters(VAEStage(dataclasses.replace(stage.experiment, vae=other), "video"), run)


# The experiments, on narrow networks

ROOT = Path(__file__).resolve().parents[1]
NARROW = ["--config.vae.encoder_widths=2,4,8,8", "--config.vae.latent_channels=4", "--config.latte.latent_channels=4"]
SHORT = ["--config.data.source=synthetic", "--config.data.frames=5", "--config.data.size=32", "--config.data.clips=4"]
SHORT += ["--config.data.test_clips=2", "--config.data.crop=centre", "--config.mesh.data=1", "--config.mesh.fsdp=1"]
SHORT += [f"--config.vae.{field}" for field in ("dtype=float32", "remat=False", "remat_blocks=()")]
STAGE = ("steps=2", "batch_size=1", "objective.gan_start=0", "objective.gan=0")


@pytest.fixture
def narrow_wan(tmp_path):
    """`tmp_path/wan22`: a model folder that the command wrote of published tensors."""
    save_file(wan_fixture.random_weights(wan_fixture.CONFIGS["wan22"]), tmp_path / "a.safetensors")
    assert convert(*flags_of("wan22"), tmp_path / "a.safetensors", tmp_path / "wan22")[0] == 0
    return tmp_path / "wan22"


def train(tmp_path: Path, experiment: str, widths: str, *stages: str) -> Path:
    """Run an experiment for two steps a stage on a narrow network; its work directory."""
    from pv_vae_jax.cli.main import main

    flags = [f"--config.{stage}.{setting}" for stage in stages for setting in STAGE]
    flags += [f"--config.{stages[0]}.init_from={tmp_path / 'wan22'}", f"--config.vae.decoder_widths={widths}"]
    call = ["--config", str(ROOT / "experiments" / f"{experiment}.py"), "--workdir", str(tmp_path / "run")]
    assert main(["pv-vae", "train", *call, *NARROW, *SHORT, *flags]) == 0
    return tmp_path / "run"


@pytest.mark.slow
def test_wan22_is_trained_predictively_and_diffusers_computes_the_same(tmp_path, narrow_wan, capsys):
    diffusers = import_diffusers()
    run = train(tmp_path, "wan22_predictive", "3,6,12,12", "video", "decoder")
    assert "holds no pad token; one is drawn" in capsys.readouterr().err
    model, before = load(run), load(narrow_wan)
    moved = np.abs(model.vae_params["encoder"]["stem"]["kernel"] - before.vae_params["encoder"]["stem"]["kernel"])
    assert 0 < moved.max() < 1e-3, "trained, from the published weights"
    assert convert("--to=diffusers", run, tmp_path / "out")[0] == 0
    theirs = diffusers.AutoencoderKLWan.from_pretrained(tmp_path / "out").eval()
    assert_equal(model, theirs, wan_fixture.random_clip("wan22"))


@pytest.mark.slow
def test_a_light_decoder_of_wan22_keeps_the_latents_and_streams(tmp_path, narrow_wan, capsys):
    run = train(tmp_path, "wan22_light_decoder", "2,4,8,8", "decoder")
    model, teacher = load(run), load(narrow_wan)
    jax.tree.map(np.testing.assert_array_equal, model.vae_params["encoder"], teacher.vae_params["encoder"])
    latents = teacher.encode(wan_fixture.random_clip("wan22"))
    np.testing.assert_allclose(model.decode(latents, chunk=1), model.decode(latents), atol=1e-5)
    assert convert("--to=diffusers", run, tmp_path / "out")[0] == 0

    runpy.run_path(str(ROOT / "docs" / "decoders.py"))["main"]([str(narrow_wan), str(run), "--clips=2"])
    table = capsys.readouterr().out
    assert [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("| ")][1:] == [*"01234", "mean"]


def test_weights_of_a_light_decoder_go_to_another_width():
    light = VAEConfig.wan22(decoder_widths=(64, 128, 256, 256))
    assert diffusers_config(light, *[[0.0] * 48] * 2)["decoder_base_dim"] == 64


def test_hashes_are_compared_at_every_door(tmp_path):
    """A byte of the weights that flips later is noticed wherever a stage reads them, as it is by `load`."""
    save(tmp_path / "model", predictive("wan22"))
    path = tmp_path / "model" / "vae.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-3] ^= 1  # still a finite number
    path.write_bytes(bytes(flipped))
    stage, run = stage_of(tmp_path, "wan22")
    assert read_params(path, stage.shapes)["pad"].keys() == {"token"}, "only the hash tells"
    for read in (lambda: load(tmp_path / "model"), lambda: first_parameters(stage, run)):
        with pytest.raises(WeightsError, match="its SHA-256 is not the one in config.json"):
            read()
    only = dataclasses.replace(stage.config, init_parts=("encoder",))
    with pytest.raises(WeightsError, match="its SHA-256"):
        first_parameters(VAEStage(dataclasses.replace(stage.experiment, video=only), "video"), run)
