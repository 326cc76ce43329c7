"""Dry run: resolved configuration, parameters, FLOPs of a step and bytes a device; trains nothing.

  pv-vae inspect --config experiments/demo.py --stage video

`python -m pv_vae_jax.cli.inspect` takes the same flags.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from clu import parameter_overview

from pv_vae_jax.config import STAGES, VAE_STAGES, ConfigError, Experiment, load_experiment, to_dict
from pv_vae_jax.data.sources import class_names
from pv_vae_jax.models.discriminator import Discriminator
from pv_vae_jax.models.kinds import build_vae
from pv_vae_jax.models.latte import Latte
from pv_vae_jax.pretrained import init_latte
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.rules import batch_sharding, state_sharding
from pv_vae_jax.train.checkpoint import abstract
from pv_vae_jax.train.dit_stage import conditioned
from pv_vae_jax.train.dit_step import DiTStep
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.vae_step import VAEStep


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae inspect`."""
    flags.DEFINE_string("config", None, "experiment file with get_config()", flag_values=values)
    flags.DEFINE_enum(
        "stage", "video", [s for s in STAGES if s != "latents"], "whose step to compile", flag_values=values
    )
    flags.mark_flag_as_required("config", flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Print everything and exit."""
    if positional:
        raise ConfigError(f"pv-vae inspect takes flags only, got {' '.join(positional)}")
    experiment = load_experiment(values.config, overrides)
    print(json.dumps(to_dict(experiment), indent=1))
    mesh = make_mesh(**dataclasses.asdict(experiment.mesh))
    step, state, batch, kwargs = abstract_step(experiment, values.stage)
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    size = sum(int(np.prod(a.shape)) for a in jax.tree.leaves(state.params))
    frozen = getattr(getattr(experiment, values.stage), "frozen", ())
    print(f"{size:,} parameters" + (f", of which frozen: {', '.join(frozen)}" if frozen else ""))

    sharding = state_sharding(mesh, state)
    placed = abstract(state, sharding)
    batch = {
        k: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharding(mesh, a.shape)) for k, a in batch.items()
    }
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(step, static_argnames=tuple(kwargs), donate_argnums=0).lower(placed, batch, **kwargs).compile()
        )
    bytes_of = lambda a, s: int(np.prod(s.shard_shape(a.shape))) * a.dtype.itemsize  # noqa: E731
    state_bytes = sum(jax.tree.leaves(jax.tree.map(bytes_of, state, sharding)))
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    print(f"mesh {dict(mesh.shape)} of {jax.devices()[0].device_kind}")
    print(f"stage {values.stage}, one step a device: {cost.get('flops', 0) / 1e9:,.2f} GFLOP counted by the compiler")
    print(f"train state a device {state_bytes / 2**20:,.1f} MiB")
    print(
        f"compiled program a device: arguments {memory.argument_size_in_bytes / 2**20:,.1f} MiB, "
        f"temporaries {memory.temp_size_in_bytes / 2**20:,.1f} MiB, outputs that reuse arguments "
        f"{memory.alias_size_in_bytes / 2**20:,.1f} MiB"
    )


def abstract_step(experiment: Experiment, name: str):
    """The real step of a stage with abstract state and batch: `(step, state, batch, static arguments)`."""
    data, vae = experiment.data, experiment.vae
    shape = jax.ShapeDtypeStruct
    stage = getattr(experiment, name)
    if name in VAE_STAGES:
        frames = 1 if stage.images else data.frames
        clip = jnp.zeros((1, frames, data.size, data.size, 3))
        gan = stage.objective.gan > 0
        discriminator = Discriminator(experiment.discriminator) if gan else None
        step = VAEStep(
            build_vae(vae),
            stage.objective,
            optimizer(stage.optimizer, max(stage.steps, 1)),
            discriminator,
            optimizer(stage.discriminator_optimizer, max(stage.steps, 1)),
            stage.frozen,
        )

        def create():
            params = step.model.init(jax.random.key(0), clip)["params"]
            return step.create(params, discriminator.init(jax.random.key(0), clip)["params"] if gan else None)

        batch = {"video": shape((stage.batch_size, *clip.shape[1:]), jnp.uint8)}
        filled = stage.drop_form == "filled" and stage.drop_ratio > 0
        if filled:
            batch["dropped"] = shape((stage.batch_size,) if stage.drop_per_example else (), jnp.int32)
        return step, jax.eval_shape(create), batch, {"dropped": None if filled else 0, "gan": gan}
    latent = (
        vae.latent_frames(data.frames),
        data.size // vae.space_factor,
        data.size // vae.space_factor,
        vae.latent_channels,
    )
    unit = np.ones(vae.latent_channels, np.float32)
    latte = Latte(conditioned(experiment, len(class_names(data.source))))
    step = DiTStep(latte, optimizer(stage.optimizer, max(stage.steps, 1)), 0 * unit, unit)
    moments = shape((stage.batch_size, *latent), jnp.float32)
    batch = {"mean": moments, "logvar": moments, "label": shape((stage.batch_size,), jnp.int32)}
    return step, jax.eval_shape(lambda: step.create(init_latte(step.model, latent))), batch, {}


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_command

    sys.exit(run_command("inspect", sys.argv[1:]))
