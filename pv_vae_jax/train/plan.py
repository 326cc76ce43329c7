"""The step of a stage on a mesh whose devices may be absent: what `pv-vae inspect` shows, all of it abstract."""

import dataclasses
import sys
from typing import Any

import jax
from jax.sharding import Mesh

from pv_vae_jax.losses import Perceptual
from pv_vae_jax.sharding.rules import batch_sharding, state_sharding
from pv_vae_jax.train.checkpoint import abstract
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.train.sizes import check_mesh
from pv_vae_jax.train.stage import Stage
from pv_vae_jax.train.stages import build_stage
from pv_vae_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Plan:
    """A stage's step for batches of one size.

    Attributes:
      stage: the stage, as a run would build it.
      sharding: where each array of the state lives.
      batch: the shapes of a global batch, with shardings.
      static_args: the step's static arguments at the end of the stage.
    """

    stage: Stage
    sharding: TrainState
    batch: dict
    static_args: dict[str, Any]

    @property
    def state(self) -> TrainState:
        """The shapes of the state."""
        return self.stage.abstract_state

    def trace(self) -> jax.stages.Traced:
        """The jitted step, traced as the training loop calls it; the mesh must be in context (`jax.set_mesh`)."""
        step: Any = self.stage.jit_step(self.static_args, self.sharding)
        return step.trace(abstract(self.state, self.sharding), self.batch)


def plan_stage(experiment: Experiment, name: str, mesh: Mesh, perceptual: Perceptual | None = None) -> list[Plan]:
    """The step of stage `name` as it would run on `mesh`: one plan for each size of its batches.

    Raises:
      ConfigError: the batches or the networks cannot be split over this mesh.
    """
    check_mesh(mesh, experiment, name)
    stage = build_stage(experiment, name, perceptual)
    sharding = state_sharding(mesh, stage.abstract_state)
    plans = []
    for batch in stage.example_batches():
        static_args = stage.static_args(sys.maxsize, batch)  # of a step so late that a GAN is on
        shapes = {
            key: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=batch_sharding(mesh, value.shape))
            for key, value in batch.items()
        }
        plans.append(Plan(stage, sharding, shapes, static_args))
    return plans
