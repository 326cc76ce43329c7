"""What a training stage is, for everything that needs one.

The training loop, `pv-vae inspect`, the checks before a run, the benchmarks and the studies all build the same object:
`vae_stage.VAEStage` or `dit_stage.DiffusionStage`.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pv_vae_jax.sharding.rules import host_share
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.train.run import Run
from pv_vae_jax.train.state import TrainState, stage_seed

Batch = dict[str, np.ndarray]


class Stage(abc.ABC):
    """One stage of an experiment. It has no work directory and opens no data: methods that need them take the run.

    Attributes:
      experiment: the whole configuration.
      name: name of the stage, and of its folder in a work directory.
      config: the stage's own part of the configuration.
      unit: what `units` counts.
      step: the training step, a pure function `(state, batch, **static_args) -> (state, logs)`.
      frozen: parts of the parameters that do not move.
    """

    unit = "clips"
    step: Callable[..., tuple[TrainState, dict]]
    frozen: tuple[str, ...] = ()

    def __init__(self, experiment: Experiment, name: str):
        self.experiment, self.name, self.config = experiment, name, getattr(experiment, name)

    @property
    def steps(self) -> int:
        """Number of steps of the stage."""
        return self.config.steps

    @property
    @abc.abstractmethod
    def flops_step(self) -> Callable[..., Any]:
        """`step` without recomputation, whose floating-point operations are those of the model."""

    @abc.abstractmethod
    def init_state(self, restored: dict) -> TrainState:
        """The state of step 0. It is traced, so that each device makes its own part only.

        Args:
          restored: what `restored` returned; parameters that it does not hold are drawn.
        """

    def restored(self, run: Run) -> dict:
        """Parameters to start from: trees named `params` and `discriminator`, of which parts may be missing."""
        return {}

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The shapes of the state."""
        return jax.eval_shape(lambda: self.init_state({}))

    def check(self) -> None:
        """Build the networks for every size of batch, in shapes alone.

        Raises:
          ValueError: one of them does not fit, or a frozen part does not exist.
        """
        jax.eval_shape(lambda: self.init_state({}))

    @abc.abstractmethod
    def batches(self, run: Run, start: int) -> Iterator[Batch]:
        """Batches from step `start` on, this host's share of each. The batch of a step depends on its number alone."""

    def stream_settings(self, run: Run, start: int) -> dict[str, Any]:
        """What `train_batches` and `mixed_batches` need to know of a stage: its seed, first step and host's share."""
        host_index, host_count = host_share(run.mesh)
        seed, threads = stage_seed(self.experiment.seed, self.name), self.experiment.data.threads
        return dict(seed=seed, start_step=start, threads=threads, host_index=host_index, host_count=host_count)

    @abc.abstractmethod
    def example_batches(self) -> list[dict]:
        """A global batch of every size, without values."""

    def static_args(self, step: int, batch: Batch) -> dict[str, Any]:
        """Keyword arguments of `step` that are known when it is compiled, for a step number and its batch.

        Every combination of them is a program of its own.
        """
        return {}

    def prepare(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Turn a global batch on the devices into what `step` takes, by programs of its own."""
        return batch

    @abc.abstractmethod
    def units(self, batch: dict[str, jax.Array]) -> int:
        """Number of frames or clips in a global batch, see `unit`."""

    @abc.abstractmethod
    def save_model(self, run: Run, state: TrainState) -> None:
        """Write the finished model to the work directory; with several processes, all must call it."""

    def jit_step(self, static_args: dict[str, Any], sharding: TrainState) -> jax.stages.Wrapped:
        """The compiled step: `(state, batch) -> (state, logs)`, with the state donated and laid out by `sharding`."""

        def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
            return self.step(state, batch, **static_args)

        step.__name__ = f"{self.name}_step"  # in messages and profiles of XLA
        # Stated, not left to the compiler: the state of one step must be the input of the next without a copy.
        replicated = NamedSharding(jax.tree.leaves(sharding)[0].mesh, PartitionSpec())
        return jax.jit(step, out_shardings=(sharding, replicated), donate_argnums=0)
