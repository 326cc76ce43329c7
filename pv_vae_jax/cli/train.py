"""Train one stage or all of them; after an interruption, the same command continues.

  pv-vae train --config experiments/demo.py --workdir runs/demo
  pv-vae train --config experiments/demo.py --workdir runs/demo --stage video --config.video.steps=2000

Several processes share one work directory: each is started with the same flags and its own `--process`. See
docs/scaling.md.
"""

import sys
import time

from absl import flags

from pv_vae_jax import report
from pv_vae_jax.cli._shared import CONFIG
from pv_vae_jax.data.sources import NoVideosError
from pv_vae_jax.sharding.processes import barrier, is_primary_process, restore_default_sigterm, start_processes
from pv_vae_jax.train.config_files import load_experiment
from pv_vae_jax.train.configs import STAGES
from pv_vae_jax.train.profiling import parse_window
from pv_vae_jax.train.run import Run, open_run
from pv_vae_jax.train.stages import check_stages, perceptual_term, train_stage
from pv_vae_jax.train.writers import missing_board
from pv_vae_jax.typing import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae train`."""
    flags.DEFINE_string("config", None, CONFIG, flag_values=values)
    flags.DEFINE_string("workdir", None, "work directory of the run, such as runs/demo", flag_values=values)
    flags.DEFINE_enum("stage", "all", ("all", *STAGES), "stage to train", flag_values=values)
    flags.DEFINE_string(
        "coordinator", "", "host:port of process 0, or 'auto' on a cluster that JAX detects", flag_values=values
    )
    flags.DEFINE_integer("processes", 0, "number of processes that run this command", flag_values=values)
    flags.DEFINE_integer("process", -1, "index of this process, from 0", flag_values=values)
    flags.DEFINE_string("profile", "", "START:COUNT traces steps of every stage, such as 10:3", flag_values=values)
    flags.mark_flags_as_required(["config", "workdir"], flag_values=values)


def run(values: flags.FlagValues, overrides: dict[str, str]) -> None:
    """Train the stages that the flags name, then write the report if all were named."""
    experiment, profile = load_experiment(values.config, overrides), parse_window(values.profile)
    start_processes(values.coordinator, values.processes, values.process)
    run = open_run(experiment, values.workdir, profile=profile)
    if missing := missing_board(experiment.writers):
        say(missing)
    stages = [stage for stage in STAGES if run.steps(stage) and values.stage in ("all", stage)]
    if not stages and values.stage != "all":
        owner = "diffusion" if values.stage == "latents" else values.stage  # latents are encoded for diffusion only
        raise ConfigError(f"stage {values.stage} has no steps in this configuration: set --config.{owner}.steps=N")
    perceptual = perceptual_term(run)
    no_report = report.unavailable() if values.stage == "all" else None
    if no_report:
        say(f"the report will have no page: {no_report}")
    check_stages(run, [stage for stage in stages if not run.finished(stage)])
    for stage in stages:
        if run.finished(stage):
            say(f"{stage}: finished before")
            continue
        began = time.time()
        with run.lock(stage):
            try:
                train_stage(run, stage, perceptual)
            except (NoVideosError, FileNotFoundError) as error:
                # It was found at the start: the path is right, the disk has failed.
                raise OSError(str(error)) from error
        say(f"{stage}: done in {time.time() - began:.0f} s, {run.folder(stage)}")
    restore_default_sigterm()  # only the report is left, which can be made again
    if values.stage == "all" and is_primary_process():
        _write_report(run, no_report)
    barrier("the report")  # others would take a process that ends early for dead


def _write_report(run: Run, no_report: str | None) -> None:
    """Write the report of a run, or its numbers if `no_report` says why there is no page, unless they are there."""
    page = run.workdir / "report" / ("metrics.json" if no_report else "report.html")
    results = [run.result(stage) for stage in STAGES if run.finished(stage)]
    if page.exists() and all(path.stat().st_mtime <= page.stat().st_mtime for path in results):
        print(f"report: {page}")  # starting a finished run again costs nothing
    else:
        from pv_vae_jax.report.run_report import evaluate_run

        evaluate_run(run)


def say(text: str) -> None:
    """Print to standard error, in the first process only."""
    if is_primary_process():
        print(text, file=sys.stderr)
