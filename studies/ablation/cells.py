"""Train and score the cells of a study: finished stages are kept in their folders, finished scores in their files."""

import contextlib
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pv_vae_jax.locks import locked
from pv_vae_jax.storage import write_json
from pv_vae_jax.train.config_files import DRAWS
from pv_vae_jax.train.configs import Experiment, VAEStageConfig
from pv_vae_jax.train.run import Run, open_run
from pv_vae_jax.train.stages import train_stage
from pv_vae_jax.typing import ConfigError
from studies.ablation.measure import NO_WEIGHTS, Published, measure_decoder, measure_whole
from studies.ablation.plan import CHECKPOINTS, Cell, Study, deciding, settings_hash
from studies.ablation.results import PLAN


def run_study(
    study: Study,
    workdir: Path,
    results: Path,
    most: int | None = None,
    published: Published = NO_WEIGHTS,
    part: Sequence[Cell] | None = None,
) -> None:
    """Train and score every cell that has no file in `results` yet.

    Several processes may share the two folders, on one machine or on several: each takes cells that no other has begun.

    Args:
      study: rows and seeds to compare.
      workdir: folder of the runs.
      results: folder of the scores: `study.json` with the plan, and `<cell>.json` once a cell is scored.
      most: number of cells to run in this call; None is all.
      published: weights to score with as well; cells that have scores keep them.
      part: cells of the study to run; None is all.

    Raises:
      FileNotFoundError, WeightsError, ConfigError: `published` cannot score, or `results` holds cells of other draws of
        the data; raised before anything is trained.
    """
    cells, scored = list(study.cells()), 0
    part = cells if part is None else part
    sizes = [cell.experiment.data.frame_size for cell in part]
    published.check(min((min(size.height, size.width) for size in sizes), default=0))
    for cell in cells:
        path = _scores(cell, results)
        if path.exists() and (found := json.loads(path.read_text()).get("draws", 1)) != DRAWS:
            raise ConfigError(
                f"{path} is of draws version {found} of the data, and this pv_vae_jax makes {DRAWS}: the two "
                "cannot be compared; name another --results folder"
            )
    results.mkdir(parents=True, exist_ok=True)
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir / ".plan.lock", wait=True):
        write_json(results / PLAN, study.plan())
    while scored != most:
        missing = [cell for cell in part if not _scores(cell, results).exists()]
        with contextlib.ExitStack() as stack:
            cell = next((cell for cell in missing if _take(cell, workdir, results, stack)), None)
            if cell is None:
                break
            number = len(part) - len(missing) + 1
            print(f"study {study.name}: {cell.row.name}, seed {cell.seed} ({number} of {len(part)})", file=sys.stderr)
            write_json(_scores(cell, results), run_cell(cell, workdir, published) | {"draws": DRAWS})
            # A study that scores the end alone may leave states that another one waits for: they are not its own.
            for done in filter(None, (cell, cell.base) if study.scores > 1 else ()):
                users = [done, *(other for other in cells if _waits_for(other, done))]
                if all(_scores(user, results).exists() for user in users):
                    tidy(done, workdir)
        scored += 1
    else:
        return
    for cell in missing:
        print(f"study {study.name}: another process trains {cell.name}, or the cell it starts from", file=sys.stderr)


def _scores(cell: Cell, results: Path) -> Path:
    """File of a cell's scores."""
    return results / f"{cell.name}.json"


def _take(cell: Cell, workdir: Path, results: Path, stack: contextlib.ExitStack) -> bool:
    """Lock a cell, unless another process has it, has scored it since, or trains what it begins from."""
    with contextlib.ExitStack() as trial:
        try:
            for part in filter(None, (cell, cell.base)):
                trial.enter_context(locked(workdir / f".{part.folder}.lock"))
        except BlockingIOError:
            return False
        if _scores(cell, results).exists():
            return False
        stack.push(trial.pop_all())
    return True


def _waits_for(cell: Cell, base: Cell) -> bool:
    """Whether a cell scores the training states of `base`."""
    return cell.seed == base.seed and cell.row.decoder_of == base.row.name


def run_cell(cell: Cell, workdir: Path, published: Published = NO_WEIGHTS) -> dict:
    """Train what the cell still lacks, and score it."""
    experiment, seconds = cell.experiment, {}
    if cell.base:
        base = train_whole(cell.base, workdir, seconds={})  # it is there, unless its folder was removed
        alone = _only(experiment, "decoder", init_from=str(base.workdir / "video" / "model"))
        run = open_run(alone, folder(cell, workdir))
        _stage(run, "decoder", seconds)
        return measure_decoder(cell, run, base, published) | {"seconds": seconds}
    return measure_whole(cell, train_whole(cell, workdir, seconds), published) | {"seconds": seconds}


def train_whole(cell: Cell, workdir: Path, seconds: dict) -> Run:
    """Train the stages of a cell that are not finished: images, clips, latents, transformer."""
    experiment = cell.experiment
    shared = f"image-seed{cell.seed}-{image_key(experiment)}"
    with locked(workdir / f".{shared}.lock", wait=True):  # another cell of this seed may be training it
        images = open_run(_only(experiment, "image"), workdir / shared)
        _stage(images, "image", seconds)
    start = str(images.folder("image") / "model")
    run = open_run(_only(experiment, "video", "diffusion", init_from=start), folder(cell, workdir))
    for stage in ("video", "latents", "diffusion"):
        _stage(run, stage, seconds)
    return run


def folder(cell: Cell, workdir: Path) -> Path:
    """Work directory of a cell."""
    return workdir.absolute() / cell.folder


def tidy(cell: Cell, workdir: Path) -> None:
    """Remove the training states of a scored cell: models, curves and scores stay."""
    for stage in ("video", "decoder", "diffusion"):
        shutil.rmtree(folder(cell, workdir) / stage / "checkpoints", ignore_errors=True)


def image_key(experiment: Experiment) -> str:
    """What decides the image stage: rows that agree in it share it."""
    tree = deciding(_only(experiment, "image"))
    for free in CHECKPOINTS:
        del tree[free]
    return settings_hash(tree)


def _only(experiment: Experiment, *stages: str, init_from: str = "") -> Experiment:
    """The experiment with these stages alone, the first from `init_from`; the other stages have their defaults."""
    idle: dict[str, Any] = {stage: VAEStageConfig() for stage in ("image", "video", "decoder") if stage not in stages}
    if init_from:
        idle[stages[0]] = dataclasses.replace(getattr(experiment, stages[0]), init_from=init_from)
    if "diffusion" not in stages:
        idle["diffusion"] = dataclasses.replace(experiment.diffusion, steps=0)
    return dataclasses.replace(experiment, **idle)


def _stage(run: Run, stage: str, seconds: dict) -> None:
    """Train a stage that is not finished; `seconds` gets the time of a stage that was not resumed."""
    if run.finished(stage):
        return
    fresh = not run.folder(stage).exists()
    began = time.time()
    with run.lock(stage):
        train_stage(run, stage)
    if fresh:
        seconds[stage] = round(time.time() - began, 1)
