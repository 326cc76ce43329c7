"""The page of each study, `docs/results/STUDY/README.md`, and its charts, made from the stored scores alone.

`page.md.jinja` holds the prose and the order of sections, `tables.py` makes the tables. Remarks in `notes.md` beside
the scores are printed as they are.
"""

from pathlib import Path

import numpy as np

from pv_vae_jax.report import paper_table
from pv_vae_jax.report.figures import Series, line_chart, number
from pv_vae_jax.storage import write_text
from pv_vae_jax.train.config_files import DRAWS
from pv_vae_jax.typing import ConfigError
from studies.ablation import tables
from studies.ablation.results import Results, curves, prediction_error, read_results

WIDTH = 640  # of a chart, in CSS pixels


def write_pages(results: Path) -> list[Path]:
    """Write a page and its charts into the folder of every study under `results`.

    Raises:
      ConfigError: no scores, or damaged files.
      ImportError: Jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the page of a study needs Jinja2 and matplotlib: pip install -e '.[report]'") from error
    studies = read_results(results)
    if not studies:
        raise ConfigError(
            f"{results} holds no scores: run a study first, python -m studies.ablation --config ... --workdir ..."
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template, paper = environment.get_template("page.md.jinja"), paper_table()["ablations"]
    for study in studies:
        folder = results / study.name
        notes = (folder / "notes.md").read_text(encoding="utf-8").strip() if (folder / "notes.md").exists() else ""
        facts = {"study": study, "paper": paper, "notes": notes, "draws": DRAWS}
        write_text(folder / "README.md", template.render(**facts, tables=tables, number=number))
        for name, drawing in _charts(study).items():
            write_text(folder / f"{name}.svg", drawing)
    return [results / study.name / "README.md" for study in studies]


def _charts(study: Results) -> dict[str, str]:
    """Name -> SVG of every chart that the page shows of a study."""
    found = {"prediction": _prediction_chart(study)}
    if study.curves:
        found |= {f"training-{network}": _training_chart(study, network) for network in study.networks}
    if len(study.rows) > 1:
        found["correlation"] = _correlation_chart(study, study.networks[0])
    return found


def _training_chart(study: Results, network: str) -> str:
    drawn = []
    for row in study.rows:
        steps, values = curves(study, row, network)
        style = "line" if len(steps) > 1 else "points"
        band = {"low": values.min(axis=0), "high": values.max(axis=0)} if len(values) > 1 else {}
        name = f"{row} ({len(values)} {'seeds' if band else 'seed'})"
        drawn.append(Series(name, steps, values.mean(axis=0), style=style, **band))
    floor = study.measured(study.rows[0], f"floor.{network}.frechet").mean
    every = [step for series in drawn for step in series.x]
    drawn.append(Series(tables.FLOOR, (min(every), max(every)), (floor, floor), style="dashed"))
    title = f"{study.name}: generation along training, {network}"
    labels = {"x_label": "diffusion steps (band: all seeds)", "y_label": "Frechet distance"}
    return line_chart(title, drawn, **labels, log=True, width=WIDTH)


def _prediction_chart(study: Results) -> str:
    groups = range(1, len(study.first["prediction"]["predicted"]) + 1)

    def mean(row: str, name: str) -> np.ndarray:
        return np.mean([study.cells[row, seed]["prediction"][name] for seed in study.seeds(row)], axis=0)

    drawn = [Series(row, groups, mean(row, "predicted")) for row in study.rows]
    drawn += [Series(guess, groups, mean(study.rows[0], guess), style="dashed") for guess in tables.GUESSES]
    title = f"{study.name}: error of frames that were withheld"
    return line_chart(title, drawn, x_label="withheld groups k", y_label="squared error", log=True, width=WIDTH)


def _correlation_chart(study: Results, network: str) -> str:
    drawn = []
    for row in study.rows:
        cells = [study.cells[row, seed] for seed in study.seeds(row)]
        distances = [cell["generation"][network]["frechet"] for cell in cells]
        drawn.append(Series(row, [prediction_error(cell) for cell in cells], distances, style="points"))
    labels = {"x_label": "prediction error, mean over k", "y_label": f"final Frechet distance, {network}"}
    return line_chart(f"{study.name}: prediction and generation", drawn, **labels, width=WIDTH)
