"""Locks between processes: of the system on a disk, and objects with a sign of life in a bucket."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pv_vae_jax.storage import filesystem, is_remote, lost_locks

BEAT, EXPIRY = 15.0, 60.0  # seconds between two signs of life, and without one until the holder counts as dead


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the lock of a process that is killed is released.

    There is no protection on systems and file systems without locks. In a bucket the lock is an object, created only if
    there is none, which its holder touches every `BEAT` seconds: untouched for `EXPIRY` seconds, or at once if its
    holder was a process of this machine that has ended, it is taken over.

    Args:
      path: lock file, created empty and kept; an object is removed.
      wait: wait until the lock is free instead of raising.

    Raises:
      BlockingIOError: another process holds it, and `wait` is false.
    """
    with contextlib.ExitStack() as stack:
        if is_remote(path):
            stack.enter_context(_locked_object(path, wait))
        else:
            stack.enter_context(_locked_file(path, wait))
        yield


@contextlib.contextmanager
def _locked_file(path: Path, wait: bool) -> Iterator[None]:
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


@contextlib.contextmanager
def _locked_object(path: Path, wait: bool) -> Iterator[None]:
    owner = {"host": socket.gethostname(), "process": str(os.getpid()), "machine": _machine()}
    owner["token"] = secrets.token_hex(8)
    generation, ended = _take(path, owner, wait), threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            try:
                _object("PATCH", path, generation, json={"metadata": owner | {"beat": secrets.token_hex(8)}})
            except (FileNotFoundError, FileExistsError):  # it was removed, or is another process's
                lost_locks.add(str(path))
                return
            except Exception:  # the bucket does not answer now
                continue

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        if str(path) not in lost_locks:
            with contextlib.suppress(Exception):  # it expires
                _object("DELETE", path, generation)
        lost_locks.discard(str(path))


def _take(path: Path, owner: dict[str, str], wait: bool) -> str:
    """Create the lock object and return its generation."""
    while True:
        with contextlib.suppress(FileExistsError):  # or ours, by a request whose answer was lost
            filesystem().pipe_file(str(path), b"", metadata=owner, mode="create")
        if (found := _look(path)) is None:
            continue
        if found["metadata"].get("token") == owner["token"]:
            return found["generation"]
        if (ended := _holder_has_ended(path, found)) is None:
            continue
        if ended:
            with contextlib.suppress(FileNotFoundError, FileExistsError):  # another process was first
                _object("DELETE", path, found["generation"])
        elif not wait:
            raise BlockingIOError(f"{path} is held by {_holder(found)}")


def _holder_has_ended(path: Path, found: dict) -> bool | None:
    """Whether the holder of a lock has ended, which may take `EXPIRY` seconds; None if the lock has gone meanwhile."""
    if found["metadata"].get("machine") == _machine() != "":
        try:
            os.kill(int(found["metadata"]["process"]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    remove = f"gcloud storage rm {path}"
    told = f"{path} is held by {_holder(found)}: waiting up to {EXPIRY:.0f} s for a sign of life from it"
    print(f"{told} (if it has ended, this ends the wait: {remove})", file=sys.stderr, flush=True)
    until = time.monotonic() + EXPIRY
    while time.monotonic() < until:
        time.sleep(BEAT / 8)
        now = _look(path)
        if now is None or now["generation"] != found["generation"]:
            return None
        if now["metadata"] != found["metadata"]:
            return False
    return True


def _holder(found: dict) -> str:
    return "process {process} of {host}".format(**{"process": "?", "host": "?"} | found["metadata"])


def _look(path: Path) -> dict | None:
    """`generation` and `metadata` of an object; None if there is none."""
    try:
        return {"metadata": {}} | _object("GET", path, json_out=True)
    except FileNotFoundError:
        return None


def _object(method: str, path: Path, generation: str | None = None, **options: Any) -> Any:
    """A request about an object; with `generation` it fails by FileExistsError if the object is another one by now."""
    bucket, name = str(path).removeprefix("gs://").split("/", 1)
    return filesystem().call(method, "b/{}/o/{}", bucket, name, ifGenerationMatch=generation, **options)


@functools.cache
def _machine() -> str:
    """What tells this machine, and this container on it, from others whose processes have the same numbers."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""
