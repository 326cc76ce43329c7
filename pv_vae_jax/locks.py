"""Locks between processes: of the system on a disk, and objects with a sign of life in a bucket."""

import contextlib
import functools
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pv_vae_jax.storage import bucket_error, filesystem, is_remote, lost_locks

BEAT, EXPIRY = 15.0, 60.0  # seconds between two signs of life, and without one until the holder counts as dead


def locked(path: Path, wait: bool = False) -> contextlib.AbstractContextManager[None]:
    """A context that holds an exclusive lock on `path`; the lock of a process that is killed is released.

    There is no protection on systems and file systems without locks. In a bucket the lock is an object, created only if
    there is none, which its holder writes again every `BEAT` seconds: unwritten for `EXPIRY` seconds, or at once if its
    holder was a process of this machine that has ended, it is taken over.

    Args:
      path: lock file, created empty and kept; an object is removed.
      wait: wait until the lock is free instead of raising.

    Raises:
      BlockingIOError: another process holds it, and `wait` is false.
    """
    return _locked_object(path, wait) if is_remote(path) else _locked_file(path, wait)


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
        nonlocal generation
        while not ended.wait(BEAT):
            with contextlib.suppress(Exception):  # the bucket does not answer now
                if (found := _write(path, owner, generation)) is None:
                    lost_locks.add(str(path))
                    return
                generation = found

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(Exception):  # then it expires
            if str(path) not in lost_locks and _is_of(_look(path), owner):
                _object("DELETE", path, ifGenerationMatch=generation)
        lost_locks.discard(str(path))


def _take(path: Path, owner: dict[str, str], wait: bool) -> str:
    """Write the lock object if there is none, or only that of a process that has ended; returns its generation."""
    replaced = "0"  # no object
    while True:
        if generation := _write(path, owner, replaced):
            return generation
        found, replaced = _look(path), "0"
        ended = found and _holder_has_ended(path, found)
        if found and ended:
            replaced = found["generation"]
        elif found and ended is False and not wait:
            raise BlockingIOError(f"{path} is held by {_holder(found)}")


def _write(path: Path, owner: dict[str, str], generation: str) -> str | None:
    """Replace the lock object of this generation, "0" for none; returns the new one, or None if it is another's now.

    The condition is the store's own, so of many processes one succeeds.
    """
    bucket, name = str(path).removeprefix("gs://").split("/", 1)
    about = json.dumps({"name": name, "metadata": owner})
    body = f"--part\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{about}\r\n"
    body += f"--part\r\nContent-Type: text/plain\r\n\r\nheld by {_holder({'metadata': owner})}\r\n--part--"
    options = dict(uploadType="multipart", ifGenerationMatch=generation, data=body.encode(), json_out=True)
    address = filesystem().base.replace("/storage/v1/", "/upload/storage/v1/b/{}/o")
    try:
        headers = {"Content-Type": 'multipart/related; boundary="part"'}
        return filesystem().call("POST", address, bucket, headers=headers, **options)["generation"]
    except FileExistsError:  # or it is ours, by a request whose answer was lost
        return found["generation"] if (found := _look(path)) and _is_of(found, owner) else None
    except Exception as error:
        raise bucket_error(f"cannot write {path}", error) from error


def _is_of(found: dict | None, owner: dict[str, str]) -> bool:
    return found is not None and found["metadata"].get("token") == owner["token"]


def _holder_has_ended(path: Path, found: dict) -> bool | None:
    """Whether the holder of a lock has ended, which may take `EXPIRY` seconds; None if it is another's by now."""
    here = found["metadata"].get("machine") == _machine() != ""
    if here and not Path("/proc", found["metadata"]["process"]).exists():
        return True
    told = f"{path} is held by {_holder(found)}: waiting up to {EXPIRY:.0f} s for a sign of life from it"
    print(f"{told} (if it has ended, this ends the wait: gcloud storage rm {path})", file=sys.stderr, flush=True)
    until = time.monotonic() + EXPIRY
    while time.monotonic() < until:
        time.sleep(BEAT / 8)
        now = _look(path)
        if now is None or now["metadata"] != found["metadata"]:
            return None
        if now["generation"] != found["generation"]:
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


def _object(method: str, path: Path, **options: Any) -> Any:
    bucket, name = str(path).removeprefix("gs://").split("/", 1)
    return filesystem().call(method, "b/{}/o/{}", bucket, name, **options)


@functools.cache
def _machine() -> str:
    """What tells this machine, and this container on it, from others whose processes have the same numbers."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""
