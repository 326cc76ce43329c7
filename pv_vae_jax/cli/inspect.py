"""Dry run: resolved configuration, where every array lives, FLOPs, memory and traffic of a step; trains nothing.

  pv-vae inspect --config experiments/demo.py --stage video
  pv-vae inspect --config my.py --stage video --topology v5p:4x4x4 --config.mesh.fsdp=16

With `--topology` the real step is compiled for that TPU, which need not be there (extra `tpu-topology`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pv_vae_jax.data.sources import class_names
from pv_vae_jax.model import init_latte
from pv_vae_jax.models.discriminator import Discriminator
from pv_vae_jax.models.latte import Latte
from pv_vae_jax.models.registry import build_vae
from pv_vae_jax.sharding.hlo import step_flops
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.rules import array_shardings, batch_sharding, check_split, state_sharding
from pv_vae_jax.sharding.topology import compile_step, quick_compilation, topology_devices
from pv_vae_jax.train.checkpoint import abstract
from pv_vae_jax.train.config_files import load_experiment, to_dict
from pv_vae_jax.train.configs import STAGES, VAE_STAGES, Experiment
from pv_vae_jax.train.dit_stage import conditioned
from pv_vae_jax.train.dit_step import DiTStep
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.run import check_mesh
from pv_vae_jax.train.sizes import SizedBatch, sized_batches
from pv_vae_jax.train.state import TrainState
from pv_vae_jax.train.vae_step import VAEStep
from pv_vae_jax.typing import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae inspect`."""
    flags.DEFINE_string("config", None, "experiment file with get_config()", flag_values=values)
    flags.DEFINE_enum(
        "stage", "video", [s for s in STAGES if s != "latents"], "whose step to compile", flag_values=values
    )
    flags.DEFINE_string("topology", "", "TPU to compile for, such as v5e:4x4 or v5p:4x4x4", flag_values=values)
    flags.mark_flag_as_required("config", flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Print everything and exit."""
    if positional:
        raise ConfigError(f"pv-vae inspect takes flags only, got {' '.join(positional)}")
    experiment, name = load_experiment(values.config, overrides), values.stage
    print(json.dumps(to_dict(experiment), indent=1))
    try:
        devices = topology_devices(values.topology) if values.topology else None
        mesh = make_mesh(**dataclasses.asdict(experiment.mesh), devices=devices)
        check_mesh(mesh, experiment, name)
        kinds = sized_batches(experiment, name) if name in VAE_STAGES else (None,)
        plans = [plan_step(experiment, name, mesh, kind) for kind in kinds]
        print_state(plans[0], getattr(getattr(experiment, name), "frozen", ()))
        check_split(mesh, plans[0].state.params, plans[0].sharding.params)
    except ValueError as error:
        raise ConfigError(str(error)) from error

    chip = mesh.devices.flat[0].device_kind
    print(f"mesh {dict(mesh.shape)} of {chip}" + (f", {values.topology}" if values.topology else ""))
    with quick_compilation() if values.topology else contextlib.nullcontext(), jax.set_mesh(mesh):
        for kind, plan in zip(kinds, plans, strict=True):
            if len(kinds) > 1:
                shares = sum(kind.share for kind in kinds)
                shape = " x ".join(map(str, kind.shape[:4]))
                print(f"batches of {shape}, {kind.share} in {shares} steps:")
            print_step(plan, name, mesh)


def print_step(plan: Plan, name: str, mesh: Mesh) -> None:
    """Compile the step; print its FLOPs, memory and traffic."""
    traced = plan.trace()
    flops = step_flops(traced.jaxpr.jaxpr)
    print(
        f"stage {name}, one step: {flops / 1e9:,.2f} GFLOP in matrix products and convolutions, "
        f"{flops / mesh.size / 1e9:,.2f} a device"
    )
    compiled = compile_step(traced.lower())
    print(f"peak memory a device {compiled.peak_bytes / 2**20:,.1f} MiB, train state included")
    for kind, sent in sorted(compiled.traffic.items()):
        print(f"  {sent.count:5} {kind:20} {sent.bytes / 2**20:12,.2f} MiB a device a step")
    if not compiled.traffic:
        print("  nothing is sent between devices")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A stage's step on a mesh, everything abstract.

    Attributes:
      step: with its options bound.
      state, sharding: of the train state.
      batch: with shardings.
    """

    step: Callable
    state: TrainState
    sharding: TrainState
    batch: dict

    def trace(self) -> jax.stages.Traced:
        """The jitted step, traced as the training loop calls it; a mesh must be in context."""
        whole = NamedSharding(jax.tree.leaves(self.sharding)[0].mesh, PartitionSpec())
        program = jax.jit(self.step, out_shardings=(self.sharding, whole), donate_argnums=0)
        return program.trace(abstract(self.state, self.sharding), self.batch)


def plan_step(experiment: Experiment, name: str, mesh: Mesh, kind: SizedBatch | None = None) -> Plan:
    """The step of stage `name` as it would run on `mesh`, whose devices need not be here; `kind` as `abstract_step`."""
    if mesh.devices.flat[0].platform != "cpu":  # `auto` looks at the devices of this process
        direct = lambda c: dataclasses.replace(c, lowering="direct") if hasattr(c, "lowering") else c  # noqa: E731
        experiment = dataclasses.replace(
            experiment, vae=direct(experiment.vae), discriminator=direct(experiment.discriminator)
        )
    step, state, batch, options = abstract_step(experiment, name, kind)
    batch = {
        k: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharding(mesh, a.shape)) for k, a in batch.items()
    }
    return Plan(functools.partial(step, **options), state, state_sharding(mesh, state), batch)


def print_state(plan: Plan, frozen: Sequence[str]) -> None:
    """Every parameter with its place, then the bytes a device holds of each part of the state."""
    rows = array_shardings(plan.state, plan.sharding)
    shown = [row for row in rows if row.path.startswith(("params/", "discriminator/params/"))]
    width = max(len(row.path) for row in shown)
    print("moments and moving averages lie as the parameters that they belong to:")
    for row in shown:
        place = ", ".join("-" if axis is None else str(axis) for axis in row.spec) or "whole"
        print(f"  {row.path:{width}}  {'x'.join(map(str, row.shape)):>20}  {row.device_bytes:>12,} B  {place}")
    size = sum(math.prod(row.shape) for row in rows if row.path.startswith("params/"))
    print(f"{size:,} parameters" + (f", of which frozen: {', '.join(frozen)}" if frozen else ""))
    parts: dict[str, int] = {}
    for row in rows:
        part = row.path.split("/")[0]
        parts[part] = parts.get(part, 0) + row.device_bytes
    listed = ", ".join(f"{part} {held / 2**20:,.1f}" for part, held in parts.items() if part != "step")
    print(f"train state a device {sum(parts.values()) / 2**20:,.1f} MiB: {listed}")


def abstract_step(experiment: Experiment, name: str, kind: SizedBatch | None = None):
    """The real step of a stage with abstract state and batch: `(step, state, batch, static arguments)`.

    `kind` is one of `sized_batches` of a VAE stage, the first unless given.
    """
    data, vae = experiment.data, experiment.vae
    shape = jax.ShapeDtypeStruct
    stage = getattr(experiment, name)
    if name in VAE_STAGES:
        kind = kind or sized_batches(experiment, name)[0]
        clip = np.zeros((1, *kind.shape[1:]), np.float32)
        gan = stage.objective.gan > 0
        discriminator = Discriminator(experiment.discriminator) if gan else None
        step = VAEStep(
            build_vae(vae),
            stage.objective,
            optimizer(stage.optimizer, max(stage.steps, 1)),
            discriminator,
            optimizer(stage.discriminator_optimizer, max(stage.steps, 1)),
            stage.frozen,
            grad_accum_steps=stage.grad_accum_steps,
            drop_pattern=stage.drop_pattern,
            drop_from=stage.drop_from,
        )

        def create():
            params = step.model.init(jax.random.key(0), clip)["params"]
            return step.create(params, discriminator.init(jax.random.key(0), clip)["params"] if gan else None)

        batch = {"video": shape(kind.shape, jnp.uint8)}
        filled = stage.drop_form == "filled" and stage.drop_ratio_max > 0 and kind.frames > 1
        if filled:
            batch["dropped"] = shape((kind.batch_size,) if stage.drop_per_example else (), jnp.int32)
        return step, jax.eval_shape(create), batch, {"dropped": None if filled else 0, "gan": gan}
    latent = (
        vae.latent_frames(data.frames),
        data.size // vae.space_factor,
        data.size // vae.space_factor,
        vae.latent_channels,
    )
    unit = np.ones(vae.latent_channels, np.float32)
    latte = Latte(conditioned(experiment, len(class_names(data.source, data.fold))))
    rule = optimizer(stage.optimizer, max(stage.steps, 1))
    step = DiTStep(latte, rule, 0 * unit, unit, grad_accum_steps=stage.grad_accum_steps)
    moments = shape((stage.batch_size, *latent), jnp.float32)
    batch = {"mean": moments, "logvar": moments, "label": shape((stage.batch_size,), jnp.int32)}
    return step, jax.eval_shape(lambda: step.create(init_latte(step.model, latent))), batch, {}
