"""Compare the latents of one or several VAEs: how easy to diffuse they are, colours, distance in time, spectra.

  pv-vae analyze tiny-synthetic
  pv-vae analyze runs/a runs/b --data folder --size=64 --clips=64 --out analysis
  pv-vae analyze runs/a theirs.npz

Models are shipped names, model folders (also those of `pv-vae convert`) or work directories, and all encode the same
clips. Latents of other programs are .npz files, or a folder of them: `mean` (n, g, h, w, z), and if they are known
`logvar` of that shape and `label` (n,). Clips come from the synthetic world, where motion is its exact flow, or from
--data, a folder of videos or of folders of frames, or an array (.npz: with `label` if it is known), where motion is the
change of brightness. Writes `analysis.json` and `analysis.html` (one self-contained page).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from pv_vae_jax.cli._shared import define_size_flags, frame_size
from pv_vae_jax.data.synthetic import SyntheticVideos
from pv_vae_jax.data.synthetic_motion import exact_flow
from pv_vae_jax.evaluation.clip_sets import Window, open_clips, read_clips
from pv_vae_jax.evaluation.latent_analysis import LatentAnalysis, analyze_given, analyze_latents
from pv_vae_jax.evaluation.latent_sets import is_latents, read_arrays, read_latents
from pv_vae_jax.model import load
from pv_vae_jax.report import unavailable
from pv_vae_jax.report.latents_page import measure_rows, write_analysis
from pv_vae_jax.report.page import aligned, cell, short_names
from pv_vae_jax.storage import as_path, make_writable, write_json
from pv_vae_jax.typing import ConfigError, check_clip_shape

OF_CLIPS = ("data", "clips", "frames", "size", "fit", "batch_size")
SEED = 20_000  # of the synthetic clips, which are then neither training nor test clips of a run


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae analyze`."""
    flags.DEFINE_string(
        "data", "synthetic", "folder of videos or of frames, .npy or .npz; or synthetic", flag_values=values
    )
    flags.DEFINE_string("out", "analysis", "folder for the results", flag_values=values)
    for name, default, help in (
        ("clips", 64, "number of clips to encode, at most"),
        ("frames", 17, "frames per clip"),
        ("batch_size", 8, "clips per step"),
    ):
        flags.DEFINE_integer(name, default, help, lower_bound=1, flag_values=values)
    define_size_flags(values, "32", "0 keeps the size of videos")


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Analyse every model named, print a table, write numbers and page."""
    if overrides:
        raise ConfigError("pv-vae analyze takes no --config overrides: each model keeps its own configuration")
    if not positional:
        raise ConfigError("name at least one model: a shipped name, a model folder or a work directory")
    if values.frames < 2:
        raise ConfigError(f"--frames must be at least 2, got {values.frames}: latents are analysed from frame to frame")
    if reason := unavailable():
        raise ImportError(reason)
    out = make_writable(as_path(values.out, "--out"))
    named = short_names(positional, "model")
    given = {label: read_latents(name) for label, name in named.items() if is_latents(name)}
    models = {label: load(name) for label, name in named.items() if label not in given}
    if not models and (idle := [name for name in OF_CLIPS if values[name].present]):
        raise ConfigError(f"--{idle[0]} is for clips that a model encodes, and no model is named: leave it out")
    analyses = {label: analyze_given(label, latents) for label, latents in given.items()}
    video, facts = None, {"source": "given latents"}
    if models:
        video, motion, label, source = _clips(values)
        _, frames, height, width, _ = video.shape
        for model in models.values():
            check_clip_shape(frames, height, width, model.vae.config.time_factor, model.vae.config.space_factor)
        facts = {"source": source, "clips": len(video), "frames": frames, "size": [height, width]}
        for name, model in models.items():
            about = video, motion, label
            analyses[name] = analyze_latents(name, model.vae, model.vae_params, *about, batch_size=values.batch_size)
    ordered = [analyses[name] for name in named]
    write_json(out / "analysis.json", facts | {"models": {a.name: a.numbers for a in ordered}})
    write_analysis(out / "analysis.html", facts, ordered, video)
    print("\n".join(_table(ordered)))
    print(f"analysis: {out / 'analysis.html'}")


def _clips(values: flags.FlagValues) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, str]:
    """Clips `(n, t, h, w, 3)` uint8, motion between their frames `(n, t - 1, h, w)`, labels `(n,)`, a description."""
    size = frame_size(values)
    if values.data == "synthetic":
        if not size or size.height != size.width:
            raise ConfigError(
                f"--size must be the side of a square for synthetic clips, got {values.size}: or add --data"
            )
        _refuse_fit(values, "the synthetic world draws its clips at their size")
        source = SyntheticVideos(values.clips, values.frames, size.height, SEED)
        video = np.stack([source[i]["video"] for i in range(len(source))])
        flow = np.stack([exact_flow(source.scene(i), size.height)[0] for i in range(len(source))])
        label = np.array([source[i]["label"] for i in range(len(source))])
        return video, np.linalg.norm(flow, axis=-1), label, "synthetic world; motion: length of exact flow, pixels"
    arrays = Path(values.data).suffix in (".npy", ".npz")
    if arrays and values["size"].present:
        raise ConfigError(f"--size applies to videos; leave it out, since the clips of {values.data} keep their size")
    if not size or arrays:
        _refuse_fit(values, f"the clips of {values.data} keep their size")
    clips = open_clips(values.data, Window(values.frames), size=None if arrays else size)
    video = np.stack(list(read_clips(clips, np.arange(min(values.clips, len(clips))))))
    grey = video.astype(np.float32).mean(axis=-1)
    label = read_arrays(values.data, ("label",))[1].get("label") if values.data.endswith(".npz") else None
    if label is not None and (label.shape != (len(clips),) or label.dtype.kind not in "iu"):
        raise ConfigError(f"expected integers label ({len(clips)},) in {values.data}, got {label.shape} {label.dtype}")
    label = None if label is None else label[: len(video)]
    return video, np.abs(np.diff(grey, axis=1)), label, f"{values.data}; motion: change of brightness, of 255"


def _refuse_fit(values: flags.FlagValues, why: str) -> None:
    if values["fit"].present:
        raise ConfigError(f"--fit says how videos are brought to --size; leave it out, since {why}")


def _table(analyses: Sequence[LatentAnalysis]) -> list[str]:
    heads = ("", "latents", "PSNR dB", "LTD", "LTD/chance", "channels used", "motion corr.", "against copying")
    keys = ("config", "psnr_db", "ltd_median", "ltd_over_chance", "effective_channels", "motion_correlation")
    rows = [(a.name, *(cell(a.numbers[key]) for key in (*keys, "against_copying"))) for a in analyses]
    return [*aligned([heads, *rows]), *aligned(measure_rows(analyses))]
