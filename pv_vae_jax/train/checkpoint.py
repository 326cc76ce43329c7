"""Full training states through Orbax: asynchronous, newest kept, never half of one taken for a whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """Training states of one stage in `folder/<step>`.

    Orbax writes into a temporary folder and renames it when the last byte is there, so a killed save leaves nothing
    that `latest` would pick up. What it does leave is removed.
    """

    def __init__(self, folder: Path, keep: int = 2):
        for step in folder.glob("[0-9]*"):
            if step.name.isdigit() and not (step / "_CHECKPOINT_METADATA").exists():
                shutil.rmtree(step, ignore_errors=True)  # a copy or a deletion that broke off
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Start to write `state`; training goes on meanwhile. Does nothing if `step` is already there."""
        if self.latest() != step:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, step: int, abstract_state: Any) -> Any:
        """State of `step` in the shapes, types and shardings of `abstract_state`."""
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def abstract(state: Any, sharding: Any) -> Any:
    """`ShapeDtypeStruct`s of a state with shardings, as `Checkpoints.restore` takes them."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, sharding)
