"""What the progress bar says about the time that is left."""

import dataclasses
import os
import sys

from pv_vae_jax.models.vae import VAEConfig
from pv_vae_jax.progress import progress_bar
from pv_vae_jax.train.configs import DataConfig, DiffusionConfig, Experiment, VAEStageConfig
from pv_vae_jax.train.run import open_run
from pv_vae_jax.train.time_left import duration, time_left


def test_a_duration_has_no_more_digits_than_one_can_plan_with():
    assert [duration(s) for s in (0.4, 89, 90, 3_540, 3_600, 11_100)] == [
        *("0 s", "89 s", "2 min", "59 min", "1 h 0 min", "3 h 5 min")
    ]


def test_stages_to_come_cost_as_much_for_a_pixel_and_others_are_named(tmp_path):
    experiment = Experiment(
        data=DataConfig(frames=5, size=16),
        vae=VAEConfig.tiny(latent_channels=64),
        image=VAEStageConfig(images=True, steps=600, batch_size=8),
        video=VAEStageConfig(steps=120, batch_size=8, drop_ratio=1.0),
        diffusion=DiffusionConfig(steps=10),
    )
    run = open_run(experiment, tmp_path / "run")
    # 600 steps of 2 s are left of images; 120 steps of clips are of five times as many pixels.
    assert time_left(run, "image", 600, 2.0) == "20 min left, 40 min with video, then latents and diffusion"
    assert time_left(run, "image", 300, 2.0).startswith("10 min left, 30 min with video")
    assert time_left(run, "video", 60, 60.0) == "1 h 0 min left, then latents and diffusion"
    assert time_left(run, "diffusion", 6, 10.0) == "60 s left"
    for stage in ("video", "latents"):  # finished before, as when an earlier stage is trained again
        run.result(stage).parent.mkdir(parents=True)
        run.result(stage).touch()
    assert time_left(run, "image", 300, 2.0) == "10 min left, then diffusion"
    run.result("video").unlink()
    # Batches of several sizes cost the same, by the number of clips in each.
    sizes = ((5, 16), (1, 16, 3))
    mixed = dataclasses.replace(experiment.video, sizes=sizes)
    run = dataclasses.replace(run, experiment=dataclasses.replace(experiment, video=mixed))
    assert time_left(run, "image", 300, 2.0).startswith("10 min left, 30 min with video")  # of equal cost


def test_a_bar_moves_on_a_terminal_that_does_not_tell_its_size(monkeypatch):
    screen, terminal = os.openpty()  # of 0 columns and 0 rows, as some programs that record a session open it
    with os.fdopen(terminal, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        with progress_bar(total=4, desc="image", unit="step") as bar:
            bar.update(4)
    assert "image: 100%" in os.read(screen, 10_000).decode()
    os.close(screen)
