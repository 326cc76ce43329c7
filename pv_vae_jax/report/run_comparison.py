"""Gathers what several evaluated runs hold, scores their generated clips alike, and writes the page of all of them."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.evaluation.distances import frechet_distance, kernel_distance
from pv_vae_jax.evaluation.networks.extract import extract, own_network
from pv_vae_jax.evaluation.prediction import predict
from pv_vae_jax.evaluation.protocol import name_of
from pv_vae_jax.evaluation.reconstruction import reconstruct
from pv_vae_jax.model import load
from pv_vae_jax.report import unavailable
from pv_vae_jax.report.comparison_page import CONVERGENCE, SHOWN, EvaluatedRun, arrivals, write_comparison
from pv_vae_jax.report.run_report import read_test_clips
from pv_vae_jax.storage import make_writable, write_json
from pv_vae_jax.train.configs import STAGES, VAE_STAGES
from pv_vae_jax.train.run import Run, reopen_run
from pv_vae_jax.train.writers import read_metrics
from pv_vae_jax.typing import ConfigError

SAME = ("source", "frames", "size", "stride")  # of the data; runs that differ in them are not compared
LEAST_CLIPS = 8  # in each set of generated clips that is scored

Scores = dict[tuple[str, str], float]  # (name of a score, what it was measured on) -> value


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
    video = read_test_clips(first)
    results = {name: _gather(name, run, video[:SHOWN]) for name, run in runs.items()}
    scores = {name: stored_scores(run.workdir / "report") for name, run in runs.items()}
    count = _score_generated(results, scores, runs, video)
    named = scores_by_name(list(scores.values()))
    compared = [dataclasses.replace(run, scores=s) for run, s in zip(results.values(), named, strict=True)]
    data = first.experiment.data
    real = f"{data.source}, {data.frames} frames of {data.size} x {data.size}"
    if count:
        real += f"; generated clips against {count} test clips"
    write_json(out.with_suffix(".json"), _numbers(compared, real))
    write_comparison(out, compared, video[:SHOWN], real)
    print("\n".join(_summary(compared)))
    print(f"comparison: {out}")


def _open(workdirs: Sequence[str]) -> dict[str, Run]:
    """Runs by a short name, checked to be comparable."""
    if len({Path(name).resolve() for name in workdirs}) < len(workdirs):
        raise ConfigError(f"a run is named twice: {', '.join(workdirs)}")
    short = [Path(name).resolve().name for name in workdirs]
    labels = short if len(set(short)) == len(short) else list(workdirs)
    runs = {label: reopen_run(name) for label, name in zip(labels, workdirs, strict=True)}
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


def _gather(name: str, run: Run, shown: np.ndarray) -> EvaluatedRun:
    report = run.workdir / "report"
    metrics = _read_json(report / "metrics.json")
    if not isinstance(metrics, dict) or not isinstance(metrics.get("stages"), dict) or "model" not in metrics:
        raise ConfigError(f"{report / 'metrics.json'} holds no scores by name: evaluate the run again")
    curves = {stage: read_metrics(run.folder(stage) / "metrics.jsonl") for stage in STAGES}
    on_clips = [s for s in VAE_STAGES if run.finished(s) and not getattr(run.experiment, s).images]
    clips = {}
    if on_clips:
        model = load(run.folder(on_clips[-1]) / "model")
        clips["reconstruction"] = reconstruct(model.vae, model.vae_params, shown, batch_size=len(shown))
        groups = model.vae.config.latent_frames(shown.shape[1])
        if groups > 1:
            dropped = groups // 2
            clips["observed"] = shown.shape[1] - dropped * model.vae.config.time_factor
            clips["prediction"] = predict(model.vae, model.vae_params, shown, dropped, batch_size=len(shown))
    return EvaluatedRun(name, metrics, {s: rows for s, rows in curves.items() if rows}, {}, **clips)


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


def _score_generated(
    results: dict[str, EvaluatedRun], scores: dict[str, Scores], runs: dict[str, Run], video: np.ndarray
) -> int:
    """Add samples and their distances to the runs that have any; returns the number of clips of each set."""
    samples = {name: _read_samples(run.workdir / "report" / "samples.npz") for name, run in runs.items()}
    samples = {name: part for name, part in samples.items() if part is not None}
    for name, (clips, labels) in samples.items():
        classes = (results[name].metrics.get("samples") or {}).get("class_names") or ["all clips"]
        by_class = {classes[k]: clips[labels == k][:SHOWN] for k in np.unique(labels) if k < len(classes)}
        results[name] = dataclasses.replace(results[name], samples=by_class)
    network = own_network()
    count = min([len(video), *(len(clips) for clips, _ in samples.values())])
    if not samples or count < LEAST_CLIPS or video.shape[1] < network.least_frames:
        return 0
    real = extract(network, video[:count], count=count, label="test clips")
    for name, (clips, _) in samples.items():
        fake = extract(network, clips[:count], count=count, label=name)
        measured = f"{count} test clips"
        scores[name][name_of("frechet", network), measured] = float(frechet_distance(real, fake))
        scores[name][name_of("kernel", network), measured] = float(kernel_distance(real, fake))
    return count


def _read_samples(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["video"], arrays["label"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is damaged ({error}): evaluate the run again") from error


def _read_json(path: Path) -> dict | list:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): evaluate the run again") from error


def _numbers(runs: Sequence[EvaluatedRun], real: str) -> dict:
    tree = {"measured_on": real, "runs": {}, "convergence": {}}
    for run in runs:
        tree["runs"][run.name] = {"scores": run.scores, "stages": run.metrics["stages"]}
    for stage, term in CONVERGENCE.items():
        for (a, b), when in arrivals(runs, stage).items():
            row = {"term": term, "score": when.score, "step": when.step, "of": when.steps, "saved": when.sooner}
            tree["convergence"].setdefault(stage, {})[f"{a} reaches the end of {b}"] = row
    return tree


def _summary(runs: Sequence[EvaluatedRun]) -> list[str]:
    width = max(len(run.name) for run in runs) + 2
    lines = [f"{'':{width}}{'PSNR dB':>9}{'SSIM':>9}  distances of generated clips"]
    for run in runs:
        values = ((run.last.get("psnr_db"), "{:.2f}"), (run.last.get("ssim"), "{:.4f}"))
        psnr, ssim = ("-" if value is None else form.format(value) for value, form in values)
        distances = "; ".join(f"{name} {value:.4g}" for name, value in run.scores.items()) or "-"
        lines.append(f"{run.name:{width}}{psnr:>9}{ssim:>9}  {distances}")
    return lines
