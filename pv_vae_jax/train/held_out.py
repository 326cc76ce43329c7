"""Evaluation while a stage trains: its moving average on held-out clips, as numbers, strips and clips.

It reads the state and draws nothing from the training's randomness, so that a stage ends with the same bits with or
without it.
"""

import dataclasses
import functools
import sys
import time
from typing import Any

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
from pv_vae_jax.typing import NonFiniteError, Params

SHOWN = 4  # clips in TensorBoard

# What an evaluation found, by kind and name: `scalars`, `images` (n, h, w, 3) and `videos` (n, t, h, w, 3), both uint8.
Scores = dict[str, dict[str, Any]]


class Evaluator:
    """Evaluates one stage on the first `evaluation.clips` test clips, which are read once.

    The first process computes, on one of its devices, and the others wait.
    """

    def __init__(self, stage: Stage, run: Run):
        self._stage: Any = stage
        self._run, self._config = run, run.experiment.evaluation
        self._begun, self._spent = time.monotonic(), 0.0

    def due(self, step: int) -> bool:
        """Whether there is something to do after `step`."""
        return _divides(self._config.every, step) or self._draws(step)

    def _draws(self, step: int) -> bool:
        return isinstance(self._stage, DiffusionStage) and _divides(self._config.sample_every, step)

    def __call__(self, step: int, state: TrainState) -> Scores:
        """Evaluate, and print the numbers with what evaluating has cost so far."""
        began, scores = time.monotonic(), Scores(scalars={}, images={}, videos={})
        params = gather_to_host(state.ema)
        if is_primary_process():
            alone = make_mesh(data=1, devices=jax.local_devices()[:1])
            with jax.set_mesh(alone):
                self._evaluate(step, jax.device_put(params, alone.devices.flat[0]), scores)
        barrier(f"evaluation of {self._stage.name} at step {step}")
        self._spent += time.monotonic() - began
        if is_primary_process():
            told = [f"{name} {value:.4g}" for name, value in scores["scalars"].items() if name.startswith("eval/")]
            told += [f"evaluation took {self._spent / (time.monotonic() - self._begun):.0%} of the time"]
            print(f"{self._stage.name}, step {step}: {', '.join(told)}", file=sys.stderr)
        return scores

    def _evaluate(self, step: int, params: Params, scores: Scores) -> None:
        if not isinstance(self._stage, DiffusionStage):
            self._score_vae(params, scores)
            return
        if _divides(self._config.every, step):
            mean, logvar = self._moments
            latents = sample_posterior(mean, logvar, self._stage.step.mean, self._stage.step.std)
            losses = velocity_loss(self._stage.step.model, params, latents, self._clips[1])
            scores["scalars"] |= {f"eval_loss/t{t:.2f}": float(loss) for t, loss in zip(TIMES, losses, strict=True)}
            scores["scalars"]["eval/velocity_loss"] = float(losses.mean())
        if self._draws(step):
            self._draw(self._stage, params, scores)

    def _score_vae(self, params: Params, scores: Scores) -> None:
        """Reconstruction and, for clips, squared error on withheld groups, every number of them alike."""
        video, config = self._clips[0], self._stage.config
        if config.images:
            video = video[:, video.shape[1] // 2][:, None]  # as the report scores them
        model, size, shown = self._stage.model, min(self._run.experiment.latents.batch_size, len(video)), video[:SHOWN]
        found = score_reconstruction(model, params, video, batch_size=size, label=None)
        scores["scalars"] |= {f"eval/{name}": part["mean"] for name, part in summarize_frames(found.frames).items()}
        rows: list[Any] = [shown, reconstruct(model, params, shown, batch_size=size)]
        if found.means.shape[1] > 1:
            errors = score_prediction(model, params, video, batch_size=size, label=None)
            scores["scalars"] |= {f"eval/{name}": errors.average(name) for name in ("predicted", "copying")}
            rows.append(predict_half(model, params, shown, batch_size=size)[0])
            scores["videos"]["eval/truth_reconstruction_prediction"] = rearrange(rows, "r n t h w c -> n t h (r w) c")
        scores["images"]["eval/strip"] = rearrange(rows, "r n t h w c -> n (r h) (t w) c")

    def _draw(self, stage: DiffusionStage, params: Params, scores: Scores) -> None:
        """As many clips as are held out, and their distances from those."""
        step, settings, (video, _) = stage.step, self._run.experiment.sampling, self._clips
        classes = step.model.config.classes
        diffusion = Diffusion(step.model, params, step.mean, step.std, stage.shape, ())
        model = dataclasses.replace(self._model(), diffusion=diffusion)
        guidance = settings.guidance if classes else 1.0
        chosen: Any = dict(steps=settings.steps, guidance=guidance, seed=stage.experiment.seed)
        try:
            drawn = sample_clips(
                model, np.arange(len(video)) % max(classes, 1), batch_size=settings.batch_size, **chosen
            )
        except NonFiniteError as error:  # of a beginning; the training itself is checked elsewhere
            print(f"no samples: {error}", file=sys.stderr)
            return
        found = own_distances(video, {"samples": drawn}).get("samples", {})
        scores["scalars"] |= {f"eval/{name}": value for name, value in found.items()}
        scores["videos"]["eval/samples"] = drawn[:SHOWN]

    @functools.cached_property
    def _clips(self) -> tuple[np.ndarray, np.ndarray]:
        """`(n, t, H, W, 3)` uint8, and labels `(n,)`."""
        try:
            source = self._run.source("test", random=False)
        except NoVideosError:
            print("no test clips: evaluation uses training clips, which flatters it", file=sys.stderr)
            source = self._run.source("train", random=False)
        items = [source[i] for i in range(min(self._config.clips, len(source)))]
        return np.stack([item["video"] for item in items]), np.array([item["label"] for item in items], np.int32)

    def _model(self) -> Model:
        """The VAE of the latents; loaded when it is needed, since a device has little room to spare."""
        return load(self._run.folder(self._run.last_vae_stage()) / "model")

    @functools.cached_property
    def _moments(self) -> list[np.ndarray]:
        """Mean and log variance of the clips' posteriors, each `(n, g, h, w, z)` float32."""
        model, size, (video, _) = self._model(), self._run.experiment.latents.batch_size, self._clips
        parts = [jax.device_get(model.posterior(batch)) for batch, _ in padded_batches(video, size)]
        return [np.concatenate([getattr(part, name) for part in parts])[: len(video)] for name in ("mean", "logvar")]


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
