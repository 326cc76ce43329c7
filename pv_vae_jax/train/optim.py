"""Optimiser, learning-rate schedule, gradient accumulation, moving average, and freezing of parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pv_vae_jax.train.configs import OptimizerConfig
from pv_vae_jax.typing import Array, Params, PRNGKey


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate at a step of a stage. Warm-up is capped at half of its `steps`, so that the decay has room."""
    warmup = min(config.warmup_steps, max(steps, 0) // 2)
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / max(warmup, 1),
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, 1),
        end_value=config.learning_rate * config.final_fraction,
    )


def optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Gradient clipping, then AdamW or Muon, as `config` says."""
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    rate = schedule(config, steps)
    shared: dict[str, Any] = dict(weight_decay=config.weight_decay, mu_dtype=config.momentum_dtype)
    if config.name == "adamw":
        rule = optax.adamw(rate, config.b1, config.b2, mask=_decayed, **shared)
    else:
        # Updates as large as AdamW's (root mean square 0.2, arXiv 2502.16982), so that a learning rate means the same.
        shared |= dict(adam_b1=config.b1, adam_b2=config.b2, weight_decay_mask=_decayed)
        # optax 0.2.8 unrolls the iteration, which keeps every intermediate matrix of a kernel; later versions loop.
        rule = optax.contrib.muon(rate, consistent_rms=0.2, muon_weight_dimension_numbers=_kernel_axes, **shared)
    return optax.chain(*clip, rule)


def _decayed(params: Params) -> Params:
    """Mask of matrices and kernels. Biases and gains are excluded by name: `nn.scan` stacks them to two axes."""
    return jax.tree.map_with_path(lambda path, p: p.ndim > 1 and path[-1].key not in ("bias", "gamma"), params)


def _kernel_axes(params: Params) -> Params:
    """The input and output axes that make a matrix of each kernel; None leaves a parameter to AdamW.

    Raises:
      ValueError: a kernel of three axes is not of `nn.scan`, as its bias has no axis for layers.
    """
    # optax calls this a second time without the biases, which it leaves to AdamW.
    single = {path[:-1] for path, p in jax.tree.leaves_with_path(params) if path[-1].key == "bias" and p.ndim == 1}

    def axes(path: tuple, p: Array) -> optax.contrib.MuonDimensionNumbers | None:
        if p.ndim < 2 or path[-1].key != "kernel":
            return None
        stacked = p.ndim == 3  # dense layers under nn.scan: one matrix for each layer
        if stacked and path[:-1] in single:
            raise ValueError(
                "Muon takes kernels of three axes for dense layers under nn.scan: expected a bias (layers, features) "
                f"beside {jax.tree_util.keystr(path)} {p.shape}; use optimizer.name=adamw for 1-D convolutions"
            )
        return optax.contrib.MuonDimensionNumbers(tuple(range(int(stacked), p.ndim - 1)), p.ndim - 1)

    return jax.tree.map_with_path(axes, params)


def split_frozen(params: Params, frozen: tuple[str, ...]) -> tuple[Params, Params]:
    """Split the top-level parts into `(trained, frozen)`.

    Frozen parameters stay out of the gradient and the optimiser altogether, so they do not move by one bit.

    Raises:
      ValueError: a name in `frozen` is not a part of the model.
    """
    if unknown := set(frozen) - set(params):
        raise ValueError(f"cannot freeze {sorted(unknown)}: the model's parts are {sorted(params)}")
    return {k: v for k, v in params.items() if k not in frozen}, {k: params[k] for k in frozen}


def accumulate_grads(gradients: Callable[[Any, Array], Any], batch: dict, key: PRNGKey, parts: int) -> Any:
    """Mean of `gradients(part of the batch, key)` over `parts` equal parts, computed one after the other.

    Args:
      gradients: function that returns a tree of arrays (gradients and logs).
      batch: arrays `(b, ...)`, and scalars, which every part gets.
      key: key from which each part's own key is made.
      parts: number of parts, which must divide `b`; 1 calls `gradients` once, with `key`.

    Raises:
      ValueError: `parts` does not divide `b`.
    """
    if parts == 1:
        return gradients(batch, key)
    if uneven := {name: a.shape for name, a in batch.items() if a.ndim and a.shape[0] % parts}:
        raise ValueError(f"{parts} equal parts do not divide the batch: {uneven}")

    # Part `i` takes rows `i, i + parts, ...`: every device cuts its own rows, and nothing is sent.
    def cut(a: Array) -> Array:
        return a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1)

    rows = {name: cut(a) for name, a in batch.items() if a.ndim}
    scalars = {name: a for name, a in batch.items() if not a.ndim}

    def body(total: Any, part: tuple) -> tuple:
        index, these = part
        result = gradients(scalars | these, jax.random.fold_in(key, index))
        return jax.tree.map(lambda t, r: t + r / parts, total, result), None

    shapes = jax.eval_shape(lambda: gradients(scalars | {name: a[0] for name, a in rows.items()}, key))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.lax.scan(body, zeros, (jnp.arange(parts), rows))[0]


def ema_update(ema: Params, params: Params, step: Array, decay: float) -> Params:
    """Exponential moving average; in the first steps `s` the decay is lower, `(1 + s) / (10 + s)`."""
    step = step.astype(jnp.float32)
    now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: e + (1.0 - now) * (p - e), ema, params)
