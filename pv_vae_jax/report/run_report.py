"""Measures a run and writes its report: `report.html`, `metrics.json` and, with a transformer, `samples.npz`."""

import contextlib
import dataclasses
import datetime
import functools
import json
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pv_vae_jax.data.clips import WindowSource
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import NoVideosError, summarize
from pv_vae_jax.data.sources import VideoSource
from pv_vae_jax.data.synthetic import families_of
from pv_vae_jax.evaluation.comparison import LEAST_CLIPS, own_distances
from pv_vae_jax.evaluation.image_metrics import PerceptualDistance, score_frames, summarize_frames
from pv_vae_jax.evaluation.latent_analysis import distance_numbers, finite, principal_colours
from pv_vae_jax.evaluation.perceptual import lpips_distance
from pv_vae_jax.evaluation.prediction import PredictionErrors, predict, score_prediction
from pv_vae_jax.evaluation.protocol import name_of
from pv_vae_jax.evaluation.reconstruction import Reconstruction, reconstruct, score_reconstruction
from pv_vae_jax.messages import counted
from pv_vae_jax.model import Model, load
from pv_vae_jax.model_folder import SHIPPED, shipped_models
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.progress import progress_bar
from pv_vae_jax.report import unavailable
from pv_vae_jax.report.ending import ending
from pv_vae_jax.report.page import aligned, cell, percent
from pv_vae_jax.report.run_page import FRAMES, EvaluatedRun, Pictures, frame_lines, prediction_lines, write_report
from pv_vae_jax.sampling import sample_clips
from pv_vae_jax.storage import atomic, make_writable, write_json
from pv_vae_jax.train.config_files import to_dict
from pv_vae_jax.train.configs import STAGES, VAE_STAGES
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.writers import read_metrics
from pv_vae_jax.typing import ConfigError, NonFiniteError, ShapeError, check_clip_shape
from pv_vae_jax.versions import versions

SHOWN_CLIPS = 6  # with reconstruction and predictions, and as latents
SHOWN_CLASSES, SHOWN_PER_CLASS = 8, 4
SHOWN_STILLS = 8
LISTED = 1_000  # held-out files, by name
DRAWN = "gaussian padding and posterior sample drawn with the seed"


def evaluate_run(
    run: Run, clips: int | None = None, sampled: int | None = None, lpips: tuple[str, Path, Path] | None = None
) -> Path:
    """Measure every finished stage, print a table, write report, metrics and samples.

    Args:
      run: the run.
      clips: number of test clips to score, at most; None takes `data.test_clips`.
      sampled: number of clips to generate; None takes `sampling.clips`.
      lpips: backbone, weights and heads of LPIPS, to score reconstructions with as well.

    Returns:
      The path of `report.html`.

    Raises:
      ConfigError: no stage is finished.
      ImportError: the extra [report] is not installed.
      NoVideosError: none of the clips can be read.
    """
    if no_page := unavailable():
        print(f"numbers only: {no_page}", file=sys.stderr)
    vae_stages = [stage for stage in VAE_STAGES if run.finished(stage)]
    if not vae_stages:
        raise ConfigError(
            f"no VAE stage of {run.workdir} is finished, so there is nothing to evaluate: rerun the command that "
            "started it, pv-vae train continues where it stopped"
        )
    perceptual, network = lpips_distance(*lpips) if lpips else (None, None)
    scored = read_test_clips(run, clips)
    video = scored.video
    folder = make_writable(
        _report_folder(run, len(video), clips, sampled), "make it a folder to write to, or evaluate a copy of the run"
    )
    if network:
        scored.facts["perceptual"] = name_of(network.name, network)
    metrics = _describe(run, scored.facts) | {"notes": scored.notes, "stages": {}, "held_out": scored.files}
    unfinished = [stage for stage in STAGES if run.steps(stage) and not run.finished(stage)]
    metrics["missing"] = [f"Stage {stage} is not finished: it has no numbers here yet." for stage in unfinished]
    shown: dict[str, Any] = {"curves": read_curves(run)}
    metrics["baselines"] = _score_shipped(run, video)
    for stage in vae_stages:
        shown |= _score_stage(run, stage, scored, metrics, perceptual)
    sampled = run.experiment.sampling.clips if sampled is None else sampled
    if run.finished("diffusion") and sampled:
        try:
            shown["samples"] = _sample(run, sampled, folder, metrics, video, scored.names)
        except NonFiniteError as error:  # the scores of the VAE stages are reported without samples
            metrics["missing"].append(f"There are no samples: {error}.")
            print(f"pv-vae: no samples: {error}", file=sys.stderr)
    if "samples" not in shown:
        # Those of an earlier report would be scored by `pv-vae evaluate RUN RUN` as if they belonged to this one.
        (folder / "samples.npz").unlink(missing_ok=True)
    write_json(folder / "metrics.json", metrics)
    print("\n".join(_summary(metrics)))
    page = folder / ("metrics.json" if no_page else "report.html")
    if not no_page:
        write_report(page, metrics, Pictures(**shown))
    print("\n".join(ending(run, metrics, page)), flush=True)
    return page


def read_curves(run: Run) -> dict[str, list[dict]]:
    """Stage -> rows of its metrics file, of the stages that have any."""
    curves = {stage: read_metrics(run.folder(stage) / "metrics.jsonl") for stage in STAGES}
    return {stage: rows for stage, rows in curves.items() if rows}


def _report_folder(run: Run, count: int, clips: int | None, sampled: int | None) -> Path:
    """`report`, or a folder named after the requested numbers if `report` holds a report of more clips or samples."""
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
    print(f"{folder} holds a report of more clips or samples and is kept: this report goes to {name}", file=sys.stderr)
    return run.workdir / name


class ScoredClips(NamedTuple):
    """The clips that a run is scored on.

    Attributes:
      video: `(n, t, h, w, 3)` uint8.
      names: class of each.
      titles: what tells each from the others: its file where the source has files.
      facts: about them, for the protocol.
      notes: for the reader.
      files: how many files their split has, and the names of the first; none for a source that knows none.
    """

    video: np.ndarray
    names: list[str]
    titles: list[str]
    facts: dict
    notes: list[str]
    files: dict


def read_test_clips(run: Run, clips: int | None = None) -> ScoredClips:
    """The first `clips` test clips of a run, by default as many as its configuration says.

    The split is `train` if the data has no test clips.
    """
    data, split, notes = run.experiment.data, "test", []
    if clips:
        data = dataclasses.replace(data, test_clips=clips)
        run = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, data=data))
    try:
        source = run.source("test", random=False)
    except NoVideosError as error:
        source, split = run.source("train", random=False), "train"
        notes.append(f"Scored on training clips, which flatters every number: {error}.")
    video, names = read_every_clip(source, data.test_clips)
    if clips and len(video) < clips:
        notes.append(f"{counted(clips, 'clip')} requested; {len(video)} of the {split} split can be scored.")
    skipped = left_out(source)
    facts = {"split": split, "clips": len(video)}
    if skipped:
        facts["left_out"] = skipped[0]
    return ScoredClips(video, names, _titles(source, names), facts, notes + skipped, _files(source))


def _titles(source: VideoSource, names: Sequence[str]) -> list[str]:
    """A title of each clip that `read_every_clip` returned, whose classes are `names`."""
    origins = [f"clip {i}" for i in range(1, len(names) + 1)]
    if isinstance(source, WindowSource):
        kept = [each for i, each in enumerate(source.windows) if i not in source.replaced][: len(names)]
        later = [f", from frame {window * source.span}" if window else "" for window, _ in kept]
        origins = [_file(source, video) + start for (_, video), start in zip(kept, later, strict=True)]
    if len(source.class_names) == 1:
        return origins
    pairs = zip(names, origins, strict=True)  # folders are often named after classes
    return [origin if name in origin.split("/") else f"{name}: {origin}" for name, origin in pairs]


def _files(source: VideoSource) -> dict:
    """How many files a source reads, and the names of the first `LISTED`; records and drawn clips have none."""
    total = len(source.reader) if isinstance(source, WindowSource) else 0
    if not isinstance(source, WindowSource) or not total or not isinstance(source.reader.name(0), Path):
        return {"count": 0, "names": []}
    return {"count": total, "names": [_file(source, i) for i in range(min(total, LISTED))]}


def _file(source: WindowSource, video: int) -> str:
    name = source.reader.name(video)
    return name.relative_to(source.reader.folder).as_posix() if isinstance(name, Path) else name


def by_class(
    generated: tuple[np.ndarray, np.ndarray], classes: Sequence[str], real: np.ndarray, names: Sequence[str], most: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Class -> its first generated clips and its first real ones; where generation knows no classes, all are one.

    Args:
      generated: clips and the labels of each, which count `classes`.
      classes: names of the classes that were generated; none without classes.
      real, names: real clips and the class of each.
      most: number of clips of a class.
    """
    video, labels = generated
    if len(classes) < 2 and len(video):
        return {names[0] if len(set(names)) == 1 else "all clips": (video[:most], real[:most])}
    pick = lambda clips, chosen: clips[np.flatnonzero(chosen)[:most]]  # noqa: E731
    shown = [k for k in np.unique(labels)[:SHOWN_CLASSES] if k < len(classes)]
    return {str(classes[k]): (pick(video, labels == k), pick(real, np.array(names) == classes[k])) for k in shown}


def read_every_clip(source: VideoSource, limit: int) -> tuple[np.ndarray, list[str]]:
    """`(n, t, h, w, 3)` uint8 and the class of every readable clip among the first `limit`.

    A source replaces an unreadable clip by another one, which would be scored twice, so replaced clips are left out.

    Raises:
      NoVideosError: none of the clips can be read.
    """
    index = progress_bar(range(min(limit, len(source))), desc="clips", unit="clip")
    items = [source[i] for i in index]
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


def _describe(run: Run, clips: dict) -> dict:
    """What was measured, how and where."""
    experiment, data = run.experiment, run.experiment.data
    synthetic, gaussian = families_of(data.source) is not None, experiment.vae.pad == "gaussian"
    kinds = Counter(device.device_kind for device in jax.devices())
    protocol = {key: getattr(data, key) for key in ("source", "frames", "size", "stride")} | clips
    protocol |= {
        "crop": "none, drawn at this size" if synthetic else data.frame_size.description,
        "pixels": "clamped to [-1, 1], rounded to uint8, scored as tensors",
        "weights": "moving average (EMA) of each stage; hash: SHA-256 of all float32 parameters, 16 digits",
        "reconstruction": "decoded posterior mean",
        "prediction": DRAWN if gaussian else "posterior mean, learned padding",
        "psnr": "per frame, at most 100 dB, mean over frames, then clips",
        "ssim": "Wang et al. 2004: 11 x 11 Gaussian, sigma 1.5, population covariance, valid region, RGB channels",
    }
    facts = dict(experiment=experiment.name, model=experiment.vae.name, parameters={}, latents=None, samples=None)
    return facts | {
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "devices": [f"{count} x {kind}" for kind, count in kinds.items()],
        "versions": versions() | {"python": platform.python_version()},
        "protocol": protocol | {"precision": experiment.vae.dtype, "seed": experiment.seed},
        "command": f"pv-vae evaluate --workdir {shlex.quote(str(run.workdir))}",
        "configuration": to_dict(experiment),
    }


def _score_vae(
    run: Run, model: Model, video: np.ndarray, label: str, perceptual: PerceptualDistance | None, images: bool = False
) -> tuple[dict, Reconstruction]:
    """Numbers of a VAE on clips, or on their middle frames, and its reconstruction."""
    vae, frames = (model.vae, model.vae_params), video.shape[1]
    size = min(run.experiment.latents.batch_size, len(video))  # as many clips as the encoding of latents takes at once
    seeded = {"seed": run.experiment.seed, "batch_size": size}
    shown = video[:, frames // 2 : frames // 2 + 1] if images else video
    score = score_reconstruction(*vae, shown, batch_size=size, perceptual=perceptual, label=f"{label}: reconstruction")
    clips = counted(len(video), "clip")
    scored = f"the middle frame of {clips}" if images else f"{clips} of {counted(frames, 'frame')}"
    numbers = {"scored": scored, "steps": model.meta.get("steps"), "weights": weights_hash(model.vae_params)}
    numbers |= {"psnr_db": score.psnr, "ssim": score.ssim, "prediction": None, "by_frame": {}}
    if images:
        return numbers, score
    p_t, groups = model.vae.config.time_factor, score.means.shape[1]
    numbers["by_frame"]["reconstruction"] = summarize_frames(score.frames, p_t)
    if groups > 1:
        seen = frames - groups // 2 * p_t
        drawn = score_frames(video, predict(*vae, video, groups // 2, **seeded), 255.0, perceptual)
        numbers["by_frame"][f"prediction from {seen} frames"] = summarize_frames(drawn, p_t, seen)
        errors = score_prediction(*vae, video, **seeded, label=f"{label}: prediction")
        numbers["prediction"] = _prediction_numbers(errors, [frames - k * p_t for k in range(groups)])
    return numbers, score


def _score_shipped(run: Run, video: np.ndarray) -> dict[str, dict]:
    """Numbers of every shipped model that takes these clips, which a run should beat; none on too few clips."""
    found = {}
    for name in shipped_models() if len(video) >= LEAST_CLIPS else ():
        model = load(SHIPPED / name)  # by its name, a folder here could be meant
        with contextlib.suppress(ShapeError):
            frames, height, width = video.shape[1:4]
            check_clip_shape(frames, height, width, model.vae.config.time_factor, model.vae.config.space_factor)
            found[name], _ = _score_vae(run, model, video, name, None)
            found[name]["steps"] = None  # its last stage's, which would stand beside a stage of the run
            if model.vae.config.time_factor != run.experiment.vae.time_factor:
                found[name]["prediction"] = None  # its groups are other frames, so no error stands beside ours
    return found


def _score_stage(
    run: Run, stage: str, scored: ScoredClips, metrics: dict, perceptual: PerceptualDistance | None
) -> dict:
    """Add the numbers of a VAE stage to `metrics`; returns what the page shows of it, as fields of `Pictures`."""
    video, names, titles = scored.video, scored.names, scored.titles
    model, images = load(run.folder(stage) / "model"), getattr(run.experiment, stage).images
    numbers, score = _score_vae(run, model, video, stage, perceptual, images)
    metrics["parameters"] |= {part: _count(tree) for part, tree in model.vae_params.items()}
    metrics["stages"][stage] = numbers | {"steps": numbers["steps"] or run.steps(stage)}
    vae, frames, p_t = (model.vae, model.vae_params), video.shape[1], model.vae.config.time_factor
    seeded = {"seed": run.experiment.seed, "batch_size": min(run.experiment.latents.batch_size, len(video))}
    decode = functools.partial(reconstruct, *vae, batch_size=seeded["batch_size"])
    if images:
        stills = video[:SHOWN_STILLS, frames // 2 : frames // 2 + 1]
        return {"stills": (stills[:, 0], decode(stills)[:, 0])}
    groups, colours, distance = score.means.shape[1], principal_colours(score.means), distance_numbers(score.means)
    explained = {"explained": colours.explained.tolist()}
    metrics["latents"] = {"stage": stage, "clips": len(video)} | explained | distance
    shown = video[:SHOWN_CLIPS]
    drops = sorted({int(k) for k in np.linspace(1, groups - 1, 4).round()}) if groups > 1 else []
    rows = [("Original", shown, None), ("Reconstruction", decode(shown), frames)]
    for k in drops:
        label = f"k = {k}: saw {frames - k * p_t} of {frames}"
        rows.append((label, predict(*vae, shown, k, **seeded), frames - k * p_t))
    return {  # those of the last such stage are shown, which is the one that later stages use
        "clips": [
            (names[i], titles[i], [(label, clips[i], seen) for label, clips, seen in rows]) for i in range(len(shown))
        ],
        "clips_stage": stage,
        "latents": list(zip(titles, shown[:, ::p_t], colours.pictures, strict=False)),
    }


def _prediction_numbers(errors: PredictionErrors, observed: list[int]) -> dict:
    numbers = {name: [finite(v) for v in values] for name, values in dataclasses.asdict(errors).items()}
    averages = {f"average_{name}": errors.average(name) for name in ("copying", "extrapolation")}
    averages |= {"average": errors.average(), "against_copying": finite(errors.against_copying)}
    return {"dropped": list(range(len(observed))), "observed_frames": observed} | numbers | averages


def _sample(
    run: Run, count: int, folder: Path, metrics: dict, real: np.ndarray, real_names: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Generate clips, classes in turn, and save them; returns class -> some generated clips and some real ones."""
    model = load(run.folder("diffusion") / "model")
    sampling, diffusion = run.experiment.sampling, model.diffusion
    assert diffusion is not None, "of stage diffusion"
    classes = diffusion.class_names if diffusion.model.config.classes else ()
    labels = np.arange(count) % max(len(classes), 1)
    guidance = sampling.guidance if classes else 1.0  # without classes there is nothing to guide by
    batch_size, seed = min(sampling.batch_size, count), run.experiment.seed
    video = sample_clips(model, labels, steps=sampling.steps, guidance=guidance, seed=seed, batch_size=batch_size)
    with atomic(folder / "samples.npz") as temporary:
        np.savez_compressed(temporary, video=video, label=labels)
    metrics["parameters"]["transformer"] = _count(diffusion.params)
    half = min(len(video), len(real) // 2)
    facts = dict(clips=count, steps=sampling.steps, guidance=guidance, seed=seed, file="samples.npz", scored=half)
    facts |= dict(class_names=list(classes), vae_stage=model.meta.get("stage", "unknown"))
    metrics["samples"] = facts | {
        "training_steps": model.meta.get("diffusion_steps"),
        "weights": weights_hash(diffusion.params),
        "vae_weights": weights_hash(model.vae_params),
        # Beside them real clips, which no model need beat: the other half of the same test clips.
        "distances": own_distances(real[:half], {"generated clips": video[:half], "other test clips": real[half:]}),
    }
    return by_class((video, labels), classes, real, real_names, SHOWN_PER_CLASS)


def _count(params: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def _summary(metrics: dict) -> list[str]:
    """The numbers as lines for a terminal."""
    p = metrics["protocol"]
    size = FrameSize.of(p["size"])
    scores = [("stage", "PSNR dB", "SSIM", "EMA weights", "scored")]
    for name, stage in metrics["stages"].items():
        quality = cell(stage["psnr_db"], ".2f"), cell(stage["ssim"], ".4f")
        scores.append((name, *quality, stage["weights"], stage["scored"]))
    lines = [
        f"{metrics['experiment']}: {counted(p['clips'], p['split'] + ' clip')} of {p['source']}, "
        f"{p['frames']} x {size.height} x {size.width}, stride {p['stride']}",
        *metrics["notes"],
        *metrics["missing"],
        *aligned(scores),
    ]
    if frames := frame_lines(metrics):
        lines += aligned([("PSNR dB by frame", *FRAMES), *((name, *psnr) for name, psnr, _ in frames)])
    if errors := prediction_lines([EvaluatedRun("", metrics, Pictures())]):
        rows: list = [("dropped", *map(str, range(1, len(errors[0][1]))), "average", "against copying")]
        for name, values, average, against in errors:
            rows.append((name, *(cell(v, ".4f") for v in (*values[1:], average)), percent(against)))
        lines += ["squared error on dropped frames, range [-1, 1]", *aligned(rows)]
    for name, found in ((metrics["samples"] or {}).get("distances") or {}).items():
        lines.append(f"{name}: " + ", ".join(f"{score} {cell(value)}" for score, value in found.items()))
    return lines
