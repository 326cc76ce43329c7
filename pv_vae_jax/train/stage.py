"""The interface of a training stage.

The training loop, `pv-vae inspect`, the checks before a run, the benchmarks and the studies all use the same two
implementations of it: `vae_stage.VAEStage` and `dit_stage.DiffusionStage`.
"""

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
    """One stage of an experiment. It holds no work directory and no open data: methods that need either take the run.

    Attributes:
      experiment: the whole configuration.
      name: name of the stage, and of its folder in a work directory.
      config: the stage's own part of the configuration.
      unit: what `units` counts.
      step: the training step, a pure function `(state, batch, **static_args) -> (state, logs)`.
      frozen: parts of the parameters that are not trained.
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
        """`step` with rematerialisation off, so that its floating-point operations are those of the model."""

    @abc.abstractmethod
    def init_state(self, restored: dict) -> TrainState:
        """The state at step 0. It is traced, so that each device creates only its own part.

        Args:
          restored: what the method `restored` returned; parameters missing from it are initialised afresh.
        """

    def restored(self, run: Run) -> dict:
        """What to start step 0 from: the parameter trees `params` and `discriminator`, either of them maybe partial."""
        return {}

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The shapes of the state."""
        return jax.eval_shape(lambda: self.init_state({}))

    def check(self) -> None:
        """Trace the networks for every size of batch, without computing anything.

        Raises:
          ValueError: a size does not fit the networks, or a frozen part does not exist.
        """
        jax.eval_shape(lambda: self.init_state({}))

    @abc.abstractmethod
    def batches(self, run: Run, start: int) -> Iterator[Batch]:
        """This host's share of the batches from step `start` on. A batch depends on the number of its step alone."""

    def stream_settings(self, run: Run, start: int) -> dict[str, Any]:
        """What `train_batches` and `mixed_batches` need to know of a stage: its seed, first step and host's share."""
        (host_index, host_count), data = host_share(run.mesh), self.experiment.data
        settings = dict(seed=stage_seed(self.experiment.seed, self.name), start_step=start)
        return settings | dict(threads=data.threads, workers=data.workers, host_index=host_index, host_count=host_count)

    @abc.abstractmethod
    def example_batches(self) -> list[dict]:
        """A global batch of every size, as shapes and types."""

    def static_args(self, step: int, batch: Batch) -> dict[str, Any]:
        """The static keyword arguments of `step`, for a step number and its batch.

        Each combination of them is compiled separately.
        """
        return {}

    def prepare(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Turn a global batch on the devices into what `step` takes, outside the compiled step."""
        return batch

    @abc.abstractmethod
    def units(self, batch: dict[str, jax.Array]) -> int:
        """Number of frames or clips in a global batch, see `unit`."""

    @abc.abstractmethod
    def save_model(self, run: Run, state: TrainState) -> None:
        """Write the finished model to the work directory; with several processes, all must call it."""

    def jit_init(self, sharding: TrainState) -> jax.stages.Wrapped:
        """The jitted `init_state`, whose result is placed by `sharding`."""
        return jax.jit(self.init_state, out_shardings=sharding, donate_argnums=0)

    def jit_step(self, static_args: dict[str, Any], sharding: TrainState) -> jax.stages.Wrapped:
        """The jitted step: `(state, batch) -> (state, logs)`, whose state is donated and placed by `sharding`."""

        def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
            return self.step(state, batch, **static_args)

        step.__name__ = f"{self.name}_step"  # in messages and profiles of XLA
        # Given explicitly, because the state from one step must be the input of the next without a copy.
        replicated = NamedSharding(jax.tree.leaves(sharding)[0].mesh, PartitionSpec())
        return jax.jit(step, out_shardings=(sharding, replicated), donate_argnums=0)
