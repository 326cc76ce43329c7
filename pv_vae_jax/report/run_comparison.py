"""Several evaluated runs side by side: their scores, convergence and clips, as a page and as numbers.

The paper's numbers below those of the runs are a reference, not rivals: data, size and training length differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.evaluation.comparison import own_distances
from pv_vae_jax.evaluation.convergence import StepsToTarget, running_mean, steps_to_target
from pv_vae_jax.evaluation.latent_analysis import rank_correlation
from pv_vae_jax.evaluation.prediction import predict_half
from pv_vae_jax.evaluation.reconstruction import reconstruct
from pv_vae_jax.model import load
from pv_vae_jax.report import paper_table, unavailable
from pv_vae_jax.report.figures import Media, Series
from pv_vae_jax.report.page import BUDGET, DASH, aligned, cell, chart, clip_row, short_names, write_page
from pv_vae_jax.report.run_report import read_test_clips
from pv_vae_jax.storage import local, make_writable, write_json
from pv_vae_jax.train.configs import STAGES, VAE_STAGES
from pv_vae_jax.train.run import Run, reopen_run
from pv_vae_jax.train.writers import read_metrics
from pv_vae_jax.typing import ConfigError

SAME = ("source", "frames", "size", "stride")  # of the data; runs that differ in them are not compared

Scores = dict[tuple[str, str], float]  # (name of a score, what it was measured on) -> value
# Stage -> the curve by which runs are compared.
CONVERGENCE = {"image": "mse", "video": "mse", "decoder": "mse", "diffusion": "loss"}
SHOWN = 3  # clips of the table of reconstructions, and generated clips per class


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """The results of one run.

    Attributes:
      name: label in tables.
      metrics: the tree of its `metrics.json`.
      curves: stage -> rows of its metrics file.
      scores: name -> value of distances and other scores of generated clips.
      reconstruction, prediction: `(s, t, h, w, 3)` uint8 of the clips that are shown; None without a stage trained on
        clips, or with one latent frame.
      observed: frames that the prediction was given.
      samples: class -> generated clips `(n, t, h, w, 3)`.
    """

    name: str
    metrics: dict
    curves: dict[str, list[dict]]
    scores: dict[str, float]
    reconstruction: np.ndarray | None = None
    prediction: np.ndarray | None = None
    observed: int = 0
    samples: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def speed(self, term: str, *stages: str) -> float | None:
        """Median of a curve in the first of the stages that has it."""
        rows = [[row[term] for row in self.curves.get(stage, ()) if row.get(term) is not None] for stage in stages]
        return next((float(np.median(values)) for values in rows if values), None)

    @property
    def last(self) -> dict:
        """Numbers of its last VAE stage."""
        return list(self.metrics["stages"].values())[-1] if self.metrics["stages"] else {}


def compare_runs(workdirs: Sequence[str], out: Path) -> None:
    """Gather evaluated runs, score what they generated, write the page `out` and its numbers as `.json` beside it.

    Args:
      workdirs: two or more work directories of runs on the same data. Nothing is written into them.
      out: ends in `.html`.

    Raises:
      ConfigError: the runs cannot be compared, or have not been evaluated.
      ImportError: the extra [report] is not installed.
    """
    if reason := unavailable():
        raise ImportError(reason)
    if out.suffix != ".html":
        raise ConfigError(f"--out must end in .html, since the comparison is a page; got {out}")
    make_writable(out.parent)
    runs = _open(workdirs)
    first = next(iter(runs.values()))
    video, *_ = read_test_clips(first)
    metrics = {name: _read_json(run.workdir / "report" / "metrics.json") for name, run in runs.items()}
    for name, tree in metrics.items():
        if not isinstance(tree, dict) or not isinstance(tree.get("stages"), dict) or "model" not in tree:
            raise ConfigError(f"the report of {name} holds no scores by name: evaluate the run again")
    files = {name: run.workdir / "report" / "samples.npz" for name, run in runs.items()}
    samples = {name: _read_samples(path, expected=bool(metrics[name].get("samples"))) for name, path in files.items()}
    scores = {name: stored_scores(run.workdir / "report") for name, run in runs.items()}
    count = _score_generated(scores, {name: clips for name, (clips, _) in samples.items() if len(clips)}, video)
    compared = []
    for (name, run), named in zip(runs.items(), scores_by_name(list(scores.values())), strict=True):
        curves = {stage: read_metrics(run.folder(stage) / "metrics.jsonl") for stage in STAGES}
        curves = {stage: rows for stage, rows in curves.items() if rows}
        clips, labels = samples[name]
        classes = (metrics[name].get("samples") or {}).get("class_names") or ["all clips"]
        by_class = {classes[k]: clips[labels == k][:SHOWN] for k in np.unique(labels) if k < len(classes)}
        compared.append(EvaluatedRun(name, metrics[name], curves, named, *_decode(run, video[:SHOWN]), by_class))
    data = first.experiment.data
    size = FrameSize.of(data.size)
    real = f"{data.source}, {data.frames} frames of {size.height} x {size.width}"
    real += f"; generated clips against {count} test clips" if count else ""
    write_json(out.with_suffix(".json"), _numbers(compared, real))
    write_comparison(out, compared, video[:SHOWN], real)
    print("\n".join(_summary(compared)))
    print(f"comparison: {out}")


def _open(workdirs: Sequence[str]) -> dict[str, Run]:
    """Runs by a short name, checked to be comparable."""
    runs = {label: reopen_run(name) for label, name in short_names(workdirs, "run").items()}
    first_name, first = next(iter(runs.items()))
    for name, run in runs.items():
        if not (run.workdir / "report" / "metrics.json").is_file():
            raise ConfigError(f"{run.workdir} has not been evaluated; run pv-vae evaluate --workdir {run.workdir}")
        for key in SAME:
            value, expected = (getattr(r.experiment.data, key) for r in (run, first))
            if value != expected:
                raise ConfigError(
                    f"data.{key} is {value} in {name} and {expected} in {first_name}: their numbers do not compare"
                )
    return runs


def _decode(run: Run, shown: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None, int]:
    """Reconstruction, prediction and its observed frames by the last stage that was trained on clips."""
    on_clips = [s for s in VAE_STAGES if run.finished(s) and not getattr(run.experiment, s).images]
    if not on_clips:
        return None, None, 0
    model = load(run.folder(on_clips[-1]) / "model")
    vae = model.vae, model.vae_params, shown
    return reconstruct(*vae, batch_size=len(shown)), *predict_half(*vae, batch_size=len(shown))


def stored_scores(report: Path) -> Scores:
    """Scores that `pv-vae evaluate --real --fake` wrote into the folder `report` of a run."""
    scores: Scores = {}
    for path in sorted(report.glob("*.json")):
        tree = _read_json(path)
        for score in tree if isinstance(tree, list) else ():
            if isinstance(score, dict) and "name" in score and isinstance(score.get("value"), int | float):
                card = score.get("card") or {}
                protocol, fake = card.get("protocol") or {}, card.get("fake") or {}
                measured = ", ".join(f"{x}" for x in (protocol.get("name"), fake.get("scored")) if x is not None)
                key = score["name"], f"{measured} clips" if measured else path.stem
                if key in scores:  # measured on other sets, which the file's name tells apart
                    key = score["name"], f"{key[1]}, {path.stem}"
                scores[key] = float(score["value"])
    return scores


def scores_by_name(runs: Sequence[Scores]) -> list[dict[str, float]]:
    """Scores of each run by name, followed by what they were measured on where that differs."""
    kinds: dict[str, set[str]] = {}
    for scores in runs:
        for name, measured in scores:
            kinds.setdefault(name, set()).add(measured)
    label = lambda name, measured: name if len(kinds[name]) == 1 else f"{name}: {measured}"  # noqa: E731
    return [{label(*key): value for key, value in scores.items()} for scores in runs]


def _score_generated(scores: dict[str, Scores], samples: dict[str, np.ndarray], video: np.ndarray) -> int:
    """Add the distances of generated clips from `video` to `scores`; returns the number of clips of each set."""
    found, count = own_distances(video, samples), min([len(video), *map(len, samples.values())])
    for name, distances in found.items():
        scores[name] |= {(score, f"{count} test clips"): value for score, value in distances.items()}
    return count if found else 0


def _read_samples(path: Path, expected: bool) -> tuple[np.ndarray, np.ndarray]:
    """Generated clips and their labels, none without a file unless the run's report speaks of them."""
    if not expected and not path.exists():
        return np.zeros(0, np.uint8), np.zeros(0, int)
    with _damaged(path), local(path) as file, np.load(file, allow_pickle=False) as arrays:
        return arrays["video"], arrays["label"]


def _read_json(path: Path) -> dict | list:
    with _damaged(path):
        return json.loads(path.read_text())


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is damaged ({error}): evaluate the run again") from error


def _numbers(runs: Sequence[EvaluatedRun], real: str) -> dict:
    convergence = {
        stage: {
            pair: {"term": term, "score": when.score, "step": when.step, "of": when.steps, "saved": when.sooner}
            for pair, when in arrivals(runs, stage).items()
        }
        for stage, term in CONVERGENCE.items()
    }
    return {
        "measured_on": real,
        "runs": {run.name: {"scores": run.scores, "stages": run.metrics["stages"]} for run in runs},
        "convergence": {stage: pairs for stage, pairs in convergence.items() if pairs},
    }


def _summary(runs: Sequence[EvaluatedRun]) -> list[str]:
    rows = [("", "PSNR dB", "SSIM", "distances of generated clips")]
    for run in runs:
        distances = "; ".join(f"{name} {value:.4g}" for name, value in run.scores.items()) or DASH
        rows.append((run.name, cell(run.last.get("psnr_db"), ".2f"), cell(run.last.get("ssim"), ".4f"), distances))
    return aligned(rows)


def write_comparison(path: Path, runs: Sequence[EvaluatedRun], video: np.ndarray, real: str) -> None:
    """Write the page atomically.

    Args:
      path: ends in `.html`; its folder exists.
      runs: two or more.
      video: `(s, t, h, w, 3)` uint8, the originals of `reconstruction`.
      real: describes the clips that the runs were measured on.

    Raises:
      ImportError: the extra [report] is not installed.
    """
    media, accuracy = Media(BUDGET), accuracy_and_generation(runs)
    write_page(
        path,
        "comparison.html",
        runs=runs,
        real=real,
        paper=paper_table(),
        accuracy=accuracy,
        accuracy_charts=[
            chart(name, [Series(run, [x], [y], "points") for run, x, y in points], x_label="error of dropped frames")
            for name, (points, _) in accuracy.items()
        ],
        convergence={stage: found for stage in CONVERGENCE if (found := _convergence(runs, stage))},
        clips=_clips(runs, video, media),
        samples=_samples(runs, media),
    )


def accuracy_and_generation(runs: Sequence[EvaluatedRun]) -> dict[str, tuple[list[tuple[str, float, float]], float]]:
    """Whether runs that predict better generate better: score -> ((run, error, score) of each, rank correlation).

    The error is that of dropped frames; for distances, where lower is better, a positive correlation means yes. With
    fewer than three runs the correlation is NaN, since it would always be 1 or -1.
    """
    result = {}
    for name in dict.fromkeys(name for run in runs for name in run.scores):
        points = [
            (run.name, run.last["prediction"]["average"], run.scores[name])
            for run in runs
            if name in run.scores and run.last.get("prediction")
        ]
        if len(points) > 1:
            errors, scores = (np.array([point[i] for point in points]) for i in (1, 2))
            result[name] = points, rank_correlation(errors, scores) if len(points) > 2 else math.nan
    return result


def curves_of(runs: Sequence[EvaluatedRun], stage: str) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of the curve that a stage is compared by, of every run that has it."""
    term = CONVERGENCE[stage]
    points = {
        run.name: [(r["step"], r[term]) for r in run.curves.get(stage, ()) if r.get(term) is not None] for run in runs
    }
    return {name: tuple(zip(*found, strict=True)) for name, found in points.items() if found}


def arrivals(runs: Sequence[EvaluatedRun], stage: str) -> dict[str, StepsToTarget]:
    """`A reaches the end of B` -> when, for all pairs that have the stage's curve."""
    drawn = curves_of(runs, stage)
    pairs = itertools.permutations(drawn, 2)
    return {f"{a} reaches the end of {b}": steps_to_target(*drawn[a], *drawn[b]) for a, b in pairs}


def _convergence(runs: Sequence[EvaluatedRun], stage: str) -> dict | None:
    curves = curves_of(runs, stage)
    if not curves:
        return None
    what = "squared error" if CONVERGENCE[stage] == "mse" else CONVERGENCE[stage]
    series = [Series(name, steps, running_mean(values)) for name, (steps, values) in curves.items()]
    drawn = chart(f"Stage {stage}: {what}", series, x_label="step", log=True, ends=True)
    return {"what": what, "chart": drawn, "arrivals": arrivals(runs, stage)}


def _clips(runs: Sequence[EvaluatedRun], video: np.ndarray, media: Media) -> list[list[dict]]:
    """Rows of each clip: the original beside reconstructions, and beside predictions."""
    decoded = [(run.name, run.reconstruction, video.shape[1]) for run in runs if run.reconstruction is not None]
    predicted = [(f"{r.name}: saw {r.observed}", r.prediction, r.observed) for r in runs if r.prediction is not None]
    kinds = {kind: cells for kind, cells in (("reconstructions", decoded), ("predictions", predicted)) if cells}
    return [
        [
            clip_row(f"clip {i}, {kind}", [("original", clip, None), *((n, c[i], seen) for n, c, seen in cells)], media)
            for kind, cells in kinds.items()
        ]
        for i, clip in enumerate(video if decoded else ())
    ]


def _samples(runs: Sequence[EvaluatedRun], media: Media) -> dict[str, list[dict]]:
    """Class -> rows of one generated clip of every run that has it."""
    found = {name: [] for run in runs for name in run.samples}
    for name, i in itertools.product(found, range(SHOWN)):
        cells = [(run.name, run.samples[name][i], None) for run in runs if len(run.samples.get(name, ())) > i]
        if cells:
            found[name].append(clip_row(f"generated {name}, number {i}", cells, media))
    return found
