"""Compare ways to train the VAE by how well a diffusion transformer generates from its latents; resumable by cell.

  python -m studies.ablation --config experiments/study_synthetic.py --workdir runs/study-synthetic
  python -m studies.ablation --config experiments/study_real.py --workdir runs/study-real --config.data.source=clips
  python -m studies.ablation --config mine.py --workdir runs/mine --rows=my-row,baseline --seeds=0   # only these cells
  python -m studies.ablation --pages                                # tables and charts again, from the stored scores

Each finished cell (a row with a seed) leaves one file in --results; the same command resumes with the others. Several
processes share the work: each takes cells that no other has begun.
"""

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
    flags.DEFINE_string(
        "results", "docs/results", "folder of the scores, with a folder for each study", flag_values=values
    )
    flags.DEFINE_list("rows", [], "train and score only these rows, by name or as in file names", flag_values=values)
    flags.DEFINE_list("seeds", [], "train and score only these seeds", flag_values=values)
    flags.DEFINE_integer("cells", 0, "number of cells to train and score; 0 is all", lower_bound=0, flag_values=values)
    flags.DEFINE_string("i3d", None, "I3D's weights, to score with it as well (slow on CPU)", flag_values=values)
    define_lpips_flags(values)
    flags.DEFINE_bool("pages", False, "write the pages from the scores, train nothing", flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Run a study, or write the pages of all."""
    if positional:
        raise ConfigError(f"python -m studies.ablation takes flags only, got {' '.join(positional)}")
    results = Path(values.results)
    if values.pages:
        given = [name for name in TRAINING if values[name].present]
        if given or overrides:
            raise ConfigError(f"--pages trains and scores nothing: leave out --{given[0] if given else 'config'}")
        from studies.ablation.page import write_pages

        print("\n".join(f"page: {page}" for page in write_pages(results)))
        return
    if not values.config or not values.workdir:
        raise ConfigError("set --config and --workdir, or --pages")
    from studies.ablation.cells import run_study
    from studies.ablation.measure import Published

    published = Published(Path(values.i3d) if values.i3d else None, lpips_files(values))
    if overrides.keys() - {"data.source"} and values["results"].using_default_value:
        own = Path(values.workdir) / "results"
        raise ConfigError(f"scores of other settings must not mix with those in {results}: add --results={own}")
    study = load_study(values.config, overrides)
    part = study.part(values.rows, values.seeds)
    run_study(study, Path(values.workdir), results / study.name, values.cells or None, published, part)


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_module

    run_module("python -m studies.ablation")
