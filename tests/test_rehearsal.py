"""The rehearsal at paper size: its stages are the papers', follow from each other, and what they take is told."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rehearsal
from benchmarks.rehearsal import EXPERIMENTS, Part
from pv_vae_jax.train.config_files import load_experiment, parse_overrides

# Networks of a few channels, and the same stages.
SMALL = [
    f"--config.{setting}"
    for setting in (
        "vae.encoder_widths=(8,8,8,8,8)",
        "vae.decoder_widths=(8,8,8,8,8)",
        "vae.encoder_blocks=1",
        "vae.decoder_blocks=1",
        "vae.lowering=direct",
        "discriminator.width=4",
        "discriminator.levels=1",
        "latte.width=16",
        "latte.depth=2",
        "latte.heads=2",
    )
]


def test_every_stage_of_the_papers_experiments_is_rehearsed_at_full_size(tmp_path):
    planned = rehearsal.parts(tmp_path)
    named = [f"paper_vae {stage}" for stage in ("image", "video", "decoder")]
    named += [f"paper_latte {stage}" for stage in ("decoder", "latents", "diffusion")]
    assert [part.name for part in planned] == [*named, "samples"]
    for part in planned[:-1]:
        _, overrides = parse_overrides(part.command)
        name, stage = part.name.split()
        whole, short = (
            load_experiment(EXPERIMENTS / f"{name}.py"),
            load_experiment(EXPERIMENTS / f"{name}.py", overrides),
        )
        for network in ("vae", "latte"):
            full = dataclasses.replace(getattr(whole, network), dtype="float32")
            assert getattr(short, network) == full, "nothing but the dtype differs"
        assert short.discriminator == whole.discriminator and short.data.frames == whole.data.frames
        if stage != "latents":
            assert getattr(short, stage).steps == min(2, getattr(whole, stage).steps)
        for trained in ("video", "decoder", "diffusion"):
            free = dict(steps=0, batch_size=1, init_from="") if trained != "diffusion" else dict(steps=0, batch_size=1)
            assert dataclasses.replace(getattr(short, trained), **free) == dataclasses.replace(
                getattr(whole, trained), **free
            ), "losses, forms and optimisers are the papers'"


def test_what_a_part_takes_is_told_and_its_states_go(tmp_path, capfd, monkeypatch):
    states = tmp_path / "checkpoints"
    eat = f"import os; os.makedirs({str(states)!r}); open({str(states / 'a')!r}, 'wb').write(bytes(300_000_000))"
    parts = [Part("eats", ("-c", eat), states), Part("rests", ("-c", "pass"), tmp_path / "none")]
    assert rehearsal.rehearse(parts, tmp_path, [sys.executable]) == 0
    eats, rests, total = capfd.readouterr().out.splitlines()
    assert eats.startswith("eats: ") and "memory 0.3 GB, disk 0.3 GB" in eats
    assert "memory 0.0 GB, disk 0.0 GB" in rests, "of its own process alone, and the state is gone"
    assert total == "rehearsed: memory 0.3 GB of at most 20, disk 0.3 GB" and not states.exists()
    monkeypatch.setattr(rehearsal, "LIMIT", 0.2e9)
    assert rehearsal.rehearse(parts, tmp_path, [sys.executable]) == 1, "more memory than allowed"
    fails = Part("fails", ("-c", "raise SystemExit(3)"), states)
    assert rehearsal.rehearse([fails, *parts], tmp_path, [sys.executable]) == 3
    captured = capfd.readouterr()
    assert "fails: failed with exit status 3" in captured.err and "eats" not in captured.out.partition("rehearsed")[2]


def test_other_flags_are_refused(capsys):
    with pytest.raises(SystemExit):
        rehearsal.main(["--steps=3"])
    assert "expected --workdir and --config.KEY=VALUE, got --steps=3" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_small_networks_go_through_all_stages_to_samples(tmp_path, capfd):
    assert rehearsal.main([f"--workdir={tmp_path}", *SMALL]) == 0
    out = capfd.readouterr().out
    for part in rehearsal.parts(tmp_path):
        assert f"{part.name}: " in out and not part.states.exists()
    video = np.load(tmp_path / "samples" / "samples.npz")["video"]
    assert video.shape == (1, 17, 32, 32, 3)
    assert (Path(tmp_path) / "paper_latte" / "diffusion" / "model" / "latte.safetensors").exists()
