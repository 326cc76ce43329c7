"""The rehearsal at paper size: its stages are the papers', follow from each other, and what they take is told."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rehearsal
from benchmarks.rehearsal import EXPERIMENTS
from pv_vae_jax.train.config_files import load_experiment, parse_overrides

ROOT = Path(__file__).resolve().parents[1]
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
            assert lasting(getattr(short, trained)) == lasting(getattr(whole, trained)), trained


def lasting(stage) -> dict:
    """Settings of a stage that its length does not change."""
    kept = dataclasses.asdict(stage)
    for name in ("steps", "batch_size", "init_from"):
        kept.pop(name, None)
    kept.get("objective", {}).pop("gan_start", None)
    return kept


def test_what_a_part_takes_is_told_and_its_states_go(tmp_path):
    """In a small process, as the rehearsal is: a child begins with the peak of its parent."""
    states = tmp_path / "checkpoints"
    eat = f"import os; os.mkdir({str(states)!r}); open({str(states / 'a')!r}, 'wb').write(300_000_000 * b'x')"
    code = f"""
import sys
from pathlib import Path
from benchmarks import rehearsal
eats = rehearsal.Part("eats", ("-c", {eat!r}), Path({str(states)!r}))
rests, fails = (rehearsal.Part(name, ("-c", code), Path("none")) for name, code in
                (("rests", "pass"), ("fails", "raise SystemExit(3)")))
run = lambda *parts: rehearsal.rehearse(parts, Path({str(tmp_path)!r}), [sys.executable])
print(run(eats, rests))
rehearsal.LIMIT = 0.2e9
print(run(rests, eats))
print(run(fails, eats))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    eats, rests, total, status, *rest = done.stdout.splitlines()
    assert eats.startswith("eats: ") and "memory 0.3 GB, disk 0.3 GB" in eats, done.stderr
    assert "memory 0.0 GB, disk 0.0 GB" in rests, "of its own process alone, and the state is gone"
    assert total == "rehearsed: memory 0.3 GB of at most 20, disk 0.3 GB" and status == "0" and not states.exists()
    assert rest[-2:] == ["1", "3"], "more memory than allowed; the status of what failed"
    assert done.stderr == "fails: failed with exit status 3\n"


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
    assert (tmp_path / "paper_latte" / "diffusion" / "model" / "latte.safetensors").exists()
