"""Training on clips that a program passes, of any shape and in several sizes, and runs that began with other draws."""

import dataclasses
import json

import grain
import jax
import numpy as np
import pytest

from pv_vae_jax.data.listing import NoVideosError
from pv_vae_jax.model import load
from pv_vae_jax.report.run_report import read_every_clip
from pv_vae_jax.train import DataConfig, load_experiment, train
from pv_vae_jax.train.latents_stage import latent_shape
from pv_vae_jax.train.run import open_run
from pv_vae_jax.train.sizes import sized_batches
from pv_vae_jax.typing import ConfigError
from tests.test_cli import fails, files, pv_vae, tiny_experiment  # noqa: F401

OWN = {"data.source": "program:noise", "data.class_names": "dark,bright"}
SMALL = {
    "image.steps": "0",
    "video.steps": "2",
    "video.objective.gan": "0",
    "decoder.steps": "0",
    "diffusion.steps": "1",
}


def noise(clips=9, frames=12, size=(20, 30)):
    """Clips of two classes, each of another length."""
    rng = np.random.default_rng(0)
    return [
        {"video": rng.integers(0, 128, (frames + i, *size, 3), np.uint8) + np.uint8(127 * (i % 2)), "label": i % 2}
        for i in range(clips)
    ]


@pytest.mark.parametrize("kind", [pytest.param("list", marks=pytest.mark.slow), "dataset"])
def test_a_program_trains_on_rectangles_of_its_own(tiny_experiment, tmp_path, kind):  # noqa: F811
    """Clips and images in the video stage, latents of the clips; the model samples the rectangle."""
    pytest.importorskip("av", reason="resizing needs PyAV: pip install -e '.[video]'")
    sizes = {"video.sizes": "((5,(16,24)),(1,(24,16),2))", "data.size": "16,24"}
    experiment = load_experiment(tiny_experiment, OWN | SMALL | sizes)
    assert [batch.shape for batch in sized_batches(experiment, "video")] == [(4, 5, 16, 24, 3), (20, 1, 24, 16, 3)]
    assert latent_shape(experiment) == (3, 4, 6, 4)
    clips = noise() if kind == "list" else grain.MapDataset.source(noise())
    run = train(experiment, tmp_path / kind, clips=clips, test_clips=noise(3))
    model = load(run.workdir)
    assert model.diffusion.class_names == ("dark", "bright")
    assert model.sample([0, 1], jax.random.key(0), steps=1).shape == (2, 5, 16, 24, 3)
    logs = [json.loads(line) for line in (run.folder("video") / "metrics.jsonl").read_text().splitlines()]
    assert any("loss/5x16x24" in row for row in logs) and any("loss/1x24x16" in row for row in logs)
    video, names = read_every_clip(run.source("test", random=False), 10)
    assert video.shape == (3, 5, 16, 24, 3) and names == ["dark", "bright", "dark"]


def test_clips_of_a_program_are_checked(tiny_experiment, tmp_path):  # noqa: F811
    own = load_experiment(tiny_experiment, OWN)
    with pytest.raises(
        ConfigError, match=r"program:noise stands for clips .* pv_vae_jax.train.train\(.*clips="
    ) as error:
        train(own, tmp_path / "none")
    assert "name a folder" in str(error.value)
    with pytest.raises(ConfigError, match="clips need data.source='program:NAME'.*got 'synthetic'"):
        train(load_experiment(tiny_experiment), tmp_path / "synthetic", clips=noise())
    with pytest.raises(ConfigError, match="class_names applies to source=program:NAME"):
        DataConfig(class_names=("a",))
    source = open_run(own, tmp_path / "labels", {"train": [{"video": noise()[0]["video"], "label": 2}]})
    with pytest.raises(ValueError, match="clip 0: expected a label below 2, got 2: name every class"):
        source.source("train", random=True)[0]
    with pytest.raises(NoVideosError, match="has no test clips: pass test_clips"):
        source.source("test", random=False)
    with pytest.raises(NoVideosError, match="expected clips, got none"):
        train(own, tmp_path / "empty", clips=[])
    message = fails(
        "train", "--config", tiny_experiment, "--workdir", tmp_path / "cli", "--config.data.source=program:a"
    )
    assert "stands for clips that a program passes" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.size": "16x24"}, "config.data.size must be a side or .height, width. in pixels.*got '16x24'"),
        ({"data.size": "16,24,3"}, "config.data.size must be a side"),
        ({"data.size": "0,16"}, "config.data.size must be a side"),
        ({"data.size": "16,18"}, "width 18 .* multiple of 4: use 16 or 20"),
        ({"data.fit": "zoom"}, "config.data.fit must be 'crop' or 'pad' or 'resize', got 'zoom'"),
        ({"data.fit": "pad", "data.crop": "random"}, "crop=random needs fit=crop, got fit=pad"),
        ({"video.sizes": "((5,(16,24,3)),)"}, r"sizes must hold \(frames, size\)"),
        ({"video.sizes": "((5,(16,24)),(5,(16,24)))"}, r"sizes holds \(5, \(16, 24\)\) twice"),
        ({"video.sizes": "((5,(16,18)),)"}, r"config.video.sizes, \(5, \(16, 18\)\): .*width 18"),
        ({"data.workers": "-1"}, "config.data.workers must be at least 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tiny_experiment, changes, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        load_experiment(tiny_experiment, changes)


def test_a_mesh_divides_both_sides_of_a_rectangle(tiny_experiment):  # noqa: F811
    from pv_vae_jax.sharding.mesh import make_mesh
    from pv_vae_jax.train.sizes import check_mesh

    experiment = load_experiment(tiny_experiment, {"data.size": "16,24"})
    check_mesh(make_mesh(1, 1, context=4), experiment, "video")
    with pytest.raises(ConfigError, match="mesh.space 4 does not divide the width of the latents, 6"):
        check_mesh(make_mesh(1, 1, space=4), experiment, "video")


def test_a_run_of_other_draws_is_not_trained_on(tiny_experiment, tmp_path):  # noqa: F811
    """It names the version that goes on; a run in which nothing has begun, and a finished one, are used as they are."""
    short = {"image.steps": "0", "decoder.steps": "0", "video.objective.gan": "0"}  # programs of tests/test_watching.py
    experiment = load_experiment(tiny_experiment, short)
    run = train(experiment, tmp_path, ["video"])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["draws"] == 2
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "draws"}))
    before = files(tmp_path)
    with pytest.raises(
        ConfigError, match="draws of version 1.*version 2.: go on with pv_vae_jax 0.2.0, or use another"
    ):
        train(experiment, tmp_path)
    assert files(tmp_path) == before, "nothing was written"
    assert load(tmp_path).meta["stage"] == "video"
    train(experiment, tmp_path, ["video"])  # finished: nothing to draw
    path.write_text(json.dumps(config | {"draws": 3}))
    with pytest.raises(ConfigError, match="draws of version 3.*go on with a newer version"):
        train(experiment, tmp_path)
    path.write_text(json.dumps(config))
    assert train(experiment, tmp_path).finished("diffusion")
    assert dataclasses.replace(run.experiment, seed=0) == experiment
