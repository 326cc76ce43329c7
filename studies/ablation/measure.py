"""The numbers of one cell: generation along training, reconstruction, prediction, and what the latents look like."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pv_vae_jax.evaluation.distances import frechet_distance, frechet_interval, kernel_distance, kernel_interval
from pv_vae_jax.evaluation.latent_analysis import temporal_distance
from pv_vae_jax.evaluation.networks.extract import FeatureNetwork, extract, i3d_network, own_network
from pv_vae_jax.evaluation.perceptual import lpips_distance
from pv_vae_jax.evaluation.prediction import score_prediction
from pv_vae_jax.evaluation.protocol import name_of
from pv_vae_jax.evaluation.reconstruction import reconstruct, score_reconstruction
from pv_vae_jax.model import Model, load
from pv_vae_jax.models.lpips import LEAST_SIDE
from pv_vae_jax.params_io import restore_params, weights_hash
from pv_vae_jax.sampling import sample_clips
from pv_vae_jax.train.run import Run
from pv_vae_jax.typing import ConfigError
from pv_vae_jax.versions import versions
from studies.ablation.plan import Cell
from studies.linear_probe import class_accuracy

BATCH = 32
LEAST = 16  # clips of a class that has scores of its own
GUESSES = ("predicted", "copying", "extrapolation")


@dataclasses.dataclass(frozen=True)
class Published:
    """Files of published weights to score with as well, where a user has them.

    Attributes:
      i3d: weights of I3D, for distances.
      lpips: a backbone of LPIPS, its weights and LPIPS's heads, for reconstructions.
    """

    i3d: Path | None = None
    lpips: tuple[str, Path, Path] | None = None

    def check(self, side: int) -> None:
        """Raise before training what would fail after it, for clips of `side` pixels.

        Raises:
          FileNotFoundError: a file is missing.
          WeightsError: a file holds other weights.
          ConfigError: the clips are too small for LPIPS.
        """
        if self.i3d:
            networks(self.i3d)
        if self.lpips:
            perceptual(*self.lpips)
            if side < LEAST_SIDE:
                raise ConfigError(f"LPIPS needs clips of at least {LEAST_SIDE} pixels, got data.size={side}: raise it")


NO_WEIGHTS = Published()


def measure_whole(cell: Cell, run: Run, published: Published = NO_WEIGHTS) -> dict:
    """Scores of a row that trained its own VAE and transformer.

    Raises:
      ConfigError: the training states of the transformer are gone.
    """
    model = load(run.folder("diffusion") / "model")
    states = _states(cell, run, model)
    if len(states) != cell.study.scores:
        raise ConfigError(
            f"expected {cell.study.scores} training states in {run.folder('diffusion')}, got {len(states)}: put "
            f"{cell.name}.json back into the results, score the end alone (scores=1), or remove that folder to train "
            "them again"
        )
    return _facts(cell, model, published) | _scores(cell, run, model, states, published)


def measure_decoder(cell: Cell, run: Run, base: Run, published: Published = NO_WEIGHTS) -> dict:
    """Scores of a row that tuned the decoder of another, whose transformer draws the latents.

    Where that row's training states are gone, the transformer is scored at its end alone.
    """
    tuned = load(run.folder("decoder") / "model")
    model = load(base.folder("diffusion") / "model")
    model = dataclasses.replace(model, vae_params=tuned.vae_params)
    states = _states(cell, base, model)
    if len(states) != cell.study.scores:
        states = {cell.experiment.diffusion.steps: lambda: model}
    return _facts(cell, model, published) | _scores(cell, run, model, states, published)


def _states(cell: Cell, run: Run, model: Model) -> dict[int, Callable[[], Model]]:
    """`model` with the transformer as it was after a step, for each step to score whose training state is kept.

    The last is the finished model, which stays when training states are gone.
    """
    diffusion: Any = model.diffusion
    shapes = jax.eval_shape(lambda: diffusion.params)

    def at(path: Path) -> Model:
        params = restore_params(path, "ema", shapes)
        return dataclasses.replace(model, diffusion=dataclasses.replace(diffusion, params=params))

    last = cell.experiment.diffusion.steps
    every = last // cell.study.scores
    kept = {step: run.folder("diffusion") / "checkpoints" / str(step) for step in range(every, last, every)}
    found: dict[int, Callable[[], Model]] = {
        step: functools.partial(at, path) for step, path in kept.items() if path.is_dir()
    }
    return found | {last: lambda: model}


@functools.cache  # one object, so one program, for all cells
def networks(i3d: Path | None = None) -> dict[str, FeatureNetwork]:
    """What nets at the clips: the network that ships, one of its shape with random weights, and I3D if it is given.

    A random network knows nothing of what the first was trained on; what both see is not the taste of one. It has the
    shape of our own rather than I3D's, which takes about a second a clip and CPU core.

    Args:
      i3d: file of I3D's weights.
    """
    found = {"own": own_network(), "random": _random_network()}
    return found if i3d is None else found | {"i3d": i3d_network(i3d)}


perceptual = functools.cache(lpips_distance)  # one program for all cells


@functools.cache
def _random_network() -> FeatureNetwork:
    own = own_network()
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: np.ndarray) -> np.ndarray:
        if leaf.ndim < 2:  # biases 0, scales of norms 1
            return np.full(leaf.shape, 0.0 if path[-1].key == "bias" else 1.0, np.float32)
        return (rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(np.float32)

    params = jax.tree.map_with_path(draw, jax.device_get(own.params))
    return dataclasses.replace(own, name="random", hash=weights_hash(params), params=params)


def _scores(cell: Cell, run: Run, model: Model, states: dict[int, Callable[[], Model]], published: Published) -> dict:
    study, seed = cell.study, cell.seed
    nets = networks(published.i3d)
    first, kinds, floor = _real(cell, run, nets)
    test, test_kinds = _clips(run, "test", study.clips)
    diffusion: Any = model.diffusion
    classes = max(diffusion.model.config.classes, 1)
    labels = np.arange(study.clips) % classes
    steps = list(states)
    curve = {name: {"step": steps, "frechet": [], "kernel": []} for name in nets}
    final, ends = {}, {}
    for step in steps:
        print(f"  scoring step {step}", file=sys.stderr)
        drawn = sample_clips(states[step](), labels, steps=study.sampling_steps, seed=seed, batch_size=BATCH)
        for name, net in nets.items():
            features = extract(net, drawn, batch_size=BATCH)
            last = step == steps[-1]
            found = _distances(first[name], features, intervals=last)
            curve[name]["frechet"].append(found["frechet"])
            curve[name]["kernel"].append(found["kernel"])
            if last:
                final[name], ends[name] = found, features
    scores = score_reconstruction(model.vae, model.vae_params, test, batch_size=BATCH)
    decoded = reconstruct(model.vae, model.vae_params, test, batch_size=BATCH)
    rebuilt = {
        name: _distances(extract(net, test, batch_size=BATCH), extract(net, decoded, batch_size=BATCH))["frechet"]
        for name, net in nets.items()
    }
    lpips = {}
    if published.lpips:
        distance, _ = perceptual(*published.lpips)
        lpips["perceptual"] = float(np.mean([distance(a, b) for a, b in zip(test, decoded, strict=True)]))
    errors = score_prediction(model.vae, model.vae_params, test, batch_size=BATCH)
    names = diffusion.class_names if classes > 1 else ()
    by_class = {}
    for label, name in enumerate(names):
        mine = test[test_kinds == label]
        if min(len(mine), np.sum(kinds == label), np.sum(labels == label)) < LEAST:
            continue
        found = score_prediction(model.vae, model.vae_params, mine, batch_size=BATCH, label=f"prediction, {name}")
        by_class[name] = {guess: found.average(guess) for guess in GUESSES} | {
            "frechet": {n: frechet_distance(first[n][kinds == label], ends[n][labels == label]) for n in nets}
        }
    moved = temporal_distance(scores.means)
    probe = _class_probe(run, model, 2 * study.clips, scores.means, test_kinds)
    return {
        "generation": final,
        "curve": curve,
        "floor": floor,
        "reconstruction": {"psnr": scores.psnr, "ssim": scores.ssim, "frechet": rebuilt} | lpips,
        "prediction": {name: [float(v) for v in getattr(errors, name)[1:]] for name in GUESSES},
        **({"classes": by_class} if by_class else {}),
        "latents": {
            "temporal_distance": None if moved is None else moved.median,
            "curve": None if moved is None else [float(v) for v in moved.curve],
            "std": float(scores.means.std()),
            **({} if probe is None else {"class_probe": probe}),
        },
    }


def _real(cell: Cell, run: Run, nets: dict[str, FeatureNetwork]) -> tuple[dict, np.ndarray, dict]:
    """Features of the real clips that generated ones are compared with, their classes, and the floor of the distances.

    The floor is the distance of the other split: of what a generator makes that repeats clips of it. Two halves of one
    split would do for an endless world, but of footage they show the same scenes, and come too near.
    """
    study = cell.study
    sides = {}
    for split in (study.reference, "test" if study.reference == "train" else "train"):
        video, kinds = _clips(run, split, study.clips)
        if len(video) < study.clips:
            raise ConfigError(
                f"expected {study.clips} real clips of split {split}, got {len(video)}: lower the study's clips"
            )
        sides[split] = {name: extract(net, video, batch_size=BATCH) for name, net in nets.items()}, kinds
    (first, kinds), (other, _) = sides.values()
    return first, kinds, {name: _distances(first[name], other[name]) for name in nets}


def _class_probe(run: Run, model: Model, most: int, means: np.ndarray, label: np.ndarray) -> dict | None:
    """Accuracy of a linear probe of the class on the VAE's latents of test clips; None for clips without classes.

    Args:
      most: clips of the training split that the probe is fitted to.
      means, label: posterior means of the test clips, and their classes.
    """
    if len(np.unique(label)) < 2:
        return None
    video, known = _clips(run, "train", most)
    # The decoder's output is unused: a program for the encoder alone would take longer to compile.
    seen = score_reconstruction(model.vae, model.vae_params, video, batch_size=BATCH, label="class probe").means
    chance = float(np.mean(label == np.bincount(known).argmax()))
    return {"accuracy": class_accuracy(seen, known, means, label), "chance": chance, "clips": len(video)}


def _distances(a: np.ndarray, b: np.ndarray, intervals: bool = False) -> dict:
    found: dict[str, Any] = {"frechet": frechet_distance(a, b), "kernel": kernel_distance(a, b)}
    if intervals:
        for name, interval in (("frechet", frechet_interval(a, b)), ("kernel", kernel_interval(a, b))):
            found[f"{name}_interval"] = [interval.low, interval.high]
    return found


def _clips(run: Run, split: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """`(n, 1 + T, H, W, 3)` uint8 and labels: `most` clips of a split or all, the same for every row of a seed."""
    source = run.source(split, random=False)
    index = np.random.default_rng(run.experiment.seed).permutation(len(source))[:most]
    items = [source[int(i)] for i in index]
    return np.stack([item["video"] for item in items]), np.array([item["label"] for item in items])


def _facts(cell: Cell, model: Model, published: Published) -> dict:
    count = lambda tree: sum(int(leaf.size) for leaf in jax.tree.leaves(tree))  # noqa: E731
    study, device = cell.study, jax.devices()[0]
    diffusion: Any = model.diffusion
    perceptual_name = {}
    if published.lpips:
        _, network = perceptual(*published.lpips)
        perceptual_name = {"perceptual": name_of(network.name, network)}
    return {
        "study": study.name,
        "row": cell.row.name,
        "seed": cell.seed,
        "key": cell.key,
        "world": study.world,
        "settings": {key: str(value) for key, value in cell.row.settings.items()},
        "parameters": {"vae": count(model.vae_params), "transformer": count(diffusion.params)},
        "clips": {"scored": study.clips, "latents": cell.experiment.latents.clips, "reference": study.reference},
        "steps": {s: getattr(cell.experiment, s).steps for s in ("image", "video", "decoder", "diffusion")},
        "transformer": weights_hash(diffusion.params),
        "networks": {name: net.hash for name, net in networks(published.i3d).items()},
        **perceptual_name,
        "device": f"{device.platform} {device.device_kind}",
        "versions": versions(("pv_vae_jax", "jax", "flax", "optax")),
    }
