"""Train and score the cells of the motion study: finished stages stay in their folders, scores in their files."""

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pv_vae_jax.locks import locked
from pv_vae_jax.storage import write_json
from pv_vae_jax.train.config_files import DRAWS
from pv_vae_jax.train.latents_stage import open_latents
from pv_vae_jax.train.loop import run_stage
from pv_vae_jax.train.run import Run, open_run
from pv_vae_jax.train.stages import train_stage
from studies.motion.measure import measure
from studies.motion.plan import Cell, Study, vae_part
from studies.motion.predicting import predicted
from studies.motion.rotation import RotatedStage

VAE_PARTS = ("video", "decoder", "latents")


def run_cells(
    study: Study,
    workdir: Path,
    results: Path,
    *,
    part: Sequence[Cell] | None = None,
    most: int | None = None,
    minutes: float | None = None,
) -> int:
    """Train and score every cell that has no file in `results` yet; returns how many were scored.

    A killed process goes on where its last checkpoint is. Several processes may share the two folders: each takes cells
    that no other has begun, and waits for a VAE that another trains.

    Args:
      study: rows and seeds.
      workdir: folder of the runs: a folder for each VAE, with its latents, and one for each transformer.
      results: folder of the scores, a file for each cell.
      part: cells to run; None is all.
      most: number of cells to run in this call.
      minutes: begin no cell later than this.
    """
    cells, began, scored = list(study.cells() if part is None else part), time.time(), 0
    for folder in (workdir, results):
        folder.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        path = results / f"{cell.name}.json"
        if scored == most or (minutes is not None and time.time() - began > 60 * minutes):
            break
        if path.exists():
            continue
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(workdir / f".{cell.name}.lock"))
            except BlockingIOError:
                continue  # another process has it
            if path.exists():  # another process was quicker
                continue
            place = f"{cells.index(cell) + 1} of {len(cells)}"
            print(f"motion study: {cell.row.name}, seed {cell.seed} ({place})", file=sys.stderr)
            write_json(path, run_cell(cell, workdir.absolute()) | {"draws": DRAWS})
            shutil.rmtree(states(workdir / cell.name), ignore_errors=True)  # now that nothing is left to score
            scored += 1
    return scored


def run_cell(cell: Cell, workdir: Path) -> dict:
    """Train what the cell still lacks, and score it."""
    seconds: dict[str, float] = {}
    folder = workdir / cell.vae
    with locked(workdir / f".{cell.vae}.lock", wait=True):  # a cell of another row may be training it
        vae = open_run(vae_part(cell.experiment), folder)
        for stage in VAE_PARTS:
            if vae.steps(stage):
                _train(vae, stage, seconds)
        for stage in VAE_PARTS:
            shutil.rmtree(vae.folder(stage) / "checkpoints", ignore_errors=True)
    run = open_run(cell.experiment, workdir / cell.name)
    for stage in VAE_PARTS:
        if vae.steps(stage) and not run.folder(stage).exists():
            run.folder(stage).symlink_to(vae.folder(stage), target_is_directory=True)
    if run.finished("diffusion") and not states(workdir / cell.name).exists():
        shutil.rmtree(run.folder("diffusion"))  # its scores were removed, and with one state alone there is no curve
    _train(run, "diffusion", seconds, rotated=cell.row.rotated)
    began = time.time()
    scores = measure(cell, run) | {"predicted": predicted(cell, vae)}
    return scores | {"seconds": seconds | {"scores": round(time.time() - began, 1)}}


def states(folder: Path) -> Path:
    """Where a cell keeps its transformer at several steps, until it is scored."""
    return folder / "diffusion" / "checkpoints"


def _train(run: Run, stage: str, seconds: dict, rotated: bool = False) -> None:
    """Train a stage that is not finished; `seconds` gets the time of one that was not resumed."""
    if run.finished(stage):
        return
    fresh, began = not run.folder(stage).exists(), time.time()
    with run.lock(stage):
        if rotated:
            turned = RotatedStage(run.experiment, open_latents(run, run.last_vae_stage()))
            turned.save_model(run, run_stage(turned, run))
        else:
            train_stage(run, stage)
    if fresh:
        seconds[stage] = round(time.time() - began, 1)
