"""The recipes hold: the paper's experiments have its numbers and sizes, and figures are drawn by the commands shown."""

import dataclasses
import json
import math
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from pv_vae_jax.train.config_files import load_experiment
from pv_vae_jax.train.configs import STAGES, DataConfig, Experiment, LatteConfig, MeshConfig, VAEStageConfig
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[1]
PAPER = {"paper_vae": ("image", "video", "decoder"), "paper_latte": ("decoder", "diffusion")}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_experiments_resolve_at_full_size(name):
    """What `pv-vae inspect` does before it compiles: every stage with trained steps, on eight devices, all abstract."""
    from pv_vae_jax.models.vae import VAEConfig
    from pv_vae_jax.sharding.mesh import make_mesh
    from pv_vae_jax.sharding.rules import check_split
    from pv_vae_jax.train.plan import plan_stage

    experiment = load_experiment(ROOT / "experiments" / f"{name}.py", {"data.source": "synthetic"})
    assert experiment.vae.name == "t4s16c64" and experiment.data.frames == 17 and experiment.data.size == 256
    assert [s for s in STAGES if s != "latents" and getattr(experiment, s).steps] == list(PAPER[name])
    assert dataclasses.replace(experiment.vae, dtype="float32", remat=False, remat_blocks=()) == VAEConfig.paper()
    mesh = make_mesh(**dataclasses.asdict(experiment.mesh))
    for stage in PAPER[name]:
        (plan,) = plan_stage(experiment, stage, mesh)
        check_split(mesh, plan.state.params, plan.sharding.params)
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(plan.state.params))
        assert count == pytest.approx({"diffusion": 674e6}.get(stage, 661e6), rel=0.01)


def test_the_work_of_a_stage_grows_with_its_pixels_and_shrinks_with_what_is_frozen():
    flops = runpy.run_path(str(ROOT / "docs" / "work.py"))["stage_flops"]
    vae = dataclasses.replace(TINY, mid_attention=False)  # whose work grows faster
    data, latte = DataConfig(frames=5, size=32), LatteConfig(latent_channels=vae.latent_channels)
    video = VAEStageConfig(steps=2, batch_size=2, drop_ratio=1.0)
    whole = Experiment(data=data, vae=vae, latte=latte, video=video)
    half = dataclasses.replace(whole, video=dataclasses.replace(video, sizes=((5, 16),)))
    frozen = dataclasses.replace(whole, video=dataclasses.replace(video, frozen=("encoder",)))
    undropped = dataclasses.replace(whole, video=dataclasses.replace(video, drop_ratio=0.0))
    all_of_it, less = flops(whole, "video"), flops(half, "video")
    assert all_of_it == pytest.approx(4 * less, rel=0.01), "borders, which kernels' gradients count, are a small part"
    assert flops(frozen, "video") < all_of_it < flops(undropped, "video")


def test_the_papers_experiments_hold_the_papers_numbers():
    vae = load_experiment(ROOT / "experiments" / "paper_vae.py")
    assert (vae.image.steps, vae.video.steps, vae.decoder.steps) == (300_000, 50_000, 50_000)
    assert vae.video.drop_ratio == 1 and vae.vae.pad == "learnable" and vae.decoder.drop_ratio == 0
    assert vae.video.objective.gan_start == 5_000 and vae.decoder.objective.gan_start == 0
    assert {"encoder"} <= set(vae.decoder.frozen) and vae.video.objective.motion == 1
    for stage in (vae.image, vae.video, vae.decoder):
        assert (stage.optimizer.name, stage.optimizer.learning_rate, stage.optimizer.final_fraction) == (
            "adamw",
            5e-5,
            0.1,
        )
    latte = load_experiment(ROOT / "experiments" / "paper_latte.py")
    assert (latte.diffusion.steps, latte.diffusion.batch_size) == (250_000, 64)
    assert latte.diffusion.optimizer.learning_rate == 1e-4 and latte.sampling.steps == 100
    assert (latte.latte.depth, latte.latte.patch, latte.sampling.clips) == (28, 1, 2_048)


@pytest.mark.slow
def test_a_stage_in_which_nothing_moves_brings_a_vae_into_a_run(tiny, tmp_path):
    """`experiments/paper_latte.py` rests on it."""
    from pv_vae_jax.model import Model, load, save
    from pv_vae_jax.train.stages import train

    model, params, _ = tiny
    save(tmp_path / "vae", Model(model, params))
    paper = load_experiment(ROOT / "experiments" / "paper_latte.py").decoder
    stage = dataclasses.replace(paper, batch_size=2, init_from=str(tmp_path / "vae"))
    latte = dataclasses.replace(Experiment().latte, latent_channels=4)
    data = DataConfig(clips=4, frames=7, size=16)
    experiment = Experiment(data=data, vae=model.config, decoder=stage, latte=latte, mesh=MeshConfig(data=1))
    train(experiment, tmp_path / "run", ["decoder"])
    after = load(tmp_path / "run").vae_params
    assert jax.tree.all(jax.tree.map(np.array_equal, after, params))


def test_curves_are_drawn_from_the_rows_of_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import curves

    for name, last in (("a", 0.5), ("b", 2.0)):
        (tmp_path / name).mkdir()
        rows = [{"step": i, "mse": last * 10 / i} for i in range(1, 11)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "c.svg"
    curves.main([str(out), "Error", "mse", f"a={tmp_path}/a", f"b={tmp_path}/b", "--log"])
    assert "a 0.5<" in out.read_text() and "b 2<" in out.read_text()
    for runs in ([f"{tmp_path}/none"], [f"{tmp_path}/a", f"{tmp_path}/b"]):
        with pytest.raises(SystemExit):
            curves.main([str(out), "Error", "mse", *runs])
    with pytest.raises(SystemExit):
        curves.main([str(out), "Error", "msee", f"{tmp_path}/a"])
    said = capsys.readouterr().err
    assert "holds no metrics.jsonl" in said and "NAME=FOLDER" in said and "no curve 'msee'; there are mse" in said


def test_the_recipes_show_every_figure_with_the_command_that_drew_it():
    page = (ROOT / "docs" / "recipes.md").read_text()
    drawn = re.findall(r"python docs/curves\.py docs/(images/\w+\.svg)", page)
    shown = re.findall(r"!\[[^\]]+\]\((images/\w+\.svg)\)", page)
    assert shown == drawn and len(drawn) >= 6
    for name in drawn:
        assert (ROOT / "docs" / name).read_text().startswith("<svg")
    others = {"performance", "arena", "verdict"}  # drawn with their pages
    stored = {p for p in (ROOT / "docs" / "images").glob("*.svg") if p.stem not in others}
    assert {f"images/{p.name}" for p in stored} == set(drawn)
