"""Numbers that a change of the code must not change: batches, training steps, names and shapes of parameters.

`python -m tests.test_golden --write` records them anew in tests/data/golden.json, for a change that is meant.

Everything here that knows the library is in the first part of the file: adapt that, and no number, when names move.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import tests.conftest  # noqa: F401  # isort: skip  # as a program: settings that come before JAX

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.float64 import in_float64

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "data" / "golden.json"

# ---------------------------------------------------------------------------------------------------------------------
# What knows the library.


@dataclasses.dataclass
class Stage:
    """A stage of an experiment, ready to run.

    Attributes:
      create: `{}` or `{"params": tree, "discriminator": tree}` -> state of step 0; parameters that are not given are
        drawn.
      step: `(state, batch, **options)` -> `(state, logs)`.
      options: `(number of the step, batch)` -> options of the step; it may change the batch.
      batches: first step -> stream.
    """

    create: Callable
    step: Callable
    options: Callable
    batches: Callable


def make_experiment(settings: dict, transformer: bool = False) -> Any:
    """A tiny experiment, t2s4c4 on clips of 9 x 8 x 8, with settings such as `{"video.drop_ratio": 0.5}`.

    Sizes and weights are chosen so that what is computed of them (powers, roots, products) is exact in float32: other
    ways to compute the same then give the same in float64.
    """
    from pv_vae_jax.train import config_files
    from pv_vae_jax.train import configs as c

    rates = c.OptimizerConfig(learning_rate=2**-7, warmup_steps=0, final_fraction=0.25, b1=0.875, b2=1 - 2**-5)
    objective = c.Objective(kl=2**-6)
    stage = dict(objective=objective, optimizer=rates, discriminator_optimizer=rates, ema_decay=0.5)
    stage |= dict(batch_size=4, steps=32, reverse=0.25)
    if transformer:
        vae = c.TransformerVAEConfig(
            time_factor=2,
            space_factor=4,
            latent_channels=4,
            width=64,
            heads=4,
            encoder_layers=2,
            decoder_layers=1,
            window=2,
        )
    else:
        vae = c.VAEConfig(
            patch=2,
            latent_channels=4,
            time_factors=(2,),
            space_factors=(2,),
            encoder_widths=(4, 4),
            decoder_widths=(4, 16),
            encoder_blocks=1,
            decoder_blocks=1,
        )
    experiment = c.Experiment(
        seed=3,
        data=c.DataConfig(clips=13, frames=9, size=8),
        vae=vae,
        discriminator=c.DiscriminatorConfig(width=2, levels=2),
        image=c.VAEStageConfig(images=True, **stage),
        video=c.VAEStageConfig(**stage),
        decoder=c.VAEStageConfig(frozen=("encoder", "pad"), **stage),
        latents=c.LatentsConfig(clips=20, batch_size=3, flip=0.5),
        latte=c.LatteConfig(latent_channels=4, depth=4, width=64, heads=4),
        diffusion=c.DiffusionConfig(steps=32, batch_size=4, label_dropout=0.25, optimizer=rates, ema_decay=0.5),
        mesh=c.MeshConfig(data=1),
    )
    return config_files.override(experiment, {key: str(value) for key, value in settings.items()}).validate()


def open_stage(experiment: Any, name: str, folder: Path, known: dict | None = None) -> Stage:
    """Stage `image`, `video`, `decoder` or `diffusion`, as a run begins it.

    The cache of latents is that of `write_cache`. It takes long to find the shapes of the parameters, which is left out
    where they are `known`, as trees or, for batches alone, as `{}`.
    """
    from pv_vae_jax.data.latents import LatentSource
    from pv_vae_jax.train.dit_stage import DiffusionStage
    from pv_vae_jax.train.run import open_run
    from pv_vae_jax.train.vae_stage import VAEStage

    run = open_run(experiment, folder / "run")
    if name == "diffusion":
        write_cache(folder / "cache")
        stage = DiffusionStage(experiment, LatentSource(folder / "cache"))
    else:
        stage = VAEStage(experiment, name)
        if known:
            stage.shapes = known["params"]
    return Stage(stage.init_state, stage.step, stage.static_args, lambda start: stage.batches(run, start))


def write_cache(folder: Path) -> None:
    """A cache of 13 latents `(5, 2, 2, 4)` of four classes, from fixed arrays."""
    from pv_vae_jax.data.latents import write_latents

    rng = np.random.default_rng(5)
    records = [
        {
            "mean": rounded(2 * rng.standard_normal((5, 2, 2, 4))),
            "logvar": rounded(rng.standard_normal((5, 2, 2, 4)) - 2),
            "label": np.int32(i % 4),
        }
        for i in range(13)
    ]
    write_latents(folder, records, key={}, total=len(records), class_names=("a", "b", "c", "d"))


def encoded_clips(experiment: Any, folder: Path) -> list[list[np.ndarray]]:
    """The clip and the label of every record that stage `latents` writes: what reached the encoder, in their order."""
    from pv_vae_jax.data.latents import LatentSource
    from pv_vae_jax.train import latents_stage
    from pv_vae_jax.train.run import open_run

    def encoder(run: Any, stage: str) -> tuple[Callable, dict]:
        return lambda params, video: (video.astype("float32"), 0.0 * video), {"encoder": {}}

    with (
        mock.patch.object(latents_stage, "_load_encoder", encoder),
        mock.patch.object(latents_stage, "encoder_hash", lambda folder: ""),
    ):
        run = open_run(experiment, folder / "run")
        latents_stage.encode_latents(run, "video")
    records = LatentSource(run.folder("latents"))
    return [[records[i]["mean"].astype(np.uint8), records[i]["label"]] for i in range(len(records))]


def parts_of(batch: dict) -> list[np.ndarray]:
    """Pixels (or means and log variances) and labels of a batch."""
    return [batch[name] for name in ("video", "mean", "logvar", "label") if name in batch]


def chosen(batch: dict, options: dict) -> tuple[int | list[int] | None, bool]:
    """The `k` that a step gets, one for the batch or one an example, and whether its GAN is on."""
    k = options.get("dropped")
    if k is None:
        k = batch.get("dropped")
    return None if k is None else np.asarray(k).tolist(), bool(options.get("gan"))


def parameters_of(state: Any) -> dict:
    """The parameters of a state, or their shapes, as trees named like what `Stage.create` takes."""
    networks = {} if state.discriminator is None else {"discriminator": state.discriminator.params}
    return {"params": state.params} | networks


def begun(shapes: Any, given: dict) -> Any:
    """State of step 0 with the parameters `given`: moments of optimisers begin at zero, the average as a copy."""
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    if "discriminator" in given:
        state = state.replace(discriminator=state.discriminator.replace(params=given["discriminator"]))
    return state.replace(params=given["params"], ema=given["params"])


def average_of(state: Any) -> dict:
    """Moving average of the parameters."""
    return state.ema


def networks(name: str) -> dict[str, dict]:
    """Shapes of the parameters of networks by name: of an experiment's file, or of a published size."""
    import jax.numpy as jnp

    from pv_vae_jax.model import init_latte
    from pv_vae_jax.models.discriminator import Discriminator
    from pv_vae_jax.models.latte import Latte, LatteConfig
    from pv_vae_jax.models.registry import build_vae
    from pv_vae_jax.models.vae import VAEConfig
    from pv_vae_jax.train.config_files import load_experiment

    def of_clips(network: Any, frames: int, side: int) -> dict:
        clip = jnp.zeros((1, frames, side, side, 3))
        return jax.eval_shape(lambda: network.init(jax.random.key(0), clip)["params"])

    def of_vae(config: Any) -> dict:
        return of_clips(build_vae(config), 1, config.space_factor)

    if name == "latte_xl":
        model = Latte(LatteConfig.xl(classes=101))
        return {name: jax.eval_shape(lambda: init_latte(model, (5, 16, 16, 64)))}
    if name.startswith("wan"):
        return {name: of_vae(getattr(VAEConfig, name)())}
    experiment = load_experiment(ROOT / "experiments" / f"{name}.py", {"data.source": "synthetic"})
    if name != "demo":
        return {name: of_vae(experiment.vae)}
    latte = Latte(dataclasses.replace(experiment.latte, classes=4))
    return {
        "demo": of_vae(experiment.vae),
        "demo/discriminator": of_clips(Discriminator(experiment.discriminator), 1, 32),
        "demo/latte": jax.eval_shape(lambda: init_latte(latte, (5, 4, 4, 64))),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Batches.

BATCHES = 20
FILLED = {"video.drop_form": "filled"}
EACH = FILLED | {"video.drop_per_example": True}
ALL, RISING = {"video.drop_ratio": 1.0}, {"video.drop_schedule": "linear", "video.drop_ramp": 0.5}
SIZES = {"video.sizes": ((1, 16, 2), (9, 8, 3), (5, 8, 1)), "video.batch_size": 3}

# Name -> stage and settings.
STREAMS: dict[str, tuple[str, dict]] = {
    "image": ("image", {}),
    "image, sizes": ("image", {"image.sizes": ((1, 8), (1, 16, 2))}),
    "video, nothing dropped": ("video", {}),
    "video, truncated": ("video", ALL),
    "video, truncated, half": ("video", {"video.drop_ratio": 0.5}),
    "video, filled": ("video", ALL | FILLED),
    "video, an example": ("video", ALL | EACH),
    "video, linear": ("video", ALL | RISING),
    "video, linear, an example": ("video", ALL | RISING | EACH),
    "video, cosine from 1, filled": (
        "video",
        {"video.drop_schedule": "cosine", "video.drop_ratio_start": 1.0, "video.drop_ratio": 0.25} | FILLED,
    ),
    "video, sizes": ("video", ALL | SIZES),
    "video, sizes, linear, an example": ("video", ALL | SIZES | RISING | EACH),
    "video, infill": ("video", ALL | FILLED | {"video.drop_pattern": "infill"}),
    "video, infill, linear, an example": ("video", ALL | EACH | RISING | {"video.drop_pattern": "infill"}),
    "video, folder": ("video", ALL | EACH | {"data.crop": "random", "data.stride": 2}),
    "image, folder": ("image", {"data.crop": "random"}),
    "decoder": ("decoder", {"decoder.objective.gan": 0.5, "decoder.objective.gan_start": 7}),
    "diffusion": ("diffusion", {}),
}


def stream_of(case: str, folder: Path, count: int, first: int = 0) -> dict:
    """Batches of a case from step `first` on: their hashes, every `k` and, a digit a step, whether the GAN is on."""
    stage, settings = STREAMS[case]
    if "folder" in case:
        write_videos(folder / "videos")
        settings = settings | {"data.source": folder / "videos"}
    opened = open_stage(make_experiment(settings), stage, folder, known={})
    hashes, dropped, gan = [], [], ""
    with contextlib.closing(opened.batches(first)) as stream:
        for number, batch in zip(range(first, first + count), stream, strict=False):
            options = opened.options(number, batch)
            k, on = chosen(batch, options)
            hashes.append(hash_of(parts_of(batch)))
            dropped.append(k)
            gan += str(int(on))
    return {"hashes": hashes, "k": dropped, "gan": gan}


def hash_of(arrays: list[np.ndarray]) -> str:
    """First 16 hex digits of the SHA-256 over types, shapes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def write_videos(folder: Path) -> None:
    """Five videos of noise in two classes, without loss: every decoder gives the bytes that were written."""
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")
    from tests.video_fixture import encode

    rng = np.random.default_rng(7)
    for i in range(5):
        video = rng.integers(0, 256, (19 + 3 * i, 8, 12, 3), np.uint8)
        path = folder / "ab"[i % 2] / f"{i}.mov"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(path, video, codec="png", pixels="rgb24")
        with av.open(str(path)) as file:
            read = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        np.testing.assert_array_equal(read, video)


# ---------------------------------------------------------------------------------------------------------------------
# Steps.

GAN = {"gan": 0.5, "gan_start": 0}


def with_gan(stage: str) -> dict:
    return {f"{stage}.objective.{key}": value for key, value in GAN.items()}


# Convolutions as one operation each, a quarter less to trace. The other cases take them apart, as `auto` does on CPU.
DIRECT = {"vae.lowering": "direct", "discriminator.lowering": "direct"}
LIGHT = DIRECT | {"vae.mid_attention": False}
INFILL = FILLED | {"video.drop_pattern": "infill", "video.drop_from": "latents"}
MASKED = EACH | {"video.drop_pattern": "random", "video.objective.local_correlation": 0.25}
# Name -> stage, settings, whether its VAE is the transformer.
STEPS: dict[str, tuple[str, dict, bool]] = {
    "image": ("image", DIRECT, False),
    "video, truncated": ("video", ALL | LIGHT, False),
    "video, an example, muon": ("video", ALL | EACH | LIGHT | {"video.optimizer.name": "muon"}, False),
    "video, masked": ("video", ALL | MASKED | LIGHT, False),
    "decoder, gan": ("decoder", with_gan("decoder") | LIGHT, False),
    "video, transformer": ("video", ALL | EACH, True),
    "diffusion": ("diffusion", {}, False),
}
MORE_STEPS: dict[str, tuple[str, dict, bool]] = {
    "video, truncated, gaussian pad": ("video", ALL | {"vae.pad": "gaussian"}, False),
    "video, infill of latents": ("video", ALL | INFILL, False),
    "video, gan, in parts": ("video", ALL | FILLED | with_gan("video") | {"video.grad_accum_steps": 2}, False),
    "decoder": ("decoder", {}, False),
    "decoder, transformer, gan": ("decoder", with_gan("decoder"), True),
    "diffusion, in parts": ("diffusion", {"diffusion.grad_accum_steps": 2}, False),
}


_known: dict[str, dict] = {}  # parameters by network: to ask for their shapes takes longer than to compare a step


def begin_step(case: str, folder: Path) -> tuple[Callable, Any, dict]:
    """The step of a case with its options, a state with parameters that are far from special, and a batch.

    The batch is the first of which something is dropped, in a stage that drops.
    """
    stage, settings, transformer = (STEPS | MORE_STEPS)[case]
    of_network = {key: value for key, value in settings.items() if key.startswith("vae.") or key.endswith(".gan")}
    network = f"{stage == 'diffusion'} {transformer} {of_network.items()}"
    opened = open_stage(make_experiment(settings, transformer), stage, folder, _known.get(network))
    if network not in _known:
        drawn = jax.eval_shape(opened.create, {})
        _known[network] = {name: parameters(tree) for name, tree in parameters_of(drawn).items()}
    state = begun(jax.eval_shape(opened.create, _known[network]), _known[network])
    with contextlib.closing(opened.batches(0)) as stream:
        for number, batch in enumerate(stream):
            options = opened.options(number, batch)
            if not (ALL.items() <= settings.items()) or np.any(chosen(batch, options)[0]):
                break
    return functools.partial(opened.step, **options), state, batch


def parameters(shapes: dict) -> dict:
    """Parameters of these shapes, each drawn by its own name: no path is silent, and sizes stay near 1.

    By NumPy, and rounded to 2^-12: the same bits on any machine.
    """

    def draw(path: tuple, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(leaf.shape)
        kind = name.rsplit("/", 1)[-1]
        if kind in ("gamma", "scale"):
            return rounded(1 + normal / 8)
        if kind == "bias":
            return rounded(normal / 8)
        return rounded(normal / np.sqrt(max(np.prod(leaf.shape[:-1]), 1)))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def rounded(values: np.ndarray) -> np.ndarray:
    return (np.round(values * 4096) / 4096).astype(np.float32)


def step_in_float64(case: str, folder: Path) -> dict[str, float]:
    """All logs of one step, and how far it moved the parameters of every part and their average (norms)."""
    step, state, batch = begin_step(case, folder)
    after, logs = in_float64(step, state, batch)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(logs)), "every term is computed in float64"
    found = {name: float(value) for name, value in logs.items()}
    before = parameters_of(state)
    for tree, old, new in [
        *((name, before[name], moved) for name, moved in parameters_of(after).items()),
        ("average", before["params"], average_of(after)),
    ]:
        for part in old:
            pairs = zip(jax.tree.leaves(old[part]), jax.tree.leaves(new[part]), strict=True)
            found[f"moved/{tree}/{part}"] = float(np.sqrt(sum(np.sum(np.square(b - a)) for a, b in pairs)))
    return found


def step_in_float32(case: str, folder: Path) -> dict[str, float]:
    """All logs of one step, as it is compiled. No moves: AdamW divides noise by noise where gradients vanish."""
    step, state, batch = begin_step(case, folder)
    logs = jax.jit(lambda state, batch: step(state, batch)[1])(state, batch)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(logs))
    return {name: float(value) for name, value in logs.items()}


def machine() -> dict[str, str]:
    """What decides the last digits of float32."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {"jax": jax.__version__, "platform": jax.default_backend(), "cpu": cpu}


# ---------------------------------------------------------------------------------------------------------------------
# Parameters.

NAMED = ("demo", "demo_transformer")
HASHED = ("wan22", "latte_xl")
MORE_HASHED = ("wan21", "paper_vae")


def shapes_of(tree: dict) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in sorted(flatten_dict(tree, sep="/").items())}


def hash_of_shapes(tree: dict) -> str:
    lines = [f"{name} {shape}" for name, shape in shapes_of(tree).items()]
    return f"{len(lines)} {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:16]}"


# ---------------------------------------------------------------------------------------------------------------------
# Comparison.


def slow(cases: Iterable[str]) -> list:
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


def test_every_case_is_recorded(golden):
    assert golden["batches"].keys() == STREAMS.keys() and golden["steps"].keys() == (STEPS | MORE_STEPS).keys()
    assert {name.partition("/")[0] for name in golden["parameters"]} == {*NAMED, *HASHED, *MORE_HASHED}


@pytest.mark.parametrize("case", STREAMS)
def test_batches(golden, case, tmp_path):
    assert stream_of(case, tmp_path, BATCHES) == golden["batches"][case]


@pytest.mark.parametrize("case", ["video, sizes, linear, an example", "diffusion"])
def test_batches_of_a_run_that_goes_on(golden, case, tmp_path):
    recorded = {name: values[13:] for name, values in golden["batches"][case].items()}
    assert stream_of(case, tmp_path, BATCHES - 13, first=13) == recorded


def test_clips_that_are_encoded(golden, tmp_path):
    assert [hash_of(item) for item in encoded_clips(make_experiment({}), tmp_path)] == golden["encoded"]


def check(found: dict, recorded: dict, relative: float, absolute: float) -> None:
    assert found.keys() == recorded.keys()
    pairs = {name: (value, recorded[name]) for name, value in found.items()}
    assert not {name: pair for name, pair in pairs.items() if not np.isclose(*pair, rtol=relative, atol=absolute)}


@pytest.mark.parametrize("case", [*STEPS, *slow(MORE_STEPS)])
def test_step_in_float64(golden, case, tmp_path):
    """To 1e-11: sums in another order differ by 1e-15 or so, other mathematics by more than that, on any machine."""
    check(step_in_float64(case, tmp_path), golden["steps"][case]["float64"], 1e-11, 1e-13)


@pytest.mark.parametrize("case", slow(STEPS | MORE_STEPS))
def test_step_in_float32(golden, case, tmp_path):
    """Compiled, which takes its time. What float32 rounds off was 2e-6 at most, so that much may code that adds up in
    another order change. Another JAX or processor may do more, and there the tolerance is wider; float64 decides.
    """
    found, recorded = step_in_float32(case, tmp_path), golden["steps"][case]
    tolerance = 5e-6 if machine() == golden["machine"] else 1e-4
    check(found, recorded["float32"], tolerance, tolerance / 10)
    check(found, {name: recorded["float64"][name] for name in found}, 1e-4, 1e-5)


@pytest.mark.parametrize("name", NAMED)
def test_names_and_shapes(golden, name):
    for network, tree in networks(name).items():
        assert shapes_of(tree) == golden["parameters"][network]


@pytest.mark.parametrize("name", [*HASHED, *slow(MORE_HASHED)])
def test_names_and_shapes_of_large_networks(golden, name):
    assert hash_of_shapes(networks(name)[name]) == golden["parameters"][name]


# ---------------------------------------------------------------------------------------------------------------------
# Recording.


def record() -> dict:
    def in_folder(function: Callable, *arguments: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return function(*arguments[:1], Path(folder), *arguments[1:])

    tree: dict = {"machine": machine()}
    tree["batches"] = {case: in_folder(stream_of, case, BATCHES) for case in STREAMS}
    clips = in_folder(encoded_clips, make_experiment({}))
    tree["encoded"] = [hash_of(item) for item in clips]
    tree["steps"] = {}
    for case in STEPS | MORE_STEPS:
        print(case, file=sys.stderr)
        forms = {"float64": step_in_float64, "float32": step_in_float32}
        tree["steps"][case] = {form: in_folder(function, case) for form, function in forms.items()}
    named = {network: shapes_of(each) for name in NAMED for network, each in networks(name).items()}
    tree["parameters"] = named | {name: hash_of_shapes(networks(name)[name]) for name in HASHED + MORE_HASHED}
    return tree


def lines_of(tree: Any, depth: int = 2, indent: str = "") -> Iterator[str]:
    """JSON with a line for each entry of the upper levels."""
    if not (isinstance(tree, dict) and depth):
        yield json.dumps(tree)
        return
    yield "{"
    for i, (key, value) in enumerate(tree.items()):
        first, *rest = lines_of(value, depth - 1, indent + " ")
        comma = "," if i < len(tree) - 1 else ""
        lines = [f"{indent} {json.dumps(key)}: {first}", *rest]
        yield from (*lines[:-1], lines[-1] + comma)
    yield indent + "}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {os.path.basename(sys.executable)} -m tests.test_golden --write")
    GOLDEN.write_text("\n".join(lines_of(record(), 3)) + "\n")
