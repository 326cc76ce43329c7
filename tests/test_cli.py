"""`pv-vae` from end to end on a tiny run: what every command writes and prints, and what it says when it cannot."""

import contextlib
import dataclasses
import errno
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pv_vae_jax import load
from pv_vae_jax.cli import main as cli_main
from pv_vae_jax.cli import sample
from pv_vae_jax.cli.main import COMMANDS, main
from pv_vae_jax.data.latents import LatentSource
from pv_vae_jax.data.listing import NoVideosError
from pv_vae_jax.data.shards import BrokenRecordError
from pv_vae_jax.evaluation.comparison import LEAST_CLIPS
from pv_vae_jax.model import init_latte, save
from pv_vae_jax.model_folder import SHIPPED, shipped_models
from pv_vae_jax.models.latte import Latte
from pv_vae_jax.params_io import weights_hash, write_params
from pv_vae_jax.pixels import to_float, to_uint8
from pv_vae_jax.report import run_report
from pv_vae_jax.train.config_files import load_experiment, save_config
from pv_vae_jax.train.run import open_run, reopen_run
from pv_vae_jax.train.stages import check_stages, train_stage
from pv_vae_jax.train.writers import read_metrics
from pv_vae_jax.typing import ConfigError, NonFiniteError, WeightsError

pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")

from pv_vae_jax.data.video_reading import frame_times, read_video  # noqa: E402
from pv_vae_jax.data.video_writing import write_video  # noqa: E402
from tests.test_video_files import lying_file, waves  # noqa: E402
from tests.video_fixture import add_sound  # noqa: E402

# Every stage in a few steps; one device, so that a batch of four needs no eight. The GAN starts within stage video.
TINY_EXPERIMENT = """
from pv_vae_jax.train.configs import *
from pv_vae_jax.losses import Objective
from pv_vae_jax.models.discriminator import DiscriminatorConfig
from pv_vae_jax.models.latte import LatteConfig
from pv_vae_jax.models.vae import VAEConfig

FAST = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)


def get_config():
    stage = dict(batch_size=4, optimizer=FAST, discriminator_optimizer=FAST, ema_decay=0.5)
    return Experiment(
        name="tiny",
        data=DataConfig(clips=16, test_clips=4, frames=5, size=16, threads=1),
        vae=VAEConfig(
            patch=2, latent_channels=4, time_factors=(2,), space_factors=(2,), encoder_widths=(8, 8),
            decoder_widths=(8, 8), encoder_blocks=1, decoder_blocks=1, mid_attention=False, lowering="direct",
        ),
        discriminator=DiscriminatorConfig(width=4, levels=1, kinds=("2d",)),
        image=VAEStageConfig(images=True, steps=3, **stage),
        video=VAEStageConfig(
            steps=4, drop_ratio=1.0, drop_form="filled", drop_per_example=True, reverse=0.5,
            objective=Objective(gan=0.1, gan_start=2), **stage,
        ),
        decoder=VAEStageConfig(steps=3, frozen=("encoder", "pad"), objective=Objective(gan=0.1, gan_start=0), **stage),
        latents=LatentsConfig(clips=10, batch_size=4),
        latte=LatteConfig(latent_channels=4, depth=2, width=8, heads=2),
        diffusion=DiffusionConfig(steps=3, batch_size=4, optimizer=FAST),
        log_every=1,
        checkpoint_every=2,
        mesh=MeshConfig(data=1),
    )
"""


def pv_vae(*arguments) -> tuple[int, str, str]:
    """Run the command in this process: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["pv-vae", *map(str, arguments)])
    return status, out.getvalue(), err.getvalue()


def fails(*arguments, status=None) -> str:
    """Run a command that cannot work: it ends with one line that begins with the command; return that line."""
    found, _, error = pv_vae(*arguments)
    line = error.strip().splitlines()[-1]
    assert found in ((1, 2) if status is None else (status,)), error
    assert line.startswith(f"pv-vae {arguments[0]}: " if arguments else "pv-vae: "), error
    assert "Traceback" not in error
    return line


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="session")
def tiny_experiment(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("experiments") / "tiny.py"
    path.write_text(TINY_EXPERIMENT)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_experiment) -> Path:
    """The work directory of a run of all stages."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    status, _, error = pv_vae("train", "--config", tiny_experiment, "--workdir", workdir)
    assert status == 0, error
    for stage in ("image", "video", "decoder", "latents", "diffusion"):
        assert f"{stage}: done in " in error
    return workdir


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Four classes of video files of 16 pixels; among them one that is no video and one that breaks off."""
    folder = tmp_path_factory.mktemp("clips")
    for c, name in enumerate(("jump", "run", "walk", "wave")):
        for i in range(3):
            path = folder / ("test" if i == 2 else "train") / name / f"{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, waves(9, 16, 16, seed=4 * i + c), fps=12)
    (folder / "train" / "walk" / "bad.mp4").write_text("no video")
    lying_file(folder / "train" / "walk" / "lying.mp4", frames=20)
    return folder


# Training


def test_train_leaves_a_model_and_a_curve_of_every_stage(trained):
    assert json.loads((trained / "config.json").read_text())["name"] == "tiny"
    for stage, steps in {"image": 3, "video": 4, "decoder": 3, "diffusion": 3}.items():
        rows = read_metrics(trained / stage / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, steps + 1))
        assert all(np.isfinite(value) for row in rows for value in row.values())
        assert {"loss", "gradient_norm", "data_wait"} <= rows[0].keys()
        assert {p.name for p in (trained / stage / "checkpoints").iterdir()} >= {str(steps)}
        assert "vae.safetensors" in files(trained / stage / "model")
    assert ["gan" in row for row in read_metrics(trained / "video" / "metrics.jsonl")] == [False, False, True, True]
    assert all("gan" in row for row in read_metrics(trained / "decoder" / "metrics.jsonl"))
    assert len(LatentSource(trained / "latents")) == 10
    assert not list(trained.rglob("*.tmp"))


def test_stages_build_on_each_other(trained):
    image, video, decoder = (load(trained / stage / "model") for stage in ("image", "video", "decoder"))
    assert not same(image.vae_params["encoder"], video.vae_params["encoder"])
    assert same(video.vae_params["encoder"], decoder.vae_params["encoder"])
    assert same(video.vae_params["pad"], decoder.vae_params["pad"])
    assert not same(video.vae_params["decoder"], decoder.vae_params["decoder"])
    assert decoder.meta["stage"] == "decoder" and decoder.meta["steps"] == 3


def test_a_work_directory_loads_as_its_newest_model(trained, tmp_path):
    model = load(trained)
    assert same(model.vae_params, load(trained / "decoder" / "model").vae_params)
    assert model.diffusion.class_names == ("bounce", "orbit", "fall", "swing")
    assert model.diffusion.latent_shape == (3, 4, 4, 4)
    mean, std = LatentSource(trained / "latents").statistics
    np.testing.assert_array_equal(model.diffusion.mean, mean)
    np.testing.assert_array_equal(model.diffusion.std, std)
    assert model.meta["diffusion_steps"] == 3


def test_a_finished_run_stays_as_it_is(trained, tiny_experiment):
    before = files(trained)
    call = ("train", "--config", tiny_experiment, "--workdir", trained)
    status, out, error = pv_vae(*call)
    assert status == 0 and error.count("finished before") == 5
    assert out == f"report: {trained / 'report' / 'report.html'}\n"
    assert files(trained) == before
    older = (trained / "video" / "model" / "config.json").stat().st_mtime - 1
    os.utime(trained / "report" / "report.html", (older, older))
    status, out, _ = pv_vae(*call)
    assert status == 0 and "PSNR" in out, "a report older than a stage is written anew"


def test_a_card_has_the_scores_of_the_weights_that_are_published(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    metrics["samples"]["distances"] = {"generated clips": {"Frechet distance": 3.25}}  # of so few clips there is none
    (run / "report" / "metrics.json").write_text(json.dumps(metrics))
    sets = {name: {"set": str(run / name)} for name in ("real", "fake")}
    score = {"name": "FVD", "value": 12.5, "interval": None, "card": sets}
    (run / "report" / "sets.json").write_text(json.dumps([score]))
    for name, source in (("all", run), ("image", run / "image")):
        status, _, error = pv_vae("publish", source, f"me/{name}", "--out", tmp_path / name)
        assert status == 0, error
    cards = {name: (tmp_path / name / "README.md").read_text() for name in ("all", "image")}
    own = load(trained)
    for name, stage in (("all", own.meta["stage"]), ("image", "image")):
        scored = metrics["stages"][stage]
        assert f"| PSNR, dB | {scored['psnr_db']:.5g} | {stage}, {scored['scored']} |" in cards[name]
        assert cards[name].count("| PSNR, dB |") == 1, "scores of other weights stay out"
        for words in ("synthetic: 5 frames, size 16", metrics["protocol"]["ssim"], '"seed": 0', scored["weights"]):
            assert words in cards[name], words
        assert str(run.parent) not in cards[name]
        assert "| FVD | 12.5 | fake against real, sets.json |" in cards[name] and '"set": "real"' in cards[name]
    assert (
        weights_hash(own.diffusion.params) in cards["all"]
        and "| Frechet distance | 3.25 | generated clips |" in cards["all"]
    )
    assert "generated clips" not in cards["image"]
    assert files(tmp_path / "image").keys() == {"README.md", "config.json", "vae.safetensors"}
    assert files(tmp_path / "all").keys() == {"README.md", "config.json", "vae.safetensors", "latte.safetensors"}


def test_a_run_without_what_reports_need_is_told_so_and_ends_well(trained, tiny_experiment, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "report")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "jinja2" else find(name, *more)
    )
    status, out, error = pv_vae("train", "--config", tiny_experiment, "--workdir", tmp_path / "run")
    needs = "reports need jinja2: pip install jinja2 (the extra [report] holds them)"
    first = error.splitlines()[0]
    assert status == 0 and first == f"the report will have no page: {needs}" and f"numbers only: {needs}" in error
    assert out.endswith(f"scores: {tmp_path / 'run' / 'report' / 'metrics.json'}\n")
    assert [p.suffix for p in (tmp_path / "run" / "report").iterdir()].count(".html") == 0
    stages = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())["stages"]
    assert stages.keys() == {"image", "video", "decoder"}
    assert fails("analyze", tmp_path / "run", "--out", tmp_path / "out").endswith(needs)


def test_another_configuration_is_refused_with_its_differences(trained, tiny_experiment):
    before = files(trained)
    call = ("train", "--config", tiny_experiment, "--workdir", trained)
    line = fails(*call, "--config.seed=1", "--config.video.optimizer.learning_rate=0.1")
    assert "belongs to another configuration" in line
    assert "seed: 0 -> 1; video.optimizer.learning_rate: 0.001 -> 0.1" in line
    assert files(trained) == before
    status, _, error = pv_vae(*call, "--config.log_every=7", "--config.data.threads", "2", "--config.sampling.clips=3")
    assert status == 0, "what does not change the numbers may change"
    (trained / "config.json").write_bytes(before["config.json"])


def test_a_setting_younger_than_the_work_directory_stands_at_its_default(trained, tmp_path, tiny_experiment):
    tree = json.loads((trained / "config.json").read_text())
    del tree["video"]["optimizer"]["name"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    (tmp_path / "video").mkdir()
    assert open_run(load_experiment(tiny_experiment), tmp_path).experiment.video.optimizer.name == "adamw"
    with pytest.raises(ConfigError, match="video.optimizer.name: adamw -> muon"):
        open_run(load_experiment(tiny_experiment, {"video.optimizer.name": "muon"}), tmp_path)


def test_settings_of_which_no_stage_began_may_change(tiny_experiment, tmp_path):
    """As after a first try that found no clips."""
    call = ("train", "--config", tiny_experiment, "--workdir", tmp_path / "w", "--stage=image")
    assert "no folder" in fails(*call, "--config.data.source=/nowhere", status=2)
    other = load_experiment(tiny_experiment, {"seed": "5"})
    assert open_run(other, tmp_path / "w").experiment.seed == 5 == reopen_run(tmp_path / "w").experiment.seed
    with open_run(other, tmp_path / "w").lock("image"), pytest.raises(ConfigError, match="seed: 5 -> 0"):
        open_run(load_experiment(tiny_experiment), tmp_path / "w")


def test_a_run_can_be_used_on_other_devices_than_it_trained_on(tiny_experiment, tmp_path):
    many = {"mesh.data": "16", "image.batch_size": "16", "video.batch_size": "16", "decoder.batch_size": "16"}
    experiment = load_experiment(tiny_experiment, many | {"diffusion.batch_size": "16"})
    save_config(experiment, tmp_path / "config.json")
    with pytest.raises(ConfigError, match="needs 16 devices, got 8"):
        open_run(experiment, tmp_path)
    run = reopen_run(tmp_path)
    assert run.mesh.size == 8 and run.experiment == experiment


def test_settings_of_stages_to_come_may_change(tiny_experiment, tmp_path):
    first = open_run(load_experiment(tiny_experiment), tmp_path / "w")
    first.folder("image").mkdir()
    changes = {"video.steps": "9", "diffusion.batch_size": "8", "latents.clips": "12"}
    other = open_run(load_experiment(tiny_experiment, changes), tmp_path / "w")
    with pytest.raises(ConfigError, match=r"or undo: image.steps: 3 -> 7$"):
        open_run(load_experiment(tiny_experiment, changes | {"image.steps": "7"}), tmp_path / "w")
    with other.lock("video"):
        pass
    assert reopen_run(tmp_path / "w").experiment.video.steps == 9
    with pytest.raises(ConfigError, match="or undo: video.steps: 9 -> 4"), first.lock("video"):
        pass  # a process that was started before would go on from states of other settings
    with pytest.raises(ConfigError, match="or undo: video.steps: 9 -> 4"):
        open_run(load_experiment(tiny_experiment), tmp_path / "w")


def test_videos_shorter_than_a_clip_name_a_length_that_would_do(tiny_experiment, tmp_path):
    (tmp_path / "clips").mkdir()
    for i in range(2):
        write_video(tmp_path / "clips" / f"{i}.mp4", waves(6, 16, 16, seed=i), fps=12)
    source = f"--config.data.source={tmp_path / 'clips'}"
    call = ("train", "--config", tiny_experiment, "--workdir", tmp_path / "w", source, "--stage=image")
    line = fails(*call, "--config.data.frames=9")
    assert "6 frames, but a clip spans 9" in line and line.endswith(": --config.data.frames=5 would do")
    assert fails(*call, "--config.data.stride=2").endswith(": --config.data.frames=3 would do")
    assert "would do" not in fails(*call, "--config.data.stride=8")


def test_clips_that_vanish_are_no_wrong_call(tiny_experiment, tmp_path, monkeypatch):
    """Launchers start such a run again, and not one whose path was wrong from the start."""

    def vanish(*_):
        raise NoVideosError("none of the files can be read")

    monkeypatch.setattr("pv_vae_jax.cli.train.train_stage", vanish)
    call = ("train", "--config", tiny_experiment, "--workdir", tmp_path / "w", "--stage=image")
    assert "none of the files" in fails(*call, status=1)


def test_two_processes_do_not_train_one_stage(trained, tiny_experiment, tmp_path):
    with open_run(load_experiment(tiny_experiment), tmp_path / "new").lock("image"):
        line = fails("train", "--config", tiny_experiment, "--workdir", tmp_path / "new")
        assert "new/image is in use by another process" in line
    with reopen_run(trained).lock("latents"):
        assert "latents is in use by another process" in fails("encode", "--workdir", trained)
    assert pv_vae("encode", "--workdir", trained)[0] == 0


def test_the_decoder_is_tuned_while_the_transformer_trains(trained, tiny_experiment, tmp_path, monkeypatch):
    """The encoder is frozen, so latents and transformer are those of stages that run one after the other."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("config.json", "image", "video"):
        (shutil.copytree if (trained / name).is_dir() else shutil.copy)(trained / name, workdir / name)
    train = ("train", "--config", tiny_experiment, "--workdir", workdir, "--stage")
    with reopen_run(workdir).lock("decoder"):  # another process is at it
        for stage in ("latents", "diffusion"):
            assert pv_vae(*train, stage)[0] == 0
    first = load(workdir / "diffusion" / "model")
    assert same(first.vae_params, load(workdir / "video" / "model").vae_params)
    assert pv_vae(*train, "decoder")[0] == 0
    one_by_one, side_by_side = load(trained / "diffusion" / "model"), load(workdir / "diffusion" / "model")
    assert same(side_by_side.diffusion.params, one_by_one.diffusion.params)
    assert same(side_by_side.vae_params, one_by_one.vae_params) and not same(side_by_side.vae_params, first.vae_params)
    assert side_by_side.meta == one_by_one.meta
    # The decoder may even be finished at the moment at which the transformer's model is written.
    shutil.rmtree(workdir / "diffusion" / "model")
    (workdir / "decoder" / "model").rename(tmp_path / "late")

    def finish_first(folder, model):
        if (tmp_path / "late").exists():
            (tmp_path / "late").rename(workdir / "decoder" / "model")
        save(folder, model)

    monkeypatch.setattr("pv_vae_jax.train.dit_stage.save", finish_first)
    assert pv_vae(*train, "diffusion")[0] == 0
    assert same(load(workdir / "diffusion" / "model").vae_params, one_by_one.vae_params)


def test_training_on_a_folder_skips_what_it_cannot_read(clips, tmp_path, tiny_experiment):
    changes = [f"--config.data.source={clips}", "--config.image.steps=0", "--config.decoder.steps=0"]
    changes += ["--config.data.max_damaged_files=0.2"]
    call = ("train", "--config", tiny_experiment, "--workdir", tmp_path / "run", *changes)
    status, _, error = pv_vae(*call, "--stage=video")
    assert status == 0, error
    assert "bad.mp4: not readable as video" in error and "1 of 10 files skipped" in error
    assert error.count("bad.mp4: ") == error.count("lying.mp4: ") == 1, "once for what looks and what trains"
    found = "13 videos of 4 classes (jump, run, walk, wave): 9 for training (12 windows of 5 frames), 4 held out"
    assert f"data: {clips}: {found}, 1 skipped" in error
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "video" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert pv_vae(*call, "--stage=latents")[0] == 0
    cache = LatentSource(tmp_path / "run" / "latents")
    assert cache.class_names == ("jump", "run", "walk", "wave")
    assert {int(cache[i]["label"]) for i in range(len(cache))} == {0, 1, 2, 3}


def test_what_is_found_in_a_folder_is_told_in_videos_and_windows(tmp_path, tiny_experiment, capsys):
    (tmp_path / "clips").mkdir()
    for i in range(3):
        write_video(tmp_path / "clips" / f"{i}.mp4", waves(11, 16, 16, seed=i), fps=12)
    experiment = load_experiment(tiny_experiment, {"data.source": str(tmp_path / "clips")})
    check_stages(open_run(experiment, tmp_path / "run"), ["latents"])  # a stage of which nothing is checked
    found = "3 videos of one class (clips): 2 for training (4 windows of 5 frames), 1 held out"
    assert f"data: {tmp_path / 'clips'}: {found}\n" in capsys.readouterr().err


def test_a_folder_without_videos_is_refused(tmp_path, tiny_experiment):
    (tmp_path / "clips").mkdir()
    call = ("train", "--config", tiny_experiment, "--workdir", tmp_path / "run")
    assert "holds no video files" in fails(*call, f"--config.data.source={tmp_path / 'clips'}")
    call = (*call[:4], tmp_path / "run2", *call[5:])
    assert f"did you mean {tmp_path / 'clips'}?" in fails(*call, f"--config.data.source={tmp_path / 'clisp'}")


def test_weights_that_are_not_finite_are_refused(trained, tmp_path):
    model = load(trained / "image" / "model")
    save(tmp_path / "model", model)
    model.vae_params["pad"]["token"] *= np.nan
    with pytest.raises(WeightsError, match="cannot be written: pad/token is not finite"):
        save(tmp_path / "model", model)
    write_params(tmp_path / "model" / "vae.safetensors", model.vae_params)
    line = fails("reconstruct", "clip.mp4", "--model", tmp_path / "model", "--out", tmp_path / "out")
    assert "does not fit its config: pad/token is not finite" in line


def test_numbers_that_are_not_finite_end_the_run_with_their_name(trained, tmp_path, tiny_experiment):
    model = load(trained / "image" / "model")
    model.vae_params["decoder"]["head"]["kernel"] *= 1e30  # finite, and its square is not
    save(tmp_path / "poison", model)
    changes = [f"--config.image.init_from={tmp_path / 'poison'}", "--stage=image"]
    line = fails("train", "--config", tiny_experiment, "--workdir", tmp_path / "run", *changes)
    assert "stage image, step 1: mse is inf" in line
    assert not list((tmp_path / "run" / "image").glob("checkpoints/*"))
    assert not (tmp_path / "run" / "image" / "model").exists()
    # The very last update, whose terms no later step would show.
    changes = [f"--config.image.optimizer.{c}" for c in ("learning_rate=1e38", "weight_decay=1e10", "warmup_steps=0")]
    changes += ["--config.image.steps=1", "--stage=image"]
    line = fails("train", "--config", tiny_experiment, "--workdir", tmp_path / "run2", *changes)
    assert "stage image, step 1: " in line and "parameters are not finite" in line
    assert not list((tmp_path / "run2" / "image").glob("checkpoints/*"))


def test_what_a_later_stage_cannot_do_ends_the_run_before_it_starts(tmp_path, tiny_experiment):
    for change, says in {
        "latte.attention=splash": "stage diffusion cannot run: splash attention needs a TPU",
        "diffusion.batch_size=3": "diffusion.batch_size 3 is not a multiple of the 2 devices",
        f"decoder.init_from={tmp_path / 'nowhere'}": f"no model at {tmp_path / 'nowhere'}: give a model folder",
    }.items():
        call = ("train", "--config", tiny_experiment, "--workdir", tmp_path / "run", "--config.mesh.data=2")
        assert says in fails(*call, f"--config.{change}", "--config.data.source=synthetic")
        assert not (tmp_path / "run" / "image").exists()
        shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("place", ["main", "importlib.import_module"])
def test_ctrl_c_leaves_no_traceback(monkeypatch, capsys, place):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["pv-vae", "train"])
    monkeypatch.setattr(f"pv_vae_jax.cli.main.{place}", interrupt)
    with pytest.raises(SystemExit) as stop:
        cli_main.run()
    assert stop.value.code == 130 and capsys.readouterr().err == "pv-vae: interrupted\n"


def test_one_stage_alone(tmp_path, tiny_experiment):
    call = ("train", "--config", tiny_experiment, "--workdir", tmp_path / "run")
    assert "stage video starts from stage image: finish training that stage first" in fails(*call, "--stage=video")
    assert "no VAE stage of" in fails(*call, "--stage=latents")
    assert "--stage" in fails(*call, "--stage=vidio", status=2)
    changed = (*call[:4], tmp_path / "other", "--config.video.steps=0", "--config.diffusion.steps=0")
    assert "set --config.video.steps=N" in fails(*changed, "--stage=video")
    assert "set --config.diffusion.steps=N" in fails(*changed, "--stage=latents")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"config.json": ""}, "config.json is damaged"),
        ({"config.json": '{"name": "tiny", "see'}, "config.json is damaged"),
        ({"config.json": "[1]"}, "config.json does not hold a configuration"),
        (
            {"config.json": '{"format": 2, "sead": 1}'},
            "written by another version of pv_vae_jax (unknown config key config.sead; did you mean 'seed'?)",
        ),
        ({"config.json": '{"seed": 1}'}, "in format 2, but pv_vae_jax 0.1.0 wrote it: continue with that version"),
        ({"config.json": '{"format": 3}'}, "another version of pv_vae_jax (format 3) wrote it"),
        ({"config.json": b"\xff\xfe\x00"}, "config.json is damaged"),
        ({"thesis.txt": "years of work"}, "is not empty and holds no run of pv_vae_jax"),
    ],
)
def test_a_damaged_or_foreign_work_directory_is_left_alone(tmp_path, tiny_experiment, content, says):
    for name, text in content.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    before = files(tmp_path)
    assert says in fails("train", "--config", tiny_experiment, "--workdir", tmp_path)
    says = says if "config.json" in content else "holds no run: train one with"
    assert says in fails("encode", "--workdir", tmp_path)
    assert files(tmp_path) == before


def test_a_work_directory_that_cannot_be_made(tmp_path, tiny_experiment):
    (tmp_path / "file").touch()
    call = ("train", "--config", tiny_experiment, "--workdir")
    assert "cannot use" in (line := fails(*call, tmp_path / "file")) and "as work directory" in line
    assert "as work directory: Not a directory" in fails(*call, tmp_path / "file" / "run")
    if os.geteuid():  # nothing is forbidden to root
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "as work directory: Permission denied" in fails(*call, tmp_path / "locked" / "run")
    assert "mesh {'data': 99" in fails(*call, tmp_path / "many", "--config.mesh.data=99")
    assert not (tmp_path / "many").exists()


def test_a_kill_while_the_configuration_is_written_does_not_block_the_work_directory(tmp_path):
    from pv_vae_jax.train.configs import Experiment
    from pv_vae_jax.train.run import open_run

    for name in (".config.json.ab12.partial", ".config.json.partial"):  # the second is of versions before
        (tmp_path / name).write_text('{"na')
    open_run(Experiment(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


# Calls


@pytest.mark.parametrize("call", ["pv_vae_jax inspect", "studies.motion"])
def test_a_reader_that_has_seen_enough_is_no_error(call):
    """`pv-vae inspect --help | head -1`."""
    call, root = [sys.executable, "-m", *call.split(), "--help"], Path(__file__).resolve().parents[1]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as command:
        command.stdout.close()
        assert (command.wait(), command.stderr.read()) == (0, "")


def test_help_lists_the_commands_and_each_has_its_own(tmp_path):
    status, out, _ = pv_vae()
    assert status == 0 and all(command in out for command in COMMANDS)
    for command in COMMANDS:
        status, out, _ = pv_vae(command, "--help")
        assert status == 0 and re.match(rf"pv-vae {command}: [A-Z].*[.:]\n", out) and "--" in out
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    script = Path(sys.executable).with_name("pv-vae")
    for command in [[sys.executable, "-m", "pv_vae_jax"]] + [[script]] * script.exists():
        done = subprocess.run([*command, "--help"], env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0 and "pv-vae COMMAND" in done.stdout, done.stderr


def test_wrong_calls_say_what_would_be_right(tiny_experiment, tmp_path):
    status, _, error = pv_vae("trian")
    assert status == 2 and error == "pv-vae: unknown command 'trian'; did you mean 'train'?\n"
    status, _, error = pv_vae("xyz")
    assert status == 2 and "expected one of train, prepare, encode" in error
    assert fails("train", "--workdir", tmp_path / "x", status=2).startswith(
        "pv-vae train: needs --config: experiment file, or the name of a shipped one, such as demo"
    )
    needs = fails("train", "--config", tiny_experiment, status=2)
    assert needs == "pv-vae train: needs --workdir: work directory of the run, such as runs/demo"
    study = tmp_path / "mine.py"
    study.write_text("def get_study(): pass")
    call = ("--config", study, "--workdir", tmp_path / "x")
    other = f"{study} does not define get_config() but get_study(): use python -m studies.ablation --config {study} "
    assert other + "--workdir runs/mine" in fails("train", *call, status=2)
    call = ("--config", "dmo", "--workdir", tmp_path / "x")
    assert "wan22_predictive; did you mean 'demo'?" in fails("train", *call, status=2)
    assert "Did you mean: workdir" in fails("train", "--wrkdir=x", "--config=y", status=2)
    call = ("train", "--config", tiny_experiment, "--workdir", tmp_path / "x")
    assert "did you mean 'steps'?" in fails(*call, "--config.video.stepz=3")
    assert "write settings of an experiment as --config.NAME=VALUE" in fails(*call, "--confg.video.steps=3", status=2)
    assert "--config.seed needs a value" in fails(*call, "--config.seed", status=2)
    assert "takes flags only, got clip.mp4" in fails(*call, "clip.mp4")
    assert "there are tiny.py" in fails(
        "train", "--config", tiny_experiment.parent / "x.py", "--workdir", tmp_path / "x"
    )
    for command in ("reconstruct", "predict", "sample", "encode"):
        assert "takes" in fails(command, "--workdir=x" if command == "encode" else "--model=x", "--config.seed=1")
    assert not (tmp_path / "x").exists()


def test_another_store_is_no_folder(tiny_experiment, tmp_path, monkeypatch):
    """`Path("s3://bucket/run")` is a folder `s3:` of this machine, whose disk goes with it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    calls = (
        ("--workdir", "train", "--config", tiny_experiment),
        ("--workdir", "evaluate"),
        ("--out", "prepare", "in"),
        ("--out", "sample"),
        ("--out", "reconstruct", "a.mp4"),
    )
    for flag, *call in calls:
        line = fails(*call, f"{flag}=s3://b/x", status=2)
        assert f"{flag} must be a folder or gs://BUCKET/FOLDER, got s3://b/x (" in line and "mount the bucket" in line
        assert f"{flag} is empty: name a folder, such as runs/demo" in fails(*call, f"{flag}=", status=2)
        assert f"{flag} is ~/x, and no shell has replaced its ~" in fails(*call, f"{flag}=~/x", status=2)
    with pytest.raises(ConfigError, match="--workdir is empty: name a folder"):
        open_run(load_experiment(tiny_experiment), "")
    with pytest.raises(ConfigError, match="write .HOME, or a space in place of the ="):
        open_run(load_experiment(tiny_experiment), Path("~someone/x"))
    for address in ("s3://b/run", Path("s3://b/run")):
        with pytest.raises(ConfigError, match="--workdir must be a folder or .*, got s3:/+b/run .*: mount the bucket"):
            open_run(load_experiment(tiny_experiment), address)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_missing_or_damaged_model_is_named(trained, tmp_path):
    clip = tmp_path / "a.mp4"
    write_video(clip, waves(5, 16, 16))
    shipped = [p.parent.name for p in SHIPPED.glob("*/config.json")]
    line = fails("reconstruct", "--model=nowhere", clip)
    assert "no model at nowhere" in line and "shipped models" in line and all(name in line for name in shipped)
    shutil.copytree(trained / "decoder" / "model", tmp_path / "model")
    for name, text in (("config.json", ""), ("config.json", "{}"), ("vae.safetensors", "x" * 100)):
        good = (tmp_path / "model" / name).read_bytes()
        (tmp_path / "model" / name).write_text(text)
        for command in ("reconstruct", "predict", "sample"):
            arguments = () if command == "sample" else (clip,)
            assert "is damaged" in fails(command, "--model", tmp_path / "model", "--out", tmp_path, *arguments)
        (tmp_path / "model" / name).write_bytes(good)
    data = bytearray((tmp_path / "model" / "vae.safetensors").read_bytes())
    data[-4] ^= 1  # the last number stays finite
    (tmp_path / "model" / "vae.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="vae.safetensors is damaged: its SHA-256 is not the one in config.json"):
        load(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["sha256"]  # as models of older versions
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert not same(load(tmp_path / "model").vae_params, load(trained).vae_params)


# Using a run


def test_encode_finishes_what_is_missing(trained, tmp_path):
    status, out, _ = pv_vae("encode", "--workdir", trained)
    assert status == 0 and "10 posteriors of bounce, orbit, fall, swing" in out and "standard deviations" in out
    before = files(trained / "latents")
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "latents")
    assert pv_vae("encode", "--workdir", copy)[0] == 0
    assert files(copy / "latents") == before
    key = json.loads((copy / "latents" / "key.json").read_text())
    (copy / "latents" / "key.json").write_text(json.dumps(key | {"encoder": "other"}))
    assert "are stale (encoder: cached 'other', now " in fails("encode", "--workdir", copy)


def test_sample_writes_clips_of_every_class(trained, tmp_path, monkeypatch):
    call = ("sample", "--model", trained, "--steps=2", "--batch_size=4")
    status, out, error = pv_vae(*call, "--clips=6", "--out", tmp_path / "all")
    assert status == 0, error
    with np.load(tmp_path / "all" / "samples.npz") as saved:
        video, label = saved["video"], saved["label"]
    assert video.shape == (6, 5, 16, 16, 3) and video.dtype == np.uint8 and label.tolist() == [0, 1, 2, 3, 0, 1]
    assert len({clip.tobytes() for clip in video}) == 6
    for name, count in {"bounce": 2, "orbit": 2, "fall": 1, "swing": 1}.items():
        told = "1 clip" if count == 1 else f"{count} clips side by side"
        assert f"samples_{name}.mp4: {told}\n" in out
        assert read_video(tmp_path / "all" / f"samples_{name}.mp4").shape == (5, 128, 128 * count, 3)  # enlarged
    assert pv_vae(*call, "--clips=3", "--class_name=fall", "--out", tmp_path / "one")[0] == 0
    with np.load(tmp_path / "one" / "samples.npz") as saved:
        assert saved["label"].tolist() == [2, 2, 2]
        np.testing.assert_array_equal(saved["video"][2], video[2])  # clip i depends on the seed, i and the class
    assert set(files(tmp_path / "one")) == {"samples.npz", "samples_fall.mp4"}
    model = load(trained)
    names = ("up/down", "b", "c", "d")  # as a program may call its classes
    save(tmp_path / "model", model.replace(diffusion=model.diffusion.replace(class_names=names)))
    call = ("sample", "--model", tmp_path / "model", "--steps=1", "--class_name=up/down", "--clips=1")
    assert pv_vae(*call, "--out", tmp_path / "two")[0] == 0
    assert set(files(tmp_path / "two")) == {"samples.npz", "samples_up%2Fdown.mp4"}
    monkeypatch.setattr("pv_vae_jax.data.video_writing.ENCODER", "none of this build")
    status, out, error = pv_vae(*call, "--out", tmp_path / "three")
    assert status == 0 and "samples.npz only, " in error and set(files(tmp_path / "three")) == {"samples.npz"}


def test_sample_refuses_what_the_model_does_not_have(trained, tmp_path):
    call = ("sample", "--out", tmp_path / "out", "--model")
    assert "no class 'fal'; did you mean 'fall'?" in fails(*call, trained, "--class_name=fal")
    assert "expected one of bounce, orbit, fall, swing" in fails(*call, trained, "--class_name=xyz")
    assert "no diffusion transformer: take a run whose stage diffusion is finished" in fails(
        *call, trained / "video" / "model"
    )
    assert "--guidance must be a finite number" in fails(*call, trained, "--guidance=nan")
    for wrong in ("--clips=0", "--steps=3000000000", "--seed=-1"):
        assert fails(*call, trained, wrong, status=2)
    assert not (tmp_path / "out").exists()


def test_labels_that_are_no_class_are_refused(trained):
    with pytest.raises(ValueError, match=r"labels must be whole numbers from 0 to \d, got \[-1, 9\]"):
        sample.sample_clips(load(trained), np.array([0, -1, 9]))


def test_samples_that_are_not_finite_are_no_clips(trained):
    model = load(trained)
    params = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), model.diffusion.params)
    broken = dataclasses.replace(model, diffusion=dataclasses.replace(model.diffusion, params=params))
    with pytest.raises(NonFiniteError, match="clips 0 to 1 hold NaN"):
        sample.sample_clips(broken, np.array([0, 1]), steps=2, batch_size=2)


def test_sample_of_a_model_without_classes_needs_no_flag(trained, tmp_path, monkeypatch):
    model = load(trained)
    latte = Latte(dataclasses.replace(model.diffusion.model.config, classes=0))
    params = jax.jit(lambda: init_latte(latte, model.diffusion.latent_shape))()
    free = dataclasses.replace(model, diffusion=dataclasses.replace(model.diffusion, model=latte, params=params))
    save(tmp_path / "model", free)
    seen = []

    def sample_clips(model, labels, *, guidance, **_):
        seen.append(guidance)
        return np.zeros((len(labels), 5, 16, 16, 3), np.uint8)

    monkeypatch.setattr(sample, "sample_clips", sample_clips)
    call = ("sample", "--model", tmp_path / "model", "--out", tmp_path / "out")
    assert pv_vae(*call, "--clips=2")[0] == 0
    assert set(files(tmp_path / "out")) == {"samples.npz", "samples_all.mp4"} and seen == [1.0]
    assert "trained without classes: leave out --class_name" in fails(*call, "--class_name=fall")
    assert "leave out --class_name and --guidance" in fails(*call, "--guidance=2")


def test_reconstruct_writes_both_side_by_side(trained, clips, tmp_path):
    videos = [clips / "train" / "walk" / "0.mp4", clips / "train" / "walk" / "1.mp4"]
    status, out, error = pv_vae("reconstruct", *videos, "--model", trained, "--frames=5", "--out", tmp_path)
    assert status == 0, error
    for path in videos:
        target = tmp_path / f"{path.stem}_reconstruction.mp4"
        assert f"{target} (original | reconstruction): 5x16x16, latents t2s4c4, PSNR " in out
        written, original = read_video(target), read_video(path)[:5]
        assert written.shape == (5, 128, 256, 3), "enlarged by 8"
        assert np.abs(written[:, ::8, :128:8].astype(int) - original).mean() < 4
    model, video = load(trained), read_video(videos[0])[:5]
    apply = jax.jit(lambda params, video: model.vae.apply({"params": params}, to_float(video[None]))[0][0])
    error = np.asarray(to_uint8(apply(model.vae_params, video))).astype(float) - video
    assert f"PSNR {np.mean(10 * np.log10(255**2 / np.mean(error**2, (1, 2, 3)))):.2f} dB" in out


def test_a_stride_takes_every_so_many_frames_at_their_own_times(trained, tmp_path):
    """Of a video, what a file of every third of its frames gives."""
    video = waves(13, 16, 16)
    write_video(tmp_path / "all.mp4", video, fps=12)
    write_video(tmp_path / "third.mp4", read_video(tmp_path / "all.mp4")[::3], fps=4)
    told, written = {}, {}
    for name, more in (("all", ["--stride=3"]), ("third", [])):
        status, told[name], error = pv_vae(
            "reconstruct", tmp_path / f"{name}.mp4", "--model", trained, "--out", tmp_path / name, *more
        )
        assert status == 0, error
        written[name] = tmp_path / name / f"{name}_reconstruction.mp4"
    assert "5x16x16" in told["all"] and "5x16x16" in told["third"]
    times = frame_times(written["all"])
    np.testing.assert_allclose(times, np.arange(5) / 4)
    np.testing.assert_allclose(times, frame_times(written["third"]))
    difference = read_video(written["all"]).astype(int) - read_video(written["third"])
    assert np.abs(difference).mean() < 3, "the third was coded twice"
    call = ("reconstruct", tmp_path / "all.mp4", "--model", trained, "--out", tmp_path / "x", "--stride=3")
    assert "has 5 frames at --stride=3, fewer than --frames=7: --frames=5 takes" in fails(*call, "--frames=7")


def test_reconstruct_of_a_long_video_is_that_of_the_whole(trained, tmp_path):
    """Read, coded and written chunk by chunk: the same pictures whatever the chunk."""
    write_video(tmp_path / "long.mp4", waves(33, 16, 16), fps=12)
    printed = {}
    for chunk in (100, 5):  # 17 latent frames: whole, and in chunks of 2, 5, 5, 5
        out = tmp_path / str(chunk)
        call = ("reconstruct", tmp_path / "long.mp4", "--model", trained, "--out", out, "--chunk", chunk)
        status, text, error = pv_vae(*call)
        assert status == 0 and ("33/33" in error) == (chunk == 5), error
        printed[chunk] = text.replace(str(out), "")
    assert printed[100] == printed[5] and "33x16x16" in printed[5]
    written = [read_video(tmp_path / chunk / "long_reconstruction.mp4") for chunk in ("100", "5")]
    assert written[0].shape == (33, 128, 256, 3)
    assert np.abs(written[0].astype(int) - written[1]).mean() < 0.01, "a pixel may be rounded the other way"
    assert fails("reconstruct", tmp_path / "long.mp4", "--chunk=0", status=2)
    line = fails("reconstruct", tmp_path / "long.mp4", "--model", trained, "--frames=35", "--out", tmp_path / "x")
    assert "has 33 frames, fewer than --frames=35: --frames=33 takes as many as fit" in line and not files(
        tmp_path / "x"
    ), "nothing half-written stays"


def test_a_name_with_a_colon_is_a_name_and_frames_keep_their_times(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    times = np.array([0, 0.1, 0.5, 0.6, 1.0])
    write_video("silent.mp4", waves(5, 16, 16), fps=4, times=times)
    add_sound("silent.mp4", "a:b.mp4")
    for command in ("reconstruct", "predict"):
        status, out, error = pv_vae(command, "--model", trained, "--out=c:d", "a:b.mp4")
        assert status == 0 and "a:b.mp4: its sound is left out of the result" in out, error
    for result in ("c:d/a:b_reconstruction.mp4", "c:d/a:b_prediction.mp4"):
        np.testing.assert_allclose(frame_times(result), times, atol=1e-4)  # each frame at its own time


def test_a_report_that_cannot_be_written_costs_no_scoring(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    (tmp_path / "run" / "report").write_text("in the way")
    monkeypatch.setattr(run_report, "_score_stage", lambda *_: pytest.fail("scored already"))
    assert "cannot write into" in fails("evaluate", "--workdir", tmp_path / "run", status=1)


def test_a_folder_with_the_name_of_a_shipped_model_is_not_in_the_way_of_a_report(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in shipped_models():
        (tmp_path / name).mkdir()
    assert run_report._score_shipped(reopen_run(trained), np.zeros((LEAST_CLIPS, 5, 32, 32, 3), np.uint8))


def test_a_smaller_report_does_not_take_the_place_of_a_larger(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "report" / "report.html").write_text("what stays, stays")
    before = files(tmp_path / "run" / "report")
    for flags, name in ((["--clips=2", "--sample_clips=0"], "report-2-clips-0-samples"), (["--clips=4"], "report")):
        status, out, error = pv_vae("evaluate", "--workdir", tmp_path / "run", *flags)
        assert status == 0 and out.splitlines()[-1] == f"report: {tmp_path / 'run' / name / 'report.html'}", error
        assert ("holds a report of more clips or samples and is kept" in error) == (name != "report")
        assert (files(tmp_path / "run" / "report") == before) == (name != "report")
    assert json.loads((tmp_path / "run" / "report-2-clips-0-samples" / "metrics.json").read_text())["samples"] is None


def test_a_report_without_finite_samples_says_so(trained, tmp_path, monkeypatch):
    def sample_clips(*_, **__):
        raise NonFiniteError("clips 0 to 3 hold NaN")

    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(run_report, "sample_clips", sample_clips)
    status, _, error = pv_vae("evaluate", "--workdir", tmp_path / "run", "--clips=4")
    assert status == 0 and "no samples: clips 0 to 3 hold NaN" in error
    metrics = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())
    assert metrics["missing"] == ["There are no samples: clips 0 to 3 hold NaN."] and metrics["samples"] is None
    assert (trained / "report" / "samples.npz").exists() and not (tmp_path / "run" / "report" / "samples.npz").exists()
    assert "no samples: clips 0 to 3 hold NaN" in (tmp_path / "run" / "report" / "report.html").read_text()


def test_predict_compares_with_copying_the_last_frame(trained, clips, tmp_path):
    video = clips / "test" / "jump" / "2.mp4"
    status, out, error = pv_vae("predict", "--model", trained, "--frames=5", "--out", tmp_path, video)
    assert status == 0, error
    target = tmp_path / "2_prediction.mp4"
    assert f"{target} (truth | prediction | copy): saw 3 frames, drew 2; squared error 0." in out
    written = read_video(target)[:, ::8, ::8].astype(int)
    assert written.shape == (5, 16, 48, 3)
    assert np.abs(written[3:, :, 32:] - written[2, :, :16]).mean() < 6, "the last frame seen, again"
    truth = read_video(video)[:5] / 127.5 - 1
    assert f"copying the last frame {np.mean((truth[2] - truth[3:]) ** 2):.4f}" in out


def test_wrong_shapes_name_the_right_ones(trained, clips, tmp_path):
    video = clips / "train" / "walk" / "0.mp4"
    call = ("reconstruct", "--model", trained, "--out", tmp_path)
    line = fails(*call, video, "--frames=4")
    assert "0.mp4: 4 frames do not fit 1 + 2 n: use 3 or 5 frames" in line and "--frames" in line
    line = fails(*call, video, "--size=18,30")
    assert "height 18 is not a multiple of 4: use 16 or 20; width 30 is not a multiple of 4: use 28 or 32" in line
    assert "height 10 is not a multiple of 4" in fails(*call, video, "--size=10")
    assert "has 9 frames, fewer than --frames=11: --frames=9 takes" in fails(*call, video, "--frames=11")
    write_video(tmp_path / "even.mp4", read_video(video)[:8])
    assert "has 8 frames, which do not fit 1 + 2 n: --frames=7 takes" in fails(*call, tmp_path / "even.mp4")
    assert "bad.mp4: not readable as video" in fails(*call, clips / "train" / "walk" / "bad.mp4")
    assert "no video file" in fails(*call, "absent.mp4")
    assert "name at least one video file" in fails(*call)
    assert "several files are called 0" in fails(*call, video, clips / "train" / "jump" / "0.mp4")
    call = ("predict", "--model", trained, "--out", tmp_path, video)
    assert "4 frames do not fit 1 + 2 n: use 3 or 5 frames" in fails(*call, "--frames=4")
    assert "--observe: expected observed to be 1 + 2 n and at most the clip's 5 frames, got 4: pass 3 or 5" in fails(
        *call, "--frames=5", "--observe=4"
    )
    assert "must leave at least one" in fails(*call, "--frames=5", "--observe=5")
    result = tmp_path / "0_prediction.mp4"
    result.write_bytes(video.read_bytes())
    assert "would replace" in fails("predict", "--model", trained, "--out", tmp_path, video, result, "--frames=5")
    assert result.read_bytes() == video.read_bytes(), "an input stays"
    (tmp_path / "file").touch()
    assert "File exists" in fails(*call, "--frames=5", "--out", tmp_path / "file")


def test_what_is_passed_over_is_counted(clips, tmp_path, tiny_experiment):
    shutil.copytree(clips, tmp_path / "clips")
    for name in ("train/jump/a.ogv", "train/jump/b.OGV", "test/jump/c.flv", "train/run/.hidden.flv", "notes"):
        (tmp_path / "clips" / name).touch()
    call = ("train", "--config", tiny_experiment, "--workdir", tmp_path / "run", "--stage=image")
    _, _, error = pv_vae(*call, f"--config.data.source={tmp_path / 'clips'}", "--config.data.max_damaged_files=0.2")
    line = next(line for line in error.splitlines() if line.startswith("data: "))
    assert line.endswith(", 1 skipped, 4 other files passed over (2 .ogv, 1 without suffix, 1 .flv)"), line


def test_too_many_damaged_files_end_a_run(clips, tmp_path, tiny_experiment):
    call = ("train", "--config", tiny_experiment, "--workdir", tmp_path / "run", f"--config.data.source={clips}")
    line = fails(*call, status=1)
    assert "1 of the 10 files of " in line and "data.max_damaged_files=0.05 allows (bad.mp4: not readable as" in line
    assert line.endswith("mend or remove them, or set --config.data.max_damaged_files=0.1")
    # It changes no number, so a run that was refused goes on with another share.
    assert pv_vae(*call, "--config.data.max_damaged_files=0.2", "--stage=image")[0] == 0


def test_errors_of_the_system_say_what_mends_them(trained, tmp_path, monkeypatch):
    def refuse(number):
        def fail(*_, **__):
            raise OSError(number, os.strerror(number), str(tmp_path / "lock"))

        monkeypatch.setattr("pv_vae_jax.train.run.locked", fail)
        return fails("encode", "--workdir", trained, status=1)

    assert refuse(errno.EROFS).endswith("lock': mount the disk for writing, or use another folder")
    assert refuse(errno.ENOSPC).endswith("lock': make room")
    assert refuse(errno.EINVAL).endswith("lock'"), "room would not help"


def test_a_file_whose_name_begins_with_a_dash_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("-clip.mp4", waves(5, 16, 16), fps=12)
    line = fails("reconstruct", "--out=out", "-clip.mp4", status=2)
    assert line.endswith("; write the file as ./-clip.mp4") and "write the file" not in fails("reconstruct", "-x.mp4")


def test_programs_are_kept_at_home_if_there_is_one(monkeypatch):
    old, found = jax.config.jax_compilation_cache_dir, []
    monkeypatch.delenv("PV_VAE_CACHE", raising=False)
    try:
        for home in ("", "/", "/home/a"):
            monkeypatch.setenv("HOME", home)
            jax.config.update("jax_compilation_cache_dir", None)
            cli_main.enable_compilation_cache()
            found.append(jax.config.jax_compilation_cache_dir)
    finally:
        jax.config.update("jax_compilation_cache_dir", old)
    assert found == [None, None, "/home/a/.cache/pv_vae_jax"]


def test_a_finished_cache_is_told_as_such(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    status, out, _ = pv_vae("encode", "--workdir", tmp_path / "run")
    assert status == 0 and "is finished: nothing is encoded again" in out
    (tmp_path / "run" / "latents" / "00000.array_record").unlink()
    shutil.rmtree(tmp_path / "run" / "diffusion")
    with pytest.raises(
        BrokenRecordError, match="00000.array_record: 0 of 10 .*: pv-vae encode --workdir .*run encodes"
    ):
        train_stage(reopen_run(tmp_path / "run"), "diffusion")
    assert pv_vae("encode", "--workdir", tmp_path / "run")[0] == 0
    assert files(tmp_path / "run" / "latents")["manifest.json"] == files(trained / "latents")["manifest.json"]


def test_inspect_shows_what_would_run(tiny_experiment):
    status, out, error = pv_vae("inspect", "--config", tiny_experiment, "--stage=diffusion", "--config.seed=9")
    assert status == 0, error
    tree, end = json.JSONDecoder().raw_decode(out)
    assert tree["seed"] == 9 and tree["data"]["frames"] == 5
    rest = out[end:]
    for word in ("parameters", "GFLOP", "MiB", "mesh {'data': 1, 'fsdp': 1, ", "stage diffusion", "pairs/"):
        assert word in rest
    lines = pv_vae("inspect", "--config", tiny_experiment, "--stage=diffusion", "--config.seed=9", "--summary")[1]
    assert lines.splitlines() == [
        line for line in rest.splitlines() if line and not line.startswith(("+", "|", "Total:", "moments"))
    ]
