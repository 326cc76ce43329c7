"""Several evaluated runs side by side: their scores, convergence and clips, as a page and as numbers."""

import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.evaluation.comparison import own_distances
from pv_vae_jax.evaluation.prediction import predict_half
from pv_vae_jax.evaluation.reconstruction import reconstruct
from pv_vae_jax.model import load
from pv_vae_jax.report import unavailable
from pv_vae_jax.report.page import DASH, Cell, aligned, cell, short_names
from pv_vae_jax.report.run_page import CONVERGENCE, EvaluatedRun, Pictures, arrivals, write_runs
from pv_vae_jax.report.run_report import by_class, read_curves, read_test_clips
from pv_vae_jax.storage import as_path, local, make_writable, write_json
from pv_vae_jax.train.configs import VAE_STAGES
from pv_vae_jax.train.run import Run, reopen_run
from pv_vae_jax.typing import ConfigError

SAME = ("source", "fold", "frames", "size", "fit", "stride")  # of the data; runs that differ in them are not compared

Scores = dict[tuple[str, str], float]  # (name of a score, what it was measured on) -> value
SHOWN = 3  # clips that are decoded, and generated clips per class


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
    video, names, titles, *_ = read_test_clips(first)
    metrics = {name: _read_json(run.workdir / "report" / "metrics.json") for name, run in runs.items()}
    for name, tree in metrics.items():
        if not isinstance(tree, dict) or not isinstance(tree.get("stages"), dict) or "model" not in tree:
            raise ConfigError(f"the report of {name} holds no scores by name: evaluate the run again")
    samples = {name: _read_samples(run, bool(metrics[name].get("samples"))) for name, run in runs.items()}
    scores = {name: stored_scores(run.workdir / "report") for name, run in runs.items()}
    count = _score_generated(scores, {name: clips for name, (clips, _) in samples.items() if len(clips)}, video)
    compared = []
    for (name, run), named in zip(runs.items(), scores_by_name(list(scores.values())), strict=True):
        classes = (metrics[name].get("samples") or {}).get("class_names") or ()
        by_name = by_class(samples[name], classes, video, names, SHOWN)
        pictures = Pictures(read_curves(run), _decode(run, video[:SHOWN], names, titles), samples=by_name)
        compared.append(EvaluatedRun(name, metrics[name], pictures, named))
    data = first.experiment.data
    size = FrameSize.of(data.size)
    real = f"{data.source}, {data.frames} frames of {size.height} x {size.width}"
    real += f"; generated clips against {count} test clips" if count else ""
    write_json(out.with_suffix(".json"), _numbers(compared, real))
    write_runs(out, compared, real)
    print("\n".join(_summary(compared)))
    print(f"comparison: {out}")


def runs_in(paths: Sequence[str]) -> list[str]:
    """`paths` with the evaluated runs inside of each that is no run itself, such as the folder of a study."""
    found = []
    for path in paths:
        folder = as_path(path)
        inside = [] if (folder / "config.json").exists() else sorted(folder.glob("*/report/metrics.json"))
        found += [str(file.parents[1]) for file in inside] or [path]
    return found


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


def _decode(
    run: Run, shown: np.ndarray, names: Sequence[str], titles: Sequence[str]
) -> list[tuple[str, str, list[Cell]]]:
    """What the last stage that was trained on clips makes of some, as `Pictures.clips`."""
    on_clips = [s for s in VAE_STAGES if run.finished(s) and not getattr(run.experiment, s).images]
    if not on_clips:
        return []
    model = load(run.folder(on_clips[-1]) / "model")
    vae, frames = (model.vae, model.vae_params, shown), shown.shape[1]
    rows = [("Original", shown, None), ("Reconstruction", reconstruct(*vae, batch_size=len(shown)), frames)]
    predicted, observed = predict_half(*vae, batch_size=len(shown))
    rows += [] if predicted is None else [(f"saw {observed} of {frames}", predicted, observed)]
    cells = [[(label, clips[i], seen) for label, clips, seen in rows] for i in range(len(shown))]
    return list(zip(names, titles, cells, strict=False))


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


def _read_samples(run: Run, expected: bool) -> tuple[np.ndarray, np.ndarray]:
    """Generated clips and their labels, none without a file unless the run's report speaks of them."""
    path = run.workdir / "report" / "samples.npz"
    if not expected and not path.exists():
        return np.zeros(0, np.uint8), np.zeros(0, int)
    with _damaged(path), local(path) as file, np.load(file, allow_pickle=False) as arrays:
        return arrays["video"], arrays["label"]


def _read_json(path: Path) -> Any:
    with _damaged(path):
        return json.loads(path.read_text())


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
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
