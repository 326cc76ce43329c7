"""Train a stage or all of them; the same command continues after any interruption.

  pv-vae train --config experiments/demo.py --workdir runs/demo
  pv-vae train --config experiments/demo.py --workdir runs/demo --stage video --config.video.steps=2000

With several processes, each is started with the same flags and its own number (`--process`); they share the work
directory. See docs/scaling.md.

`python -m pv_vae_jax.cli.train` takes the same flags.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from absl import flags

from pv_vae_jax.config import STAGES, VAE_STAGES, ConfigError, load_experiment
from pv_vae_jax.convert.image_networks import read_lpips
from pv_vae_jax.files import write_json
from pv_vae_jax.losses.perceptual import Perceptual
from pv_vae_jax.models.lpips import LEAST_SIDE, LPIPS
from pv_vae_jax.pretrained import weights_hash
from pv_vae_jax.sharding.processes import is_first, start_processes, wait_for_all
from pv_vae_jax.train.run import Run, open_run


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae train`."""
    flags.DEFINE_string("config", None, "experiment file with get_config()", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_enum("stage", "all", ("all", *STAGES), "what to train", flag_values=values)
    flags.DEFINE_string(
        "coordinator", "", "host:port of process 0, or 'auto' on a cluster that JAX knows", flag_values=values
    )
    flags.DEFINE_integer("processes", 0, "how many processes run this command", flag_values=values)
    flags.DEFINE_integer("process", -1, "number of this one, from 0", flag_values=values)
    flags.mark_flags_as_required(["config", "workdir"], flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Train what the flags say."""
    if positional:
        raise ConfigError(f"pv-vae train takes flags only, got {' '.join(positional)}")
    experiment = load_experiment(values.config, overrides)
    try:
        start_processes(values.coordinator, values.processes, values.process)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    run = open_run(experiment, values.workdir)
    with run.lock():
        _train(run, values.stage)


def _train(run: Run, wanted: str) -> None:
    stages = STAGES if wanted == "all" else (wanted,)
    perceptual = perceptual_term(run)
    for stage in stages:
        if steps_of(run, stage) == 0:
            if wanted == stage:
                owner = "diffusion" if stage == "latents" else stage  # latents are cached for diffusion alone
                raise ConfigError(f"stage {stage} has no steps in this configuration: set --config.{owner}.steps=N")
            continue
        if run.finished(stage):
            say(f"{stage}: finished before")
            continue
        began = time.time()
        train_stage(run, stage, perceptual)
        say(f"{stage}: done in {time.time() - began:.0f} s, {run.folder(stage)}")
    if wanted == "all" and is_first():
        from pv_vae_jax.cli.evaluate import evaluate_run

        report = run.workdir / "report" / "report.html"
        results = [run.result(stage) for stage in STAGES if run.finished(stage)]
        if report.exists() and all(path.stat().st_mtime <= report.stat().st_mtime for path in results):
            print(f"report: {report}")  # of these very stages: starting a finished run again costs nothing
        else:
            evaluate_run(run)
    wait_for_all("the report")  # a process that ends early would be taken for dead


def say(text: str) -> None:
    """To standard error, once for all processes."""
    if is_first():
        print(text, file=sys.stderr)


def perceptual_term(run: Run) -> Perceptual | None:
    """The network of `objective.perceptual`, from the files that the configuration names; None if no stage weighs it.

    The work directory keeps the hash of the network, so that a run is never continued with another.

    Raises:
      ConfigError: a stage weighs the term and no files are named, pictures are too small, or the files have changed.
    """
    wanted = [s for s in VAE_STAGES if steps_of(run, s) and getattr(run.experiment, s).objective.perceptual]
    if not wanted:
        return None
    named, stage = run.experiment.perceptual, wanted[0]
    if not (named.weights and named.heads):
        raise ConfigError(
            f"{stage}.objective.perceptual needs a network, and no weights come with this library: name the files with "
            "--config.perceptual.weights and --config.perceptual.heads, pass a function of your own to "
            f"pv_vae_jax.train.vae_stage.train_vae_stage, or set {stage}.objective.perceptual=0"
        )
    if run.experiment.data.size < LEAST_SIDE:
        raise ConfigError(
            f"LPIPS needs pictures of {LEAST_SIDE} x {LEAST_SIDE}, data.size is {run.experiment.data.size}"
        )
    params = read_lpips(named.backbone, named.weights, named.heads)
    found, path = {"backbone": named.backbone, "hash": weights_hash(params)}, run.workdir / "perceptual.json"
    if path.exists() and (before := json.loads(path.read_text())) != found:
        raise ConfigError(f"{run.workdir} was begun with another perceptual network, {before}; the files hold {found}")
    if is_first():
        write_json(path, found)
    model = LPIPS(named.backbone)
    # Arrays of NumPy are constants of the step, on whatever mesh: no gradient reaches them, no checkpoint holds them.
    return lambda output, target: model.apply({"params": params}, output, target)


def train_stage(run: Run, stage: str, perceptual: Perceptual | None = None) -> None:
    """Train one stage on top of those before it."""
    from pv_vae_jax.train.dit_stage import train_diffusion_stage
    from pv_vae_jax.train.latents_stage import encode_latents
    from pv_vae_jax.train.vae_stage import train_vae_stage

    if stage in VAE_STAGES:
        before = [s for s in VAE_STAGES[: VAE_STAGES.index(stage)] if steps_of(run, s)]
        if before and not run.finished(before[-1]) and not getattr(run.experiment, stage).init_from:
            raise ConfigError(f"stage {stage} starts from stage {before[-1]}, which is not finished: train it first")
        train_vae_stage(run, stage, before[-1] if before else None, perceptual)
    elif stage == "latents":
        vae_stage = last_vae_stage(run)
        if is_first():
            encode_latents(run, vae_stage)
        wait_for_all("latents")
    else:
        train_diffusion_stage(run, last_vae_stage(run))


def steps_of(run: Run, stage: str) -> int:
    """Length of a stage; for the latent cache its clips, if diffusion follows."""
    if stage == "latents":
        return run.experiment.latents.clips if run.experiment.diffusion.steps else 0
    return getattr(run.experiment, stage).steps


def last_vae_stage(run: Run) -> str:
    """The last VAE stage that is finished: what encoding and sampling use."""
    finished = [s for s in VAE_STAGES if run.finished(s)]
    if not finished:
        raise ConfigError(f"no VAE stage of {run.workdir} is finished: train one first")
    return finished[-1]


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_command

    sys.exit(run_command("train", sys.argv[1:]))
