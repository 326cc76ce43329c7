"""Put runs side by side on one page: scores beside the paper's, convergence, the same clips of all of them.

  pv-vae compare runs/a runs/b
  pv-vae compare runs/a runs/b runs/c --out comparison.html

Each run must have been evaluated (`pv-vae train` does so at its end, `pv-vae evaluate --workdir RUN` at any time), and
all must be of the same data. Scores of `pv-vae evaluate --real --fake` are taken along if their JSON lies in
`RUN/report`. Generated clips of all runs are compared with the first run's test clips, equally many of each. Writes the
page, which needs no other file, and the numbers beside it (`comparison.json`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from pv_vae_jax.cli.evaluate import read_test_clips
from pv_vae_jax.evaluation.distances import frechet_distance, kernel_distance
from pv_vae_jax.evaluation.networks.extract import extract, own_network
from pv_vae_jax.evaluation.prediction import predict
from pv_vae_jax.evaluation.protocol import name_of
from pv_vae_jax.evaluation.reconstruction import reconstruct
from pv_vae_jax.model import load
from pv_vae_jax.report.comparison_page import CONVERGENCE, SHOWN, EvaluatedRun, arrivals, write_comparison
from pv_vae_jax.storage import make_writable, write_json
from pv_vae_jax.train.configs import STAGES, VAE_STAGES
from pv_vae_jax.train.run import Run, reopen_run
from pv_vae_jax.train.writers import read_metrics
from pv_vae_jax.typing import ConfigError

SAME = ("source", "frames", "size", "stride")  # of the data; runs that differ in them are not compared
LEAST_CLIPS = 8  # to compare generated clips by


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae compare`."""
    flags.DEFINE_string("out", "comparison.html", "the page; its numbers go beside it as .json", flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Gather the runs, score what they generated, write the page and its numbers."""
    if overrides:
        raise ConfigError("pv-vae compare takes no --config overrides: each run's configuration is its own")
    if len(positional) < 2:
        raise ConfigError("name at least two runs, the work directories of pv-vae train")
    out = Path(values.out)
    if out.suffix != ".html":
        raise ConfigError(f"--out is a page, so it ends in .html; got {out}")
    make_writable(out.parent)
    runs = _open(positional)
    first = next(iter(runs.values()))
    video, _ = read_test_clips(first)
    found = [_gather(name, run, video[:SHOWN]) for name, run in runs.items()]
    taken = {name: _taken_along(run.workdir / "report") for name, run in runs.items()}
    count = _score_generated(found, taken, runs, video)
    found = [EvaluatedRun(**{**vars(run), "scores": scores}) for run, scores in zip(found, _named(taken), strict=True)]
    data = first.experiment.data
    real = f"{data.source}, {data.frames} frames of {data.size} x {data.size}"
    if count:
        real += f"; generated clips against {count} test clips"
    write_json(out.with_suffix(".json"), _numbers(found, real))
    write_comparison(out, found, video[:SHOWN], real)
    print("\n".join(_lines(found)))
    print(f"comparison: {out}")


def _open(names: Sequence[str]) -> dict[str, Run]:
    """Runs by a short name, checked to be comparable."""
    if len({Path(name).resolve() for name in names}) < len(names):
        raise ConfigError(f"a run is named twice: {', '.join(names)}")
    short = [Path(name).resolve().name for name in names]
    labels = short if len(set(short)) == len(short) else list(names)
    runs = {label: reopen_run(name) for label, name in zip(labels, names, strict=True)}
    first_name, first = next(iter(runs.items()))
    for name, run in runs.items():
        if not (run.workdir / "report" / "metrics.json").is_file():
            raise ConfigError(f"{run.workdir} has not been evaluated: pv-vae evaluate --workdir {run.workdir}")
        for key in SAME:
            mine, theirs = (getattr(r.experiment.data, key) for r in (run, first))
            if mine != theirs:
                raise ConfigError(
                    f"data.{key} is {mine} in {name} and {theirs} in {first_name}: their numbers do not compare"
                )
    return runs


def _gather(name: str, run: Run, shown: np.ndarray) -> EvaluatedRun:
    report = run.workdir / "report"
    metrics = _json(report / "metrics.json")
    if not isinstance(metrics, dict) or not isinstance(metrics.get("stages"), dict) or "model" not in metrics:
        raise ConfigError(f"{report / 'metrics.json'} holds no scores by name: evaluate the run again")
    curves = {stage: read_metrics(run.folder(stage) / "metrics.jsonl") for stage in STAGES}
    made = [s for s in VAE_STAGES if run.finished(s) and not getattr(run.experiment, s).images]
    drawn = {}
    if made:
        model = load(run.folder(made[-1]) / "model")
        drawn["reconstruction"] = reconstruct(model.vae, model.vae_params, shown, batch_size=len(shown))
        groups = model.vae.config.latent_frames(shown.shape[1])
        if groups > 1:
            dropped = groups // 2
            drawn["observed"] = shown.shape[1] - dropped * model.vae.config.time_factor
            drawn["prediction"] = predict(model.vae, model.vae_params, shown, dropped, batch_size=len(shown))
    return EvaluatedRun(name, metrics, {s: rows for s, rows in curves.items() if rows}, {}, **drawn)


Taken = dict[tuple[str, str], float]  # a score's name and what it was measured on -> its value


def _taken_along(report: Path) -> Taken:
    """Scores that `pv-vae evaluate --real --fake` left in a run."""
    found: Taken = {}
    for path in sorted(report.glob("*.json")):
        tree = _json(path)
        for score in tree if isinstance(tree, list) else ():
            if isinstance(score, dict) and "name" in score and isinstance(score.get("value"), int | float):
                card = score.get("card") or {}
                protocol, fake = card.get("protocol") or {}, card.get("fake") or {}
                told = ", ".join(f"{x}" for x in (protocol.get("name"), fake.get("scored")) if x is not None)
                key = score["name"], f"{told} clips" if told else path.stem
                if key in found:  # of other sets: the file's name tells which
                    key = score["name"], f"{key[1]}, {path.stem}"
                found[key] = float(score["value"])
    return found


def _named(taken: dict[str, Taken]) -> list[dict[str, float]]:
    """Scores of each run by name; where a name was measured on different things, what on stands behind it."""
    kinds: dict[str, set[str]] = {}
    for scores in taken.values():
        for name, told in scores:
            kinds.setdefault(name, set()).add(told)
    label = lambda name, told: name if len(kinds[name]) == 1 else f"{name}: {told}"  # noqa: E731
    return [{label(*key): value for key, value in scores.items()} for scores in taken.values()]


def _score_generated(
    found: list[EvaluatedRun], taken: dict[str, Taken], runs: dict[str, Run], video: np.ndarray
) -> int:
    """Add samples and their distances to the runs that have any; the number of clips of each set."""
    samples = {run.name: _samples(runs[run.name].workdir / "report" / "samples.npz") for run in found}
    samples = {name: part for name, part in samples.items() if part is not None}
    for i, run in enumerate(found):
        if run.name in samples:
            clips, labels = samples[run.name]
            names = run.metrics.get("samples", {}).get("class_names") or ["all clips"]
            by_class = {names[k]: clips[labels == k][:SHOWN] for k in np.unique(labels) if k < len(names)}
            found[i] = EvaluatedRun(**{**vars(run), "samples": by_class})
    network = own_network()
    count = min([len(video), *(len(clips) for clips, _ in samples.values())])
    if not samples or count < LEAST_CLIPS or video.shape[1] < network.least_frames:
        return 0
    real = extract(network, video[:count], count=count, label="test clips")
    for run in found:
        if run.name in samples:
            fake = extract(network, samples[run.name][0][:count], count=count, label=run.name)
            told = f"{count} test clips"
            taken[run.name][name_of("frechet", network), told] = float(frechet_distance(real, fake))
            taken[run.name][name_of("kernel", network), told] = float(kernel_distance(real, fake))
    return count


def _samples(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["video"], arrays["label"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is damaged ({error}): evaluate the run again") from error


def _json(path: Path) -> dict | list:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): evaluate the run again") from error


def _numbers(found: Sequence[EvaluatedRun], real: str) -> dict:
    tree = {"measured_on": real, "runs": {}, "convergence": {}}
    for run in found:
        tree["runs"][run.name] = {"scores": run.scores, "stages": run.metrics["stages"]}
    for stage, term in CONVERGENCE.items():
        for (a, b), when in arrivals(found, stage).items():
            told = {"term": term, "score": when.score, "step": when.step, "of": when.steps, "saved": when.sooner}
            tree["convergence"].setdefault(stage, {})[f"{a} reaches the end of {b}"] = told
    return tree


def _lines(found: Sequence[EvaluatedRun]) -> list[str]:
    width = max(len(run.name) for run in found) + 2
    lines = [f"{'':{width}}{'PSNR dB':>9}{'SSIM':>9}  distances of generated clips"]
    for run in found:
        peak, similar = (run.last.get(key) for key in ("psnr_db", "ssim"))
        cells = ["-" if v is None else form.format(v) for v, form in ((peak, "{:.2f}"), (similar, "{:.4f}"))]
        distances = "; ".join(f"{name} {value:.4g}" for name, value in run.scores.items()) or "-"
        lines.append(f"{run.name:{width}}{cells[0]:>9}{cells[1]:>9}  {distances}")
    return lines
