"""Atomic file writes, hashes of files, and locks between processes."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What mends an error of the system, by its number. Libraries in C++ may give the text of the number alone.
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give yourself the right to it, or use another folder"),
    errno.EROFS: "mount the disk for writing, or use another folder",
    errno.EFBIG: "allow larger files (ulimit -f), or use another file system",
}


def remedy(error: Exception) -> str | None:
    """What to do about a file that cannot be read or written; None for what no change of disks or rights mends."""
    number = getattr(error, "errno", None) or next((n for n in REMEDIES if os.strerror(n) in str(error)), None)
    return REMEDIES.get(number)


def partial(path: Path) -> Path:
    """A hidden name, unique to this writer, under which `path` is written until it is complete."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(8)}.partial{path.suffix}")


def partials(path: Path) -> list[Path]:
    """Temporary files that killed writers of `path` left behind, in this version or an earlier one."""
    name, stem, suffix = (glob.escape(part) for part in (path.name, path.stem, path.suffix))
    patterns = (f".{stem}.{'[0-9a-f]' * 16}.partial{suffix}", f".{name}.*partial")  # the second: earlier versions
    return [left for pattern in patterns for left in path.parent.glob(pattern)]


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; it becomes `path` when the block ends well, and is removed when it does not.

    Readers therefore see the old file or the complete new one, however many processes write it at once and even if the
    power fails. The suffix is kept, since some writers look at it (`.npz`, `.mp4`).
    """
    temporary = partial(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or the name may reach the disk before the bytes
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, tree: Any) -> None:
    """Write `tree` to `path` atomically.

    Raises:
      ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    write_text(path, json.dumps(tree, indent=1, allow_nan=False) + "\n")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_writable(folder: Path) -> Path:
    """Create `folder` if needed, check that it is writable, and return it. To be called before the work, not after it.

    Raises:
      OSError: files cannot be written there; the message says what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write into {folder} ({error.strerror or error}): choose another --out") from error
    return folder


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the lock of a process that is killed is released.

    There is no protection on systems and file systems without locks.

    Args:
      path: lock file, created empty and kept.
      wait: wait until the lock is free instead of raising.

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
