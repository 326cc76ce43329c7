"""Settings that must be in place before jax starts, and the small models that the tests share."""

import os
import tempfile

from pv_vae_jax.versions import installed_version

os.environ["JAX_PLATFORMS"] = "cpu"
# Compilation is the test budget. LLVM's optimisation, a third of it, is left out unless XLA_FLAGS say otherwise.
# Programs are kept between runs, and shared with the commands that tests start.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
# Programs by oneDNN are not kept in the cache, so tests/test_onednn.py alone has them, unless XLA_FLAGS say otherwise.
if installed_version("jaxlib").startswith("0.12.") and "onednn_custom_call" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_cpu_experimental_onednn_custom_call=false"
os.environ.setdefault("PV_VAE_CACHE", os.path.join(tempfile.gettempdir(), f"pv_vae_jax_test_cache_{os.getuid()}"))

import dataclasses
import functools
import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pv_vae_jax.cli.main import enable_compilation_cache
from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.train.dit_stage import DiffusionStage
from pv_vae_jax.train.programs import forget_programs
from pv_vae_jax.train.stage import Stage
from pv_vae_jax.train.vae_stage import VAEStage

enable_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)  # there are many small programs

# Compilation is the test budget, so: one level of time and space, the smallest network that has every kind of layer,
# t2s8; and direct convolutions, which compile in half the time of those that `auto` takes on CPU (these are held to the
# same numbers by tests/test_conv.py and tests/test_golden.py).
TINY = VAEConfig(
    patch=4,
    latent_channels=4,
    time_factors=(2,),
    space_factors=(2,),
    encoder_widths=(8, 8),
    decoder_widths=(8, 8),
    encoder_blocks=1,
    decoder_blocks=1,
    lowering="direct",
)
# The same compression by two levels, the second of space alone, for what depends on how levels follow each other.
TWO_LEVELS = dataclasses.replace(
    TINY, patch=2, time_factors=(2, 1), space_factors=(2, 2), encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8)
)


# Commands that tests run in this process train the same few stages again and again, each time with new objects, which
# JAX would trace and compile anew. So what depends on nothing but a stage's settings is made once in a process.


def settings_of(stage: Stage) -> tuple | None:
    """What the programs of a stage follow from; None for stages of other kinds, such as those of tests."""
    step = stage.step if type(stage) is DiffusionStage else getattr(stage, "_step", None)
    if type(stage) is VAEStage:
        more = (*stage.sizes, stage.experiment.discriminator, stage.alignment.width, step.perceptual, step.features)
    elif type(stage) is DiffusionStage:
        more = (stage.shape, *(np.asarray(statistic).tobytes() for statistic in (step.mean, step.std)))
    else:
        return None
    around = jax.sharding.get_abstract_mesh(), jax.config.jax_enable_x64
    return type(stage), stage.name, stage.config, stage.experiment.seed, step.model, around, more


KEPT = []


def once_for_equal_stages(method):
    """`method` of a stage, whose result for equal stages and arguments is kept."""
    KEPT.append(kept := {})

    @functools.wraps(method)
    def remembering(stage, *arguments):
        if (settings := settings_of(stage)) is None:
            return method(stage, *arguments)
        leaves, tree = jax.tree.flatten(arguments)
        key = (settings, tuple(leaves), tree)
        if key not in kept:
            kept[key] = method(stage, *arguments)
        return kept[key]

    return remembering


for cls, method in ((Stage, "jit_init"), (Stage, "jit_step"), (Stage, "check"), (VAEStage, "check")):
    setattr(cls, method, once_for_equal_stages(getattr(cls, method)))
for cls, name in ((Stage, "abstract_state"), (VAEStage, "shapes")):
    shared = functools.cached_property(once_for_equal_stages(getattr(cls, name).func))
    shared.__set_name__(cls, name)
    setattr(cls, name, shared)


def pytest_collection_finish():
    """Spare the collector what imports left behind, and let it look less often: tracing makes many small objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_runtest_teardown(item, nextitem):
    """Forget all programs when they are too many, and what holds on to them."""
    between_files = nextitem is None or nextitem.path != item.path
    if (between_files or item.get_closest_marker("slow")) and forget_programs():
        for kept in KEPT:
            kept.clear()
        gc.collect()


# Files that take longest, in the order in which they begin: else one of the two processes ends long before the other.
# Those of one small run are apart, so that the later finds the programs of the earlier.
LONGEST = ("cli", "sharding", "steps", "resume", "pipeline", "model", "watching", "prepare", "own_clips", "launch")
LONGEST += ("notebooks", "vae", "transformer_vae", "docs", "wan", "wan_predictive", "arena", "ablations", "bench")


def pytest_collection_modifyitems(items):
    """Begin with the longest files, and give slow tests four times the time limit of the others."""
    rank = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1_200))


def perturbed(params, scale=0.1):
    """Parameters moved off their special starting values (zeros, identities), so that no path is silent."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    return jax.tree.unflatten(
        tree, [p + scale * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    )


def decoded(model, params, prediction):
    """The clip that the decoder draws from the latents of a prediction."""
    return model.apply({"params": params}, prediction.latents, method="decode")


@pytest.fixture(scope="session")
def tiny():
    """`(model, params, video)`: a t2s8 VAE, perturbed parameters, two clips of 7 x 16 x 16 in [-1, 1]."""
    model = VAE(TINY)
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 7, 16, 16, 3)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), video)["params"]
    return model, perturbed(params), video


@pytest.fixture(scope="session")
def gaussian(tiny):
    """The same VAE with gaussian padding."""
    model, params, video = tiny
    return VAE(dataclasses.replace(TINY, pad="gaussian")), {k: v for k, v in params.items() if k != "pad"}, video


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real clips, on machines that have them."""
    folder = Path(os.environ.get("PV_VAE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("no real clips here: set PV_VAE_SHARED to a folder that holds data/")
    return folder
