"""Full training states through Orbax: asynchronous, newest kept, never half of one taken for a whole."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from pv_vae_jax.params_io import STATE_MARK, ignore_abandoned_reads
from pv_vae_jax.sharding.processes import barrier, broadcast_string, is_primary_process
from pv_vae_jax.storage import write_json

CHECKSUMS = "checksums.json"  # in a state's folder: size and CRC-32 of its files
UNCHECKED = {CHECKSUMS, STATE_MARK, "commit_success.txt"}  # written by Orbax after the files of a state


class CheckpointError(OSError):
    """A state could not be written, most often because the disk is full, or none of those there can be read."""


@dataclasses.dataclass(frozen=True)
class NewestRegular:
    """Orbax policy: which states stay when another is there, the newest and before it the newest saved in turn.

    A state saved because of a signal is there to go on from. Were it kept longer, a stage that was interrupted would
    end with other states than one that was not, and a study scores them.

    Attributes:
      keep: states, at least 1.
      every: steps from one save in turn to the next.
    """

    keep: int
    every: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One answer each for states in the order of their steps."""
        steps = [info.step for info in checkpoints]
        regular = [step for step in steps[:-1] if step % self.every == 0]
        kept = {*regular[max(0, len(regular) - self.keep + 1) :], *steps[-1:]}
        return [step in kept for step in steps]


class Checkpoints:
    """Training states of one stage in `folder/<step>`.

    Orbax writes into a temporary folder and renames it when the last byte is there, so a killed save leaves nothing
    that `latest` would pick up. What it does leave is removed. With several processes each writes its part of a state,
    and any number of processes and devices can read it. `checksums.json` goes into the temporary folder before it is
    renamed, in the thread that writes, so that a byte that flips later is noticed when the state is read.

    Args:
      folder: of the states.
      keep, every: which states stay, see `NewestRegular`.

    Raises (from `save` and `close`):
      CheckpointError: writing failed; the message names the newest whole state.
    """

    def __init__(self, folder: Path, keep: int = 2, every: int = 1):
        for step in folder.glob("[0-9]*") if is_primary_process() else ():
            if step.name.isdigit() and not (step / STATE_MARK).exists():
                shutil.rmtree(step, ignore_errors=True)  # a copy or a deletion that broke off
        barrier(f"checkpoints of {folder} are clean")
        self._folder, self._saving = folder, -1
        options = ocp.CheckpointManagerOptions(
            preservation_policy=NewestRegular(keep, every),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        log = logging.getLogger("absl")
        if _is_news not in log.filters:
            log.addFilter(_is_news)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Start to write `state`; training goes on meanwhile. Does nothing if `step` is already there."""
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
        """The newest state that can be read, and its step; None without any.

        Newer ones that are damaged are set aside as `<step>.damaged`, and named on stderr.

        Raises:
          CheckpointError: there are states, and none can be read.
        """
        steps, damaged = sorted(self._manager.all_steps(), reverse=True), {}
        for step in steps:
            if fault := broadcast_string(lambda step=step: find_damage(self._folder / str(step))):
                damaged[step] = fault
                continue
            try:
                state = self.restore(step, abstract_state)
            except Exception as error:  # what Orbax and TensorStore raise for damaged files is not one type
                damaged[step] = " ".join(str(error).split())[:200]
                if jax.process_count() > 1:  # another process may have read its part
                    break
                continue
            for bad, reason in damaged.items() if is_primary_process() else ():
                path = self._folder / str(bad)
                path.rename(path.with_name(f"{bad}.damaged"))
                print(f"{path} cannot be read ({reason}): set aside as {bad}.damaged", file=sys.stderr)
            if damaged:
                barrier(f"damaged states of {self._folder} are set aside")
                self._manager.reload()
            return step, state
        if damaged:
            faults = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise CheckpointError(
                f"no training state in {self._folder} can be read ({faults}). Write it back from a copy, or remove the "
                f"folder to start the stage again"
            )
        return None

    def close(self) -> None:
        """Wait until everything is on disk."""
        with self._writing():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    def _write_checksums(self) -> None:
        """Called by Orbax when all files of a state are written, and none of them is in its place yet."""
        if is_primary_process():
            (folder,) = self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
            write_json(folder / CHECKSUMS, checksums(folder))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # what Orbax and TensorStore raise for a full disk is not one type
            steps = [p for p in self._folder.iterdir() if p.name.isdigit()]  # others are being written
            whole = [int(p.name) for p in steps if (p / STATE_MARK).exists()]
            newest = f"the state of step {max(whole)} is whole" if whole else "there is none from before"
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(
                f"a training state could not be written to {self._folder} ({reason}); {newest}. Make room, then start "
                f"the same command again"
            ) from error


def checksums(folder: Path) -> dict[str, list[int]]:
    """`[size, CRC-32]` of every file below `folder` that holds part of a state, by its path in there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in UNCHECKED)
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, _crc32(path)] for path in files}


def find_damage(folder: Path) -> str:
    """Which file of a state is not as it was written; "" if all are, or if the state is older than checksums."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
        for name, (size, crc) in expected.items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                return f"{name} is gone" if found is None else f"{name} has {found} bytes of {size}"
            if _crc32(path) != crc:
                return f"{name} has other bytes than were written"
    except FileNotFoundError:
        return ""
    except (ValueError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} is damaged: {error}"
    return ""


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            value = zlib.crc32(part, value)
    return value


def _is_news(record: logging.LogRecord) -> bool:
    """Not an error that Orbax logs with its traceback, from every thread that meets it, and raises as well."""
    return not (record.exc_info and "orbax" in record.pathname)


def abstract(state: Any, sharding: Any) -> Any:
    """`ShapeDtypeStruct`s of a state with shardings, as `Checkpoints.restore` takes them."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, sharding)
