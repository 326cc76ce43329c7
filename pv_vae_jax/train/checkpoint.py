"""Training states through Orbax: written asynchronously and atomically, with checksums; the newest are kept."""

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from pv_vae_jax.params_io import complete_states, find_damage, ignore_abandoned_reads, one_line, write_checksums
from pv_vae_jax.sharding.processes import barrier, broadcast_string, is_primary_process
from pv_vae_jax.storage import BUCKET_MARK, is_remote, remedy, remove_tree

WRITE_LIMIT = 3600  # seconds for one state; Orbax's own 20 minutes are too few for large states on a mounted bucket
RENAMING = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.ATOMIC_RENAME)


class CheckpointError(OSError):
    """A state could not be written, as on a full disk, or none of the saved ones can be read."""


@dataclasses.dataclass(frozen=True)
class NewestRegular:
    """Orbax policy that keeps the newest state, and before it the newest that were saved on schedule.

    A state saved because of a signal serves to resume only. If it were kept longer, an interrupted stage would end with
    other states than an uninterrupted one, and studies score them.

    Attributes:
      keep: number of states to keep, at least 1.
      every: steps between two scheduled saves.
    """

    keep: int
    every: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether to keep each of the states, which are in the order of their steps."""
        steps = [info.step for info in checkpoints]
        regular = [step for step in reversed(steps[:-1]) if step % self.every == 0]
        kept = {*steps[-1:], *regular[: self.keep - 1]}
        return [step in kept for step in steps]


class Checkpoints:
    """Training states of one stage in `folder/<step>`.

    Orbax writes into a temporary folder and renames it after the last byte, so `latest` never finds the remains of a
    killed save; they are removed. With several processes, each writes its part of a state, and any number of processes
    and devices can read it. `checksums.json` is written into the temporary folder before it is renamed, by the writing
    thread, so that a byte that flips later is noticed when the state is read. A bucket checks bytes itself, and Orbax
    writes a mark last instead of renaming.

    Args:
      folder: folder of the states.
      keep, every: which states are kept, see `NewestRegular`.

    Raises (from `save` and `close`):
      CheckpointError: writing failed; the message names the newest complete state.
    """

    def __init__(self, folder: Path, keep: int = 2, every: int = 1):
        if is_primary_process():
            _clean(folder)
        barrier(f"checkpoints of {folder} are clean")
        self._folder, self._saving, remote = folder, -1, is_remote(folder)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=NewestRegular(keep, every),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            # Explicit: Orbax may come to write in place on mounted buckets, where a killed save would look complete.
            atomicity_options=None if remote else RENAMING,
            async_options=ocp.options.AsyncOptions(
                timeout_secs=WRITE_LIMIT, post_finalization_callback=None if remote else self._write_checksums
            ),
        )
        log = logging.getLogger("absl")
        if _is_news not in log.filters:
            log.addFilter(_is_news)
        self._manager = ocp.CheckpointManager(os.fspath(folder.absolute()), options=options)

    def latest(self) -> int | None:
        """Step of the newest complete state, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Start to write `state` in the background; does nothing if `step` is already saved."""
        if self.latest() != step:
            with self._writing():
                self._manager.wait_until_finished()
                self._saving = step
                self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, step: int, abstract_state: Any) -> Any:
        """State of `step` in the shapes, types and shardings of `abstract_state`."""
        ignore_abandoned_reads()
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))

    def restore_newest(self, abstract_state: Any) -> tuple[int, Any] | None:
        """The newest readable state and its step; None if no state was saved.

        Newer states that are damaged are renamed to `<step>.damaged`, with a message on stderr.

        Raises:
          CheckpointError: states were saved, but none can be read.
        """
        damaged, newest = {}, None
        for step in sorted(self._manager.all_steps(), reverse=True):
            if fault := broadcast_string(lambda step=step: find_damage(self._folder / str(step))):
                damaged[step] = fault
                continue
            try:
                newest = step, self.restore(step, abstract_state)
                break
            except Exception as error:  # what Orbax and TensorStore raise for damaged files is not one type
                damaged[step] = one_line(error)
                if jax.process_count() > 1:  # another process may have read its part
                    break
        faults = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        if faults and newest is None:
            raise CheckpointError(
                f"no training state in {self._folder} can be read ({faults}). Write it back from a copy, or remove the "
                f"folder to start the stage again"
            )
        for step, reason in damaged.items() if is_primary_process() else ():
            path = self._folder / str(step)
            # A bucket has it moved file by file: it is no state from now on.
            (path / BUCKET_MARK).unlink(missing_ok=True)
            remove_tree(aside := path.with_name(f"{step}.damaged"))  # of an earlier time, after which it was made anew
            path.rename(aside)
            print(f"{path} cannot be read ({reason}): set aside as {step}.damaged", file=sys.stderr)
        if damaged:
            barrier(f"damaged states of {self._folder} are set aside")
            self._manager.reload()
        return newest

    def close(self) -> None:
        """Wait until everything is on disk."""
        with self._writing():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    def _write_checksums(self) -> None:
        """Called by Orbax when all files of a state are written, before their folder is renamed."""
        if is_primary_process():
            folder = self._folder / str(self._saving)
            if not folder.is_dir():  # else Orbax writes in place
                temporary = self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
                folder = max(temporary, key=lambda path: path.stat().st_mtime)  # older ones are of killed processes
            write_checksums(folder)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # what Orbax and TensorStore raise for a full disk is not one type
            complete = complete_states(self._folder)
            newest = f"the state of step {complete[-1].name} is complete" if complete else "no earlier state exists"
            raise CheckpointError(
                f"a training state could not be written to {self._folder} ({one_line(error)}); {newest}. To go on, "
                f"{remedy(error) or 'find what the system objects to'}, then start the same command again"
            ) from error


def _clean(folder: Path) -> None:
    """Remove what an interrupted copy or deletion left of states."""
    complete = complete_states(folder)
    for state in sorted(folder.glob("[0-9]*")):
        if state.name.isdigit() and state not in complete:
            remove_tree(state)
            print(f"removed {state}: it is not whole", file=sys.stderr)


def _is_news(record: logging.LogRecord) -> bool:
    """False for errors that Orbax both raises and logs with a traceback, from every thread that meets them."""
    return not (record.exc_info and "orbax" in record.pathname)


def abstract(state: Any, sharding: Any) -> Any:
    """The shapes of a state with their shardings, for `Checkpoints.restore`."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, sharding)
