"""Dry run of one stage: its configuration, where every array lives, and the FLOPs, memory and traffic of a step.

  pv-vae inspect --config experiments/demo.py --stage video
  pv-vae inspect --config my.py --stage video --topology v5p:4x4x4 --config.mesh.fsdp=16
  pv-vae inspect --config my.py --stage video --topology v5e:16x16 --slices 2

Nothing is trained. With `--topology` the step is compiled for that TPU, which may be absent (extra `tpu-topology`);
with `--slices` for several of them, and what crosses the network between them is counted by itself.
"""

import contextlib
import dataclasses
import json
import math

import jax
from absl import flags
from clu import parameter_overview
from jax.sharding import Mesh

from pv_vae_jax.cli._shared import CONFIG
from pv_vae_jax.sharding.hlo import step_flops
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.rules import array_shardings, check_split
from pv_vae_jax.sharding.topology import compile_step, quick_compilation, topology_devices
from pv_vae_jax.train.checkpoint import abstract
from pv_vae_jax.train.config_files import load_experiment, to_dict
from pv_vae_jax.train.configs import TRAINED
from pv_vae_jax.train.plan import Plan, plan_stage
from pv_vae_jax.train.stages import load_perceptual
from pv_vae_jax.typing import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae inspect`."""
    flags.DEFINE_string("config", None, CONFIG, flag_values=values)
    flags.DEFINE_enum("stage", "video", TRAINED, "stage whose step to compile", flag_values=values)
    flags.DEFINE_bool("summary", False, "leave out the configuration and the list of parameters", flag_values=values)
    flags.DEFINE_string("topology", "", "TPU to compile for, such as v5e:4x4 or v5p:4x4x4", flag_values=values)
    flags.DEFINE_integer("slices", None, "number of such TPUs, mesh.dcn_data", lower_bound=1, flag_values=values)
    flags.mark_flag_as_required("config", flag_values=values)


def run(values: flags.FlagValues, overrides: dict[str, str]) -> None:
    """Print everything and exit."""
    if values.slices and not values.topology:
        raise ConfigError("--slices is for --topology: add it, or set --config.mesh.dcn_data for the devices here")
    if values.slices:
        overrides = overrides | {"mesh.dcn_data": str(values.slices)}
    experiment = load_experiment(values.config, overrides)
    if not values.summary:
        print(json.dumps(to_dict(experiment), indent=1))
    perceptual = load_perceptual(experiment)
    try:
        slices = experiment.mesh.dcn_data
        devices = topology_devices(values.topology, slices) if values.topology else None
        mesh = make_mesh(**dataclasses.asdict(experiment.mesh), devices=devices)
        plans = plan_stage(experiment, values.stage, mesh, perceptual and perceptual[0])
        print_state(plans[0], values.summary)
        check_split(mesh, plans[0].state.params, plans[0].sharding.params)
    except ValueError as error:
        raise ConfigError(str(error)) from error

    chip = mesh.devices.flat[0].device_kind
    where = f", {f'{slices} x ' if slices > 1 else ''}{values.topology}" if values.topology else ""
    print(f"mesh {dict(mesh.shape)} of {chip}{where}")
    weights = [size.weight for size in getattr(plans[0].stage, "sizes", ())]
    with quick_compilation() if values.topology else contextlib.nullcontext(), jax.set_mesh(mesh):
        for i, plan in enumerate(plans):
            if len(plans) > 1:
                shape = " x ".join(map(str, plan.batch["video"].shape[:4]))
                print(f"batches of {shape}, {weights[i]} in {sum(weights)} steps:")
            print_step(plan, mesh, mesh.size // slices if slices > 1 else 0)


def print_step(plan: Plan, mesh: Mesh, slice_size: int = 0) -> None:
    """Compile the step, and print its FLOPs, memory and traffic."""
    traced = plan.trace()
    flops = step_flops(traced.jaxpr.jaxpr)
    print(
        f"stage {plan.stage.name}, one step: {flops / 1e9:,.2f} GFLOP in matrix products and convolutions, "
        f"{flops / mesh.size / 1e9:,.2f} a device"
    )
    compiled = compile_step(traced.lower(), slice_size)
    print(f"peak memory a device {compiled.peak_bytes / 2**20:,.1f} MiB, train state included")
    for kind, sent in sorted(compiled.traffic.items()):
        print(f"  {sent.count:5} {kind:20} {sent.bytes / 2**20:12,.2f} MiB a device a step")
    if not compiled.traffic:
        print("  nothing is sent between devices")


def print_state(plan: Plan, summary: bool) -> None:
    """Print every parameter with its sharding, unless for a `summary`, then the bytes a device holds of each part."""
    rows = array_shardings(plan.state, plan.sharding)
    if not summary:
        shapes = abstract(plan.state, plan.sharding)
        shown = {"params": shapes.params}
        if shapes.discriminator is not None:
            shown["discriminator"] = shapes.discriminator.params
        print("moments and moving averages are sharded like their parameters; () is replicated:")
        print(parameter_overview.get_parameter_overview(shown, include_stats="sharding"))
    size = sum(math.prod(row.shape) for row in rows if row.path.startswith("params/"))
    print(f"{size:,} parameters" + (f", of which frozen: {', '.join(plan.stage.frozen)}" if plan.stage.frozen else ""))
    parts: dict[str, int] = {}
    for row in rows:
        part = row.path.split("/")[0]
        parts[part] = parts.get(part, 0) + row.device_bytes
    listed = ", ".join(f"{part} {held / 2**20:,.1f}" for part, held in parts.items() if part != "step")
    print(f"train state a device {sum(parts.values()) / 2**20:,.1f} MiB: {listed}")
