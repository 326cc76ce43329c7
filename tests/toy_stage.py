"""A stage and a run around any step, for tests of the training loop."""

import types

import jax

from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.train.stage import Stage


class ToyStage(Stage):
    """`steps` steps on the same batch from the state that `create` makes."""

    def __init__(self, step, create, batch, steps, *, unit="clips", units=1, static_args=None):
        self.name, self.config, self.unit = "image", types.SimpleNamespace(steps=steps), unit
        self.step, self.flops_step, self._create, self._batch = step, step, create, batch
        self._units, self._static_args = units, static_args or {}

    flops_step = None

    def init_state(self, restored):
        return self._create()

    def batches(self, run, start):
        return iter([dict(self._batch)] * (self.steps - start))

    def example_batches(self):
        return [self._batch]

    def static_args(self, step, batch):
        return self._static_args

    def units(self, batch):
        return self._units

    def save_model(self, run, state):
        raise NotImplementedError


def toy_run(folder, log_every=1, checkpoint_every=3, profile=None, **settings):
    """A run on one device whose stages share `folder`."""
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    experiment = Experiment(log_every=log_every, checkpoint_every=checkpoint_every, **settings)
    return types.SimpleNamespace(
        folder=lambda name: folder,
        mesh=mesh,
        experiment=experiment,
        steps=lambda name: 0,  # of other stages
        writers=(),
        profile=profile,
    )
