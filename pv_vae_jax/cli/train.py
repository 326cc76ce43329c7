"""Train a stage or all of them; the same command continues after any interruption.

  pv-vae train --config experiments/demo.py --workdir runs/demo
  pv-vae train --config experiments/demo.py --workdir runs/demo --stage video --config.video.steps=2000

With several processes, each is started with the same flags and its own number (`--process`); they share the work
directory. See docs/scaling.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from pv_vae_jax import report
from pv_vae_jax.data.sources import NoVideosError, describe
from pv_vae_jax.sharding.processes import barrier, is_primary_process, restore_default_sigterm, start_processes
from pv_vae_jax.train.config_files import load_experiment
from pv_vae_jax.train.configs import STAGES, VAE_STAGES
from pv_vae_jax.train.run import Run, check_mesh, open_run
from pv_vae_jax.train.sizes import sized_batches
from pv_vae_jax.train.stages import perceptual_term, train_stage
from pv_vae_jax.train.warm_start import find_start
from pv_vae_jax.typing import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae train`."""
    flags.DEFINE_string("config", None, "experiment file, such as experiments/demo.py", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run, such as runs/demo", flag_values=values)
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
    _train(run, values.stage)


def _train(run: Run, wanted: str) -> None:
    stages = STAGES if wanted == "all" else (wanted,)
    perceptual = perceptual_term(run)
    no_report = report.unavailable() if wanted == "all" else None
    if no_report:
        say(f"the report will be skipped: {no_report}")
    check_stages(run, [stage for stage in stages if run.steps(stage) and not run.finished(stage)])
    for stage in stages:
        if run.steps(stage) == 0:
            if wanted == stage:
                owner = "diffusion" if stage == "latents" else stage  # latents are cached for diffusion alone
                raise ConfigError(f"stage {stage} has no steps in this configuration: set --config.{owner}.steps=N")
            continue
        if run.finished(stage):
            say(f"{stage}: finished before")
            continue
        began = time.time()
        with run.lock(stage):
            try:
                train_stage(run, stage, perceptual)
            except (NoVideosError, FileNotFoundError) as error:
                raise OSError(str(error)) from error  # it was there at the start: not a wrong path, a disk that went
        say(f"{stage}: done in {time.time() - began:.0f} s, {run.folder(stage)}")
    restore_default_sigterm()  # what is left is the report: killed, it is made again
    if wanted == "all" and is_primary_process():
        from pv_vae_jax.report.run_report import evaluate_run

        page = run.workdir / "report" / "report.html"
        results = [run.result(stage) for stage in STAGES if run.finished(stage)]
        if page.exists() and all(path.stat().st_mtime <= page.stat().st_mtime for path in results):
            print(f"report: {page}")  # of these very stages: starting a finished run again costs nothing
        elif no_report:
            say(f"no report was written: {no_report}; then run pv-vae evaluate --workdir {run.workdir}")
        else:
            evaluate_run(run)
    barrier("the report")  # a process that ends early would be taken for dead


def check_stages(run: Run, stages: Sequence[str]) -> None:
    """Refuse what would end one of `stages` hours from now, and say what was found in the data.

    Raises:
      ConfigError: a network, a frozen part or a batch that does not work on these devices.
      FileNotFoundError: a stage starts from a model that is not there.
    """
    from pv_vae_jax.cli.inspect import abstract_step

    for stage in stages:
        if stage == "latents":
            continue
        check_mesh(run.mesh, run.experiment, stage)
        start = getattr(getattr(run.experiment, stage), "init_from", "")
        if start and not Path(start).resolve().is_relative_to(run.workdir.resolve()):  # a stage of this run comes yet
            find_start(start)
        kinds = sized_batches(run.experiment, stage) if stage in VAE_STAGES else (None,)
        try:
            with jax.set_mesh(run.mesh):
                for kind in kinds:
                    abstract_step(run.experiment, stage, kind)
        except (ConfigError, NoVideosError):
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f"stage {stage} cannot run: {error}") from error
    if stages and is_primary_process():
        try:
            held_out = run.source("test", random=True)
        except NoVideosError:
            held_out = None
        say("data: " + describe(run.source("train", random=True), run.experiment.data.source, held_out))


def say(text: str) -> None:
    """To standard error, once for all processes."""
    if is_primary_process():
        print(text, file=sys.stderr)
