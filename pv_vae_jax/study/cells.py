"""Train and score the cells of a study. What is finished stays: stages by their folders, scores by their files."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from pathlib import Path

from pv_vae_jax import pretrained
from pv_vae_jax.config import Experiment, VAEStageConfig, to_dict
from pv_vae_jax.files import write_json
from pv_vae_jax.study.measure import measure_decoder, measure_whole
from pv_vae_jax.study.plan import Cell, Study, settings_hash
from pv_vae_jax.study.results import PLAN
from pv_vae_jax.train.dit_stage import train_diffusion_stage
from pv_vae_jax.train.latents_stage import encode_latents
from pv_vae_jax.train.run import Run, open_run
from pv_vae_jax.train.vae_stage import train_vae_stage


def run_study(study: Study, workdir: Path, results: Path, most: int | None = None, i3d: Path | None = None) -> None:
    """Train and score every cell that has no file in `results` yet.

    Args:
      study: what to compare.
      workdir: of the runs.
      results: folder of the scores: `study.json` with the plan, and `<cell>.json`, each when it is whole.
      most: cells in this call.
      i3d: file of I3D's weights, to score with it as well; cells that have their scores keep them.
    """
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / PLAN, study.plan())
    cells = list(study.cells())
    missing = [cell for cell in cells if not (results / f"{cell.name}.json").exists()]
    for number, cell in enumerate(missing[:most]):
        done = len(cells) - len(missing) + number
        print(
            f"study {study.name}: {cell.row.name}, seed {cell.seed} (cell {done + 1} of {len(cells)})", file=sys.stderr
        )
        write_json(results / f"{cell.name}.json", run_cell(cell, workdir, i3d))
        tidy(cell, workdir)


def run_cell(cell: Cell, workdir: Path, i3d: Path | None = None) -> dict:
    """Train what the cell still lacks, and score it."""
    experiment, seconds = cell.experiment, {}
    if cell.row.decoder_of:
        base = cell.study.cell(cell.study.row(cell.row.decoder_of), cell.seed)
        trained = folder(base, workdir)
        alone = _only(experiment, "decoder", init_from=str(trained / "video" / "model"))
        run = open_run(alone, folder(cell, workdir))
        _stage(run, "decoder", lambda: train_vae_stage(run, "decoder", None), seconds)
        return measure_decoder(cell, run, pretrained.load(trained / "diffusion" / "model"), i3d) | {"seconds": seconds}
    images = open_run(_only(experiment, "image"), workdir / f"image-seed{cell.seed}-{image_key(experiment)}")
    _stage(images, "image", lambda: train_vae_stage(images, "image", None), seconds)
    start = str(images.folder("image") / "model")
    run = open_run(_only(experiment, "video", "diffusion", init_from=start), folder(cell, workdir))
    _stage(run, "video", lambda: train_vae_stage(run, "video", None), seconds)
    _stage(run, "latents", lambda: encode_latents(run, "video"), seconds)
    _stage(run, "diffusion", lambda: train_diffusion_stage(run), seconds)
    return measure_whole(cell, run, i3d) | {"seconds": seconds}


def folder(cell: Cell, workdir: Path) -> Path:
    """Work directory of a cell."""
    return workdir.absolute() / cell.name


def tidy(cell: Cell, workdir: Path) -> None:
    """Remove the training states of a scored cell: models, curves and scores stay."""
    for stage in ("video", "decoder", "diffusion"):
        shutil.rmtree(folder(cell, workdir) / stage / "checkpoints", ignore_errors=True)


def image_key(experiment: Experiment) -> str:
    """What decides the image stage: rows that agree in it share it."""
    tree = to_dict(_only(experiment, "image"))
    for free in ("name", "log_every", "mesh", "checkpoint_every", "checkpoints_kept"):
        del tree[free]
    return settings_hash(tree)


def _only(experiment: Experiment, *stages: str, init_from: str = "") -> Experiment:
    """The experiment with these stages alone; the first begins from `init_from`. The others stand at their defaults."""
    idle = {stage: VAEStageConfig() for stage in ("image", "video", "decoder") if stage not in stages}
    if init_from:
        idle[stages[0]] = dataclasses.replace(getattr(experiment, stages[0]), init_from=init_from)
    if "diffusion" not in stages:
        idle["diffusion"] = dataclasses.replace(experiment.diffusion, steps=0)
    return dataclasses.replace(experiment, **idle)


def _stage(run: Run, stage: str, train, seconds: dict) -> None:
    """Train a stage that is not finished; `seconds` says how long, for a stage that was not resumed."""
    if run.finished(stage):
        return
    fresh = not run.folder(stage).exists()
    began = time.time()
    with run.lock(stage):
        train()
    if fresh:
        seconds[stage] = round(time.time() - began, 1)
