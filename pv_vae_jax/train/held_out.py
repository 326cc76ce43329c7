"""Evaluation while a stage trains: its moving average on held-out clips, as numbers, strips and clips.

It reads the state and draws nothing from the training's randomness, so that a stage ends with the same bits with or
without it.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time

import jax
import numpy as np
from einops import rearrange

from pv_vae_jax.batching import padded_batches
from pv_vae_jax.data.listing import NoVideosError
from pv_vae_jax.evaluation.comparison import own_distances
from pv_vae_jax.evaluation.image_metrics import summarize_frames
from pv_vae_jax.evaluation.prediction import predict_half, score_prediction
from pv_vae_jax.evaluation.reconstruction import reconstruct, score_reconstruction
from pv_vae_jax.evaluation.velocity import TIMES, sample_posterior, velocity_loss
from pv_vae_jax.model import Diffusion, Model, load
from pv_vae_jax.sampling import sample_clips
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.processes import barrier, gather_to_host, is_primary_process
from pv_vae_jax.train.dit_stage import DiffusionStage
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.stage import Stage
from pv_vae_jax.train.state import TrainState
from pv_vae_jax.train.vae_stage import VAEStage
from pv_vae_jax.typing import NonFiniteError, Params

SHOWN = 4  # clips in TensorBoard


@dataclasses.dataclass
class Scores:
    """What an evaluation found: numbers, pictures `(n, h, w, 3)` and clips `(n, t, h, w, 3)`, uint8, by name."""

    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    videos: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class HeldOut:
    """The first `evaluation.clips` test clips of a run; read, and encoded for the diffusion stage, once."""

    def __init__(self, run: Run):
        self.run = run

    @functools.cached_property
    def _items(self) -> list[dict]:
        try:
            source = self.run.source("test", random=False)
        except NoVideosError:
            print("no test clips: evaluation uses training clips, which flatters it", file=sys.stderr)
            source = self.run.source("train", random=False)
        return [source[i] for i in range(min(self.run.experiment.evaluation.clips, len(source)))]

    @functools.cached_property
    def video(self) -> np.ndarray:
        """`(n, t, H, W, 3)` uint8."""
        return np.stack([item["video"] for item in self._items])

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """`(n,)` int32."""
        return np.array([item["label"] for item in self._items], np.int32)

    @property
    def batch_size(self) -> int:
        """As many clips at once as the encoding of latents takes."""
        return min(self.run.experiment.latents.batch_size, len(self._items))

    def model(self) -> Model:
        """The VAE whose latents the diffusion stage trains on; loaded anew, since a device has little room to spare."""
        return load(self.run.folder(self.run.last_vae_stage()) / "model")

    @functools.cached_property
    def moments(self) -> list[np.ndarray]:
        """Mean and log variance of the clips' posteriors, each `(n, g, h, w, z)` float32."""
        model = self.model()
        parts = [jax.device_get(model.posterior(b)) for b, _ in padded_batches(self.video, self.batch_size)]
        return [np.concatenate([getattr(p, name) for p in parts])[: len(self.video)] for name in ("mean", "logvar")]


class Evaluator:
    """Evaluates one stage after every `evaluation.every` steps; the first process computes, the others wait."""

    def __init__(self, stage: Stage, run: Run):
        self._stage, self._held_out, self._config = stage, HeldOut(run), run.experiment.evaluation
        self._begun, self._spent = time.monotonic(), 0.0

    def due(self, step: int) -> bool:
        """Whether anything is to be evaluated after `step`."""
        return _divides(self._config.every, step) or self._draws(step)

    def _draws(self, step: int) -> bool:
        return isinstance(self._stage, DiffusionStage) and _divides(self._config.sample_every, step)

    def __call__(self, step: int, state: TrainState) -> Scores:
        """Evaluate, and print the numbers with what evaluating has cost so far."""
        began, scores = time.monotonic(), Scores()
        params = gather_to_host(state.ema)
        if is_primary_process():
            alone = make_mesh(data=1, devices=jax.local_devices()[:1])
            with jax.set_mesh(alone):
                scores = self._evaluate(step, jax.device_put(params, alone.devices.flat[0]))
        barrier(f"evaluation of {self._stage.name} at step {step}")
        now = time.monotonic()
        self._spent += now - began
        if is_primary_process():
            told = ", ".join(
                f"{name} {value:.4g}" for name, value in scores.scalars.items() if not name.startswith("eval_loss")
            )
            share = self._spent / (now - self._begun)
            print(f"{self._stage.name}, step {step}: {told}; evaluation took {share:.0%} of the time", file=sys.stderr)
        return scores

    def _evaluate(self, step: int, params: Params) -> Scores:
        scores, stage = Scores(), self._stage
        if isinstance(stage, VAEStage):
            score_vae(stage, self._held_out, params, scores)
        elif isinstance(stage, DiffusionStage):
            if _divides(self._config.every, step):
                score_velocity(stage, self._held_out, params, scores)
            if self._draws(step):
                draw_samples(stage, self._held_out, params, scores)
        return scores


def score_vae(stage: VAEStage, held_out: HeldOut, params: Params, scores: Scores) -> None:
    """Reconstruction and, for clips, squared error on withheld groups, every number of them alike, beside copying."""
    video, model, size = held_out.video, stage.model, held_out.batch_size
    if stage.config.images:
        video = video[:, video.shape[1] // 2][:, None]  # as the report scores them
    found = score_reconstruction(model, params, video, batch_size=size, label=None)
    scores.scalars |= {f"eval/{name}": part["mean"] for name, part in summarize_frames(found.frames).items()}
    shown = video[:SHOWN]
    rows = [shown, reconstruct(model, params, shown, batch_size=size)]
    if found.means.shape[1] > 1:
        errors = score_prediction(model, params, video, batch_size=size, label=None)
        scores.scalars |= {f"eval/{name}": errors.average(name) for name in ("predicted", "copying")}
        rows.append(predict_half(model, params, shown, batch_size=size)[0])
        scores.videos["eval/truth_reconstruction_prediction"] = rearrange(rows, "r n t h w c -> n t h (r w) c")
    scores.images["eval/strip"] = rearrange(rows, "r n t h w c -> n (r h) (t w) c")


def score_velocity(stage: DiffusionStage, held_out: HeldOut, params: Params, scores: Scores) -> None:
    """The loss at the middle of each bin of the flow's time, `eval_loss/t0.05` near data."""
    latents = sample_posterior(*held_out.moments, stage.step.mean, stage.step.std)
    losses = velocity_loss(stage.step.model, params, latents, held_out.labels)
    scores.scalars["eval/velocity_loss"] = float(losses.mean())
    scores.scalars |= {f"eval_loss/t{t:.2f}": float(loss) for t, loss in zip(TIMES, losses, strict=True)}


def draw_samples(stage: DiffusionStage, held_out: HeldOut, params: Params, scores: Scores) -> None:
    """As many clips as are held out, and their distances from those."""
    step, settings, count = stage.step, held_out.run.experiment.sampling, len(held_out.video)
    classes = step.model.config.classes
    diffusion = Diffusion(step.model, params, step.mean, step.std, stage.shape, ())
    guidance, labels = settings.guidance if classes else 1.0, np.arange(count) % max(classes, 1)
    drawing = dict(steps=settings.steps, seed=stage.experiment.seed, batch_size=min(settings.batch_size, count))
    try:
        drawn = sample_clips(held_out.model().replace(diffusion=diffusion), labels, guidance=guidance, **drawing)
    except NonFiniteError as error:  # of a beginning; the training itself is checked elsewhere
        print(f"no samples: {error}", file=sys.stderr)
        return
    for name, value in own_distances(held_out.video, {"samples": drawn}).get("samples", {}).items():
        scores.scalars[f"eval/{name}"] = value
    scores.videos["eval/samples"] = drawn[:SHOWN]


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
