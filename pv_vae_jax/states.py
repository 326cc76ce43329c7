"""Training states: which there are in the folder of a stage, and tensors out of one, without reading the rest."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from pv_vae_jax.typing import Params, WeightsError

STATE_MARK = "_CHECKPOINT_METADATA"  # which Orbax writes last


def find_state(path: Path) -> Path | None:
    """The state that `path` means: itself, or the newest of a stage's folder; None if there is none."""
    if (path / STATE_MARK).exists():
        return path
    steps = [p for p in path.glob("checkpoints/*") if p.name.isdigit() and (p / STATE_MARK).exists()]
    return max(steps, key=lambda step: int(step.name), default=None)


def read_state(folder: Path, weights: str, shapes: Params) -> Params:
    """The parameters of a training state (a folder `.../checkpoints/<step>`) that `shapes` names; no other is read.

    Args:
      folder: the state.
      weights: `ema` for the moving average, `params` for what the optimiser moves.
      shapes: tree of what to read.

    Raises:
      WeightsError: tensors are missing, misshapen or not finite: all are named; or the state is damaged.
    """
    import orbax.checkpoint as ocp

    ignore_abandoned_reads()
    wanted: dict[str, Any] = flatten_dict(shapes, sep="/")
    item = {weights: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), shapes)}
    to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    place: Any = (folder / "default").absolute()  # Orbax's own type of paths takes ours
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            there = reader.metadata(place).tree[weights]
            flat: dict[str, Any] = flatten_dict(there, sep="/")
            found = {name: tuple(leaf.shape) for name, leaf in flat.items() if name in wanted}
            faults = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
            faults += [
                f"{name} has shape {shape}, expected {wanted[name].shape}"
                for name, shape in sorted(found.items())
                if shape != wanted[name].shape
            ]
            if faults:
                raise WeightsError(f"{folder} does not fit: " + "; ".join(faults))
            args = ocp.args.PyTreeRestore(item=item, partial_restore=True, restore_args=to_numpy)
            tree = reader.restore(place, args=args)[weights]
        except WeightsError:
            raise
        except Exception as error:  # what Orbax and TensorStore raise for damaged files is not one type
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(f"the training state {folder} is damaged: {reason}") from error
    values: dict[str, Any] = flatten_dict(tree, sep="/")
    if faults := [name for name, value in values.items() if not np.isfinite(value).all()]:
        raise WeightsError(f"{folder} does not fit: " + "; ".join(f"{name} is not finite" for name in faults))
    return tree


def ignore_abandoned_reads() -> None:
    """Keep what is left of a failed read silent.

    When one of a state's arrays cannot be read, Orbax closes its event loop while others are still under way. Each of
    them, often hundreds, would then print "Event loop is closed" after the error that says what to do.
    """
    previous = sys.unraisablehook
    if getattr(previous, "ignores_abandoned_reads", False):
        return

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            previous(unraisable)

    hook.ignores_abandoned_reads = True
    sys.unraisablehook = hook
