"""Every ablation of the paper, and ours beside them, is one flag on the demo: it is checked, planned and trained.

The demo is made small, in its networks and clips; its stages are as they are shipped.
"""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.train.config_files import load_experiment
from pv_vae_jax.train.configs import TRAINED, VAE_STAGES
from pv_vae_jax.train.plan import plan_stage
from pv_vae_jax.train.run import open_run
from pv_vae_jax.train.stages import build_stage, check_stages
from tests.test_cli import pv_vae

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
SHARED = {"data.frames": 9, "data.size": 16, "data.clips": 8, "data.threads": 1, "mesh.data": 1, "latte.depth": 2}
SHARED |= {"vae.latent_channels": 4, "latte.latent_channels": 4, "latte.width": 8, "latte.heads": 2}
SHARED |= {f"{stage}.batch_size": 2 for stage in TRAINED} | {"discriminator.width": 4, "discriminator.levels": 1}
# Half of the time to trace and to compile: convolutions of one operation, and no Newton-Schulz for every kernel.
SHARED |= {f"{stage}.optimizer.name": "adamw" for stage in TRAINED} | {"discriminator.lowering": "direct"}
SMALL = {
    "demo": SHARED
    | {"vae.time_factors": (2,), "vae.space_factors": (2,), "vae.encoder_widths": (8, 8), "vae.decoder_widths": (8, 8)}
    | {"vae.mid_attention": False, "vae.lowering": "direct"},
    "demo_transformer": SHARED | {"vae.time_factor": 2, "vae.width": 32, "vae.heads": 2}
    | {"vae.encoder_layers": 2, "vae.decoder_layers": 1},
}  # fmt: skip

# One flag each, as the paper's tables and docs/method.md name them.
PADDING = {"vae.pad": "gaussian"}
RATIOS = [{"video.drop_ratio": ratio} for ratio in (0.0, 0.5, 0.75, 1.0)]
FORMS = [{"video.drop_per_example": False}, {"video.drop_form": "truncated", "video.drop_per_example": False}]
PATTERNS = [{"video.drop_pattern": pattern} for pattern in ("infill", "block", "tube", "random")]
FROM_LATENTS = {"video.drop_pattern": "infill", "video.drop_from": "latents"}
SCHEDULES = [{"video.drop_schedule": schedule} for schedule in ("linear", "cosine")]
MOTION = {"video.objective.motion": 0.0}
FLAGS = [*RATIOS, *FORMS, *PATTERNS, FROM_LATENTS, *SCHEDULES, MOTION]


def named(flags: dict) -> str:
    return ",".join(f"{key.partition('.')[2]}={value}" for key, value in flags.items())


def small(flags: dict, name: str = "demo"):
    overrides = {key: str(value) for key, value in (SMALL[name] | flags).items()}
    return load_experiment(EXPERIMENTS / f"{name}.py", overrides)


def plan_and_trace(experiment, stage: str) -> None:
    """What `pv-vae inspect` plans, and the step of a run, in shapes alone."""
    for plan in plan_stage(experiment, stage, make_mesh(data=1)):
        step = functools.partial(plan.stage.step, **plan.static_args)
        state, logs = jax.eval_shape(step, plan.state, plan.batch)
        assert jax.tree.map(lambda a: a.shape, state) == jax.tree.map(lambda a: a.shape, plan.state)
        assert logs["loss"].shape == ()


@pytest.mark.parametrize("flags", FLAGS, ids=named)
def test_a_flag_of_the_video_stage_is_all_that_it_takes(flags):
    plan_and_trace(small(flags), "video")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("flags", [{}, PADDING], ids=["as it is", "gaussian"])
def test_every_stage_runs_with_either_padding_and_either_network(name, flags):
    experiment = small(flags, name)
    for stage in TRAINED:
        if stage in VAE_STAGES or not flags:  # the transformer of latents knows no padding
            plan_and_trace(experiment, stage)
    assert build_stage(experiment, "decoder").frozen == (("encoder",) if flags else ("encoder", "pad"))


@pytest.mark.slow
def test_the_padding_is_a_flag_for_the_shipped_sizes_too(tmp_path, capsys):
    """What freezes the pad also works where padding has no parameters: in the checks before a run and in `inspect`."""
    experiment = load_experiment(EXPERIMENTS / "demo.py", {"vae.pad": "gaussian", "mesh.data": "1"})
    check_stages(open_run(experiment, tmp_path / "run"), ["decoder"])
    assert "data: " in capsys.readouterr().err
    flags = [f"--config.{key}={value}" for key, value in (SMALL["demo"] | PADDING).items()]
    status, out, error = pv_vae("inspect", "--config", EXPERIMENTS / "demo.py", "--stage=decoder", *flags)
    assert status == 0, error
    assert "of which frozen: encoder\n" in out and "GFLOP" in out and "params/pad" not in out


# Ratios and schedules of the filled form share its program.
TRAINED_KINDS = [
    ("demo", {"video.drop_ratio": 0.5} | MOTION),
    ("demo", PADDING),
    ("demo", FORMS[1]),
    *(("demo", pattern) for pattern in PATTERNS),
    ("demo_transformer", {}),
    ("demo_transformer", PADDING | FORMS[1]),
]


# A program of its own for each kind takes 10 to 16 s: every kind is traced above, and one is run. Steps of the other
# network are in tests/test_transformer_vae.py.
FAST_KINDS = TRAINED_KINDS[1:2]


@pytest.mark.parametrize(
    ("name", "flags"),
    [pytest.param(*kind, marks=() if kind in FAST_KINDS else pytest.mark.slow) for kind in TRAINED_KINDS],
    ids=lambda value: value if isinstance(value, str) else named(value),
)
def test_two_steps_of_each_kind(name, flags, tmp_path):
    """Real clips, drawn `k` and finite terms; the second step starts from what the first has made."""
    run = open_run(small(flags, name), tmp_path / "run")
    stage = build_stage(run.experiment, "video")
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), stage.shapes)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), stage.abstract_state)
    state = zeros.replace(params=params, ema=params)
    stream, programs, losses = stage.batches(run, 0), {}, []
    for number, batch in enumerate(stream):
        static = stage.static_args(number, batch)
        if static["dropped"] not in (None, 1):
            continue  # of the truncated form, which compiles a program for each k
        program = programs.setdefault(static["dropped"], jax.jit(functools.partial(stage.step, **static)))
        state, logs = program(state, batch)
        losses.append(float(logs["loss"]))
        assert all(np.isfinite(value) for value in logs.values()), logs
        if len(losses) == 2:
            break
    stream.close()
    assert int(state.step) == 2 and losses[0] != losses[1] and len(programs) == 1
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, jax.device_get(state.params))
    assert all(jax.tree.leaves(moved)), "a parameter that no gradient reaches"
