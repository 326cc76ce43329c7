"""Do predictive latents diffuse more easily? A world scored exactly, with controls and a rule; resumable by cell.

  python -m studies.motion --workdir ~/motion --pilot                       # first: can this size tell?
  python -m studies.motion --workdir ~/motion                               # every cell, and the verdict
  python -m studies.motion --verdict                                        # from the stored cells; trains nothing
  python -m studies.motion --workdir ~/motion --predicted                   # a score that stored cells may lack
  python -m studies.motion --workdir /tmp/m --results /tmp/m/results --tiny # the whole pipeline in minutes

Each finished cell leaves one file in --results; the same command resumes with the others. Two processes with the same
folders share the work, each on a core of its own: `taskset -c 0 python -m studies.motion ...` and `taskset -c 1 ...`.
"""

import dataclasses
from pathlib import Path

from absl import flags

from pv_vae_jax.typing import ConfigError
from studies.motion.plan import load_study


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `python -m studies.motion`."""
    flags.DEFINE_string("config", "study_motion", "study file with get_study()", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the runs; VAEs and latents stay there", flag_values=values)
    flags.DEFINE_string("results", "docs/results/motion", "folder of study.json and cells/", flag_values=values)
    flags.DEFINE_list("rows", [], "run only these rows, as in file names: baseline-walk", flag_values=values)
    flags.DEFINE_list("seeds", [], "run only these seeds", flag_values=values)
    flags.DEFINE_integer("cells", 0, "number of cells to run; 0 is all", lower_bound=0, flag_values=values)
    flags.DEFINE_float(
        "minutes", 0.0, "begin no cell later than this; 0 is no limit", lower_bound=0, flag_values=values
    )
    flags.DEFINE_bool("pilot", False, "baseline, method and controls, with seeds that do not count", flag_values=values)
    flags.DEFINE_bool("tiny", False, "everything small, one seed a row, to try the pipeline", flag_values=values)
    flags.DEFINE_bool("predicted", False, "add what VAEs predict to stored cells, train nothing", flag_values=values)
    flags.DEFINE_bool("verdict", False, "judge the stored cells, train nothing", flag_values=values)


def run(values: flags.FlagValues, overrides: dict[str, str]) -> None:
    """Run cells, and judge what is stored."""
    if not values.workdir and (values.predicted or not values.verdict):
        raise ConfigError(f"set --workdir{', where the VAEs are' if values.predicted else ', or --verdict'}")
    if values.verdict or values.predicted:
        if unused := [name for name in ("rows", "seeds", "cells", "minutes") if values[name].present]:
            raise ConfigError(f"--{unused[0]} chooses cells to train, and --verdict and --predicted train none")
    results = Path(values.results)
    if (overrides or values.tiny) and values["results"].using_default_value:
        own = Path(values.workdir or "runs") / "results"
        raise ConfigError(f"scores of other settings must not mix with those in {results}: add --results={own}")
    study = dataclasses.replace(load_study(values.config, overrides, values.tiny), pilot=values.pilot)
    if values.pilot:
        results = results / "pilot"
    if values.predicted:
        from studies.motion.predicting import add_predicted

        added = add_predicted(study, Path(values.workdir), results / "cells")
        print(f"{added} cells were given the score; others have it, or their VAE is not in {values.workdir}")
    elif not values.verdict:
        from studies.motion.cells import run_cells

        part = study.part(values.rows, values.seeds)
        limits = {"most": values.cells or None, "minutes": values.minutes or None}
        run_cells(study, Path(values.workdir), results / "cells", part=part, **limits)
    from studies.motion.rule import write_verdict

    tree = write_verdict(study, results)
    print(f"{tree['verdict']} ({sum(len(row['seeds']) for row in tree['rows'])} cells; {results / 'study.json'})")


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_module

    run_module("python -m studies.motion")
