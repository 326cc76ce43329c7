"""Files that are there whole or not at all, and locks that say who writes."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def partial(path: Path) -> Path:
    """A name, no other writer's, under which `path` is written until its last byte is there."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


def partials(path: Path) -> list[Path]:
    """What writers of `path` that were killed have left."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.*partial"))  # versions before put nothing for the star


def write_json(path: Path, tree: Any) -> None:
    """Write `tree` to `path`, whole or not at all, however many write it at once or if the power fails.

    Raises:
      ValueError: a number is NaN or infinite, which JSON has not.
    """
    temporary = partial(path)
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(tree, indent=1, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # or the name may reach the disk before the bytes
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_writable(folder: Path) -> Path:
    """Make `folder` if it is not there, see that files can be written into it, and return it.

    To be called before the work whose results go there.

    Raises:
      OSError: they cannot; the message says what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write into {folder} ({error.strerror or error}): name another --out") from error
    return folder


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock `path` alone; a process that is killed leaves none behind.

    Systems and file systems without locks go unguarded.

    Args:
      path: an empty file; it stays.
      wait: until the lock is free.

    Raises:
      BlockingIOError: another process holds it, and `wait` is false.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):  # Windows has no fcntl
            import fcntl

            file = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise
            except OSError:
                pass  # a file system without locks
        yield
