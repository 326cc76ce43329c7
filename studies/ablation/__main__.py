"""Compare ways to train the VAE by what a diffusion transformer makes of its latents; resumable, cell by cell.

  python -m studies.ablation --config experiments/study_synthetic.py --workdir runs/study-synthetic
  python -m studies.ablation --config experiments/study_real.py --workdir runs/study-real --config.data.source=clips
  python -m studies.ablation --config mine.py --workdir runs/mine --rows=my-row,baseline --seeds=0   # a part of it
  python -m studies.ablation --page docs/results.md                 # tables and figures again, from the stored scores

Every cell (a row with a seed) that is finished leaves one file in --results; the same command goes on with the others.
Started several times it shares the work: each process takes cells that no other has begun.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from pv_vae_jax.cli._shared import define_lpips_flags, lpips_files
from pv_vae_jax.typing import ConfigError
from studies.ablation.plan import load_study

# Flags of the training and the scoring of cells.
TRAINING = ("config", "workdir", "rows", "seeds", "cells", "i3d", "lpips", "lpips_weights", "lpips_heads")


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `python -m studies.ablation`."""
    flags.DEFINE_string("config", None, "study file with get_study()", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the runs", flag_values=values)
    flags.DEFINE_string("results", "docs/results", "folder of the scores, one folder in it a study", flag_values=values)
    flags.DEFINE_list("rows", [], "train and score these rows alone, by name or as files name them", flag_values=values)
    flags.DEFINE_list("seeds", [], "train and score these seeds alone", flag_values=values)
    flags.DEFINE_integer("cells", 0, "train and score so many cells; 0 is all", lower_bound=0, flag_values=values)
    flags.DEFINE_string(
        "i3d", None, "file of I3D's weights, to score with it as well (slow on CPU)", flag_values=values
    )
    define_lpips_flags(values)
    flags.DEFINE_string("page", "", "write this page from the scores, train nothing", flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Run a study, or write its page."""
    if positional:
        raise ConfigError(f"python -m studies.ablation takes flags only, got {' '.join(positional)}")
    results = Path(values.results)
    if values.page:
        given = [name for name in TRAINING if values[name].present]
        if given or overrides:
            raise ConfigError(f"--page trains and scores nothing: leave out --{given[0] if given else 'config'}")
        from studies.ablation.page import write_page

        write_page(results, Path(values.page))
        print(f"page: {values.page}")
        return
    if not values.config or not values.workdir:
        raise ConfigError("python -m studies.ablation needs --config and --workdir, or --page")
    from studies.ablation.cells import run_study
    from studies.ablation.measure import Published

    published = Published(Path(values.i3d) if values.i3d else None, lpips_files(values))
    if overrides.keys() - {"data.source"} and values["results"].using_default_value:
        own = Path(values.workdir) / "results"
        raise ConfigError(f"scores of other settings do not belong to those in {results}: add --results={own}")
    study = load_study(values.config, overrides)
    part = study.part(values.rows, values.seeds)
    run_study(study, Path(values.workdir), results / study.name, values.cells or None, published, part)


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_command

    sys.exit(run_command(sys.modules[__name__], "python -m studies.ablation", sys.argv[1:]))
