"""Measures a run and writes its report: `report.html`, `metrics.json` and, with a transformer, `samples.npz`."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from pv_vae_jax.data.listing import NoVideosError, summarize
from pv_vae_jax.data.sources import VideoSource
from pv_vae_jax.data.synthetic import families_of
from pv_vae_jax.evaluation.latent_analysis import principal_colours, temporal_distance
from pv_vae_jax.evaluation.prediction import PredictionErrors, predict, score_prediction
from pv_vae_jax.evaluation.reconstruction import reconstruct, score_reconstruction
from pv_vae_jax.model import Model, load
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.report import unavailable
from pv_vae_jax.report.run_page import Pictures, ShownClip, write_report
from pv_vae_jax.sampling import sample_clips
from pv_vae_jax.storage import atomic, write_json
from pv_vae_jax.train.configs import STAGES, VAE_STAGES
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.writers import read_metrics
from pv_vae_jax.typing import ConfigError, NonFiniteError
from pv_vae_jax.versions import versions

SHOWN_CLIPS = 6  # with reconstruction and predictions, and as latents
SHOWN_CLASSES, SHOWN_PER_CLASS = 8, 4
SHOWN_STILLS = 8


def evaluate_run(run: Run, clips: int | None = None, sampled: int | None = None) -> Path:
    """Measure every finished stage, print a table, write report, metrics and samples.

    Args:
      run: the run.
      clips: number of test clips to score, at most; None takes `data.test_clips`.
      sampled: number of clips to generate; None takes `sampling.clips`.

    Returns:
      The path of `report.html`.

    Raises:
      ConfigError: no stage is finished.
      ImportError: the extra [report] is not installed.
      NoVideosError: none of the clips can be read.
    """
    if reason := unavailable():
        raise ImportError(reason)
    vae_stages = [stage for stage in VAE_STAGES if run.finished(stage)]
    if not vae_stages:
        raise ConfigError(
            f"no VAE stage of {run.workdir} is finished, so there is nothing to evaluate: run the command that began "
            "it again, pv-vae train continues where it stopped"
        )
    source, split, notes = _open_test_clips(run, clips)
    video, names = read_every_clip(source, clips or run.experiment.data.test_clips)
    skipped = left_out(source)
    if clips and len(video) < clips:
        notes.append(f"{clips} clips were requested, the {split} split has {len(video)}.")
    metrics: dict[str, Any] = _describe(run, split, len(video)) | {"notes": notes + skipped}
    if skipped:
        metrics["protocol"]["left_out"] = skipped[0]
    unfinished = [stage for stage in STAGES if run.steps(stage) and not run.finished(stage)]
    metrics["missing"] = [f"Stage {stage} is not finished: it has no numbers here yet." for stage in unfinished]
    metrics["stages"] = {}
    curves = {stage: run.folder(stage) / "metrics.jsonl" for stage in STAGES}
    shown: dict[str, Any] = {"curves": {stage: read_metrics(path) for stage, path in curves.items() if path.exists()}}
    on_clips = [stage for stage in vae_stages if not getattr(run.experiment, stage).images]
    for stage in vae_stages:
        model = load(run.folder(stage) / "model")
        metrics["parameters"] |= {part: _count(tree) for part, tree in model.vae_params.items()}
        metrics["stages"][stage], means = _score_stage(run, stage, model, video)
        if stage not in on_clips:
            stills = _middle(video[:SHOWN_STILLS])
            result = reconstruct(model.vae, model.vae_params, stills, batch_size=_batch_size(run, video))
            shown["stills"] = (stills[:, 0], result[:, 0])
        elif stage == on_clips[-1]:  # the one that later stages use
            fields, metrics["latents"] = _show_stage(run, stage, model, video, names, means)
            shown |= fields
    folder = _report_folder(run, len(video), clips, sampled)
    folder.mkdir(exist_ok=True)
    sampled = run.experiment.sampling.clips if sampled is None else sampled
    if run.finished("diffusion") and sampled:
        model = load(run.folder("diffusion") / "model")
        try:
            generated = _sample(run, model, sampled, folder, metrics)
            shown["samples"] = _by_class(model, *generated, video, names)
        except NonFiniteError as error:  # the scores of the VAE's stages stand without samples
            metrics["missing"].append(f"There are no samples: {error}.")
            # Those of an earlier report would be scored by `pv-vae evaluate RUN RUN` as if they belonged to this one.
            (folder / "samples.npz").unlink(missing_ok=True)
            print(f"pv-vae: no samples: {error}", file=sys.stderr)
    write_json(folder / "metrics.json", metrics)
    write_report(folder / "report.html", metrics, Pictures(**shown))
    print("\n".join(_summary(metrics)))
    print(f"report: {folder / 'report.html'}", flush=True)
    return folder / "report.html"


def _report_folder(run: Run, count: int, clips: int | None, sampled: int | None) -> Path:
    """`report`; a folder named after the numbers asked for if `report` holds one of more clips or samples."""
    folder = run.workdir / "report"
    try:
        old = json.loads((folder / "metrics.json").read_text())
        fewer = clips is not None and count < old["protocol"]["clips"]
        fewer |= sampled is not None and sampled < (old["samples"] or {"clips": 0})["clips"]
    except (OSError, ValueError, KeyError, TypeError):  # no report, or a damaged one
        return folder
    if not fewer:
        return folder
    name = f"report-{count}-clips" + ("" if sampled is None else f"-{sampled}-samples")
    print(f"{folder} holds a report of more clips and is kept: this report goes to {name}", file=sys.stderr)
    return run.workdir / name


def read_test_clips(run: Run) -> np.ndarray:
    """The clips that a run is measured on, `(n, t, h, w, 3)` uint8."""
    source, _, _ = _open_test_clips(run, None)
    video, _ = read_every_clip(source, run.experiment.data.test_clips)
    return video


def _open_test_clips(run: Run, clips: int | None) -> tuple[VideoSource, str, list[str]]:
    """`(source, split, notes)`: test clips, or training clips where the data holds out none."""
    if clips:
        data = dataclasses.replace(run.experiment.data, test_clips=clips)
        run = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, data=data))
    try:
        return run.source("test", random=False), "test", []
    except NoVideosError as error:
        source = run.source("train", random=False)
        return source, "train", [f"Scored on training clips, which flatters every number: {error}."]


def read_every_clip(source: VideoSource, limit: int) -> tuple[np.ndarray, list[str]]:
    """`(n, t, h, w, 3)` uint8 and the class of every readable clip among the first `limit`.

    A source replaces a clip that cannot be read by another one, which would be scored twice here.

    Raises:
      NoVideosError: none of the clips can be read.
    """
    interval = 1 if sys.stderr.isatty() else 20
    index = tqdm(range(min(limit, len(source))), desc="clips", unit="clip", mininterval=interval)
    items = [source.clip(i, np.random.default_rng(0)) for i in index]
    replaced = getattr(source, "replaced", set())
    items = [item for i, item in enumerate(items) if i not in replaced]
    if not items:
        why = summarize(getattr(source, "skipped", {}))
        raise NoVideosError(f"none of the {len(index)} clips to score can be read: {why}")
    return np.stack([item["video"] for item in items]), [source.class_names[item["label"]] for item in items]


def left_out(source: VideoSource) -> list[str]:
    """One line about the clips that could not be scored; empty if all were."""
    replaced, skipped = getattr(source, "replaced", set()), getattr(source, "skipped", {})
    if not skipped:
        return []
    lost = f"{len(replaced)} clips that cannot be read; skipped: {len(skipped)} files ({summarize(skipped, 2)})"
    return [f"Left out: {lost}."]


def _describe(run: Run, split: str, clips: int) -> dict:
    """What was measured, how and where."""
    experiment, data = run.experiment, run.experiment.data
    synthetic = families_of(data.source) is not None
    kinds = Counter(device.device_kind for device in jax.devices())
    gaussian = experiment.vae.pad == "gaussian"
    return {
        "experiment": experiment.name,
        "model": experiment.vae.name,
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "devices": [f"{count} x {kind}" for kind, count in kinds.items()],
        "versions": versions() | {"python": platform.python_version()},
        "parameters": {},
        "protocol": {
            "source": data.source,
            "split": split,
            "clips": clips,
            "frames": data.frames,
            "size": data.size,
            "stride": data.stride,
            "crop": "none, drawn at this size" if synthetic else "short side resized by area, centre square",
            "pixels": "clamped to [-1, 1], rounded to uint8, scored as tensors",
            "weights": "moving average (EMA) of each stage; hash: SHA-256 of all float32 parameters, 16 digits",
            "reconstruction": "decoded posterior mean",
            "prediction": "gaussian padding and posterior sample drawn with the seed"
            if gaussian
            else "posterior mean, learned padding",
            "psnr": "per frame, at most 100 dB, mean over frames, then clips",
            "ssim": "Wang et al. 2004: 11 x 11 Gaussian, sigma 1.5, population covariance, valid region, RGB channels",
            "precision": experiment.vae.dtype,
            "seed": experiment.seed,
        },
        "latents": None,
        "samples": None,
    }


def _score_stage(run: Run, stage: str, model: Model, video: np.ndarray) -> tuple[dict, np.ndarray]:
    """Numbers of one VAE stage, and the posterior means of its clips."""
    images = getattr(run.experiment, stage).images
    scored = _middle(video) if images else video
    size, frames = _batch_size(run, video), scored.shape[1]
    score = score_reconstruction(model.vae, model.vae_params, scored, batch_size=size, label=f"{stage}: reconstruction")
    prediction = None
    if model.vae.config.latent_frames(frames) > 1:
        errors = score_prediction(
            model.vae, model.vae_params, scored, seed=run.experiment.seed, batch_size=size, label=f"{stage}: prediction"
        )
        prediction = _prediction_numbers(errors, frames, model.vae.config.time_factor)
    numbers = {
        "scored": f"the middle frame of {len(video)} clips" if images else f"{len(video)} clips of {frames} frames",
        "steps": model.meta.get("steps", getattr(run.experiment, stage).steps),
        "weights": weights_hash(model.vae_params),
        "psnr_db": score.psnr,
        "ssim": score.ssim,
        "prediction": prediction,
    }
    return numbers, score.means


def _prediction_numbers(errors: PredictionErrors, frames: int, time_factor: int) -> dict:
    dropped = range(len(errors.predicted))
    numbers = {"dropped": list(dropped), "observed_frames": [frames - k * time_factor for k in dropped]}
    for name in ("predicted", "seen", "copying", "extrapolation"):
        numbers[name] = [None if math.isnan(v) else float(v) for v in getattr(errors, name)]
    numbers["average"] = errors.average()
    numbers |= {f"average_{name}": errors.average(name) for name in ("copying", "extrapolation")}
    numbers["against_copying"] = None if math.isnan(errors.against_copying) else errors.against_copying
    return numbers


def _show_stage(
    run: Run, stage: str, model: Model, video: np.ndarray, names: Sequence[str], means: np.ndarray
) -> tuple[dict, dict]:
    """Fields of `Pictures` of a stage trained on clips, and the numbers of its latents."""
    p_t, seed, size = model.vae.config.time_factor, run.experiment.seed, _batch_size(run, video)
    shown, groups = video[:SHOWN_CLIPS], means.shape[1]
    drops = sorted({int(k) for k in np.linspace(1, groups - 1, 4).round()}) if groups > 1 else []
    decoded = reconstruct(model.vae, model.vae_params, shown, batch_size=size)
    predicted = {k: predict(model.vae, model.vae_params, shown, k, seed=seed, batch_size=size) for k in drops}
    clips = [ShownClip(names[i], shown[i], decoded[i], {k: predicted[k][i] for k in drops}) for i in range(len(shown))]
    colours, distance = principal_colours(means), temporal_distance(means)
    latents = [(names[i], shown[i][::p_t], colours.pictures[i]) for i in range(len(shown))]
    numbers = {
        "stage": stage,
        "clips": len(means),
        "explained": colours.explained.tolist(),
        "ltd_median": distance.median if distance else None,
        "ltd_curve": distance.curve.tolist() if distance else None,
        "ltd_chance": distance.chance if distance else None,
    }
    return {"clips": clips, "clips_stage": stage, "time_factor": p_t, "latents": latents}, numbers


def _sample(run: Run, model: Model, count: int, folder: Path, metrics: dict) -> tuple[np.ndarray, np.ndarray]:
    """Generate clips, classes in turn, and save them: `(n, t, h, w, 3)` uint8 and labels `(n,)`."""
    sampling, diffusion = run.experiment.sampling, model.diffusion
    conditional = diffusion.model.config.classes > 0
    labels = np.arange(count) % len(diffusion.class_names) if conditional else np.zeros(count, int)
    guidance = sampling.guidance if conditional else 1.0  # without classes there is nothing to guide by
    batch_size, seed = min(sampling.batch_size, count), run.experiment.seed
    video = sample_clips(model, labels, steps=sampling.steps, guidance=guidance, seed=seed, batch_size=batch_size)
    with atomic(folder / "samples.npz") as temporary:
        np.savez_compressed(temporary, video=video, label=labels)
    metrics["parameters"]["transformer"] = _count(diffusion.params)
    metrics["samples"] = {
        "clips": count,
        "steps": sampling.steps,
        "guidance": guidance,
        "seed": seed,
        "weights": weights_hash(diffusion.params),
        "vae_stage": model.meta.get("stage", "unknown"),
        "vae_weights": weights_hash(model.vae_params),
        "training_steps": model.meta.get("diffusion_steps"),
        "class_names": list(diffusion.class_names) if conditional else [],
        "file": "samples.npz",
    }
    return video, labels


def _by_class(
    model: Model, video: np.ndarray, labels: np.ndarray, real: np.ndarray, real_names: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Class -> some generated clips and some real ones."""
    if not model.diffusion.model.config.classes:
        return {"all clips": (video[:SHOWN_PER_CLASS], real[:SHOWN_PER_CLASS])}
    shown = {}
    for label in np.unique(labels)[:SHOWN_CLASSES]:
        name = model.diffusion.class_names[label]
        same = [i for i, other in enumerate(real_names) if other == name]
        shown[name] = (video[labels == label][:SHOWN_PER_CLASS], real[same[:SHOWN_PER_CLASS]])
    return shown


def _batch_size(run: Run, video: np.ndarray) -> int:
    """As many clips as the encoding of latents takes at once."""
    return min(run.experiment.latents.batch_size, len(video))


def _middle(video: np.ndarray) -> np.ndarray:
    """The middle frame of every clip, as a clip of one frame."""
    middle = video.shape[1] // 2
    return video[:, middle : middle + 1]


def _count(params: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def _summary(metrics: dict) -> list[str]:
    """The numbers as lines for a terminal."""
    p = metrics["protocol"]
    lines = [
        f"{metrics['experiment']}: {p['clips']} {p['split']} clips of {p['source']}, {p['frames']} x {p['size']} x "
        f"{p['size']}, stride {p['stride']}"
    ]
    lines += metrics["notes"] + metrics["missing"]
    lines.append(f"{'stage':14}{'PSNR dB':>9}{'SSIM':>9}   EMA weights       scored")
    for name, stage in metrics["stages"].items():
        similarity = "-" if stage["ssim"] is None else f"{stage['ssim']:.4f}"
        lines.append(f"{name:14}{stage['psnr_db']:9.2f}{similarity:>9}   {stage['weights']}  {stage['scored']}")
    stages = {name: stage["prediction"] for name, stage in metrics["stages"].items() if stage["prediction"]}
    if stages:
        first = next(iter(stages.values()))
        lines.append("squared error on dropped frames, range [-1, 1]")
        lines.append(f"{'dropped':14}{''.join(f'{k:9}' for k in first['dropped'][1:])}  average")
        rows = [(name, q["predicted"], q["average"], q["against_copying"]) for name, q in stages.items()]
        rows += [(name, first[name], first[f"average_{name}"], None) for name in ("copying", "extrapolation")]
        for name, values, average, ratio in rows:
            against = "" if ratio is None else f"  {abs(ratio):.0%} {'below' if ratio < 0 else 'above'} copying"
            lines.append(f"{name:14}{''.join(f'{v:9.4f}' for v in values[1:])}{average:9.4f}{against}")
    return lines
